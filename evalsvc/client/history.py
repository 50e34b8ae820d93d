"""Methods of the client that read and import the history of runs, and compare checkpoints and runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from evalsvc.client.transport import MAX_PAGE, MethodGroup, query_of, segment
from evalsvc.spec import documents
from evalsvc.spec.documents.history import ValueSeries

HEADLINE_RUNS = 50
"""The most runs that a request for headlines may name."""

PAGE_VALUES = 200_000
"""The most values of a history that a request may ask for."""

COLUMNS = ("x", "value", "stderr", "low", "high", "n", "groups", "import_")
"""The fields of a series of a history that have an entry for each value."""


class HistoryMethods(MethodGroup):
    """Methods that read metrics along the steps of runs, and import values of other programs."""

    def history(
        self,
        run: str,
        names: Sequence[str] = (),
        *,
        variant: str | None = None,
        x: str = "step",
        first: int | None = None,
        last: int | None = None,
    ) -> documents.History:
        """Return the series of a run as columns along `x` (`step` or `tokens`), from `first` to `last`.

        Names may be patterns such as `arc_*/acc`. NaN and infinities are strings. A long history is read in pages.
        """
        query = query_of(x=x, metric=names, variant=variant, to=last, **{"from": first})
        pages = list(self._transport.pages(documents.History, f"/v1/runs/{segment(run)}/metrics", query, PAGE_VALUES))
        return _joined(pages) if len(pages) > 1 else pages[0]

    def buckets(
        self,
        run: str,
        names: Sequence[str] = (),
        *,
        points: int,
        variant: str | None = None,
        x: str = "step",
        first: int | None = None,
        last: int | None = None,
    ) -> documents.Buckets:
        """Return the series of a run, as `history` does, in at most `points` buckets of equal width."""
        query = query_of(x=x, metric=names, variant=variant, points=points, to=last, **{"from": first})
        return self._transport.get(documents.Buckets, f"/v1/runs/{segment(run)}/metrics", query)

    def history_pages(
        self, run: str, names: Sequence[str] = (), *, limit: int, variant: str | None = None, x: str = "step"
    ) -> Iterator[documents.History]:
        """Yield pages of `history`, each with at most `limit` values; a series may continue on the next page."""
        query = query_of(x=x, metric=names, variant=variant)
        return self._transport.pages(documents.History, f"/v1/runs/{segment(run)}/metrics", query, limit)

    def summary(
        self, run: str, names: Sequence[str] = (), *, variant: str | None = None
    ) -> list[documents.SummarySeries]:
        """Return the `latest` and the `best` value of each series of a run."""
        query = query_of(metric=names, variant=variant)
        return self._transport.get(documents.Summary, f"/v1/runs/{segment(run)}/summary", query).series

    def headline(self, run: str) -> documents.Headline:
        """Return the headline metrics of a run, and those of them that could not be measured."""
        return self._transport.get(documents.Headline, f"/v1/runs/{segment(run)}/headline")

    def headlines(
        self,
        runs: Sequence[str],
        metrics: Sequence[str] = (),
        *,
        points: int | None = None,
        last: int | None = None,
        compare: float = 0.0,
        strip: bool = False,
    ) -> list[documents.RunHeadlines]:
        """Return the headline metrics of several runs, or the named metrics, in the order of `runs`.

        With `points`, each series has at most so many values along training. Values of steps after `last` are left out.
        `compare` is the time in seconds that the service may take for verdicts on the newest values, for each
        `HEADLINE_RUNS` runs. With `strip`, each series names the steps within the noise of its best value.
        """
        query = query_of(metric=metrics, points=points, to=last, compare=compare, strip=strip)
        headlines: list[documents.RunHeadlines] = []
        for start in range(0, len(runs), HEADLINE_RUNS):
            part = [*query, *query_of(run=runs[start : start + HEADLINE_RUNS])]
            headlines += self._transport.get(documents.Headlines, "/v1/headlines", part).runs
        return headlines

    def import_values(
        self, run: str, source: str, series: Sequence[Mapping[str, object]], *, replace: bool = False
    ) -> documents.ImportOutcome:
        """Import values that another program measured. Either all values are imported or none.

        A series is `{"metric", "step": […], "value": […]}`. Give `stderr`, `n`, `unit`, `direction`, `variant` and
        `protocol` (in words) where they are known. `source` names the program or file that the values are from.
        `replace` allows the import to replace other values at the same steps.
        """
        body = {"source": source, "series": list(series), "replace": replace}
        return self._transport.fetch(documents.ImportOutcome, "POST", f"/v1/runs/{segment(run)}/metrics", body)

    def table(
        self, runs: Sequence[str] = (), metrics: Sequence[str] = (), *, variant: str | None = None
    ) -> dict[str, list[object]]:
        """Return the history of runs as columns for `pandas.DataFrame`, with one row per value.

        The columns are the fields of `documents.TableColumns`. NaN and infinities are floats.
        """
        query = query_of(run=runs, metric=metrics, variant=variant)
        columns = self._transport.get(documents.Table, "/v1/table", query).columns
        return vars(columns.model_copy(update={"value": list(map(float, columns.value))}))

    def completions(
        self, run: str, *, variant: str | None = None, prompt: str | None = None
    ) -> list[documents.StepCompletions]:
        """Return the completions of fixed prompts by the checkpoints of a run, by step."""
        query = query_of(variant=variant, prompt=prompt)
        return self._transport.get(documents.Completions, f"/v1/runs/{segment(run)}/completions", query).steps

    def protocols(
        self, run: str | None = None, metrics: Sequence[str] = (), *, only: str | None = None, page_size: int = MAX_PAGE
    ) -> Iterator[documents.ListedProtocol]:
        """Yield the protocols by id; with `run` or `metrics`, only those of the run's or the metrics' values. `only` is
        the id of a single protocol."""
        query = query_of(run=run, metric=metrics, id=only)
        for page in self._transport.pages(documents.Protocols, "/v1/protocols", query, page_size):
            yield from page.protocols

    def protocol(self, protocol: str) -> dict[str, object]:
        """Return the content of a protocol by its id."""
        return self._transport.read(self._transport.request("GET", f"/v1/protocols/{segment(protocol)}"))


def _joined(pages: Sequence[documents.History]) -> documents.History:
    parts: dict[tuple[str, str, str], list[ValueSeries]] = {}
    for part in (part for page in pages for part in page.series):
        parts.setdefault((part.metric, part.variant, part.protocol), []).append(part)
    # On pages and in a whole answer, series of the same metric and variant are ordered by age, which the sort keeps.
    series = [_whole(own) for _, own in sorted(parts.items(), key=lambda item: item[0][:2])]
    return pages[0].model_copy(update={"series": series, "next_cursor": None})


def _whole(parts: Sequence[ValueSeries]) -> ValueSeries:
    columns = {name: [getattr(part, name) for part in parts] for name in COLUMNS}
    for name, pieces in columns.items():
        filled = (piece or [None] * len(part.x) for part, piece in zip(parts, pieces, strict=True))
        columns[name] = list(chain(*filled)) if any(pieces) else pieces[0]
    return parts[0].model_copy(update=columns)


class ComparisonMethods(MethodGroup):
    """Methods that read the result of a checkpoint, and compare checkpoints and runs."""

    def named(self, name: str) -> documents.NamedStep:
        """Return the checkpoint of RUN@best, RUN@best:METRIC, RUN@newest or RUN@base.

        Of the best one, `within_noise` has the steps whose values are not worse beyond noise.
        """
        return self._transport.get(documents.NamedStep, "/v1/named", query_of(name=name))

    def results(
        self, run: str, step: int, *, variant: str = "raw", suite: str | None = None
    ) -> documents.CheckpointResult:
        """Return the results of a checkpoint from the newest evaluation of each suite, or of `suite` alone.

        `state` is `succeeded` once all of these evaluations have succeeded.
        """
        query = query_of(variant=variant, suite=suite or None)
        return self._transport.get(documents.CheckpointResult, f"/v1/runs/{segment(run)}/results/{step}", query)

    def compare(
        self,
        a: str,
        b: str,
        metrics: Sequence[str] = (),
        *,
        tasks: Sequence[str] = (),
        suite: str | None = None,
        level: float = 0.95,
        force: bool = False,
        across: Sequence[str] = (),
        flipped: int = 0,
        family: str = "none",
    ) -> documents.Comparison:
        """Return the differences between the checkpoints `a` and `b`, each RUN@STEP or RUN@STEP:VARIANT, or a name
        such as RUN@best.

        `family` is `none` for verdicts that hold one by one, or `holm` to bound false differences over all metrics.
        `expected_by_chance` metrics would be better, worse or different if nothing had changed. `across` is
        `["sampling"]` to compare external images with sampled ones, `["seeds"]` to compare samples of two seeds.
        """
        chosen = query_of(a=a, b=b, metric=metrics, task=tasks, suite=suite, level=level, force=force, across=across)
        query = [*chosen, *query_of(flipped=flipped, family=family)]
        return self._transport.get(documents.Comparison, "/v1/compare", query)

    def compare_runs(
        self,
        a: str,
        b: str | None = None,
        metrics: Sequence[str] = (),
        *,
        tasks: Sequence[str] = (),
        suite: str | None = None,
        level: float = 0.95,
        band: str = "pointwise",
        force: bool = False,
        across: Sequence[str] = (),
    ) -> documents.RunComparison:
        """Return the differences between two runs along their steps, or between a run and its base.

        `band` is `pointwise` for intervals that hold one by one, or `simultaneous` for intervals that hold at all steps
        together. `apart_from` and `sign_changes` always use the latter, and `indistinguishable_from` the former.
        """
        chosen = query_of(a=a, b=b, metric=metrics, task=tasks, suite=suite, level=level, force=force, across=across)
        query = [*chosen, *query_of(band=band)]
        return self._transport.get(documents.RunComparison, "/v1/compare/curves", query)
