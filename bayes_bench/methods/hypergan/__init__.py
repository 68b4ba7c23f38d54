"""HyperGAN (Ratzlaff & Li, ICML 2019, arXiv:1901.11058): a generator of whole network weights.

``config`` holds the settings (no torch), ``mixer``, ``generators`` and ``discriminator`` the parts, and
``hypergan`` the method that joins them.
"""
