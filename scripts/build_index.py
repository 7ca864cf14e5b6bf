"""Embed a gallery and build its index: ``python scripts/build_index.py [--data MANIFEST]``; see --help.

With the name of a verb of ``reid index`` as the first word, such as ``add`` or ``verify``, it does the same as that.
"""

import sys

from reid.cli import main
from reid.cli.index import VERBS

if __name__ == "__main__":
    words = sys.argv[1:]
    main(["index", *([] if words[:1] and words[0] in VERBS else ["build"]), *words])
