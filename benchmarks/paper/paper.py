"""Compute all findings of the paper, and write their page.

    python benchmarks/paper/paper.py [--scale miniature|quick|real] [--work DIR] [--write docs/paper.md]

The paper is Zhang, McKinzie, Gan, Shankar, Toshev, "Pre-trained Language Models Do Not Help Auto-regressive
Text-to-Image Generation" (arXiv 2311.16201). `--only fig_3 fid` computes some of its findings, and each file of a
finding runs alone, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import check
import fid
import fig_1
import fig_2
import fig_3
import fig_4
import fig_5
import fig_6
import fig_7
import section_2_1
import table_1
from study.computing import as_file, compute, options_of
from study.finding import Finding
from study.page import write_page

from evalsvc.files.atomic import write_whole

FINDINGS: Sequence[Finding] = (
    fig_1.FINDING,
    fig_2.FINDING,
    fig_3.FINDING,
    fig_4.FINDING,
    table_1.FINDING,
    fid.FINDING,
    fig_5.FINDING,
    fig_6.FINDING,
    fig_7.FINDING,
    section_2_1.FINDING,
)


def main() -> None:
    parser = options_of(__doc__)
    names = [finding.name for finding in FINDINGS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="FINDING", help=f"some of {', '.join(names)} [all]")
    parser.add_argument("--write", type=Path, metavar="FILE", help="page to write the scale's part of")
    options = parser.parse_args()
    chosen = [finding for finding in FINDINGS if finding.name in (options.only or names)]
    computation = compute(chosen, options)
    if options.write is not None and not options.estimate:
        results = computation.results()
        write_page(options.write, results, computation.figures)
        if options.write.resolve() == check.PAGE:
            kept = check.RESULTS / f"{computation.scale.name}.json"
            write_whole(kept, as_file(results), mode=0o644)
        print(f"wrote {options.write}")


if __name__ == "__main__":
    main()
