"""Bayesian uncertainty for neural networks: HyperGAN and its baselines behind one interface.

The public names stand in ``__init__.pyi``. They are imported when first used, so that the command line's help does not
wait for PyTorch.
"""

from typing import Any

import lazy_loader

__version__ = "0.1.0"
_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __getattr__(name: str) -> Any:
    """A public name, or a registered method's class or settings by the name of the class."""
    try:
        return _public(name)
    except AttributeError:
        from bayes_bench.host import plugins

        if (found := plugins.by_attribute((plugins.METHODS, plugins.CONFIGS), name)) is None:
            raise
        return found
