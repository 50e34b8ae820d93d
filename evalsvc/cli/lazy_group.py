"""Groups of commands, with plain help and lazily imported commands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group_from_info
from typer.models import TyperInfo

_TYPE = re.compile(r"<list\[(\w+)\]>|<(\w+) range>")
_DEFAULT = re.compile(r"\[default: \(([^()]*)\)")


@dataclass(frozen=True)
class Entry:
    """Module of a command, and the line of the command in the list of commands."""

    module: str
    """Dotted name of a module with a `typer.Typer` named `commands`."""
    section: str
    help: str


class CommandGroup(TyperGroup):
    """Group whose help shows the whole first paragraph of every command."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        shown = {name: command for name, command in self.commands.items() if not command.hidden}
        with formatter.section("Commands"):
            formatter.write_dl([(name, (item.help or "").partition("\n\n")[0]) for name, item in shown.items()])


def add_group(commands: typer.Typer, name: str, about: str) -> typer.Typer:
    group = typer.Typer(cls=CommandGroup, no_args_is_help=True, help=about)
    commands.add_typer(group, name=name)
    return group


class Announced(TyperCommand):
    """Placeholder of a command until the command runs, with the command's name and line in the list."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(name, help=entry.help)
        self.entry = entry

    def load(self) -> Any:
        info = TyperInfo(import_module(self.entry.module).commands)
        # Help by rich cuts the names of options on a narrow terminal; plain help wraps.
        group = get_group_from_info(info, pretty_exceptions_short=True, suggest_commands=True, rich_markup_mode=None)
        command = group.commands[str(self.name)]
        _name_arguments(command)
        return command

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Load the command, and make the context in which the command runs or completes its arguments."""
        return self.load().make_context(*arguments, **options)


class LazyGroup(CommandGroup):
    """Group that lists commands, for help and completion, without importing their modules."""

    entries: Mapping[str, Entry]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {name: Announced(name, entry) for name, entry in self.entries.items()}

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the words name. An argument or option with a wrong value is told with this value."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = _with_value(error)
            raise

    def format_options(self, ctx: Any, formatter: Any) -> None:
        # The usage line and the epilogue name the options of `evalsvc` itself, so that the help fits a screen.
        formatter.write_paragraph()
        width = max(map(len, self.entries))
        for title, entries in groupby(self.entries.items(), key=lambda named: named[1].section):
            formatter.write(f"{title}:\n")
            with formatter.indentation():
                formatter.write_dl([(name.ljust(width), entry.help) for name, entry in entries])


def _name_arguments(command: Any) -> None:
    command.context_class = _Context
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            parameter.metavar = parameter.metavar or parameter.name.upper()
    for member in getattr(command, "commands", {}).values():
        _name_arguments(member)


class _Context(typer.Context):
    """Context whose help has `RUN` for `{run}`, `<int>` for `<list[int]>`, and `[default: all]` for `(all)`."""

    def make_formatter(self) -> Any:
        formatter: Any = super().make_formatter()
        write, write_rows = formatter.write_usage, formatter.write_dl

        def write_usage(program: str, arguments: str = "", prefix: str | None = None) -> None:
            write(program, re.sub(r"\{([^{}]*)\}", r"\1", arguments), prefix)

        def write_dl(rows: Sequence[tuple[str, str]], *spacing: int, **widths: int) -> None:
            names = [_TYPE.sub(lambda match: f"<{(match[1] or match[2]).lower()}>", name) for name, _ in rows]
            texts = [_DEFAULT.sub(r"[default: \1", text) for _, text in rows]
            write_rows(list(zip(names, texts, strict=True)), *spacing, **widths)

        formatter.write_usage, formatter.write_dl = write_usage, write_dl
        return formatter


def _with_value(error: typer.BadParameter) -> str:
    """Return what is wrong with a value, and the value: pydantic's message alone has neither name nor value."""
    findings = getattr(error.__cause__, "errors", None)
    if findings is None:
        return error.message
    finding = findings()[0]
    message = str(finding["msg"]).removeprefix("Value error, ")
    shown = repr(finding["input"])[:160]
    return message if shown in message else f"{message}, found {shown}"
