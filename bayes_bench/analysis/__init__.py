"""Several jobs: frames of their records, intervals, best marks, ranks, changes between two runs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
