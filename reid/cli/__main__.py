"""``python -m reid.cli``: the same as the command ``reid``."""

from reid.cli import main

main()
