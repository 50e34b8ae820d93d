"""Record the values of small evaluations again: `python tests/golden/values/make.py [--moved]`, see README.md."""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[2] / "support"))

from small_evaluations import SMALL, evaluations, lines_of, moved, record, recorded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moved", action="store_true", help="record numbers that moved under the same protocol, too")
    force = parser.parse_args().moved
    torch.set_num_threads(1)
    lines = []
    for kind in SMALL:
        with tempfile.TemporaryDirectory() as folder:
            lines += lines_of(kind, evaluations(kind, Path(folder)))
    problems = list(moved(recorded(), lines))
    if problems and not force:
        sys.exit("\n".join([*problems, "nothing was recorded"]))
    record(lines)
    print(f"recorded {len(lines)} values")


if __name__ == "__main__":
    main()
