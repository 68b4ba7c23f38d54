from .changes import compare_runs as compare_runs
from .merging import merge as merge
from .records import Run as Run
from .records import load_run as load_run
from .statistics import compare as compare
