"""Names of runs and checkpoints, foreign text for display, and the retention rule in a setting."""

import pytest

from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.spec.artifact_policy import Retention, parse_retention
from evalsvc.spec.names import checkpoint_name, parse_checkpoint, parse_run
from evalsvc.spec.visible_text import check_visible, visible, visible_line


def test_names_of_checkpoints_and_runs() -> None:
    assert parse_checkpoint("t2i-1b.x@400") == ("t2i-1b.x", 400, "raw")
    assert parse_checkpoint("a@0:ema_0.9999") == ("a", 0, "ema_0.9999")
    assert checkpoint_name(*parse_checkpoint("a@0:ema_0.9999")) == "a@0:ema_0.9999"
    assert checkpoint_name("a", 0, "raw") == "a@0"
    assert parse_run("a:ema") == ("a", "ema")
    assert parse_run("a") == ("a", "raw")
    for wrong in ("a", "a@", "a@-1", "a@\u0663", "a@1.5", "a@" + "9" * 19, "@1", "a@1:b/c"):
        with pytest.raises(InvalidRequest, match="is not a checkpoint; write RUN@STEP or RUN@STEP:VARIANT"):
            parse_checkpoint(wrong)
    with pytest.raises(
        UnknownName, match="no checkpoint 'a@9007199254740992': the largest step is 9,007,199,254,740,991"
    ):
        parse_checkpoint(f"a@{2**53}")
    with pytest.raises(InvalidRequest, match="is not a run; write RUN or RUN:VARIANT"):
        parse_run("a@1")


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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10", "it is not an object"),
        ("{", "Expecting property name"),
        ("{}", "it keeps nothing"),
        ('{"last": 0}', "last is 0 and must be a number above 0"),
        ('{"last": true}', "last is True"),
        ('{"every": 1.5}', "every is 1.5"),
        ('{"most": 3}', "unexpected keyword argument 'most'"),
        ('{"best": 3}', "best is 3 and must be the name of a metric"),
    ],
)
def test_what_is_no_rule_is_refused_with_an_example(text: str, words: str) -> None:
    """A rule that is read wrongly would delete what somebody wanted to keep."""
    assert parse_retention(' {"last": 3, "days": 1.5, "best": "a/b"}') == Retention(last=3, days=1.5, best="a/b")
    assert parse_retention("") is None
    with pytest.raises(InvalidRequest, match=rf'{words}.*write e.g. {{"last": 10'):
        parse_retention(text)
