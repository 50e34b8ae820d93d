"""Shards of the task `steps` on a worker of the in-process cluster: no checkpoint is opened, and no torch imported."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from in_process_cluster import Call, Died
from steps_task import Steps, StepsOutput, StepsShard, StepsWork

from evalsvc.errors import Cancelled
from evalsvc.files.outputs import OutputsLost, read_output
from evalsvc.messages import ShardError, ShardRequest, ShardResult
from evalsvc.tasks.stages import run_stage
from evalsvc.tasks.task import Context


def run_steps(request: ShardRequest, call: Call) -> ShardResult:
    """Do what `run_shard` does with `steps_task.Steps`, in its place."""
    work = StepsOfACall(Steps(name=request.task.name, **request.task.parameters), call)
    base = request.base and SimpleNamespace(checkpoint=request.base)
    context: Any = SimpleNamespace(checkpoint=request.checkpoint, base=base)
    try:
        return ShardResult(run_stage(work, request, context, partial(read_output, call.outputs)))
    except OutputsLost as error:
        return ShardResult(lost=error.files)
    except Cancelled as error:
        return ShardResult(error=ShardError(error.code, error.message))


class StepsOfACall(StepsWork):
    """Steps that end with the call."""

    def __init__(self, task: Steps, call: Call) -> None:
        super().__init__(task)
        self.call = call

    def run(self, context: Context, shard: StepsShard) -> StepsOutput:
        for step in range(self.task.steps):
            with Path(self.task.log).open("a") as stream:
                stream.write(f"{shard.index} {step} {self.call.worker}\n")
            self.call.pause(self.task.seconds)
            if shard.index == self.task.poison:
                raise Died("it was poisoned")
            if not self.task.deaf:
                self.call.report(step + 1)
        return StepsOutput(self.task.steps, bytes([shard.index]) * self.task.size)
