"""The page of the findings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from study.page import write_page


def results(scale: str, agrees: str) -> dict[str, Any]:
    row = {"paper": "the same", "here": "0.1 | 0.2", "agrees": agrees, "limits": "small"}
    content = {"title": "Figure 3", "row": row, "figures": [{"name": "fig_3", "title": "Gap"}], "tables": ["| a |"]}
    return {"scale": scale, "seconds": 600, "cores": 2, "findings": {"fig_3": content}}


def test_a_page_keeps_the_parts_of_other_scales(tmp_path: Path) -> None:
    (tmp_path / "fig_3.svg").write_text("<svg/>")
    page = tmp_path / "docs" / "paper.md"
    page.parent.mkdir()
    write_page(page, results("miniature", "yes"), tmp_path)
    write_page(page, results("real", "in part"), tmp_path)
    write_page(page, results("miniature", "no"), tmp_path)
    text = page.read_text()
    assert text.count("## In miniature") == text.count("## On a real language model") == 1
    assert "| no |" in text
    assert "| in part |" in text
    assert "| yes |" not in text
    assert "0.1 \\| 0.2" in text, "a bar would end the cell"
    assert text.count("without a correction for the number of intervals") == 2
    assert (page.parent / "images/paper/real/fig_3.svg").exists()
    assert "](images/paper/real/fig_3.svg)" in text
