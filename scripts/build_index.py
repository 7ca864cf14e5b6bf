"""Embed a gallery and build its index: ``python scripts/build_index.py [--data MANIFEST]``; see --help."""

import sys

from reid.cli import main

if __name__ == "__main__":
    main(["index", "build", *sys.argv[1:]])
