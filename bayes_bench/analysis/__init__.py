"""Several jobs: frames of their records, intervals, best marks, ranks, changes between two runs."""
