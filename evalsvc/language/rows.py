"""Data files of benchmarks, read and checked here: Arrow says neither in which line it stumbled nor over what."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow.parquet

from evalsvc.checkpoints import Identity
from evalsvc.data_files import CACHED_FILES, check_text, identify_file, parse_object, read_bytes, read_lines, unreadable
from evalsvc.errors import InvalidData


def read_rows(paths: Sequence[Path]) -> datasets.Dataset:
    """The rows of JSONL, JSON, CSV, TSV and parquet files, in memory; one file after the other.

    Raises:
        InvalidData: names the file and, where it has lines, the line: it is broken, or has other columns or types than
            the lines before it. Or there are no rows.
    """
    parts = [_read(path, identify_file(path, "data file")) for path in paths]
    if not sum(len(part) for part in parts):
        raise InvalidData(f"{', '.join(map(str, paths))} holds no rows; a benchmark needs at least one")
    try:
        return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    except ValueError as error:
        raise InvalidData(f"{paths[0]} and the files after it differ in their columns: {_line(error)}") from None


@lru_cache(maxsize=CACHED_FILES)
def _read(path: Path, identity: Identity) -> datasets.Dataset:
    # `identity` is there to make the cache forget a file that was written anew.
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _read_csv(path, "\t" if suffix == ".tsv" else ",")
    if suffix == ".parquet":
        return _read_parquet(path)
    if suffix not in (".jsonl", ".ndjson", ".json"):
        raise InvalidData(f"{path} ends in {suffix!r}; give a file that ends in .jsonl, .json, .csv, .tsv or .parquet")
    rows = list(_like_the_first(path, _json_rows(path)))
    try:
        return datasets.Dataset.from_list(rows)
    except (ValueError, TypeError, OverflowError, pyarrow.ArrowException) as error:
        raise InvalidData(f"{path} does not fit into columns: {_line(error)}") from None


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object and where it is: those of a JSON list, else one a line."""
    content = read_bytes(path) if path.suffix.lower() == ".json" else b""
    if content.lstrip()[:1] != b"[":
        for number, line in read_lines(path):
            yield f"line {number}", parse_object(f"{path}, line {number}", line, "the benchmark's columns")
        return
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{path} is not valid JSON: {error}") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InvalidData(f"{path}, row {number} is {_kind(row)}; it must be an object")
        yield f"row {number}", row


def _like_the_first(path: Path, rows: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The rows, which must have the same keys, with values of the same kind."""
    first, seen = "", dict[str, Any]()
    for where, row in rows:
        first = first or where
        seen = seen or dict.fromkeys(row)
        if odd := seen.keys() ^ row.keys():
            key = min(odd)
            has, lacks = ("has", "has not") if key in row else ("has no", "has")
            raise InvalidData(f"{path}, {where} {has} `{key}`, which {first} {lacks}; give all rows the same keys")
        seen = _merge(seen, row, f"{path}, {where}", "")
        yield row


def _merge(seen: Any, value: Any, where: str, key: str) -> Any:
    """What is known of a column after one more value. Missing values and empty lists say nothing of their kind."""
    if value is None:
        return seen
    if seen is not None and _kind(seen) != _kind(value):
        raise InvalidData(f"{where}: `{key}` is {_kind(value)}, in a row before it is {_kind(seen)}; make them equal")
    if isinstance(value, str):
        check_text(where, value, key)
    if isinstance(value, list):
        item = seen[0] if seen else None
        for each in value:
            item = _merge(item, each, where, f"{key}[]")
        return [item]
    if isinstance(value, dict):
        fields = dict(seen or {})
        for name, each in value.items():
            fields[name] = _merge(fields.get(name), each, where, f"{key}.{name}" if key else name)
        return fields
    return value


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    kinds: dict[type, str] = {str: "a string", list: "a list", dict: "an object"}
    return kinds.get(type(value), "null")


def _read_csv(path: Path, separator: str) -> datasets.Dataset:
    try:
        # Empty cells are missing; "NA" and the like, which pandas takes for missing too, are words.
        frame = pandas.read_csv(path, sep=separator, keep_default_na=False, na_values=[""])
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, pandas.errors.ParserError) as error:
        raise InvalidData(f"{path} is not a table of values between {separator!r}: {_line(error)}") from None
    return datasets.Dataset.from_pandas(frame, preserve_index=False)


def _read_parquet(path: Path) -> datasets.Dataset:
    try:
        return datasets.Dataset(pyarrow.parquet.read_table(path))
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, TypeError, pyarrow.ArrowException) as error:
        raise InvalidData(f"{path} is not a parquet file: {_line(error)}") from None


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def local_files(dataset: str | None, options: Mapping[str, Any]) -> dict[str, list[Path]] | None:
    """The data files by split, where a YAML's `dataset_path` and `dataset_kwargs` ask for nothing but local files.

    None where `datasets` has to see to it: another builder, further options, patterns, addresses.
    """
    if dataset not in ("json", "csv", "parquet") or options.keys() - {"data_files", "trust_remote_code"}:
        return None
    files = {split: [Path(name) for name in names] for split, names in _by_split(options).items()}
    plain = all(path.is_absolute() and not set(str(path)) & set("*?[]") for paths in files.values() for path in paths)
    return files if files and plain else None


def local_sources(dataset: str | None, options: Mapping[str, Any]) -> list[Path]:
    """The files and folders of this machine that rows come from, whoever reads them."""
    names = [name for names in _by_split(options).values() for name in names if name.startswith("/")]
    folder = [dataset] if dataset and dataset.startswith("/") else []
    return [Path(path) for name in [*names, *folder] for path in sorted(glob(name)) or [name]]


def _by_split(options: Mapping[str, Any]) -> dict[str, list[str]]:
    given = options.get("data_files") or {}
    by_split = given if isinstance(given, dict) else {"train": given}
    lists = {str(split): value if isinstance(value, list) else [value] for split, value in by_split.items()}
    return {split: [str(name) for name in names] for split, names in lists.items()}
