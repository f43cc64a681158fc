"""Processes, checkpoints, learning rate, TensorBoard and pictures: one module for each job."""

import os

# GCC's OpenMP reads this when torch is imported. Its threads spin while they wait for each other:
# by default for milliseconds, so that one whose core another process holds keeps the rest busy with
# nothing. A tenth of a millisecond costs a training step alone nothing, and beside one busy process
# saves a fifth; OMP_WAIT_POLICY=PASSIVE, no spinning, costs it up to 5 % alone.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
