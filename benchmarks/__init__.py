"""What `make bench` and `make bench-metrics` run."""

import utils  # noqa: F401  (how OpenMP waits, as in run.py)
