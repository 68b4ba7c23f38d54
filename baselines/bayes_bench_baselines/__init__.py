"""The methods that HyperGAN is compared with: plug-ins like anybody's, one file each.

They are registered through the entry points a third party would use and import public names of
``bayes_bench`` only.
"""
