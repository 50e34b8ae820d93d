"""Decoding steps of each path, one token of every row after the other."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from evalsvc.models import DecodePath, StepShape, Transformer, decoding
from evalsvc.models.attention import attention_dtype
from evalsvc.models.layer import EAGER

PATHS: tuple[DecodePath, ...] = ("plain", "packed", "compiled", "graph")


def leave_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(decoding.PATHS, "compiled", replace(decoding.PATHS["compiled"], kernels=lambda: EAGER))
    monkeypatch.setattr(decoding, "compiled_attention", lambda *shape: decoding.blocked_attention)


@torch.inference_mode()
def stepped_logits(
    model: Transformer,
    path: DecodePath,
    ids: Tensor,  # [R, T] int64
    prompt: int,
    *,
    codes: range | None = None,
    mask: Tensor | None = None,  # [R, T] bool
    cache_dtype: torch.dtype | None = None,
) -> Tensor:  # [R, T - prompt, codes] float32
    """The logits after each token behind the first `prompt`, whose rows are loaded in two parts."""
    rows, length = ids.shape
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    shape = StepShape(rows, codes or range(model.config.vocab_size), length, path, cache_dtype=cache_dtype)
    model.packed = None
    step = model.decoding(shape)
    parts = []
    for part in (slice(0, 1), slice(1, rows)):
        cache = model.new_cache(part.stop - part.start, prompt, attention_dtype(cache_dtype, model.dtype))
        model.hidden(ids[part, :prompt], mask=mask[part, :prompt], positions=positions[part, :prompt], cache=cache)
        parts.append((part, cache))
    for _ in range(2):  # the second batch must not see the first
        step.begin(parts, mask[:, :prompt])
        logits = torch.stack([step(ids[:, slot], positions[:, slot], slot) for slot in range(prompt, length)], dim=1)
    return logits


class RecordedStream:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, other: RecordedStream) -> None:
        assert self.device == other.device

    def wait_event(self, event: torch.device) -> None:
        assert self.device == event

    def record_event(self) -> torch.device:
        return self.device


class Current(threading.local):
    """As CUDA has it, every thread starts on the first device."""

    device = torch.device("cuda", 0)
    stream: RecordedStream | None = None


class RecordedCuda:
    def __init__(self) -> None:
        self.current = Current()
        self.streams: list[RecordedStream] = []
        self.captures: list[tuple[torch.device, torch.device, bool]] = []
        """The current device at each, that of the stream, and whether garbage was collected meanwhile."""
        self.replays: list[torch.device] = []
        """The current device at each."""
        self.on_replay: Callable[[], object] = lambda: None
        self.capture_error: Exception | None = None

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current.device = self.current.device, device
        try:
            yield
        finally:
            self.current.device = before

    @contextmanager
    def stream(self, stream: RecordedStream) -> Iterator[None]:
        assert stream.device == self.current.device
        before, self.current.stream = self.current.stream, stream
        try:
            yield
        finally:
            self.current.stream = before

    def current_stream(self, device: torch.device | None = None) -> RecordedStream:
        return self.current.stream or RecordedStream(device or self.current.device)

    def make_stream(self, device: torch.device | None = None, priority: int = 0) -> RecordedStream:
        self.streams.append(RecordedStream(device or self.current.device))
        return self.streams[-1]

    @contextmanager
    def graph(self, graph: RecordedGraph, pool: Any, stream: RecordedStream, capture_error_mode: str) -> Iterator[None]:
        self.captures.append((self.current.device, stream.device, gc.isenabled()))
        before, self.current.stream = self.current.stream, stream
        yield
        if self.capture_error is not None:
            raise self.capture_error
        self.current.stream = before


class RecordedGraph:
    def __init__(self, cuda: RecordedCuda) -> None:
        self.cuda = cuda

    def replay(self) -> None:
        self.cuda.replays.append(self.cuda.current.device)
        self.cuda.on_replay()


@contextmanager
def recorded_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordedCuda]:
    cuda = RecordedCuda()
    for name in ("device", "stream", "current_stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch.cuda, "Stream", cuda.make_stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: RecordedGraph(cuda))
    made_once = (decoding.capture_stream, decoding.decoding_stream)
    for function in made_once:
        function.cache_clear()
    yield cuda
    for function in made_once:
        function.cache_clear()
