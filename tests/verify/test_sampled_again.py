"""Images that were sampled again, held to the recorded codes."""

from typing import Any

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.spec.suite import TaskSpec
from evalsvc.verify.agreement import Agreement, Untried
from evalsvc.verify.recorded import RecordedMetric, RecordedTask
from evalsvc.verify.sampled_again import RecordedCodes, Samples, compare_codes

SHARD = {
    "device": "cuda",
    "device_name": "A card",
    "threads": 1,
    "versions": {"torch": "2.13.0"},
    "sampling": {"batches": [{"batch": 64}, {"batch": 64}], "path": "graphs"},
}

ITEMS = [{"id": str(n), "codes": f"c{n}", "guidance_scale": scale} for scale in (1.0, 3.0) for n in range(4)]


def recorded(scale: float = 1.0, **shard: Any) -> RecordedCodes:
    protocol = {"sampling": {"guidance_scale": scale}, "prompts": "p"}
    task = RecordedTask(
        CheckpointRef("none"),
        TaskSpec("text_to_image", "digits", {}),
        [RecordedMetric("digits/fid64", 1.0, 4, protocol)],
        ITEMS,
        {"shards": [{"device": "cpu"}, {**SHARD, **shard}]},
    )
    found = RecordedCodes.of(task, scale)
    assert found is not None
    return found


def again(codes: list[str], **protocol: str) -> Samples:
    machine = {"device": "A card", "torch": "2.13.0", "threads": "1", "batch": "64", "sampling path": "graphs"}
    return Samples(codes, [b""] * len(codes), 4, 32, {"prompts": "p", **protocol}, machine)


def test_the_codes_of_one_scale_are_those_recorded() -> None:
    found = compare_codes(again(["c0", "c1", "c2"]), recorded(3.0), "3 images")
    assert isinstance(found, Agreement)
    assert (found.ours, found.theirs, found.verdict) == (3, 3, "ok")


def test_other_codes_on_the_same_machine_are_wrong() -> None:
    found = compare_codes(again(["c0", "other", "c2"]), recorded(), "3 images")
    assert isinstance(found, Agreement)
    assert (found.difference, found.verdict) == (1, "WRONG")


def test_another_card_explains_other_codes() -> None:
    found = compare_codes(again(["c0", "other"]), recorded(device_name="Another card", threads=2), "2 images")
    assert isinstance(found, Untried)
    assert found.reason == (
        "1 of 2 images have other codes than recorded: device was Another card, is A card here; "
        "threads was 2, is 1 here"
    )


def test_other_prompts_explain_other_codes() -> None:
    found = compare_codes(again(["other"], prompts="changed"), recorded(), "1 image")
    assert isinstance(found, Untried)
    assert found.reason.endswith("prompts was p, is changed here")


def test_nothing_explains_equal_codes_away() -> None:
    """On another card all codes may well be the same, and then that is known."""
    assert compare_codes(again(["c0"]), recorded(device_name="Another card"), "1 image").verdict == "ok"


def test_strange_provenance_explains_nothing() -> None:
    """It comes from a service, which may be of another version."""
    assert recorded(sampling={"batches": "none"}).machine == {}
    task = RecordedTask(CheckpointRef("none"), TaskSpec("text_to_image", "digits", {}), (), ITEMS, {"shards": 5})
    found = RecordedCodes.of(task, 1.0)
    assert found is not None
    assert found.machine == {}


def test_without_items_nothing_is_recorded() -> None:
    assert RecordedCodes.of(RecordedTask(CheckpointRef("none"), TaskSpec("text_to_image", "digits", {})), 1.0) is None
