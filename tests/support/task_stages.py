"""A task done stage by stage, with its shards and outputs as they come over the wire."""

import json
from typing import Any

from evalsvc.files.atomic import FileLost
from evalsvc.files.outputs import OutputFile
from evalsvc.messages import PlanResult, ShardRequest
from evalsvc.spec.suite import TaskSpec
from evalsvc.store.queue.transitions import PLAN
from evalsvc.tasks.stages import AnyWork, run_stage
from evalsvc.tasks.task import Context, TaskResult


def sent_shards(work: AnyWork, context: Context) -> list[Any]:
    """The shards of the plan, each from its JSON."""
    plan = run_stage(work, ShardRequest(TaskSpec("", "", {}), "plan", context.checkpoint), context, _no_file)
    assert isinstance(plan, PlanResult)
    kept = PLAN.unpack(PLAN.pack(plan)).shards
    return [work.shard_codec.from_json(json.loads(json.dumps(shard))) for shard in kept]


def _no_file(file: OutputFile) -> bytes:
    raise FileLost(f"a plan reads no output, and not {file}")


def sent_output(work: AnyWork, context: Context, shard: Any) -> Any:
    """The output of a shard, from its bytes."""
    return work.output_codec.unpack(work.output_codec.pack(work.run(context, shard)))


def do_all(work: AnyWork, context: Context) -> TaskResult:
    shards = sent_shards(work, context)
    return work.merge(context, shards, [sent_output(work, context, shard) for shard in shards])
