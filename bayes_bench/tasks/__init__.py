"""What is compared: suites and their tasks, read, checked, and made concrete."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # of torch, nothing before it is used
