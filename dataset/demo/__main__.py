"""`python -m dataset.demo`: write the demo data set."""

import sys

from dataset.demo.writer import main

if __name__ == "__main__":
    sys.exit(main())
