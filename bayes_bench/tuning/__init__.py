"""The search for settings of a method, by validation scores alone."""
