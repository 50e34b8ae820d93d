"""Which metrics tables show first, and which next to others."""

from evalsvc.metrics.shown_metrics import MOST, Place, companion_name, default_headline, divide_rows, yardsticks
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


LOSS, PERPLEXITY, UNIGRAM = (Place(f"pairs/text{end}", "raw", "p1") for end in ("", "_perplexity", "_unigram"))


def test_companions_have_the_row_of_their_metric() -> None:
    divided = divide_rows([PERPLEXITY, LOSS, UNIGRAM])
    assert (divided.shown, divided.companions) == ([1], {1: [0, 2]})
    named = divide_rows([PERPLEXITY, LOSS], named=["pairs/text_perplexity"])
    assert (named.shown, named.companions) == ([0, 1], {})
    assert divide_rows([PERPLEXITY]).shown == [0], "without its metric it has a row"
    assert divide_rows([LOSS, Place("other/text_perplexity", "raw", "p1")]).shown == [0, 1], "of another task"


def test_a_companion_of_another_protocol_or_variant_is_not_taken_for_ones_own() -> None:
    one, two = LOSS, Place("pairs/text", "raw", "p2")
    mine, other = PERPLEXITY, Place("pairs/text_perplexity", "raw", "p2")
    assert divide_rows([one, two, mine, other]).companions == {0: [2], 1: [3]}
    shared = Place("pairs/text_unigram", "raw", "of the data")
    assert divide_rows([one, two, shared]).companions == {0: [2], 1: [2]}
    several = [shared, Place("pairs/text_unigram", "raw", "of other data")]
    assert divide_rows([one, *several]).shown == [0, 1, 2]
    assert divide_rows([one, Place("pairs/text_perplexity", "ema", "p1")]).shown == [0, 1]


def test_the_cell() -> None:
    assert companion_name("pairs/image_unigram_by_place", "pairs/image") == "unigram by place"
    assert companion_name("wiki/word_perplexity", "wiki/bits_per_byte") == "word perplexity"
    assert yardsticks([("perplexity", 10.12345), ("unigram", "NaN")], 4.158883) == (
        "perplexity 10.12; unigram NaN; chance 4.159"
    )
    assert yardsticks([("perplexity", 12075.94)], 1e300) == "perplexity 12,076; chance 1e+300"
    assert yardsticks([], None) == ""
