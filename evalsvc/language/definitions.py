"""The YAML files that define benchmarks: what they may do, and what they say with everything that they include.

Trusted is what is installed: lm-eval's own files, their Python functions and metrics. A YAML file that a suite names by
`include_path` is data, which anyone may have written who can post a suite: it gets templates in a sandbox
(`templates.py`), lm-eval's registered metrics and filters, and data files. What would run code of its author is refused
unless the operator sets EVALSVC_ALLOW_BENCHMARK_CODE=1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lm_eval.api.registry import metric_registry
from lm_eval.tasks._yaml_loader import load_yaml  # lm-eval has no public way to the file without loading its data

from evalsvc.data_files import identify_file, read_bytes
from evalsvc.errors import InvalidData
from evalsvc.language.registry import shipped_folder
from evalsvc.yaml_text import yaml_reason

BUILDERS = ("arrow", "csv", "json", "parquet", "text")
"""Loaders of `datasets` that read the files they are given; every other name is that of a dataset."""

UNPICKLING = ("pandas", "webdataset")
"""Loaders of `datasets` that unpickle what they find, in some of its versions."""


REMOTE = ("https://", "http://", "hf://")
"""Addresses that data files may have."""


@dataclass(frozen=True)
class Rules:
    """What YAML files outside lm-eval may do, and where their data lie."""

    allow_code: bool = False
    """Functions, classes, scripts."""
    resolve: Callable[[str], str] = str
    """The local path of an absolute one or of `datasets:NAME`; raises InvalidData where it may not be read."""


@dataclass(frozen=True)
class Definition:
    """A benchmark or group, as its YAML file and the included ones say together."""

    config: dict[str, Any]
    """Keys as lm-eval knows them; paths of data files are absolute."""
    files: tuple[Path, ...]
    """What it was read from, its own file first."""

    @property
    def trusted(self) -> bool:
        return all(_is_shipped(file) for file in self.files)


def read_definition(path: Path, rules: Rules, *, functions: bool) -> Definition:
    """What the YAML file says. With `functions`, what `!function` names is imported; else it stays a string.

    Raises:
        InvalidData: names file and line: it cannot be read, is no mapping, includes itself, or wants to run code.
    """
    path = path.resolve()
    files: list[Path] = []
    config = _read(path, rules, functions, files)
    return Definition(config, tuple(files))


def check_metrics(where: str, config: Mapping[str, Any], rules: Rules) -> None:
    """Refuse metrics of a YAML file of one's own that are programs elsewhere: the library evaluate would run them."""
    if rules.allow_code or config.get("process_results") is not None:
        return
    for metric in config.get("metric_list") or []:
        name = metric.get("metric") if isinstance(metric, dict) else metric
        if not isinstance(name, str) or name not in metric_registry or metric.get("hf_evaluate"):
            raise InvalidData(
                f"{where}: the metric {name!r} is none of lm-eval's own, and one from elsewhere is a program; choose "
                f"from {', '.join(sorted(metric_registry))}, or have the operator set EVALSVC_ALLOW_BENCHMARK_CODE=1"
            )


def _read(path: Path, rules: Rules, functions: bool, files: list[Path]) -> dict[str, Any]:
    if path in files:
        raise InvalidData(f"{path} is included twice; a file may be included once")
    files.append(path)
    if not _is_shipped(path):
        rules.resolve(str(path))
        identify_file(path, "benchmark file")
        _check_file(path, rules)
    own = _load(path, functions)
    merged: dict[str, Any] = {}
    for include in _list(own.pop("include", [])):
        inherited = _read((path.parent / str(include)).resolve(), rules, functions, files)
        inherited.pop("task_list", None)  # as lm-eval does: it lists what the included file defines
        merged |= inherited
    if not _is_shipped(path):
        own = _with_local_paths(own, merged.get("dataset_path"), path, rules)
    return merged | own


def _load(path: Path, functions: bool) -> dict[str, Any]:
    try:
        content: dict[str, Any] = load_yaml(path, resolve_func=functions, recursive=False)
    except ImportError:
        raise
    except Exception as error:  # what a `!function` imports may raise anything
        raise InvalidData(f"the benchmark file {path} cannot be used: {' '.join(str(error).split())}") from error
    return content


def _is_shipped(path: Path) -> bool:
    return path.is_relative_to(shipped_folder())


def _check_file(path: Path, rules: Rules) -> None:
    try:
        root = yaml.compose(read_bytes(path), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidData(f"the benchmark file {path} is not valid YAML: {yaml_reason(error)}") from None
    if not isinstance(root, yaml.MappingNode):
        raise InvalidData(f"the benchmark file {path} holds no mapping; it needs the key `task` or `group`")
    for line, found in () if rules.allow_code else _wants_code(root):
        raise InvalidData(
            f"{path}, line {line}: {found} runs code, which a benchmark file may not; remove it, or have the operator "
            "set EVALSVC_ALLOW_BENCHMARK_CODE=1"
        )


def _wants_code(root: yaml.MappingNode) -> Iterator[tuple[int, str]]:
    """Line, and what in it would run code that came with the file."""
    for node in _nodes(root, set()):
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python/"):
            yield node.start_mark.line + 1, f"`{node.tag}`"
    for key, value in _entries(root):
        scalar = str(value.value) if isinstance(value, yaml.ScalarNode) else ""
        on = value.tag != "tag:yaml.org,2002:bool" or scalar.lower() in ("true", "yes", "on")
        if key in ("class", "custom_dataset") or (key in ("unsafe_code", "trust_remote_code") and on):
            yield value.start_mark.line + 1, f"`{key}`"
        if key == "dataset_path" and (scalar.endswith(".py") or scalar in UNPICKLING):
            yield value.start_mark.line + 1, f"`dataset_path: {scalar}`"


def _nodes(node: yaml.Node, seen: set[int]) -> Iterator[yaml.Node]:
    """Every node once: an alias is the node that it stands for, also within itself."""
    if id(node) in seen:
        return
    seen.add(id(node))
    yield node
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _nodes(item, seen)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _nodes(key, seen)
            yield from _nodes(value, seen)


def _entries(node: yaml.MappingNode, depth: int = 0) -> Iterator[tuple[str, yaml.Node]]:
    """The keys that lm-eval reads as settings: of the file, of a group's members, and of `dataset_kwargs`."""
    for key, value in node.value:
        name = str(key.value)
        yield name, value
        members = value.value if name == "task" and isinstance(value, yaml.SequenceNode) else [value]
        for member in members if name in ("task", "dataset_kwargs") and depth < MAX_DEPTH else ():
            if isinstance(member, yaml.MappingNode):
                yield from _entries(member, depth + 1)


MAX_DEPTH = 20
"""Of groups in groups; an alias may put one into itself."""


def _with_local_paths(config: dict[str, Any], inherited: Any, path: Path, rules: Rules) -> dict[str, Any]:
    """`config` with absolute paths of its data: relative ones start at the YAML file; lm-eval's start anywhere.

    `inherited` is the `dataset_path` that holds where `config` has none. The files of a dataset on the hub are its own.
    """
    dataset = config.get("dataset_path", inherited)
    options = config.get("dataset_kwargs")
    if isinstance(options, dict) and "data_files" in options and dataset in BUILDERS:
        config = {**config, "dataset_kwargs": {**options, "data_files": _absolute(options["data_files"], path, rules)}}
    if isinstance(dataset, str) and "/" in dataset and (path.parent / dataset).is_dir():
        config = {**config, "dataset_path": rules.resolve(str((path.parent / dataset).resolve()))}
    if isinstance(members := config.get("task"), list):
        local = [_with_local_paths(each, dataset, path, rules) if isinstance(each, dict) else each for each in members]
        config = {**config, "task": local}
    return config


def _absolute(names: Any, path: Path, rules: Rules) -> Any:
    if isinstance(names, dict):
        return {split: _absolute(value, path, rules) for split, value in names.items()}
    if isinstance(names, list):
        return [_absolute(value, path, rules) for value in names]
    if not isinstance(names, str):
        return names
    if "://" in names or "::" in names:
        if not names.startswith(REMOTE) or "::" in names:
            # Others are ways to this machine's files as well, which `datasets` would read whatever the roots say.
            raise InvalidData(f"{path}: data_files {names!r}: give a path, datasets:NAME or a uri {', '.join(REMOTE)}")
        return names
    local = names if names.startswith("datasets:") else str(path.parent / names)
    return rules.resolve(local)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
