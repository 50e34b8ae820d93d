"""What the dictionary in a torch.save file says of itself, read without torch and without carrying anything out."""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any

from evalsvc.checkpoints.torch_archive import read_pickle
from evalsvc.errors import NotACheckpoint

OTHER = object()
"""Stands for every value that is no plain number or text."""

_MARK = object()

_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_NAMES = ("GLOBAL", "INST", "PERSID")
"""Instructions with a text that is not a value."""


def read_outline(path: Path) -> dict[str, Any]:
    """The keys of the file's dictionary with their values, where these are numbers or texts, else with OTHER.

    Empty where it holds no dictionary.

    Raises:
        NotACheckpoint: it is cut off, or no file of torch.save's since 1.6.
        OSError: it cannot be read.
    """
    try:
        return outline(read_pickle(path))
    except (ValueError, IndexError, KeyError, EOFError) as error:
        raise NotACheckpoint(f"{path} is damaged: its pickle breaks off; copy or write it again") from error


def outline(content: bytes) -> dict[str, Any]:
    """Of a pickle. Its instructions are followed on a stack that has plain values and, at most, flat dictionaries."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for instruction, argument, _place in pickletools.genops(content):
        name = instruction.name
        if name in _PUTS:
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _GETS:
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("SETITEM", "SETITEMS"):
            pairs = _popped_to_mark(stack) if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
            _enter(stack[-1], pairs)
        elif name == "STOP":
            found = stack.pop()
            return found if isinstance(found, dict) else {}
        else:
            _follow(stack, instruction, argument)
    return {}


def _follow(stack: list[Any], instruction: pickletools.OpcodeInfo, argument: Any) -> None:
    wanted = list(instruction.stack_before)
    if pickletools.markobject in wanted:
        _popped_to_mark(stack)
        wanted = wanted[: wanted.index(pickletools.markobject)]
    for _ in wanted:
        stack.pop()
    is_plain = isinstance(argument, (int, float, str)) and not wanted and instruction.name not in _NAMES
    stack.extend(argument if is_plain else OTHER for _ in instruction.stack_after)


def _popped_to_mark(stack: list[Any]) -> list[Any]:
    taken = []
    while (value := stack.pop()) is not _MARK:
        taken.append(value)
    return taken[::-1]


def _enter(target: Any, pairs: list[Any]) -> None:
    if isinstance(target, dict):
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if isinstance(key, str):
                target[key] = value if isinstance(value, (int, float, str)) else OTHER
