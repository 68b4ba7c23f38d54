"""A generator taught by the networks of a chain."""
