"""One trained network, or several."""
