"""Panels: a chart, the table with the same numbers, and the lines that make both again.

A panel is one file in `panels/` and one line in `PANELS`. Every page, every address `/panels/NAME.FORMAT`, the static
copy and `evalsvc plot` take panels from here.
"""

from __future__ import annotations

import shlex
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Annotated, ClassVar

from pydantic import Field

from evalsvc.client.reader import ServiceReader
from evalsvc.errors import UnknownName
from evalsvc.files.csv_cells import csv_text
from evalsvc.web.charts import Spec
from evalsvc.web.query import Query
from evalsvc.web.vega import Theme

PANELS: Mapping[str, str] = {
    "curve": "evalsvc.web.panels.curve:CurveQuery",
    "difference": "evalsvc.web.panels.difference:DifferenceQuery",
    "loss_map": "evalsvc.web.panels.loss_map:LossMapQuery",
    "contrasts": "evalsvc.web.panels.contrasts:ContrastsQuery",
    "origin": "evalsvc.web.panels.origin:OriginQuery",
}
"""The query class of each panel."""

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """The numbers of a chart."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def to_csv(self) -> str:
        """Return the table as CSV. A text that a spreadsheet reads as a formula gets a leading apostrophe."""
        return csv_text([self.columns, *self.rows])


@dataclass(frozen=True)
class Commands:
    """Lines that get the numbers of a panel by other ways."""

    cli: str
    rest: str
    """Path and query of the REST route."""
    more: Mapping[str, str] = field(default_factory=dict)
    """Other lines, by what they are for."""

    def shown(self, url: str, table: str) -> Mapping[str, str]:
        """Return the lines by the name of the program that they are for; `table` is the address of the CSV table."""
        return {
            "command line": self.cli,
            "curl": f"curl -s {shlex.quote(url + self.rest)}",
            "pandas": f"import pandas; pandas.read_csv({url + table!r})",
            **self.more,
        }


class PanelQuery(Query):
    """What a panel shows."""

    name: ClassVar[str]

    theme: Theme = "light"
    """Colours of the chart as SVG and PNG; in a browser, charts follow the page."""

    def address(self, kind: str, theme: Theme | None = None) -> str:
        """Return the address of the panel as `html`, `json`, `csv`, `svg` or `png`; `theme` replaces the theme."""
        query = self if theme is None else self.model_copy(update={"theme": "light"})
        return f"/panels/{self.name}.{kind}?{query.to_query()}" + ("&theme=dark" if theme == "dark" else "")

    @abstractmethod
    def panel(self, source: ServiceReader) -> Panel:
        """Return the panel with values from a service."""


@dataclass(frozen=True)
class Panel:
    """A chart with its table."""

    query: PanelQuery
    title: str
    spec: Spec | None
    """The chart; None if there is nothing to draw."""
    table: Table
    commands: Commands
    notes: Sequence[str] = field(default_factory=list)
    """Sentences about what the chart leaves out or cannot compare."""
    protocols: Sequence[str] = field(default_factory=list)
    """Ids of the protocols that the values were measured by."""
    origin: str | None = None
    """Address of the panel that tells how the newest value was made."""
    watched: Sequence[str] = field(default_factory=list)
    """REST addresses that change when the values change."""


MOST_RUNS = 8
"""Runs of a chart: as many as there are colours."""

RunNames = Annotated[tuple[Annotated[str, Field(max_length=300)], ...], Field(min_length=1, max_length=MOST_RUNS)]

MetricName = Annotated[str, Field(min_length=1, max_length=300)]


def panel_class(name: str) -> type[PanelQuery]:
    """Return the query class of a panel."""
    if name not in PANELS:
        raise UnknownName.among("panel", name, PANELS)
    query: type[PanelQuery] = resolve_name(PANELS[name])
    return query
