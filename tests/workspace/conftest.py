"""Puts the made models on the path; decoding and comparing need no gradients unless a test asks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
