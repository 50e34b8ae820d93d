"""Text of others: a terminal that obeyed it could be made to show or do anything."""

import pytest

from evalsvc.spec.visible_text import check_visible, visible, visible_line


@pytest.mark.parametrize(
    "text",
    ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "a\rb", "\b\b", "\x7f", "\u202eabc", "\u2066", "\u2028", "\ud800", "\0"],
)
def test_control_characters_are_written_out(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert shown.startswith(text[0] if text[0] in "a" else "\\")
    with pytest.raises(ValueError, match=r"control character \\[xu][0-9a-f]+ at position \d+; remove it") as error:
        check_visible(text)
    assert str(error.value).isprintable()


def test_what_is_none_stays() -> None:
    for text in ("coco/fid", "naïve 漢字 e\u0301 👩\u200d🚀 \xa0", "[bold]"):
        assert visible(text) == visible_line(text) == check_visible(text) == text
    assert visible("a\n\tb") == "a\n\tb"
    assert visible_line("a\n\tb") == r"a\x0a\x09b"
