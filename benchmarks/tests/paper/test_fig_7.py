"""Figure 7: the tokens next to an image token."""

from __future__ import annotations

from fig_7 import nearest_of


def test_nearest_tokens_are_read_from_the_page_of_the_task() -> None:
    page = (
        "nearest text tokens of the 2 most frequent of 2 image tokens\n"
        "by the cosine of the rows, and of the rows less the mean of their kind (centred)\n\n"
        "‹image 29›  in 24 images\n  rows    ‹a› 0.38\n  centred ‹b› 0.36\n\n"
        "‹image 3›  in 2 images\n  rows    ‹c› 0.1\n  centred ‹c› 0.1\n"
    )
    assert nearest_of(page) == {"‹image 29›": "‹a› 0.38", "‹image 3›": "‹c› 0.1"}
