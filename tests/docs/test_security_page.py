"""Each guard of the security page exists, names its attacker, and is attacked; no attacker is without a guard."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "security.md").read_text()
ATTACKERS = re.findall(r"^\| `([a-z ]+)` \| [^`|]", PAGE.split("## The attackers")[1].split("\n## ")[0], re.MULTILINE)
GUARDS = re.findall(r"^\| `([^`]+)` \| .+ \| `([^`]+)` \| `([^`]+)` \|$", PAGE.split("## The guards")[1], re.MULTILINE)


def test_every_attacker_has_a_guard() -> None:
    assert set(ATTACKERS) == {attacker for attacker, _, _ in GUARDS}
    section = PAGE.split("## The guards")[1].split("\n## ")[0]
    assert len(GUARDS) == sum(line.startswith("|") for line in section.splitlines()) - 2, "each row is read"


@pytest.mark.parametrize(("attacker", "module", "test"), GUARDS)
def test_a_guard_names_its_attacker_and_is_attacked(attacker: str, module: str, test: str) -> None:
    said = ast.get_docstring(ast.parse((ROOT / module).read_text())) or ""
    assert f"`{attacker}`" in said.split("\n\n")[0]
    assert "def test_" in (ROOT / test).read_text()
