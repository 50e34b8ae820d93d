"""Which data files the benchmarks of a suite's own folders need, read without lm-eval, whose import takes seconds.

What is wrong with a definition is told where it is loaded, not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from evalsvc.language.registry import Entry, Kind, scan


def named_files(names: Iterable[str], include_path: Sequence[Path], resolve: Callable[[str], str]) -> Iterator[Path]:
    """The data files in the definitions of benchmarks; `resolve` gives the local path of `datasets:NAME`.

    Names that `include_path` does not have are lm-eval's, whose data are on the hub. Groups are passed over.
    """
    defined: dict[str, Entry] = {}
    for folder in reversed(include_path):
        defined |= scan(folder)
    for path in (path for name in names for path in _definitions(name, defined)):
        options = _read(path, frozenset()).get("dataset_kwargs")
        if isinstance(options, dict):
            yield from _paths(options.get("data_files"), path.parent, resolve)


def _definitions(name: str, defined: Mapping[str, Entry]) -> Iterator[Path]:
    entry = defined.get(name)
    if entry is None:
        return
    if entry.kind is Kind.benchmark and entry.path is not None:
        yield entry.path
    for member in entry.members:
        yield from _definitions(member, defined)


class _Loader(yaml.SafeLoader):
    """Functions that lm-eval would import are nothing here."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _read(path: Path, before: frozenset[Path]) -> dict[str, Any]:
    """What a definition says, what it includes first."""
    try:
        content = yaml.load(path.read_bytes(), Loader=_Loader)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(content, dict) or path in before:
        return {}
    includes = content.get("include") or []
    merged: dict[str, Any] = {}
    for include in includes if isinstance(includes, list) else [includes]:
        merged |= _read((path.parent / str(include)).resolve(), before | {path})
    return merged | content


def _paths(names: Any, folder: Path, resolve: Callable[[str], str]) -> Iterator[Path]:
    """The files of `data_files`; relative ones start at the definition's `folder`, patterns and addresses are none."""
    if isinstance(names, str) and "://" not in names and not set(names) & set("*?[]"):
        yield folder / (resolve(names) if names.startswith("datasets:") else names)
    for value in names.values() if isinstance(names, dict) else names if isinstance(names, list) else ():
        yield from _paths(value, folder, resolve)
