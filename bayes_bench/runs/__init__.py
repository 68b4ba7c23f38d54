"""Many jobs, one folder: run them, verify the folder, run one again."""
