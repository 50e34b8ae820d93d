from array import array

from evalsvc.data.tokens import Record
from evalsvc.tasks.sequence_groups import at_border, group_of_each, group_order, groups_of_records


def record(text: list[int] | None, codes: list[int] | None = None, document: str | int | None = None) -> Record:
    text_ids = None if text is None else array("i", text)
    return Record(text_ids, None if codes is None else array("i", codes), "line 1", document)


def test_a_group_is_named_after_its_first_item() -> None:
    """The name is the same with and without a limit."""
    assert group_of_each("abcba") == [0, 1, 2, 1, 0]
    assert group_of_each("abcb") == [0, 1, 2, 1]
    assert group_of_each("abc") is None
    assert group_of_each("") is None


def test_records_belong_together_by_document_then_image_then_text() -> None:
    """Equal captions of different images do not: three hundred photographs may all be `a dog`."""
    assert groups_of_records([record([1], [5, 6]), record([1], [5, 7]), record([2], [5, 6])]) == [0, 1, 0]
    assert groups_of_records([record([1], [5, 6]), record([1], [5, 7])]) is None
    assert groups_of_records([record([1, 2]), record([1]), record([1, 2]), record([1, 2], [])]) == [0, 1, 0, 0]
    assert groups_of_records([record([1], document="a"), record([2], document="a"), record([1])]) == [0, 0, 2]
    assert groups_of_records([record([1], [4], "a"), record([1], [4], "b")]) is None
    assert groups_of_records([record([1], document=1), record([2], document="1")]) is None
    assert groups_of_records([record(None, [1]), record([1])]) is None, "a text is no image with the same ids"


def test_order_and_borders() -> None:
    groups = [0, 1, 2, 1, 0, 5]
    assert group_order(groups) == [0, 4, 1, 3, 2, 5]
    assert [at_border([0, 0, 1, 1, 2, 5], place) for place in range(7)] == [0, 2, 2, 4, 4, 5, 6]
