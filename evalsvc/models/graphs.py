"""Step with inputs at fixed addresses: one CUDA graph per span of slots, captured when the span is first reached.

On a CPU the step runs without capture.

There is one CUDA stream in addition to the default stream per use, process and device. cuBLAS keeps a workspace for
every stream, and torch cycles through the same 32 streams: with a new stream for every use, workspaces would take a
gigabyte, and work that should overlap would share a stream.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from evalsvc.errors import InternalError

Step = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Function from ids [R], positions [R] and a slot [1], all int64, and a span to logits [R, codes] float32."""

UNWRITTEN = -(2.0**100)
"""Value of the logits before the first replay; no model computes this value for every code of every row."""


class Graphs:
    """CUDA graphs of one step. Every call passes the step: a stored step would live until a garbage collection."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.device = device
        self.ids = torch.zeros(rows, dtype=torch.int64, device=device)
        self.positions = torch.zeros_like(self.ids)
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)
        self.captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        # All graphs share one pool: the output of a graph is read before another graph runs.
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def __call__(self, step: Step, ids: Tensor, positions: Tensor, slot: int, span: int) -> Tensor:
        """Return the logits of `step`, which must be the same step in every call, until the next call."""
        self.ids.copy_(ids)
        self.positions.copy_(positions)
        self.slot.fill_(slot)
        if self.device.type != "cuda":
            return step(self.ids, self.positions, self.slot, span)
        # Streams, captures and events belong to the current device, which may differ from the tensors' device.
        with torch.cuda.device(self.device):
            is_new = span not in self.captured
            if is_new:
                self.captured[span] = self._capture(step, span)
            graph, logits = self.captured[span]
            graph.replay()
            if is_new and bool((logits == UNWRITTEN).all()):
                raise InternalError(
                    f"the CUDA graph captured for {span} slots on {self.device} is empty: its replay writes no logits; "
                    "evaluate on the first visible GPU (set CUDA_VISIBLE_DEVICES), and report this"
                )
        return logits

    def _capture(self, step: Step, span: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Capture the step after one run, which CUDA requires; the replay writes the same slots again."""
        stream, current = capture_stream(self.device), torch.cuda.current_stream()
        stream.wait_stream(current)
        # A failed capture leaves its stream current; this context restores the stream.
        with torch.cuda.stream(stream):
            step(self.ids, self.positions, self.slot, span)
            current.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Another thread may decode images at the same time, and its synchronising calls must not break the capture.
            mode = "thread_local"
            with _no_collection(), torch.cuda.graph(graph, pool=self.pool, stream=stream, capture_error_mode=mode):
                logits = step(self.ids, self.positions, self.slot, span)
        return graph, logits.fill_(UNWRITTEN)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Suspend garbage collection: freeing a graph during the capture of another graph can break the capture."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which sampling captures its graphs; replayed graphs keep its high priority."""
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


@cache
def decoding_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which images are decoded while others are sampled."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
