"""Methods of the client that read results of checkpoints and compare checkpoints and runs."""

from __future__ import annotations

from collections.abc import Sequence

from evalsvc.client.transport import MethodGroup, query_of, segment
from evalsvc.spec import documents


class ComparisonMethods(MethodGroup):
    """Methods that read the result of a checkpoint, and compare checkpoints and runs."""

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
        flipped: int = 0,
        family: str = "none",
    ) -> documents.Comparison:
        """Return the differences between the checkpoints `a` and `b`, each RUN@STEP or RUN@STEP:VARIANT.

        `family` is `none` for verdicts that hold one by one, or `holm` to bound false differences over all metrics.
        `expected_by_chance` metrics would be better, worse or different if nothing had changed.
        """
        query = query_of(
            a=a,
            b=b,
            metric=metrics,
            task=tasks,
            suite=suite,
            level=level,
            force=force,
            flipped=flipped,
            family=family,
        )
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
    ) -> documents.RunComparison:
        """Return the differences between two runs along their steps, or between a run and its base.

        `band` is `pointwise` for intervals that hold one by one, or `simultaneous` for intervals that hold at all steps
        together. `apart_from` and `sign_changes` always use the latter, and `indistinguishable_from` the former.
        `pandas.DataFrame({"x": curve.x, "difference": curve.difference, "low": curve.low, "high": curve.high})` is a
        curve to plot.
        """
        query = query_of(a=a, b=b, metric=metrics, task=tasks, suite=suite, level=level, band=band, force=force)
        return self._transport.get(documents.RunComparison, "/v1/compare/curves", query)
