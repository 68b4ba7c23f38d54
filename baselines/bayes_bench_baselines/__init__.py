"""The methods that HyperGAN is compared with: plug-ins like anybody's, a folder for each family.

They are registered through the entry points a third party would use and import public names of
``bayes_bench`` only.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
