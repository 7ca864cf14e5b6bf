"""Train one experiment: ``python scripts/train.py scripts/experiments/NAME.toml``; see --help."""

import sys

from reid.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
