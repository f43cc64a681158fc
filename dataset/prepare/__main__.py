"""`python -m dataset.prepare`: fetch, unpack and check data sets."""

import sys

from dataset.prepare.command import main

if __name__ == "__main__":
    sys.exit(main())
