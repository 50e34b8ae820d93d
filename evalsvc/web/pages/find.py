"""Find: runs, steps and metrics by the words of their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, ClassVar
from urllib.parse import urlencode

from pydantic import Field

from evalsvc.client.reader import ServiceReader
from evalsvc.metrics.definitions import title_of
from evalsvc.spec.names import MAX_STEP
from evalsvc.web.formats import segment
from evalsvc.web.page import Content, Page

SHOWN, SEARCHED = 20, 3
"""Most lines of an answer, and most runs whose steps and metrics are searched: those with the most words, the newest
first."""

Hit = tuple[str, str, str]
"""Kind, name and address of what is found."""


class FindPage(Page):
    template: ClassVar = "find.html"

    q: Annotated[str, Field(max_length=200)] = ""
    """Words of a run, a step or a metric, in any order, as `pretrained@300` or `image loss`."""

    def content(self, source: ServiceReader) -> Content:
        words = self.q.lower().replace("@", " ").split()
        hits = list(islice(_hits(source, words), SHOWN)) if words else []
        return Content("Find", {"query": self, "hits": hits, "most": SHOWN})


def _hits(source: ServiceReader, words: Sequence[str]) -> Iterator[Hit]:
    newest = sorted(source.runs(), key=lambda run: run.created_at, reverse=True)
    left = {run.name: [word for word in words if word not in run.name.lower()] for run in newest}
    names = sorted(left, key=lambda name: len(left[name]))
    yield from (("run", name, f"/runs/{segment(name)}") for name in names if not left[name])
    numbers = [word for word in words if re.fullmatch("[0-9][0-9,]{0,20}", word)]
    step = int(numbers[0].replace(",", "")) if len(numbers) == 1 else MAX_STEP + 1
    for name in names[:SEARCHED]:
        is_asked = step <= MAX_STEP and {*left[name]} <= {*numbers, "step"}
        if is_asked and any(True for _ in source.checkpoints(name, first=step, last=step)):
            yield "step", f"{name}, step {step:,}", f"/runs/{segment(name)}?step={step}"
        for known in source.headline(name).names if left[name] else ():
            title = title_of(known.name)
            metric = f"{title} ({known.name})" if title else known.name
            if all(word in metric.lower() for word in left[name]):
                query = urlencode({"run": name, "metric": known.name})
                yield "metric", f"{metric} of {name}", f"/panels/curve.html?{query}"
