"""A trained network made ready for evaluation, and as a file for other programs."""
