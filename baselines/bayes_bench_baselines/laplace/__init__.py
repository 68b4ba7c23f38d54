"""A Gaussian around one trained network."""
