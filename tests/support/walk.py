"""The functions of evalsvc that a value passes, in order, while a real request is answered.

A value is on its way in a call that receives the value, a part of the value, or what an earlier function of the walk
returned. Small values, such as numbers and short texts, are not followed: they are shared by all of a process.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import CodeType, FrameType

import evalsvc

PACKAGE = str(Path(evalsvc.__file__).parent) + "/"

SHORT_TEXT = 12
"""Characters of a text that may be anybody's."""

DEPTH = 3
"""Levels of parts that belong to a value."""

MOST_PARTS = 64
"""Parts of a list or a mapping that are followed."""

SMALL = (bool, int, float, complex, type, type(None), Path)


def name_of(code: CodeType) -> str:
    """Return `package.module.function`; what a function defines inside is a part of the function."""
    module = code.co_filename.removeprefix(PACKAGE).removesuffix(".py").replace("/", ".")
    return f"{module.removesuffix('.__init__')}.{code.co_qualname.partition('.<locals>')[0]}"


def parts_of(value: object, depth: int = DEPTH) -> Iterator[object]:
    """Return the value and its parts that can be told from those of other values."""
    if isinstance(value, SMALL) or callable(value) or (isinstance(value, str | bytes) and len(value) < SHORT_TEXT):
        return
    yield value
    if depth == 0 or isinstance(value, str | bytes):
        return
    inner: list[object] = []
    if isinstance(value, list | tuple | set | frozenset):
        inner = list(value)[:MOST_PARTS]
    elif isinstance(value, Mapping):
        inner = list(value.values())[:MOST_PARTS]
    elif is_dataclass(value):
        inner = [getattr(value, item.name, None) for item in fields(value)]
    elif hasattr(type(value), "model_fields"):
        inner = list(vars(value).values())
    for part in inner:
        yield from parts_of(part, depth - 1)


@dataclass
class Walk:
    """Functions that a value passed, in order, and the types that the value had."""

    start: str
    parameter: str | None
    """Parameter of the first function that is the value; None for what the first function returns."""
    end: str | None = None
    """Function with whose return the walk is over; None for a walk to the end of the context."""
    functions: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    _known: dict[int, object] = field(default_factory=dict)
    """The value and what came of it, by identity; kept, so that no identity is used again."""
    _frames: set[FrameType] = field(default_factory=set)
    _over: bool = False

    @contextmanager
    def pausing(self, over: bool = True) -> Iterator[None]:
        """Follow nothing inside of the context."""
        self._over = over
        try:
            yield
        finally:
            self._over = not over

    def going_on(self) -> AbstractContextManager[None]:
        """Follow values inside of the context, within a pause."""
        return self.pausing(over=False)

    def _follow(self, value: object) -> None:
        for part in parts_of(value):
            self._known[id(part)] = part

    def _watch(self, frame: FrameType, event: str, argument: object) -> None:
        if self._over or event not in ("call", "return") or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        if event == "return":
            if frame in self._frames:
                self._frames.discard(frame)
                self._follow(argument)
                self._over = name_of(frame.f_code) == self.end
            return
        name = name_of(frame.f_code)
        if not self.functions and name == self.start:
            if self.parameter is None:
                self._frames.add(frame)
                self.functions.append(name)
                return
            self._follow(frame.f_locals[self.parameter])
        received = [frame.f_locals[given] for given in _parameters(frame.f_code) if given in frame.f_locals]
        known = [part for value in received for part in parts_of(value, 1) if id(part) in self._known]
        if known:
            self._frames.add(frame)
            if name not in self.functions:
                self.functions.append(name)
            self.types = list(dict.fromkeys([*self.types, *(type(part).__name__ for part in known)]))


def _parameters(code: CodeType) -> tuple[str, ...]:
    number = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
    return code.co_varnames[:number]


@contextmanager
def walking(start: str, parameter: str | None = None, end: str | None = None) -> Iterator[Walk]:
    """Follow a value through what runs in this thread, and in threads that begin inside of the context."""
    walk = Walk(start, parameter, end)
    threading.setprofile(walk._watch)
    sys.setprofile(walk._watch)
    try:
        yield walk
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
