"""Pages: what a page needs, and its HTML.

A page is one class in `pages/`, one template, and one line in `PAGES`. The service and the static copy render pages
from the same classes; only the links differ.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import ClassVar
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evalsvc import __version__
from evalsvc.client.reader import ServiceReader
from evalsvc.installation import pip_install
from evalsvc.web import formats
from evalsvc.web.charts import colours_of
from evalsvc.web.panel import Panel, Query

PAGES: Mapping[str, str] = {
    "/": "evalsvc.web.pages.runs:RunsPage",
    "/runs/{run}": "evalsvc.web.pages.run:RunPage",
    "/runs/{run}/images": "evalsvc.web.pages.images:ImagesPage",
    "/runs/{run}/text": "evalsvc.web.pages.text:TextPage",
    "/runs/{run}/checkpoints": "evalsvc.web.pages.run:CheckpointsPage",
    "/compare": "evalsvc.web.pages.compare:ComparePage",
    "/evaluations/{evaluation}": "evalsvc.web.pages.evaluation:EvaluationPage",
    "/protocols/{protocol}": "evalsvc.web.pages.evaluation:ProtocolPage",
    "/status": "evalsvc.web.pages.runs:StatusPage",
    "/find": "evalsvc.web.pages.find:FindPage",
}

MANY_OTHERS = 20
"""Most other runs that a page of a run leads to."""

HERE = Path(__file__).parent
STATIC = HERE / "static"


@dataclass(frozen=True)
class Crumb:
    """A place above a page, or the page itself, which has no address."""

    text: str
    address: str = ""
    others: Sequence[Crumb] = ()
    """Places of the same kind, such as the same page of other runs."""


@dataclass(frozen=True)
class Content:
    title: str
    values: Mapping[str, object]
    watched: Sequence[str] = field(default_factory=list)
    """REST addresses that change when the page's content changes."""
    trail: Sequence[Crumb] = ()
    """The way from the page of all runs to this page; empty for the pages that every page links to."""


class Page(Query):
    """The parameters of a page: those of its path and of its query."""

    template: ClassVar[str]

    def address(self, **changes: object) -> str:
        """Return the query of the page with other parameters, as a link on the page of a run has it."""
        given = self.model_copy(update=changes).model_dump(exclude={"run"}, exclude_defaults=True, by_alias=True)
        return "?" + urlencode(given, doseq=True)

    @abstractmethod
    def content(self, source: ServiceReader) -> Content:
        """Return the page's content, from a service."""


@dataclass(frozen=True)
class Visitor:
    may_submit: bool = False
    """Whether pages have forms that cancel and begin evaluations."""
    name: str | None = None
    """Name of the token that the browser signed in with; None if the browser did not sign in."""
    form_key: str = ""
    """Text that forms carry, so that no page of another site can send them; empty in a service without tokens."""
    may_sign_in: bool = False
    """Whether signing in shows more than this page."""


@dataclass(frozen=True)
class Surroundings:
    """What pages of one place share: a service, or a folder of files."""

    vega: str | None
    """Address of the script that draws charts; None without the extra `dashboard`."""
    url: str
    link: Callable[[str], str | None] = str
    """Returns what leads from the page to an address of the service; None if nothing does."""
    is_copy: bool = False
    links: Mapping[str, str] = field(default_factory=dict)
    """Addresses of pages that every page links to, by the text of the link."""
    visitor: Visitor = Visitor()


def page_class(pattern: str) -> type[Page]:
    page: type[Page] = resolve_name(PAGES[pattern])
    return page


def html_of(template: str, content: Content, around: Surroundings) -> str:
    values = {"title": content.title, "watched": content.watched, "around": around, "version": __version__}
    values |= {"install": None if around.vega else pip_install("dashboard"), "trail": content.trail}
    values |= {"href": lambda address: {"href": around.link(address)}}
    return re.sub(_TABLE, _labelled, _templates().get_template(template).render(**content.values, **values))


def run_trail(run: str, view: str, *below: str, others: Iterable[str] = ()) -> list[Crumb]:
    """Return the way to a page of a run, or to what is `below`; `view` is the end of the address of the run's page."""
    names = [name for name in others if name != run][:MANY_OTHERS]
    switch = [Crumb(name, f"/runs/{formats.segment(name)}{view}") for name in names]
    own = f"/runs/{formats.segment(run)}" if view or below else ""
    return [Crumb("Runs", "/"), Crumb(run, own, switch), *map(Crumb, below)]


def panel_content(panel: Panel) -> Content:
    """Return what the page of a panel alone shows."""
    runs = getattr(panel.query, "run", ())
    run = runs if isinstance(runs, str) else next(iter(runs), "")
    trail = run_trail(run, "", panel.title) if run else [Crumb("Runs", "/"), Crumb(panel.title)]
    return Content(panel.title, {"panel": panel}, panel.watched, trail)


_TABLE = re.compile(r"<table\b.*?</table>", re.DOTALL)
_HEAD = re.compile(r'<th scope="col"( class="n")?[^>]*>(.*?)</th>', re.DOTALL)
_UNSAID = re.compile("<small.*|<[^>]*>", re.DOTALL)
_CELL = re.compile(r"<td\b(?![^>]* colspan)")


def _labelled(table: re.Match[str]) -> str:
    """Give each cell of a table the heading of its column: a narrow screen shows a row as a card, without a head."""
    heads = [
        f' data-label="{" ".join(_UNSAID.sub(" ", text.replace("<wbr>", chr(0x200B))).split())}"' + " data-n" * bool(n)
        for n, text in _HEAD.findall(table[0])
    ]

    def row(found: re.Match[str]) -> str:
        left = iter(heads[found[0].count("<th ") :])
        return _CELL.sub(lambda cell: cell[0] + next(left, ""), found[0])

    return re.sub(r"<tr\b.*?</tr>", row, table[0], flags=re.DOTALL)


@cache
def _templates() -> Environment:
    """Return the templates. Every value is escaped, and a variable that is missing is an error."""
    loader = FileSystemLoader(HERE / "templates")
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters.update(formats.FILTERS, colour=lambda run: colours_of([run])[run])
    return templates
