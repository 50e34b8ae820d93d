"""How large evalsvc may be: ceilings, which fall with every clearing.

Rules that bound the size of a function bound no room and no number of features. A ceiling rises only where somebody
shows the user who would miss the feature, and better where another feature goes.
"""

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest
from reference_pages.commands import all_commands

import evalsvc
from evalsvc.api.app import create_app
from evalsvc.config import Settings, setting_help

PACKAGE = Path(evalsvc.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

ROOM_CEILINGS: Mapping[str, tuple[int, int]] = {
    ".": (1_690, 9),
    "api": (6_110, 35),
    "assets": (620, 5),
    "checkpoints": (3_680, 19),
    "cli": (6_010, 35),
    "client": (1_410, 9),
    "cluster": (1_240, 8),
    "compare": (2_520, 13),
    "data": (1_960, 9),
    "decoders": (1_450, 11),
    "doctor": (1_580, 9),
    "families": (1_950, 13),
    "features": (1_360, 11),
    "files": (1_420, 13),
    "language": (3_520, 16),
    "metrics": (3_810, 25),
    "miniature": (10, 1),
    "models": (3_770, 15),
    "sampling": (1_360, 8),
    "scoring": (260, 2),
    "service": (980, 5),
    "spec": (4_950, 29),
    "store": (6_100, 35),
    "tasks": (7_090, 40),
    "verify": (960, 6),
    "watch": (900, 5),
    "web": (3_420, 21),
    "worker": (990, 7),
}
"""The most lines, and files, of each package; those in the root of evalsvc are `.`."""

CEILINGS: Mapping[str, int] = {
    "lines": 71_020,
    "files": 414,
    "commands": 51,
    "options": 307,
    "routes": 50,
    "settings": 34,
    "modules in the root": 8,
    "imports inside functions": 20,
}

SLACK = 1.05
"""A ceiling is at most so many times what there is: one far above it holds nothing."""


def room_sizes() -> Mapping[str, tuple[int, int]]:
    """Return the lines and the files of each package."""
    sizes: dict[str, tuple[int, int]] = {}
    for file in FILES:
        room = file.relative_to(PACKAGE).parts[0] if file.parent != PACKAGE else "."
        lines, files = sizes.get(room, (0, 0))
        sizes[room] = lines + len(file.read_text().splitlines()), files + 1
    return sizes


def inner_imports() -> list[str]:
    """Return the imports inside of functions, as `path:line`."""
    return sorted(
        {
            f"{file.relative_to(PACKAGE)}:{node.lineno}"
            for file in FILES
            for function in ast.walk(ast.parse(file.read_text()))
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
    )


@pytest.fixture(scope="module")
def counts() -> Mapping[str, int]:
    """What there is of everything that has a ceiling."""
    commands = [command for command in all_commands() if not command.subcommands]
    app = create_app(Settings())
    return {
        "lines": sum(lines for lines, _ in room_sizes().values()),
        "files": len(FILES),
        "commands": len(commands),
        "options": sum(len(command.options) for command in commands),
        "routes": sum(len(operations) for operations in app.openapi()["paths"].values()),
        "settings": len(setting_help()),
        "modules in the root": len([file for file in PACKAGE.glob("*.py") if file.stem != "__init__"]),
        "imports inside functions": len(inner_imports()),
    }


def test_no_package_is_larger_than_its_ceiling() -> None:
    over = {
        room: (size, ROOM_CEILINGS.get(room))
        for room, size in room_sizes().items()
        if room not in ROOM_CEILINGS or any(have > most for have, most in zip(size, ROOM_CEILINGS[room], strict=True))
    }
    assert over == {}, "take something out, or say in the commit who would miss it"


@pytest.mark.parametrize("noun", CEILINGS)
def test_there_is_no_more_than_the_ceiling(noun: str, counts: Mapping[str, int]) -> None:
    assert counts[noun] <= CEILINGS[noun], "take something out, or say in the commit who would miss it"


def test_a_ceiling_follows_what_it_holds(counts: Mapping[str, int]) -> None:
    sizes = room_sizes()
    assert set(ROOM_CEILINGS) == set(sizes), "a package that is gone has no ceiling"
    loose = {room: most for room, (most, _) in ROOM_CEILINGS.items() if most > max(sizes[room][0] * SLACK, 50)}
    assert loose == {}, f"lower the ceilings of packages: {loose}"
    loose = {noun: most for noun, most in CEILINGS.items() if most > counts[noun] * SLACK + 1}
    assert loose == {}, f"lower the ceilings: {loose}"
