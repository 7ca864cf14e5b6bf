"""Serve the application on the default data: ``python demo/app.py [--port 7860]``, the same as ``reid serve``."""

import sys

from reid.app.application import main

if __name__ == "__main__":
    sys.exit(main())
