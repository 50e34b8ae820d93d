"""`evalsvc metrics`."""

from typer.testing import CliRunner, Result

from evalsvc.cli import app
from evalsvc.errors import UnknownName
from evalsvc.metrics.definitions import DEFINITIONS


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["metrics", *arguments])


def test_all_are_a_row_of_a_table_each() -> None:
    shown = run()
    assert shown.exit_code == 0, shown.output
    for definition in DEFINITIONS:
        assert definition.names[0] in shown.stdout


def test_one_is_shown_by_the_name_that_a_history_has() -> None:
    shown = run("captions/text_within").stdout
    assert shown.startswith("text_within, image_within  (task loss)\n  Σ −ln p(token | an id of its type) / Σ tokens")
    for words in ("unit: nats/token; lower is better", "Cochran", "two checkpoints: compared item by item"):
        assert words in shown


def test_an_unknown_name_has_near_misses_and_says_where_else_to_look() -> None:
    error = run("captions/imaeg_mass").exception
    assert isinstance(error, UnknownName)
    assert "did you mean 'image_mass'" in error.message
    assert "evalsvc metrics '<metric>'" in error.message
