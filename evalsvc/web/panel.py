"""Panels: a chart, the table with the same numbers, and the lines that make both again; and the queries that name them.

A panel is one class in `panels/` and one line in `PANELS`. Every page, every address `/panels/NAME.FORMAT`, the static
copy and `evalsvc plot` take panels from here.
"""

from __future__ import annotations

import re
import shlex
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Annotated, ClassVar, Literal, Self, get_origin
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evalsvc.client.reader import ServiceReader
from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.files.csv_cells import csv_text
from evalsvc.web.charts import Spec
from evalsvc.web.vega import Theme

PANELS: Mapping[str, str] = {
    "curve": "evalsvc.web.panels.curve:CurveQuery",
    "difference": "evalsvc.web.panels.differences:DifferenceQuery",
    "loss_map": "evalsvc.web.panels.loss_map:LossMapQuery",
    "contrasts": "evalsvc.web.panels.differences:ContrastsQuery",
}

COLUMN = 317
"""Width of a picture for a column of 3.3 inches."""

Cell = str | int | float | None


class Query(BaseModel):
    """Parameters of an address. Unknown parameters are refused, so every address is one that a page can make."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def parse(cls, pairs: Iterable[tuple[str, str]]) -> Self:
        """Read parameters as an address has them. Empty values, as forms send them, are the default."""
        repeated = {
            field.alias or name: get_origin(field.annotation) is tuple for name, field in cls.model_fields.items()
        }
        values: dict[str, list[str]] = {}
        for name, value in pairs:
            if name not in repeated:
                raise InvalidRequest(UnknownName.among("parameter", name, repeated).message)
            if value and name in values and not repeated[name]:
                raise InvalidRequest(f"the parameter {name!r} is given twice; give it once")
            if value:
                values.setdefault(name, []).append(value)
        try:
            return cls.model_validate({name: given if repeated[name] else given[0] for name, given in values.items()})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise InvalidRequest(f"{where}: {first['msg']}, found {str(first['input'])[:80]!r}") from None

    def to_query(self) -> str:
        """Return the query string of the address, with the parameters that differ from their defaults."""
        return urlencode(self.model_dump(exclude_defaults=True, by_alias=True), doseq=True)


@dataclass(frozen=True)
class Table:
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def to_csv(self) -> str:
        """Return the table as CSV. A text that a spreadsheet reads as a formula gets a leading apostrophe."""
        return csv_text([self.columns, *self.rows])


@dataclass(frozen=True)
class Commands:
    cli: str
    rest: str
    more: Mapping[str, str] = field(default_factory=dict)

    def shown(self, url: str, table: str) -> Mapping[str, str]:
        """Return the lines by the name of the program that they are for; `table` is the address of the CSV table."""
        return {
            "command line": self.cli,
            "curl": f"curl -s {shlex.quote(url + self.rest)}",
            "pandas": f"import pandas; pandas.read_csv({url + table!r})",
            **self.more,
        }


class PanelQuery(Query):
    name: ClassVar[str]
    theme: Theme = "light"
    """Colours of the chart as a picture; in a browser, charts follow the page."""
    width: Literal["column"] | Annotated[int, Field(ge=200, le=4000)] | None = None
    """Width of the chart as a picture, in pixels of 1/96 inch; `column` is 3.3 inches. None: 720 pixels."""

    def address(self, kind: str, theme: Theme | None = None) -> str:
        """Return the address of the panel in a format, such as `html` or `csv`; `theme` replaces the theme."""
        query = self if theme is None else self.model_copy(update={"theme": "light"})
        return f"/panels/{self.name}.{kind}?{query.to_query()}" + ("&theme=dark" if theme == "dark" else "")

    @abstractmethod
    def panel(self, source: ServiceReader) -> Panel:
        """Return the panel with values from a service."""


@dataclass(frozen=True)
class Panel:
    query: PanelQuery
    title: str
    spec: Spec | None
    table: Table
    commands: Commands
    notes: Sequence[str] = field(default_factory=list)
    """Sentences about what the chart leaves out or cannot compare."""
    protocols: Sequence[str] = field(default_factory=list)
    origin: str | None = None
    """Address of the panel that tells how the newest value was made."""
    watched: Sequence[str] = field(default_factory=list)
    """REST addresses that change when the values change."""
    words: str = ""
    """Title in words above a picture of the chart."""
    subtitle: str = ""
    parts: Sequence[str] = ()
    """Parts of the names of files; empty for the name of the query."""

    def file_name(self, kind: str) -> str:
        """Return the name of a file with the panel, such as `pretrained_digits-fid64_log.svg`."""
        parts = [re.sub(r"[^A-Za-z0-9.+-]+", "-", part) for part in self.parts or [self.query.name]]
        return "_".join(parts)[:150] + f".{kind}"

    def picture(self) -> Spec:
        """Return the chart as a picture alone, where no page has its title, runs and width."""
        assert self.spec is not None
        text = f"{self.words} ({self.title})" if self.words else self.title
        asked = COLUMN if self.query.width == "column" else self.query.width
        width = {"width": asked} if asked and self.spec["width"] == "container" else {}
        return self.spec | width | {"title": {"text": text, "subtitle": self.subtitle, "anchor": "start"}}


MOST_RUNS = 8
"""Runs of a chart: each has a colour of its own."""

RunNames = Annotated[tuple[Annotated[str, Field(max_length=300)], ...], Field(min_length=1, max_length=MOST_RUNS)]
MetricName = Annotated[str, Field(min_length=1, max_length=300)]


def panel_class(name: str) -> type[PanelQuery]:
    if name not in PANELS:
        raise UnknownName.among("panel", name, PANELS)
    query: type[PanelQuery] = resolve_name(PANELS[name])
    return query
