"""YAML files that define benchmarks, with all included files.

lm-eval's files are trusted: they are installed, and so are the Python functions that they name. A YAML file that a
suite names by `include_path` is data, which anyone who can post a suite may have written. `schema` lists its allowed
keys; the checked bytes are the used bytes; and it may include only files, lm-eval's too, that keep to the same list.
With EVALSVC_ALLOW_BENCHMARK_CODE=1 the operator trusts every file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from evalsvc.config import Settings
from evalsvc.data.files import read_bytes
from evalsvc.errors import EvalsvcError, InvalidData
from evalsvc.files.opened import Allow, anywhere
from evalsvc.language.catalog import MAX_FILE, Registry, shipped_folder
from evalsvc.language.schema import ALLOW, BUILDERS, by_split, check_benchmark_file
from evalsvc.spec.paths import Readable, local_data
from evalsvc.spec.yaml_text import YamlError, read_yaml

RUNS_CODE = ("score/math",)
"""Folders of lm-eval whose functions run text of the model or of a row as Python, though their files do not say
`unsafe_code`: this one by SymPy's `parse_expr`. A test searches the installed release for others."""

MAX_INCLUDES = 100

Config = Mapping[str, object]
"""Keys of benchmark files with their values, as in lm-eval. lm-eval's files may have any key."""


@dataclass(frozen=True)
class Rules:
    """Rights of YAML files outside lm-eval, and the location of their data."""

    allow_code: bool = False
    """Whether every file is trusted as lm-eval's files are."""
    resolve: Callable[[str], str] = str
    """Function from an absolute path or `datasets:NAME` to the local path; raises InvalidData if it may not be read."""
    allow: Allow = anywhere
    """Check of every open file of a submitter, since links may have been inserted."""

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        return cls(bool(settings.allow_benchmark_code), partial(local_data, settings), Readable(settings))


@dataclass(frozen=True)
class Definition:
    """Benchmark or group, merged from its YAML file and the included files."""

    config: Config
    """Keys and values; paths of local data files are absolute."""
    trusted: bool
    """Whether the functions that it names may be called. If not, it keeps to `schema`."""
    unsafe: bool = False
    """Whether any of its files says `unsafe_code` or is in `RUNS_CODE`."""


def read_definition(path: Path, rules: Rules, *, functions: bool, closed: bool = False) -> Definition:
    """Read a YAML file. With `functions`, the functions that `!function` names are imported; else they stay strings.
    With `closed`, a file of lm-eval's must keep to `schema` too, since a submitter's group changes it."""
    path = path.resolve()
    if rules.allow_code or (_is_shipped(path) and not closed):
        return _read_trusted(path, functions, [])
    return Definition(_read_closed(path, rules, []), trusted=False)


def text_of(config: Config, *keys: str) -> str | None:
    return next((value for value in map(config.get, keys) if isinstance(value, str) and value), None)


def mapping_of(config: Config, key: str) -> dict[str, object]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def local_files(config: Config) -> dict[str, list[str]] | None:
    """Return the names of a definition's local data files by split; None where a dataset of the hub has the rows."""
    if config.get("dataset_path") not in BUILDERS:
        return None
    files = mapping_of(config, "dataset_kwargs").get("data_files")
    return by_split(files) if files else {}


def named_files(names: Iterable[str], include_path: Sequence[Path], rules: Rules) -> Iterator[Path]:
    """Yield the data files of the benchmarks in a suite's folders, without importing lm-eval. Groups are skipped, and
    so are unusable definitions, whose errors are raised when they are loaded."""
    with suppress(EvalsvcError):
        registry = Registry(include_path, rules.allow)
        for path in (path for name in names for path in registry.local_benchmark_files(name)):
            with suppress(EvalsvcError):
                files = local_files(read_definition(path, rules, functions=False).config) or {}
                yield from (Path(rules.resolve(name)) for names in files.values() for name in names)


def _read_closed(path: Path, rules: Rules, files: list[Path]) -> dict[str, object]:
    _add_file(path, files)
    try:
        content = read_yaml(read_bytes(path, anywhere if _is_shipped(path) else rules.allow, MAX_FILE))
    except YamlError as error:
        hint = (
            f"; it runs code, which a benchmark file may not: remove it, {ALLOW}" if "!function" in str(error) else ""
        )
        raise InvalidData(f"the benchmark file {path} is not YAML as a benchmark file may be: {error}{hint}") from None
    if not isinstance(content, dict):
        raise InvalidData(f"the benchmark file {path} holds no mapping; it needs the key `task` or `group`")
    if _is_shipped(path) and (options := mapping_of(content, "dataset_kwargs")):
        # of versions of `datasets` that ran scripts
        kept = {key: value for key, value in options.items() if key != "trust_remote_code"}
        content = {**content, "dataset_kwargs": kept}
    checked = check_benchmark_file(f"the benchmark file {path}", content)
    merged: dict[str, object] = {}
    for include in _list(checked.pop("include", None) or []):
        merged |= _read_closed((path.parent / str(include)).resolve(), rules, files)
    return {**merged, **(checked if _is_shipped(path) else _anchored(checked, merged.get("dataset_path"), path))}


def _read_trusted(path: Path, functions: bool, files: list[Path]) -> Definition:
    # Importing lm-eval takes a second, and `evalsvc doctor` checks data files without lm-eval.
    from evalsvc.language.private import load_yaml

    _add_file(path, files)
    try:
        content = load_yaml(path, resolve_func=functions, recursive=False)
    except ImportError:
        raise
    except Exception as error:  # the imports of a `!function` may raise anything
        what = " ".join(str(error).split())
        raise InvalidData(f"the benchmark file {path} cannot be used: {what}; correct it") from error
    unsafe = bool(content.get("unsafe_code")) or any(path.is_relative_to(shipped_folder() / name) for name in RUNS_CODE)
    merged: dict[str, object] = {}
    for include in _list(content.pop("include", [])):
        inherited = _read_trusted((path.parent / str(include)).resolve(), functions, files)
        unsafe = unsafe or inherited.unsafe
        # As in lm-eval, `task_list` belongs to the included file.
        merged |= {key: value for key, value in inherited.config.items() if key != "task_list"}
    if not _is_shipped(path):
        content = _anchored(content, merged.get("dataset_path"), path)
    return Definition({**merged, **content}, trusted=True, unsafe=unsafe)


def _add_file(path: Path, files: list[Path]) -> None:
    if path in files:
        raise InvalidData(f"{path} is included twice; include it once")
    if len(files) > MAX_INCLUDES:
        raise InvalidData(f"{files[0]} includes more than {MAX_INCLUDES} files; merge them")
    files.append(path)


def _is_shipped(path: Path) -> bool:
    return path.is_relative_to(shipped_folder())


def _anchored(config: Config, inherited: object, path: Path) -> Config:
    """Resolve relative data files against their YAML file; lm-eval resolves them against the working directory.
    `inherited` is the `dataset_path` if `config` has none. Files of a dataset on the hub are relative to the dataset.
    """
    dataset = config.get("dataset_path", inherited)
    options = mapping_of(config, "dataset_kwargs")
    if dataset in BUILDERS and "data_files" in options:
        config = {**config, "dataset_kwargs": {**options, "data_files": _absolute(options["data_files"], path)}}
    if isinstance(members := config.get("task"), list):
        local = [_anchored(each, dataset, path) if isinstance(each, dict) else each for each in members]
        config = {**config, "task": local}
    return config


def _absolute(names: object, path: Path) -> object:
    if isinstance(names, dict):
        return {split: _absolute(value, path) for split, value in names.items()}
    if isinstance(names, list):
        return [_absolute(value, path) for value in names]
    if isinstance(names, str) and "://" in names:
        raise InvalidData(
            f"{path}: `data_files` has an address; download the file and give its path, or give the name of a dataset "
            "on the hub as `dataset_path`"
        )
    return names if not isinstance(names, str) or names.startswith("datasets:") else str(path.parent / names)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
