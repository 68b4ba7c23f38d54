"""Bayesian uncertainty for neural networks: HyperGAN and its baselines behind one interface.

The public names stand in ``__init__.pyi``. They are imported when first used, so that the command line's help does not
wait for PyTorch.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
