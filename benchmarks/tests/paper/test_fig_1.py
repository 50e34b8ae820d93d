"""Figure 1: published values."""

from __future__ import annotations

from fig_1 import PROTOCOL, PUBLISHED


def test_published_values_name_source_and_family() -> None:
    assert len({value.run for value in PUBLISHED}) == len(PUBLISHED)
    assert all("arXiv" in value.source for value in PUBLISHED)
    assert {"auto-regressive", "diffusion"} < {value.family for value in PUBLISHED}
    assert {value.fid for value in PUBLISHED if "2311.16201" in value.source} == {12.21, 12.27}
    assert "30,000" in PROTOCOL
