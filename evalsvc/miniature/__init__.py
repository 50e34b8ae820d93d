"""The miniature: a small real text-to-image run with its data, in the package. README.md says what is what."""

from pathlib import Path

ROOT = Path(__file__).parent
