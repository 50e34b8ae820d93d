"""Rows of benchmarks as plain JSON values, from any file or dataset.

Files are read and checked here: Arrow reports neither line nor cause of an error. No error quotes a value, since a
person who names a file in a suite may not be allowed to read it.

The columns of a file that a suite gives as a benchmark's `data` decide which definition of a benchmark that ships with
evalsvc is used: the definition in `evalsvc/text_tasks`, with llm-foundry's prompts, or lm-eval's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

import datasets
import pandas
import pyarrow
import pyarrow.parquet
from jinja2 import TemplateSyntaxError, UndefinedError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from evalsvc.checkpoints.reference import Identity
from evalsvc.data.files import CACHED_FILES, check_text, identify_file, parse_object, read_bytes, read_lines
from evalsvc.errors import InvalidData, first_few, near_misses, show_name
from evalsvc.files.opened import Allow, anywhere, open_file
from evalsvc.language.catalog import Registry
from evalsvc.language.definitions import Config, Rules, mapping_of, read_definition
from evalsvc.spec.paths import PACKAGE

MAX_BYTES = 1 << 30
"""Largest size in bytes of a data file, and of a parquet file's declared unpacked size."""

TEXT_TASKS: Final = PACKAGE / "text_tasks"
"""Definitions of the benchmarks that ship with evalsvc, for llm-foundry's rows."""

RowForm = Literal["llm-foundry", "lm-eval"]

COLUMNS_SHOWN: Final = 20

_TEMPLATES = ("doc_to_text", "doc_to_choice", "doc_to_target")
_UNDEFINED = re.compile(r"'([A-Za-z_]\w*)' is undefined")


def read_rows(paths: Sequence[Path], allow: Allow = anywhere) -> datasets.Dataset:
    """Read the rows of JSONL, JSON, CSV, TSV and parquet files into memory, one file after the other."""
    parts = [_read(path, identify_file(path, "data file"), allow) for path in paths]
    if not sum(len(part) for part in parts):
        raise InvalidData(f"{', '.join(map(str, paths))} holds no rows; a benchmark needs at least one")
    try:
        return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    except ValueError:
        raise InvalidData(f"{paths[0]} and the files after it differ in their columns; make them equal") from None


def plain_rows(rows: datasets.Dataset) -> datasets.Dataset:
    """Return a dataset without columns that are no plain JSON: a template can write a picture to any path."""
    return rows.select_columns([name for name, feature in rows.features.items() if _is_plain(feature)])


@lru_cache(maxsize=1)
def foundry_columns() -> Mapping[str, frozenset[str]]:
    """Return the columns of llm-foundry's rows by the name of the benchmark that ships with evalsvc."""
    files = sorted(TEXT_TASKS.glob("[!_]*.yaml"))
    return {file.stem: _columns(read_definition(file, Rules(), functions=False).config) for file in files}


def find_form(name: str, data: Path, registry: Registry, allow: Allow) -> RowForm | None:
    """Return the form of the rows in a file of the benchmark `name`; None where only one definition is possible."""
    if name not in foundry_columns() or registry.is_local(name):
        return None
    has_columns = foundry_columns()[name] <= set(read_rows([data], allow).column_names)
    return "llm-foundry" if has_columns or registry.get(name) is None else "lm-eval"


def explain_columns(
    name: str, config: Config, data: Path, form: RowForm | None, error: InvalidData, allow: Allow
) -> InvalidData:
    """Return an error that names file, row and column instead of `error`, where all rows lack a column."""
    if error.__cause__ is None:
        return error
    columns = read_rows([data], allow).column_names
    expected, cause = list[str](), error.__cause__
    if isinstance(cause, UndefinedError) and (undefined := _UNDEFINED.fullmatch(str(cause))):
        expected = [undefined[1]]
    elif isinstance(cause, KeyError) and cause.args and isinstance(cause.args[0], str):
        expected = [cause.args[0]]
    if not config.get("process_docs"):
        require_columns(name, config, columns, str(data), form)
        expected += sorted(_columns(config))
    column = next((each for each in expected if each not in columns), None)
    if column is None:
        return error
    return _no_column(name, str(data), column, "the benchmark's template expects", columns, form)


def require_columns(name: str, config: Config, columns: Sequence[str], files: str, form: RowForm | None) -> None:
    """Raise InvalidData for a word that lm-eval takes for the text itself, as no column of `files` has this name."""
    options = config.get("doc_to_choice")
    texts = [*(options.values() if isinstance(options, dict) else options if isinstance(options, list) else ())]
    for part, prefix in ((config, ""), (mapping_of(config, "fewshot_config"), "fewshot_config.")):
        for key in _TEMPLATES:
            word = part.get(key)
            if isinstance(word, str) and word.isidentifier() and word not in columns and word not in texts:
                raise _no_column(name, files, word, f"`{prefix}{key}` names", columns, form)


def _no_column(
    name: str, files: str, column: str, expected_by: str, columns: Sequence[str], form: RowForm | None
) -> InvalidData:
    near = [show_name(each) for each in near_misses(column, columns)]
    meant = f"; did you mean {' or '.join(near)}" if near else ""
    known = f"; llm-foundry's rows have {_listed(sorted(foundry_columns()[name]))}" if form is not None else ""
    literal = ", or write {{'…'}} for a text of your own" if "doc_to_target" in expected_by else ""
    return InvalidData(
        f"benchmark {name!r}: {files}, row 1 has no column {show_name(column)}, which {expected_by}{meant}; the row "
        f"has {_listed(columns)}{known}; rename the columns, or correct the benchmark's definition or `data`{literal}"
    )


def _is_plain(feature: object) -> bool:
    if isinstance(feature, datasets.Value):
        return feature.dtype in _PLAIN
    if isinstance(feature, dict):
        return all(map(_is_plain, feature.values()))
    if isinstance(feature, (list, tuple)):
        return all(map(_is_plain, feature))
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return _is_plain(feature.feature)
    return isinstance(feature, (datasets.ClassLabel, datasets.Translation))


_PLAIN = {"null", "bool", "string", "large_string", "float16", "float32", "float64"}
_PLAIN |= {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


@lru_cache(maxsize=CACHED_FILES)
def _read(path: Path, identity: Identity, allow: Allow) -> datasets.Dataset:
    # `identity` invalidates the cache when the file changes.
    if identity.size > MAX_BYTES:
        raise InvalidData(f"{path} has {identity.size:,} bytes; a benchmark's data file has at most {MAX_BYTES:,}")
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _read_csv(path, allow, "\t" if suffix == ".tsv" else ",")
    if suffix == ".parquet":
        return _read_parquet(path, allow)
    if suffix not in (".jsonl", ".ndjson", ".json"):
        raise InvalidData(f"{path} ends in {suffix!r}; give a file that ends in .jsonl, .json, .csv, .tsv or .parquet")
    rows = list(_like_the_first(path, _json_rows(path, allow)))
    try:
        return datasets.Dataset.from_list(rows)
    except (ValueError, TypeError, OverflowError, pyarrow.ArrowException):
        raise _no_columns(path) from None


def _json_rows(path: Path, allow: Allow) -> Iterator[tuple[str, dict[str, object]]]:
    content = read_bytes(path, allow) if path.suffix.lower() == ".json" else b""
    if content.lstrip()[:1] != b"[":
        for number, line in read_lines(path, allow):
            yield f"line {number}", parse_object(f"{path}, line {number}", line, "the benchmark's columns")
        return
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{path} is not valid JSON: {error}; correct the file") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InvalidData(f"{path}, row {number} is {_KINDS.get(type(row), 'null')}; it must be an object")
        yield f"row {number}", row


def _like_the_first(path: Path, rows: Iterator[tuple[str, dict[str, object]]]) -> Iterator[dict[str, object]]:
    first, seen = "", dict[str, object]()
    for where, row in rows:
        first = first or where
        seen = seen or dict.fromkeys(row)
        if odd := seen.keys() ^ row.keys():
            key = min(odd)
            has, lacks = ("has", "has not") if key in row else ("has no", "has")
            shown = f"`{_shown(key)}`"
            raise InvalidData(f"{path}, {where} {has} {shown}, which {first} {lacks}; give all rows the same keys")
        seen = _merge_fields(seen, row, f"{path}, {where}", "")
        yield row


def _merge(seen: object, value: object, where: str, key: str) -> object:
    """Return the known kind of a column after one more value. Missing values and empty lists have no kind."""
    if value is None:
        return seen
    kind, kind_seen = _KINDS[type(value)], _KINDS.get(type(seen))
    if seen is not None and kind_seen != kind:
        raise InvalidData(f"{where}: `{key}` is {kind}, but in an earlier row it is {kind_seen}; use one kind")
    if isinstance(value, str):
        check_text(where, value, key)
    if isinstance(value, list):
        item = seen[0] if isinstance(seen, list) and seen else None
        for each in value:
            item = _merge(item, each, where, f"{key}[]")
        return [item]
    if isinstance(value, dict):
        return _merge_fields(seen if isinstance(seen, dict) else {}, value, where, f"{key}.")
    return value


def _merge_fields(seen: dict[str, object], row: dict[str, object], where: str, above: str) -> dict[str, object]:
    return seen | {name: _merge(seen.get(name), each, where, f"{above}{_shown(name)}") for name, each in row.items()}


def _shown(key: str) -> str:
    return key if show_name(key) == repr(key) else "…"


def _no_columns(path: Path) -> InvalidData:
    return InvalidData(
        f"{path} does not fit into columns of text and numbers: a column holds values of several kinds, of another "
        "kind, or whole numbers of more than 64 bits; use one kind per column, or write the values as text"
    )


_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}


def _read_csv(path: Path, allow: Allow, separator: str) -> datasets.Dataset:
    try:
        with open_file(path, "data file", allow).stream as stream:
            # Empty cells are missing values; "NA" and similar words, which pandas reads as missing, stay words.
            frame = pandas.read_csv(stream, sep=separator, keep_default_na=False, na_values=[""])
    except UnicodeDecodeError:
        raise InvalidData(f"{path} is not UTF-8; save the file as UTF-8") from None
    except (OSError, ValueError) as error:  # a parser's error names the line without its content
        where = f": {' '.join(str(error).split())}" if isinstance(error, pandas.errors.ParserError) else ""
        raise InvalidData(f"{path} is not a table of values between {separator!r}{where}; correct the file") from None
    try:
        return datasets.Dataset.from_pandas(frame, preserve_index=False)
    except (ValueError, TypeError, pyarrow.ArrowException):
        raise _no_columns(path) from None


def _read_parquet(path: Path, allow: Allow) -> datasets.Dataset:
    with open_file(path, "data file", allow).stream as stream:
        try:
            file = pyarrow.parquet.ParquetFile(stream)
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            if max(file.metadata.num_rows, sum(group.total_byte_size for group in groups)) > MAX_BYTES:
                raise InvalidData(f"{path} unpacks to more than {MAX_BYTES:,} bytes; give a smaller file")
            table = file.read()
        except (OSError, ValueError, TypeError, pyarrow.ArrowException):
            raise InvalidData(f"{path} is not a parquet file, or is broken; correct the file") from None
    try:
        # Metadata of columns, such as that they are pictures, is dropped.
        rows = datasets.Dataset(table.replace_schema_metadata(None))
    except (ValueError, TypeError, NotImplementedError):
        raise _no_columns(path) from None
    for name in set(rows.column_names) - set(plain_rows(rows).column_names):
        raise InvalidData(
            f"{path}, column {show_name(name)} holds neither text, numbers, true or false, nor lists or objects of "
            "them; convert the column or remove it"
        )
    return rows


def _listed(columns: Sequence[str]) -> str:
    return first_few([show_name(column) for column in columns], COLUMNS_SHOWN) or "no columns"


def _columns(config: Config) -> frozenset[str]:
    columns: set[str] = set()
    for value in map(config.get, _TEMPLATES):
        if isinstance(value, str) and "{{" in value:
            with suppress(TemplateSyntaxError, RecursionError):  # reported where the template is used
                columns |= meta.find_undeclared_variables(ImmutableSandboxedEnvironment().parse(value))
        elif isinstance(value, str) and value.isidentifier():
            columns.add(value)
    return frozenset(columns)
