"""Documents as text: a line for each field, and a table for each list of documents."""

from __future__ import annotations

import json
from collections.abc import Sequence

from evalsvc.cli.terminal import print_table, say
from evalsvc.spec.documents import Document
from evalsvc.spec.documents.document import json_name
from evalsvc.spec.documents.reading import content_of


def print_document(document: Document) -> None:
    """Print the fields of a document in their order, then its lists of documents as tables."""
    tables: dict[str, list[Document]] = {}
    for name, value in vars(document).items():
        rows = [item for item in value if isinstance(item, Document)] if isinstance(value, list) else []
        if rows:
            tables[json_name(name)] = rows
        else:
            say(f"{json_name(name)}: {_text(value)}".rstrip())
    for title, rows in tables.items():
        say(f"{title}:")
        print_documents(rows)


def print_documents(rows: Sequence[Document]) -> None:
    """Print documents of one type as a table, without the columns that are empty."""
    columns = [json_name(name) for name in vars(rows[0])]
    cells = [[_text(value) for value in vars(row).values()] for row in rows]
    print_table(columns, cells, optional=columns)


def _text(value: object) -> str:
    if value is None or value == [] or value == {}:
        return ""
    if isinstance(value, Document):
        return ", ".join(f"{json_name(name)} {text}" for name, field in vars(value).items() if (text := _text(field)))
    if isinstance(value, list):
        return "; ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return json.dumps({key: _plain(item) for key, item in value.items()}, ensure_ascii=False)
    return str(value)


def _plain(value: object) -> object:
    return content_of(value) if isinstance(value, Document) else value
