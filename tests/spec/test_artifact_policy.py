"""The rule in a setting."""

import pytest

from evalsvc.errors import InvalidRequest
from evalsvc.spec.artifact_policy import Retention, parse_retention


def test_a_rule_and_none() -> None:
    assert parse_retention(' {"last": 3, "days": 1.5, "best": "a/b"}') == Retention(last=3, days=1.5, best="a/b")
    assert parse_retention("") is None


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
def test_what_is_none_is_refused_with_an_example(text: str, words: str) -> None:
    """A rule that is read wrongly would delete what somebody wanted to keep."""
    with pytest.raises(InvalidRequest) as refused:
        parse_retention(text)
    assert words in refused.value.message
    assert 'write e.g. {"last": 10' in refused.value.message
