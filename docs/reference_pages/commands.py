"""The commands of the command line with their parameters, read from Typer."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from typer.main import get_command
from typer.models import ParameterInfo

from evalsvc.cli.lazy_group import Announced
from evalsvc.cli.program import app
from reference_pages.markdown import NONE, bounded, code, codes

TYPES = {str: "text", int: "whole number", float: "number", Path: "path", bool: "flag"}


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a command."""

    name: str
    """The parameter of the command's function, such as `data_dir`."""
    shown: str
    """The argument's or option's name on the command line, such as `--data-dir`."""
    kind: str
    """The type in words."""
    default: str
    help: str
    is_required: bool
    is_repeated: bool


@dataclass(frozen=True)
class Command:
    """A command, or a group of commands."""

    name: str
    """The words after `evalsvc`, such as `token create`."""
    help: str
    arguments: tuple[Parameter, ...]
    options: tuple[Parameter, ...]
    subcommands: tuple[str, ...]
    subcommand: str
    """The place of the subcommand in the command line; empty if there are none."""

    @property
    def usage(self) -> str:
        """The command line: required arguments as they are, optional ones in brackets."""
        words = ["evalsvc", self.name]
        words += ["[OPTIONS]"] if self.options else []
        words += [_in_usage(argument) for argument in self.arguments]
        return " ".join([*words, self.subcommand]).rstrip()


def all_commands() -> Iterator[Command]:
    """Yield every command and every subcommand, in the order of `evalsvc --help`."""
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        yield from _read(name, command)


def _read(name: str, command: Any) -> Iterator[Command]:
    loaded = command.load() if isinstance(command, Announced) else command
    members = getattr(loaded, "commands", {})
    read = [(item.param_type_name, _parameter(item, loaded.callback)) for item in loaded.params if not item.hidden]
    yield Command(
        name,
        inspect.cleandoc(loaded.help or ""),
        tuple(parameter for kind, parameter in read if kind == "argument"),
        tuple(parameter for kind, parameter in read if kind == "option"),
        tuple(members),
        loaded.subcommand_metavar if members else "",
    )
    for member, subcommand in members.items():
        yield from _read(f"{name} {member}", subcommand)


def _parameter(item: Any, callback: Any) -> Parameter:
    hint = get_type_hints(inspect.unwrap(callback), include_extras=True)[item.name]
    annotation, info = _unpacked(hint)
    is_argument = item.param_type_name == "argument"
    return Parameter(
        item.name,
        (item.metavar or item.name.upper()) if is_argument else ", ".join([*item.opts, *item.secondary_opts]),
        _in_words(annotation, info),
        _default(item),
        item.help or "",
        item.required,
        item.nargs == -1 or bool(getattr(item, "multiple", False)),
    )


def _unpacked(hint: Any) -> tuple[Any, ParameterInfo | None]:
    """Return the type of a parameter without `| None`, and what Typer was told of the parameter."""
    info = None
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        info = next((extra for extra in extras if isinstance(extra, ParameterInfo)), None)
    if get_origin(hint) in (Union, types.UnionType):
        [hint] = [kind for kind in get_args(hint) if kind is not type(None)]
    return hint, info


def _in_words(annotation: Any, info: ParameterInfo | None) -> str:
    if get_origin(annotation) is list:
        return _in_words(get_args(annotation)[0], info) + ", repeatable"
    if get_origin(annotation) is Literal:
        return codes(get_args(annotation))
    least, most = (info.min, info.max) if info else (None, None)
    return bounded(TYPES[annotation], least, most)


def _default(item: Any) -> str:
    if item.required:
        return "required"
    if isinstance(item.show_default, str):
        return item.show_default
    if isinstance(item.default, bool):
        return code("on") if item.default else NONE
    return NONE if item.default in (None, "", (), []) else code(item.default)


def _in_usage(argument: Parameter) -> str:
    shown = argument.shown if argument.is_required else f"[{argument.shown}]"
    return f"{shown}..." if argument.is_repeated and not argument.shown.endswith("...") else shown
