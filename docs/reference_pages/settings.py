"""The page of the settings."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import Field
from typing import Any

from evalsvc.config import PREFIX, SETTINGS, range_words
from reference_pages.commands import all_commands
from reference_pages.markdown import NONE, code, codes, sentence, table

TYPES = {str: "text", int: "whole number", float: "number"}

OWN_OPTIONS = {("demo", "data_dir"), ("demo", "devices"), ("scheduler", "host"), ("scheduler", "port")}
"""Options that have the name of a setting and a value of their own, as (command, parameter)."""

MOST_COMMANDS = 6
"""More commands than this are not listed by name."""

INTRODUCTION = f"""\
# Settings

Every setting is an environment variable that begins with `{PREFIX}`. Many settings are also options of commands; an
option takes precedence over the variable. `evalsvc doctor` shows the values in force and what is missing for an
evaluation.

A variable that begins with `{PREFIX}` and is no setting is ignored with a warning. No warning is given for the
variables that Kubernetes sets for a Service named `evalsvc` or `evalsvc-…`, such as
`EVALSVC_PORT=tcp://10.0.0.1:8321`.

A *secret* is never shown and is not passed to worker processes."""

HEAD = ("variable", "option", "type", "default", "what")


def page() -> str:
    """Return docs/reference/settings.md."""
    options = options_of_settings()
    return f"{INTRODUCTION}\n\n{table(HEAD, [_row(item, options) for item in SETTINGS])}\n"


def options_of_settings() -> Mapping[str, Sequence[str]]:
    """Return the commands that have an option for a setting, by the setting's name."""
    names = {item.name for item in SETTINGS}
    commands = defaultdict(list)
    for command in all_commands():
        for option in command.options:
            if option.name in names and (command.name, option.name) not in OWN_OPTIONS:
                commands[option.name].append(command.name)
    return commands


def _row(item: Field[Any], options: Mapping[str, Sequence[str]]) -> list[str]:
    text, _, shown = item.metadata["help"].removesuffix("]").partition(" [")
    kind = TYPES[type(item.default)] + (", secret" if item.metadata["secret"] else "")
    if "range" in item.metadata:
        kind += f", {range_words(*item.metadata['range'])}"
    return [
        code(PREFIX + item.name.upper()),
        _option(item.name, options.get(item.name, ())),
        kind,
        shown or (code(item.default) if item.default != "" else NONE),
        sentence(re.sub(r"(?<!`)EVALSVC_[A-Z_]+", lambda match: code(match[0]), text)),
    ]


def _option(name: str, commands: Sequence[str]) -> str:
    if not commands:
        return NONE
    option = code("--" + name.replace("_", "-"))
    where = codes(commands) if len(commands) <= MOST_COMMANDS else f"{len(commands)} commands"
    return f"{option} of {where}"
