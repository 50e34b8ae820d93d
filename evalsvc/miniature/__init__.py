"""The miniature: a small real text-to-image run with its data, in the package. README.md lists its files."""

from pathlib import Path

ROOT = Path(__file__).parent
