"""The panel of the differences between two checkpoints."""

from example_documents import example

from evalsvc.spec.documents.comparisons import Comparison, MetricDifference
from evalsvc.web.panels.contrasts import ContrastsQuery


def test_the_chart_leaves_companions_to_the_table() -> None:
    """The perplexity of a loss is the same difference in another unit, thousands of standard errors wide."""
    rows = [example(MetricDifference, metric=name) for name in ("pairs/text", "pairs/text_perplexity")]
    panel = ContrastsQuery(a="r@0", b="r@1").panel_of(example(Comparison, contrasts=rows))
    assert panel.spec is not None
    datasets = panel.spec["datasets"]
    assert isinstance(datasets, dict)
    assert [row["metric"] for row in datasets["points"]] == ["pairs/text"]
    assert [row[0] for row in panel.table.rows] == ["pairs/text", "pairs/text_perplexity"]
