"""`python -m modules.pretrained FILE` describes a weight file; see `modules.weights.pretrained`."""

import sys

from modules.weights.pretrained import main
from utils.errors import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
