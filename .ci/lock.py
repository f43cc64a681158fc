"""Leave torch's CUDA packages out of a lock file: torch's wheel decides which of them it wants."""

import re
import sys

HEAD = """\
# Made by `make lock`. torch and torchvision, with the CUDA packages that they bring, are pinned by
# version in requirements.txt: their wheels differ between machines, so that no hash fits all.
"""

if __name__ == "__main__":
    blocks = re.findall(r"^\S.*?(?=^\S|\Z)", sys.stdin.read(), re.MULTILINE | re.DOTALL)
    kept = [block for block in blocks if not re.match(r"nvidia-|cuda-|triton|#", block)]
    sys.stdout.write(HEAD + "".join(kept))
