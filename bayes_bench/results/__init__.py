"""What a job leaves on disk, and the checks before anyone believes it. Imports no torch."""
