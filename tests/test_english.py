"""Rules of plain English that a program can check; reviews check the others. Docstrings are shown without the lines
around them: in the OpenAPI document, in the tables of settings and parameters, in editors. A docstring that needs the
line above it says nothing there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import evalsvc

PACKAGE = Path(evalsvc.__file__).parent

HOUSE = "aftermath|astray|beside|crew|duties|duty|elsewhere|strikes"
"""Words of this project alone. The field says post-processing, stale, next to, worker state, on another machine."""

NOT_A_VERB = (
    "A|All|An|And|As|At|Both|By|Each|Every|For|From|How|If|In|It|Its|No|Of|On|One|Or|Several|Some|That|The|Their|These|"
    "They|This|Those|To|Two|What|When|Where|Whether|Which|Who|Whoever|Whose|Why|With|Without"
)
"""First words of sentences that do not begin with a verb."""

VAGUE = "found|mine|one|some|there"
"""Names that do not say what a variable holds."""

RULES: Mapping[str, re.Pattern[str]] = {
    "a docstring begins with Of": re.compile(r'^ *r?"""Of .*', re.MULTILINE),
    "a function's docstring has no verb": re.compile(
        r"(?<!property\n)^ *(?:async )?def \w+\((?:[^\n]*|\n(?:[^\n]*\n)*? *\)[^\n]*):(?:  #[^\n]*)?\n"
        rf' *r?"""(?:{NOT_A_VERB})\b.*',
        re.MULTILINE,
    ),
    "a house word": re.compile(
        rf"(?<![a-zA-Z])(?i:{HOUSE})(?![a-z])|(?<=[a-z])(?:{HOUSE.title()})(?![a-z])|(?i:\bhand(?:s|ed)? out\b)"
        r"|(?i:\blet(?:s|ting)? go\b)"
    ),
    "a vague name": re.compile(
        rf"^ *(?:{VAGUE})(?:: [^=\n]+)? = .*|\bfor (?:\(?\w+, )*\(?(?:{VAGUE})(?:, \w+)*\)? in .*|\b(?:{VAGUE}) := .*",
        re.MULTILINE,
    ),
}


@cache
def sources() -> Mapping[str, str]:
    return {str(file.relative_to(PACKAGE)): file.read_text() for file in sorted(PACKAGE.rglob("*.py"))}


def findings(rule: str) -> Iterator[str]:
    for path, source in sources().items():
        for match in RULES[rule].finditer(source):
            line = source.count("\n", 0, match.end()) + 1
            yield f"{path}:{line} {match[0].splitlines()[-1].strip()[:80]}"


@pytest.mark.parametrize("rule", RULES)
def test_no_text_breaks_a_rule(rule: str) -> None:
    assert list(findings(rule)) == []


EXAMPLES: Mapping[str, tuple[list[str], list[str]]] = {
    "a docstring begins with Of": (
        ['    batch: int\n    """Of images."""'],
        ['    batch: int\n    """Offset of the batch."""'],
    ),
    "a function's docstring has no verb": (
        [
            'def f() -> None:\n    """What it is."""',
            'async def f(\n    x: int,\n) -> None:\n    """The sum."""',
            '    @cache\n    def f(self) -> int:\n        """Whether it is."""',
        ],
        [
            'def f() -> None:\n    """Return the sum."""',
            '    @property\n    def f(self) -> Path:\n        """The folder."""',
            'def f() -> int:\n    return 1\n\n\nX = 1\n"""The number."""',
            'def f(x): ...\n\n\nclass A:\n    """The field."""',
            'def f(\n    x: int,\n): ...\n\n\nclass A:\n    """The field."""',
        ],
    ),
    "a house word": (
        ["find_elsewhere = 1", "MAX_BESIDE = 1", "class WorkerDuty: ...", "# It runs elsewhere.", "# Handed out."],
        ["understanding = outstanding = screw = 1"],
    ),
    "a vague name": (
        ["found = 1", "    some: set = x", "[one for one in x]", "for i, (key, found) in x:", "if (found := f()):"],
        ["founder = handsome = None", '    """The first one in a list."""'],
    ),
}
"""Texts that break a rule once, and texts that do not."""


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_finds_what_breaks_it_and_nothing_else(rule: str) -> None:
    wrong, right = EXAMPLES[rule]
    assert [text for text in wrong if len(RULES[rule].findall(text)) != 1] == []
    assert [text for text in right if RULES[rule].search(text)] == []
