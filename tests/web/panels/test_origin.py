"""How a number was made, from the service that made it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from app_in_process import App, app_in_process
from history_reference import Point, write
from told_run import RUN, fill, losses

from evalsvc.client import Client
from evalsvc.errors import UnknownName
from evalsvc.web.panel import Panel
from evalsvc.web.panels.origin import OriginQuery


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in_process(tmp_path / "data") as app:
        fill(app)
        yield app


TEXT = (("run", RUN), ("metric", "loss/text"))


def panel(app: App, *pairs: tuple[str, str]) -> Panel:
    with Client("http://evalsvc", transport=app.transport) as client:
        return OriginQuery.parse(pairs).panel(client)


def test_everything_that_a_number_depends_on(app: App) -> None:
    found = panel(app, ("run", RUN), ("metric", "loss/text"), ("step", "100"))
    rows = {str(row[0]): row[1:] for row in found.table.rows}
    assert rows["loss/text"] == ["8 ± 0.1 nats/token (n 400)", ""]
    assert rows["checkpoint"] == ["not hashed", "/digits/100.pt"]
    assert rows["suite"][1] == "quick"
    assert rows["protocol.limit"] == ["1", ""]
    assert rows["provenance.device"] == ["cpu", ""]
    lines = found.commands.shown("http://evalsvc", found.query.address("csv"))
    assert lines["make the number again"] == "evalsvc retry digits@100 --suite quick"
    assert lines["lines of the suite"] == "tasks:\n- kind: loss\n  name: loss-0\n  data: /data.jsonl\n  limit: 1\n"
    assert found.protocols == [losses(100)[0].protocol.id]


def test_the_newest_value_unless_a_step_is_named(app: App) -> None:
    assert panel(app, ("run", RUN), ("metric", "loss/text")).title == "How loss/text of digits@350 was made"


def test_a_number_that_nothing_here_made(app: App) -> None:
    write(app.store, {"lower/a": [Point(5, 1.0, None, None)]}, run="other")
    for pairs, words in (
        ((("run", "other"), ("metric", "lower/a")), "variant of run 'other'"),
        ((*TEXT, ("protocol", "0" * 16)), "has no value of loss/text by the protocol"),
        (
            (("run", RUN), ("metric", "loss/text"), ("step", "100"), ("protocol", "0" * 16)),
            "no evaluation of digits@100",
        ),
    ):
        with pytest.raises(UnknownName, match=words):
            panel(app, *pairs)
