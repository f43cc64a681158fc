"""Infrastructure: processes, checkpoints, learning rate, TensorBoard, files."""

import os

# GCC's OpenMP reads this when torch is imported. Its threads spin while they wait for each other,
# by default for milliseconds, so that a thread without a core keeps the others busy. Spinning for
# a tenth of a millisecond costs a training step nothing on an idle machine and saves a fifth beside
# one busy process. OMP_WAIT_POLICY=PASSIVE, no spinning, costs up to 5 % on an idle machine.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
