from evalsvc.scoring.scorer import Request, pack, token_batches


def request(context: str, continuation: str) -> Request:
    return Request(tuple(map(ord, context)), tuple(map(ord, continuation)))


def test_options_of_one_token_cost_nothing() -> None:
    packed = pack([request("which?", option) for option in "ABCD"], 100)
    assert list(packed.trie.ids) == [*map(ord, "which?")]
    assert packed.scored == 1
    assert packed.targets.tolist() == [[5] * 4, [*map(ord, "ABCD")], [0, 1, 2, 3]]


def test_what_options_begin_with_is_scored_once() -> None:
    packed = pack([request("who?", "the cat"), request("who?", "the cow"), request("who?", "a")], 100)
    assert len(packed.trie.ids) == len("who?the ca") + len("o")
    assert packed.scored == len("?the ca") + len("o")
    assert packed.targets.shape[1] == 7 + 7 + 1


def test_a_text_that_is_split_at_two_places_is_read_once() -> None:
    """lm-eval 0.4.13 takes one's continuation for the other's, since the ids together are the same."""
    requests = [request("the quick", " brown fox"), request("the quick brown", " fox")]
    packed = pack(requests, 100)
    assert len(packed.trie.ids) == len("the quick brown fo")
    for index, one in enumerate(requests):
        nodes, ids, _ = packed.targets[:, packed.targets[2] == index]
        assert ids.tolist() == list(one.continuation)
        assert nodes.tolist() == list(range(len(one.context) - 1, len("the quick brown fo")))


def test_targets_are_due_in_the_batch_of_their_node() -> None:
    """Also those after a context whose options come in a later batch."""
    requests = [request("c" * 20, option * 15) for option in "xyz"]
    packed = pack(requests, 40)
    assert len(packed.trie.batches) == 2
    due = [packed.due(batch) for batch in packed.trie.batches]
    assert sum(part.shape[1] for part in due) == 45
    for batch, (nodes, _, _) in zip(packed.trie.batches, due, strict=True):
        assert all(batch.start <= node < batch.stop for node in nodes)
    assert 2 in due[0][2], "the first id of the last option"


def test_batches_hold_the_budget_with_their_padding() -> None:
    lengths = [3, 9, 1, 4, 4, 20]
    batches = list(token_batches(lengths, 12))
    assert batches == [[5], [1], [3, 4, 0], [2]]
    assert list(token_batches([], 12)) == []
