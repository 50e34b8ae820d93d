"""Series of values as the service answers with them, for tests of charts."""

from evalsvc.spec.documents.fields import Number
from evalsvc.spec.documents.history import Buckets, BucketSeries, Gap
from evalsvc.web.curves import Curve, smoothed


def series(
    values: list[Number], metric: str = "loss/text", protocol: str = "p1", unit: str = "nats/token", **fields: object
) -> BucketSeries:
    size = len(values)
    finite = [value if isinstance(value, float) else None for value in values]
    given: dict[str, object] = {
        "metric": metric,
        "variant": "raw",
        "protocol": protocol,
        "unit": unit,
        "direction": "lower",
        "baseline": None,
        "differs": {},
        "x": [10 * (at + 1) for at in range(size)],
        "last": values,
        "stderr": [None] * size,
        "low": [None] * size,
        "high": [None] * size,
        "n": [None] * size,
        "min": finite,
        "max": finite,
        "mean": finite,
        "count": [1] * size,
        "nan": [0] * size,
        "positive_infinity": [0] * size,
        "negative_infinity": [0] * size,
        "imported": [0] * size,
        "omitted": 0,
    }
    return BucketSeries(**{**given, **fields})  # type: ignore[arg-type]


def buckets(*given: BucketSeries, gaps: tuple[Gap, ...] = ()) -> Buckets:
    return Buckets(
        run="run-a", x="step", sampled=True, start=0, width=10, series=list(given), names=[], gaps=list(gaps)
    )


def curves(*given: BucketSeries, smoothing: float = 0.0) -> list[Curve]:
    return [Curve("run-a", item, smoothed(item, smoothing) if smoothing else ()) for item in given]


def gap(step: int, variant: str = "raw", message: str = "it broke") -> Gap:
    return Gap(step=step, variant=variant, suite="quick", evaluation=7, why="failed", message=message)
