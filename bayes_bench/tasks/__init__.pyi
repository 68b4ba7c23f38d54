from .spec import SuiteSpec as SuiteSpec
from .spec import TaskSpec as TaskSpec
from .suites import load_suite as load_suite
from .task import Task as Task
from .task import build_task as build_task
