"""Methods by name, and our own."""
