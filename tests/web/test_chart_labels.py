"""What a screen reader finds in a chart: every mark that it stops at has a name."""

import pytest
from lxml import etree

from evalsvc.web import vega
from evalsvc.web.charts import curve_chart
from evalsvc.web.curves import plain_curve


@pytest.mark.usefixtures("short_process")
def test_every_mark_has_a_name() -> None:
    """A layer without rows, such as gaps of a run without gaps, was a symbol of which nothing was said."""
    values = [(step, 3 - step / 10, 2.5, 3.5, 8) for step in range(5)]
    curves = [plain_curve(run, "loss", "nats", values) for run in ("a", "b")]
    root = etree.fromstring(vega.render(curve_chart(curves), "svg"))
    symbols = [element for element in root.iter() if element.get("role") == "graphics-symbol"]
    assert len(symbols) > 10
    assert [dict(symbol.attrib) for symbol in symbols if not symbol.get("aria-label")] == []
