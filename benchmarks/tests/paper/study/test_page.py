"""The page of the findings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from study.page import write_page


def results(scale: str, gap: float) -> dict[str, Any]:
    row = {"paper": "the same", "here": "0.1 | 0.2", "limits": "small"}
    claim = {"says": "same", "values": [gap, gap], "errors": [0.1, 0.1], "region": "within", "bound": 1.0}
    content = {"title": "Figure 3", "row": row, "figures": [{"file": "fig_3.svg", "title": "Gap"}]}
    content |= {"claims": [claim], "tables": ["| a |"], "against": f"The gap is {gap}."}
    return {"scale": scale, "findings": {"fig_3": content}}


def test_a_page_keeps_the_parts_of_other_scales(tmp_path: Path) -> None:
    (tmp_path / "fig_3.svg").write_text("<svg/>")
    page = tmp_path / "docs" / "paper.md"
    page.parent.mkdir()
    write_page(page, results("miniature", 0.0), tmp_path)
    write_page(page, results("real", 1.0), tmp_path)
    write_page(page, results("quick", 0.0), tmp_path)
    write_page(page, results("miniature", 9.0), tmp_path)
    text = page.read_text()
    assert text.count("## In miniature") == text.count("## On a real language model") == 1
    for verdict in ("no", "undecided", "not measured"):
        assert text.count(f"| {verdict} |") == 1
    assert "| yes |" not in text
    assert text.index("- The gap is 9.0.") < text.index("| finding |"), "what speaks against the paper comes first"
    assert "0.1 \\| 0.2" in text, "a bar would end the cell"
    assert (page.parent / "images/paper/real/fig_3.svg").exists()
    assert "](images/paper/real/fig_3.svg)" in text
