"""Many networks at once: weights ``[S, …]`` on inputs ``[B, …]``; ``network`` is the interface."""
