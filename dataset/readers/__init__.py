"""One file per data set: where its files are, and what its labels mean."""
