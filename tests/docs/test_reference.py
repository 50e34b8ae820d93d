"""The reference pages show that something was removed from the code, and are well formed."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from generate import PAGES
from reference_pages import client, errors, metrics, models, rest, settings, tasks
from reference_pages.client import public_methods

from evalsvc.api.routes import health
from evalsvc.api.routes.prometheus import FAMILIES
from evalsvc.cli.program import COMMANDS, Commands
from evalsvc.cli.tasks import describe_task
from evalsvc.client import Client
from evalsvc.config import SETTINGS
from evalsvc.errors import leaves
from evalsvc.metrics.definitions import DEFINITIONS, KINDS, SAME_METRICS
from evalsvc.spec import catalog
from evalsvc.spec.suite import parse_suite
from evalsvc.tasks.loss.spec import Loss

PLUG_INS = Path(__file__).parents[1] / "support" / "plug_ins"


def without(names: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a copy without a name; a name put back after the test would be at another place."""
    return {key: value for key, value in names.items() if key != name}


LOSS = Loss.model_json_schema()
REMOVED: list[tuple[str, str, Any, str, Any]] = [
    ("settings", "`EVALSVC_GRACE`", settings, "SETTINGS", [item for item in SETTINGS if item.name != "grace"]),
    ("errors", "`cache_full`", errors, "leaves", lambda: [leaf for leaf in leaves() if leaf.code != "cache_full"]),
    ("metrics", "### `kid`", metrics, "DEFINITIONS", [item for item in DEFINITIONS if "kid" not in item.names]),
    ("tasks", "| `general_text` |", Loss, "model_json_schema", lambda: SHORTER),
    ("cli", "## `evalsvc import`", Commands, "entries", without(COMMANDS, "import")),
    ("rest", "### `GET /v1/status`", health.router, "routes", []),
    ("rest", "`evalsvc_event_streams`", rest, "FAMILIES", without(FAMILIES, "evalsvc_event_streams")),
    ("client", "## `prune`", client, "Client", type("Client", (), vars(Client) | without(public_methods(), "prune"))),
]
"""A page, a text of the page, and what is put in place of the code's own so that the text must be gone."""

SHORTER = LOSS | {"properties": without(LOSS["properties"], "general_text")}


@pytest.mark.parametrize(("name", "gone", "target", "attribute", "value"), REMOVED, ids=[row[1] for row in REMOVED])
def test_what_is_removed_from_the_code_changes_the_page(
    name: str, gone: str, target: Any, attribute: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that is made of a copy of the code's names would stay as it was."""
    assert gone in PAGES[name]()
    monkeypatch.setattr(target, attribute, value)
    assert gone not in PAGES[name]()


@pytest.mark.parametrize("error", leaves(), ids=lambda error: error.code)
def test_every_error_says_in_a_sentence_what_is_wrong(error: type) -> None:
    assert "__doc__" in vars(error)
    assert re.fullmatch(r"[A-Z`].*\.", errors.text_of(error), re.DOTALL)


def test_every_method_of_the_client_is_described_and_its_signature_is_python() -> None:
    assert [name for name, method in public_methods().items() if not method.__doc__] == []
    blocks = re.findall(r"```python check\n(.*?)\n```", PAGES["client"](), re.DOTALL)
    assert len(blocks) == len(public_methods()) + 1
    for block in blocks:
        ast.parse(block)


@pytest.mark.parametrize("name", PAGES)
def test_a_row_has_as_many_cells_as_its_table(name: str) -> None:
    """A pipe in a text would move all that follows in its row."""
    for table in re.findall(r"(?:^\|.*\n)+", PAGES[name](), re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


@pytest.mark.parametrize("kind", catalog.COMPONENTS["tasks"])
def test_the_example_of_a_task_is_a_suite(kind: str) -> None:
    _, _, rest = tasks.section(describe_task(kind)).partition("```yaml suite\n")
    assert parse_suite(rest.partition("```")[0], "example").tasks[0].kind == kind


def test_the_pages_of_tasks_have_those_of_evalsvc_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(metrics.ABOUT) == set(KINDS) == set(catalog.COMPONENTS["tasks"]) - set(SAME_METRICS)
    monkeypatch.syspath_prepend(PLUG_INS)
    assert "letters" in catalog.names("tasks")
    assert "letters" not in tasks.page()


def test_the_page_of_models_has_the_tables_of_the_catalog() -> None:
    page = models.PAGE.read_text()
    assert models.with_tables(page) == page, "run: python docs/generate.py"
    named = {name for row in models.IMAGE_MODELS for name in row.families} | models.LANGUAGE_MODELS.keys()
    assert set(catalog.COMPONENTS["families"]) - named == {"open_lm", "transformers"}, "families of no row"
    decoders = {row.decoder for row in models.IMAGE_MODELS} - {None}
    assert decoders <= set(catalog.COMPONENTS["decoders"])
    kinds = set(re.findall(r"^\| `(\w+)` \|", (models.PAGE.parent / "image-tokenizers.md").read_text(), re.MULTILINE))
    assert kinds == set(catalog.COMPONENTS["decoders"])


@pytest.mark.parametrize("group", ["MODELS", "DECODERS"])
def test_what_is_refused_by_name_is_on_the_page_of_models(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [entry.name for entry in getattr(models, group)]
    assert all(f"| {name} | " in models.tables()[-1] for name in names)
    monkeypatch.setattr(models, group, ())
    assert not any(f"| {name} | " in models.tables()[-1] for name in names)
