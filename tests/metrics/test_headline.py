"""The rule that chooses a run's first metrics."""

from evalsvc.metrics.headline import MOST, default_headline
from evalsvc.spec.documents.fields import Direction


def test_every_task_has_its_turn() -> None:
    """By the order of the definitions alone, losses would take all places."""
    losses: dict[str, Direction] = {f"pairs/{name}": "lower" for name in ("image", "text", "total", "text_within")}
    others: dict[str, Direction] = {"digits/fid64": "lower", "cloze/acc": "higher", "pairs/image_mass": "none"}
    perplexities: dict[str, Direction] = {f"{name}_perplexity": "lower" for name in losses}
    found = default_headline(losses | others | perplexities)
    assert found[:3] == ["pairs/image", "digits/fid64", "cloze/acc"]
    assert len(found) == MOST
    assert not [name for name in found if name in perplexities or name == "pairs/image_mass"]


def test_metrics_that_nobody_has_defined() -> None:
    """Imported values have names of any kind, and a direction only where somebody said so."""
    assert default_headline({"train/lr": "none", "loss": "none"}) == ["loss", "train/lr"]
    assert default_headline({}) == []
