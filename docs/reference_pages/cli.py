"""The page of the command line."""

from __future__ import annotations

from collections.abc import Iterable

from evalsvc.cli.program import INTERRUPTED, WRONG_USE
from evalsvc.config import PREFIX, SETTINGS
from reference_pages.commands import Command, Parameter, all_commands
from reference_pages.markdown import anchor, block, code, codes, prose, sentence, table
from reference_pages.settings import OWN_OPTIONS

INTRODUCTION = f"""\
# Command line

`evalsvc -h` lists the commands, `evalsvc COMMAND -h` shows one command, and `evalsvc --version` shows the version.
`evalsvc --install-completion` installs [completion](../how-to/command-line.md) for the shell. `evalsvc --version
--verbose` shows what a bug report needs, and no secrets: the commit, Python, the settings that differ
from their defaults, and the versions of all packages that evalsvc computes with.

Options that are [settings](settings.md) also have an environment variable. An option or argument that is *repeatable*
takes several values: repeat the option, or give several arguments.

An [error](errors.md) is one line on standard error that ends with the error's code in brackets; the exit code is then
{WRONG_USE}. Ctrl-C ends a command with the exit code {INTERRUPTED}."""


def page() -> str:
    """Return docs/reference/cli.md."""
    commands = list(all_commands())
    listed = table(
        ("command", "what"),
        [(_link(command.name), command.help.split("\n\n")[0]) for command in commands],
    )
    return "\n\n".join([INTRODUCTION, listed, *map(_section, commands)]) + "\n"


def _link(name: str) -> str:
    return f"[{code(name)}]({anchor(f'evalsvc {name}')})"


def _section(command: Command) -> str:
    parts = [f"## `evalsvc {command.name}`", prose(command.help), block("text output", command.usage)]
    if command.subcommands:
        parts.append(f"Commands: {codes(command.subcommands)}.")
    if command.arguments:
        parts.append(_parameters("argument", command, command.arguments))
    if command.options:
        parts.append(_parameters("option", command, command.options))
    return "\n\n".join(parts)


def _parameters(kind: str, command: Command, parameters: Iterable[Parameter]) -> str:
    rows = [(code(one.shown), one.kind, _default(command.name, one), sentence(one.help)) for one in parameters]
    return table((kind, "type", "default", "what"), rows)


def _default(command: str, parameter: Parameter) -> str:
    """Return the default; of an option that is a setting, first the setting's variable."""
    settings = {item.name for item in SETTINGS}
    is_option = parameter.shown.startswith("-")
    if is_option and parameter.name in settings and (command, parameter.name) not in OWN_OPTIONS:
        return f"{code(PREFIX + parameter.name.upper())}, else {parameter.default}".removesuffix(", else –")
    return parameter.default
