"""Pages: what a page needs, and its HTML.

A page is one class in `pages/`, one template, and one line in `PAGES`. The service and the static copy render pages
from the same classes; only the links differ.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evalsvc import __version__
from evalsvc.client.reader import ServiceReader
from evalsvc.installation import pip_install
from evalsvc.web import formats
from evalsvc.web.panel import Query

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
}

HERE = Path(__file__).parent
STATIC = HERE / "static"


@dataclass(frozen=True)
class Content:
    title: str
    values: Mapping[str, object]
    watched: Sequence[str] = field(default_factory=list)
    """REST addresses that change when the page's content changes."""


class Page(Query):
    """The parameters of a page: those of its path and of its query."""

    template: ClassVar[str]

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
    values |= {"install": None if around.vega else pip_install("dashboard")}
    values |= {"href": lambda address: {"href": around.link(address)}}
    return _templates().get_template(template).render(**content.values, **values)


@cache
def _templates() -> Environment:
    """Return the templates. Every value is escaped, and a variable that is missing is an error."""
    loader = FileSystemLoader(HERE / "templates")
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters.update(formats.FILTERS)
    return templates
