"""Groups of commands: one whose commands are imported when they are asked for, and one with a default command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from typer.core import TyperCommand, TyperGroup
from typer.main import get_group


@dataclass(frozen=True)
class Entry:
    """Where a command is, and what is said of it in the help of the group."""

    module: str
    """Dotted name of a module with a `typer.Typer` that is called `commands`."""
    help: str
    """First paragraph of the command's own help."""


class Announced(TyperCommand):
    """What stands for a command until it is run: its name and the first paragraph of its help."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(name, help=entry.help)
        self.entry = entry

    def load(self) -> Any:
        """Import the module, and return the command itself."""
        return get_group(import_module(self.entry.module).commands).commands[str(self.name)]

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Begin to run the command, or to complete its arguments: from here on it is the command itself."""
        return self.load().make_context(*arguments, **options)


class LazyGroup(TyperGroup):
    """Lists commands, for help and for the completion of their names, without importing any."""

    entries: Mapping[str, Entry]
    """By the name of the command, in the order in which help lists them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {name: Announced(name, entry) for name, entry in self.entries.items()}


class DefaultGroup(TyperGroup):
    """A group that runs its command `default` where none is named; `GROUP --help` is the help of the group."""

    default: str

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        is_own = args[0] in self.commands or args[0] == "--help" if args else self.no_args_is_help
        return super().parse_args(ctx, args if is_own else [self.default, *args])
