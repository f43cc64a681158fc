"""What `make bench` and `make bench-metrics` run."""
