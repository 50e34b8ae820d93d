"""Check the page of the findings: that it says what the committed numbers say, and three numbers a second time.

    python benchmarks/paper/check.py
    python benchmarks/paper/check.py --work DIR --data evalsvc/miniature [--limit N]

Without a work folder, all reports are made again from the readings in `results/`, and must equal the reports there and
the page. With one, three numbers are computed again from the checkpoints alone, by plain torch, without evalsvc: the
total loss of the pre-trained and of the random start at the last step, first seed; the gap of the two with its standard
error over pairs; and the loss of general text before the training. The exit code is 1 if anything differs, a number by
more than `TOLERANCE` of its size.
"""

from __future__ import annotations

import argparse
import json
import sys
from math import sqrt
from pathlib import Path
from typing import Any

import torch
import yaml
from plain_model import PlainModel

TOLERANCE = 1e-4
RESULTS = Path(__file__).with_name("results")
PAGE = Path(__file__).parents[2] / "docs" / "paper.md"


def sequence(layout: dict[str, Any], text: list[int], codes: list[int]) -> list[int]:
    """Return the ids of a record in the order of the layout's template."""
    special, filled = layout["special"], {"TEXT": text, "IMAGE": [layout["image"]["offset"] + code for code in codes]}
    return [token for part in layout["template"] for token in filled.get(part, [special.get(part)])]


def sums(model: PlainModel, records: list[list[int]], kinds: range | None = None) -> list[tuple[float, int]]:
    """Return (Σ nll, number of tokens) of each record, over the targets within `kinds`."""
    rows = []
    for ids in records:
        losses, targets = model.losses(ids), torch.tensor(ids[1:])
        chosen = torch.ones_like(targets, dtype=torch.bool)
        if kinds is not None:
            chosen = (targets >= kinds.start) & (targets < kinds.stop)
        rows.append((float(losses[chosen].sum()), int(chosen.sum())))
    return rows


def mean(rows: list[tuple[float, int]]) -> float:
    """Return Σ nll / Σ tokens."""
    return sum(row[0] for row in rows) / sum(row[1] for row in rows)


def paired_error(a: list[tuple[float, int]], b: list[tuple[float, int]]) -> float:
    """Return the standard error of b − a over the same records: of a linearised ratio, with n − 1.

    √(n / (n − 1) · Σ u²) / Σ w, with u the difference of a record's Σ nll less the mean difference times its tokens w.
    """
    gap, count = mean(b) - mean(a), len(a)
    parts = [(after[0] - before[0]) - gap * before[1] for before, after in zip(a, b, strict=True)]
    return sqrt(count / (count - 1) * sum(part**2 for part in parts)) / sum(row[1] for row in a)


def last_checkpoint(folder: Path) -> Path:
    """Return the checkpoint of the highest epoch."""
    return max((folder / "checkpoints").glob("epoch_*.pt"), key=lambda path: int(path.stem.partition("_")[2]))


def recomputed(work: Path, data: Path, limit: int | None) -> dict[str, float]:
    """Return the three numbers by the names of `results.json`; the first seed is the lowest."""
    layout = yaml.safe_load((data / "runs" / "layout.yaml").read_text())
    pairs = [json.loads(line) for line in (data / "heldout_pairs.jsonl").read_text().splitlines()][:limit]
    texts = [json.loads(line) for line in (data / "heldout_text.jsonl").read_text().splitlines()][:limit]
    records = [sequence(layout, row["text_ids"], row["image_codes"]) for row in pairs]
    general = [row["text_ids"] for row in texts]
    config = data / "runs" / "pretrained" / "open_lm_miniature.json"
    folders = {start: min((work / "trainings").glob(f"{start}-*/")) for start in ("pretrained", "random")}
    rows = {start: sums(PlainModel(last_checkpoint(folder), config), records) for start, folder in folders.items()}
    first = PlainModel(folders["pretrained"] / "checkpoints" / "epoch_0.pt", config)
    text_block = range(layout["text"]["offset"], layout["text"]["offset"] + layout["text"]["size"])
    return {
        "fig_3/total_pretrained": mean(rows["pretrained"]),
        "fig_3/total_random": mean(rows["random"]),
        "fig_3/gap_0": mean(rows["pretrained"]) - mean(rows["random"]),
        "fig_3/gap_0_stderr": paired_error(rows["random"], rows["pretrained"]),
        "fig_4/general_pretrained_first": mean(sums(first, general, text_block)),
    }


def differences_of(page: Path, folder: Path) -> list[str]:
    """Return what differs between a page, the reports in a folder of results, and those made again from the readings.

    The material of a report is asked for its files only while it is computed.
    """
    import paper
    from study.measured import Measured
    from study.page import part_of
    from study.scales import SCALES

    found = []
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text())
        measured, scale = Measured(readings=results["readings"]), SCALES[results["scale"]]
        material: Any = None
        for finding in paper.FINDINGS:
            if finding.name in results["findings"]:
                again = finding.report(measured, scale, material).to_json() | {"title": finding.title}
                if again != results["findings"][finding.name]:
                    found.append(f"{path.name}: the report of {finding.name} is another than its readings make")
        if part_of(results) not in page.read_text():
            found.append(f"{page.name}: the part `{results['scale']}` is another than that of {path.name}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="work folder of the findings [check the page]")
    parser.add_argument("--data", type=Path, help="folder of the miniature's held-out data")
    parser.add_argument("--limit", type=int, help="number of held-out records, as the scale has it [all]")
    options = parser.parse_args()
    if options.work is None:
        differences = differences_of(PAGE, RESULTS)
        print("\n".join(differences) or f"{PAGE} says what {RESULTS} has")
        return 1 if differences else 0
    findings = json.loads((options.work / "results.json").read_text())["findings"]
    differing = 0
    for name, value in recomputed(options.work, options.data, options.limit).items():
        finding, _, number = name.partition("/")
        reported = findings[finding]["numbers"][number]
        differs = abs(value - reported) > TOLERANCE * max(abs(value), abs(reported))
        differing += differs
        print(f"{name:36} service {reported:.6f}   plain {value:.6f}   {'DIFFERS' if differs else 'equal'}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
