"""Makes the helpers in one folder of tests importable from the others."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("data", "evaluation")]
