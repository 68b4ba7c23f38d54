"""What the program stands on: machine, files, signals, installed packages. Knows no network, imports no torch."""
