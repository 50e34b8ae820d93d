"""Which free worker gets a shard, and what the order of the queue is told of them."""

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.messages import ShardRequest, Stage
from evalsvc.service.shard_queue import Placement
from evalsvc.spec.suite import TaskSpec
from evalsvc.store.queue.attempts import Assignment


def shard(checkpoint: int, run: int = 1, stage: Stage = "run", begins: bool = False) -> Assignment:
    request = ShardRequest(TaskSpec("loss", "loss", {}), stage, CheckpointRef("/checkpoint"))
    return Assignment(1, 1, 1, 1, request, checkpoint, run, begins)


def test_a_shard_goes_to_the_worker_that_has_its_checkpoint() -> None:
    placement = Placement()
    assert placement.choose(["w1", "w2"], shard(7)) == "w1"
    assert placement.choose(["w2"], shard(8)) == "w2"
    assert placement.choose(["w1", "w2"], shard(8)) == "w2"
    assert placement.choose(["w1", "w2", "w3"], shard(7)) == "w1"
    assert placement.choose(["w1", "w2", "w3"], shard(9)) == "w3", "which has nothing to lose"
    assert placement.choose(["w2"], shard(9)) == "w2", "it waits for nobody"
    assert placement.worker_state(["w2", "w4"], []).loaded == {9}


def test_planning_and_merging_leave_what_is_loaded() -> None:
    placement = Placement()
    placement.choose(["w1"], shard(7))
    placement.choose(["w1"], shard(8, stage="plan"))
    placement.choose(["w1"], shard(9, stage="merge"))
    assert placement.worker_state(["w1"], []).loaded == {7}


def test_runs_are_counted_and_their_turns_noted() -> None:
    placement = Placement()
    placement.choose(["w1"], shard(7, run=2, stage="plan", begins=True))
    placement.choose(["w1"], shard(7, run=1, stage="plan", begins=True))
    placement.choose(["w1"], shard(7, run=3))
    worker_state = placement.worker_state([], [shard(7, run=1), shard(8, run=1), shard(9, run=2)])
    assert dict(worker_state.busy) == {1: 2, 2: 1}
    assert worker_state.turns[2] < worker_state.turns[1]
    assert 3 not in worker_state.turns
