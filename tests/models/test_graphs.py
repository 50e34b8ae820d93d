"""Capturing and replaying, with a CUDA that only keeps records."""

import gc
from collections.abc import Iterator

import pytest
import torch
from recorded_cuda import RecordedCuda, recorded_cuda
from torch import Tensor

from evalsvc.errors import InternalError
from evalsvc.models.graphs import Graphs

SECOND = torch.device("cuda", 1)
LOGITS = torch.zeros(2, 3)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordedCuda]:
    with recorded_cuda(monkeypatch) as cuda:
        cuda.on_replay = lambda: LOGITS.fill_(5)
        yield cuda


def graphs() -> Graphs:
    """Believed to be on the second GPU; the buffers are on the CPU."""
    made = Graphs(2, torch.device("cpu"))
    made.device = SECOND
    return made


def step(ids: Tensor, positions: Tensor, slot: Tensor, span: int) -> Tensor:
    return LOGITS.fill_(span)


def call(graphs: Graphs, span: int) -> Tensor:
    ids = torch.zeros(2, dtype=torch.int64)
    return graphs(step, ids, ids, span - 1, span)


def test_everything_happens_on_the_device_of_the_tensors(cuda: RecordedCuda) -> None:
    """On `cuda:1` stream and capture were once those of the first GPU: an empty graph, and logits that stood still."""
    second = graphs()
    for _ in range(2):
        assert call(second, 64).tolist() == [[5.0] * 3] * 2
    assert [(current, of_stream) for current, of_stream, _ in cuda.captures] == [(SECOND, SECOND)]
    assert cuda.replays == [SECOND, SECOND]
    assert cuda.current.device.index == 0


def test_all_captures_share_one_stream(cuda: RecordedCuda) -> None:
    """cuBLAS keeps 32 MiB for each stream that it was used on: once there was one for each span of each batch."""
    for capturing in (graphs(), graphs()):
        for span in (64, 128):
            call(capturing, span)
    assert len(cuda.captures) == 4
    assert len(cuda.streams) == 1


def test_an_empty_graph_is_refused(cuda: RecordedCuda) -> None:
    """Its replays do nothing, and every code would be drawn from the same logits."""
    cuda.on_replay = lambda: None
    with pytest.raises(InternalError, match="for 64 slots on cuda:1 is empty"):
        call(graphs(), 64)


def test_a_capture_that_fails_leaves_the_current_stream(cuda: RecordedCuda) -> None:
    """torch.cuda.graph does not put it back when the capture cannot be ended: later work would go to the wrong one."""
    cuda.capture_error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        call(graphs(), 64)
    assert (cuda.current.device.index, cuda.current.stream) == (0, None)


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_collected_while_capturing(enabled: bool, cuda: RecordedCuda) -> None:
    """Another graph that is freed meanwhile can invalidate the capture."""
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        call(graphs(), 64)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert [collects for *_, collects in cuda.captures] == [False]
