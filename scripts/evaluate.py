"""Evaluate weights on a data set: ``python scripts/evaluate.py [--data MANIFEST] [--weights FILE]``; see --help."""

import sys

from reid.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
