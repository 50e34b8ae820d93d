"""Whose columns the rows of a local file have: llm-foundry's or lm-eval's, for the benchmarks that ship with evalsvc.

A suite names a file by a benchmark's `data`. The columns of the file decide by which definition the benchmark is asked:
the one in `evalsvc/text_tasks`, whose prompts are llm-foundry's, or lm-eval's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

from jinja2 import TemplateSyntaxError, UndefinedError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from evalsvc.errors import InvalidData, first_few, show_name
from evalsvc.files.opened import Allow
from evalsvc.language.catalog import Registry
from evalsvc.language.definitions import Config, Rules, read_definition
from evalsvc.language.rows import read_rows
from evalsvc.spec.paths import PACKAGE

TEXT_TASKS: Final = PACKAGE / "text_tasks"
"""Definitions of the benchmarks that ship with evalsvc, for llm-foundry's rows."""

RowForm = Literal["llm-foundry", "lm-eval"]

COLUMNS_SHOWN: Final = 20
"""Number of columns that a message names; a row may have any number."""

_TEMPLATES = ("doc_to_text", "doc_to_choice", "doc_to_target")
_UNDEFINED = re.compile(r"'([A-Za-z_]\w*)' is undefined")


@lru_cache(maxsize=1)
def foundry_columns() -> Mapping[str, frozenset[str]]:
    """Return the columns of llm-foundry's rows by the name of the benchmark that ships with evalsvc."""
    files = sorted(TEXT_TASKS.glob("[!_]*.yaml"))
    return {file.stem: _columns(read_definition(file, Rules(), functions=False).config) for file in files}


def find_form(name: str, data: Path, registry: Registry, allow: Allow) -> RowForm | None:
    """Return whose rows a file of the benchmark `name` has; None where the definition is not in doubt.

    A benchmark that is not lm-eval's is llm-foundry's, whatever columns the file has.

    Raises:
        InvalidData: the file cannot be read, or holds no rows.
    """
    if name not in foundry_columns() or registry.is_own(name):
        return None
    found = foundry_columns()[name] <= set(read_rows([data], allow).column_names)
    return "llm-foundry" if found or registry.get(name) is None else "lm-eval"


def explain_columns(
    name: str, config: Config, data: Path, form: RowForm | None, error: InvalidData, allow: Allow
) -> InvalidData:
    """Return the error that names file, row and columns in place of `error`, where a row lacks a column.

    All rows of a file have the same columns, so the first row lacks the column too. Where the error does not tell which
    column, the definition `config` does, unless a function of the benchmark's makes columns of its own.
    """
    if error.__cause__ is None:
        return error
    columns = read_rows([data], allow).column_names
    expected = [_lacking(error.__cause__), *([] if config.get("process_docs") else sorted(_columns(config)))]
    column = next((each for each in expected if each is not None and each not in columns), None)
    if column is None:
        return error
    known = f"; llm-foundry's rows have {_listed(sorted(foundry_columns()[name]))}" if form is not None else ""
    return InvalidData(
        f"benchmark {name!r}: {data}, row 1 has no column {show_name(column)}, which the benchmark's template expects; "
        f"the row has {_listed(columns)}{known}; rename the columns, or give another file as `data`"
    )


def _lacking(cause: BaseException | None) -> str | None:
    """Return the name that a template or a function of a benchmark missed in a row."""
    if isinstance(cause, UndefinedError):
        undefined = _UNDEFINED.fullmatch(str(cause))
        return undefined[1] if undefined else None
    if isinstance(cause, KeyError) and cause.args and isinstance(cause.args[0], str):
        return cause.args[0]
    return None


def _listed(columns: Sequence[str]) -> str:
    return first_few([show_name(column) for column in columns], COLUMNS_SHOWN) or "no columns"


def _columns(config: Config) -> frozenset[str]:
    """Return the columns that a definition names, each by its plain name or within a template."""
    return frozenset(column for key in _TEMPLATES for column in _named(config.get(key)))


def _named(value: object) -> Iterator[str]:
    if isinstance(value, str) and "{{" in value:
        with suppress(TemplateSyntaxError, RecursionError):  # which is told where the template is used
            yield from meta.find_undeclared_variables(ImmutableSandboxedEnvironment().parse(value))
    elif isinstance(value, str) and value.isidentifier():
        yield value
