"""One thread: the networks of the tests are too small to gain from more, and busy machines make them lose."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
