import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sampling_reference import make_prompts, tiny_model

from evalsvc.errors import NonFinite, OutOfMemory
from evalsvc.models import Transformer
from evalsvc.sampling import SamplerSpec, Samples, SamplingParams, fitting, generate
from evalsvc.sampling.fitting import BatchShape, generate_fitting, largest_batch
from evalsvc.sampling.memory import footprint

IMAGE_ROWS = range(20, 36)
SPEC = SamplerSpec(IMAGE_ROWS, length=6, params=SamplingParams(), batch=4, bucket=4)


def by_index(found: Sequence[Samples]) -> dict[int, list[int]]:
    rows = [pair for samples in found for pair in zip(samples.indices, samples.codes.tolist(), strict=True)]
    assert len(dict(rows)) == len(rows), "a prompt was drawn twice"
    return dict(rows)


@contextmanager
def little_memory(model: Transformer, rows: int, after: int = 0) -> Iterator[None]:
    """More than `rows` sequences at once run out of memory, from the `after`-th forward pass on."""
    passes = 0

    def allocate(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal passes
        passes += 1
        if passes > after and inputs[0].shape[0] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hook = model.tok_embeddings.register_forward_pre_hook(allocate)
    try:
        yield
    finally:
        hook.remove()


def test_draws_what_generate_draws() -> None:
    model, prompts = tiny_model("rotary"), make_prompts(11)
    shapes: list[BatchShape] = []
    steps: list[int] = []
    found = by_index(list(generate_fitting(model, prompts, SPEC, steps.append, on_shape=shapes.append)))
    assert found == by_index(list(generate(model, prompts, SPEC)))
    assert steps[-1] == 11 * 6
    assert [(shape.batch, shape.reason, shape.agreement) for shape in shapes] == [(4, "declared", None)]


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_goes_on_with_half_the_batch(scale: float) -> None:
    """Memory runs out in the second batch: the first stays, the rest is drawn, and the provenance says what moved."""
    spec = replace(SPEC, params=SamplingParams(guidance_scale=scale), unconditional=(36, 37))
    model, prompts = tiny_model("rotary"), make_prompts(11)
    expected = by_index(list(generate(model, prompts, spec)))
    shapes: list[BatchShape] = []
    steps: list[int] = []
    with little_memory(model, rows=1 if scale == 1 else 2, after=10):
        found = by_index(list(generate_fitting(model, prompts, spec, steps.append, on_shape=shapes.append)))
    assert found == expected
    assert steps[-1] == 11 * 6
    assert [(shape.batch, shape.reason) for shape in shapes] == [(4, "declared"), (1, "out of memory")]
    drawn = shapes[1].drawn
    assert 0 < drawn < 11
    assert (shapes[1].agreement, shapes[1].compared) == (1.0, 6 * min(drawn, fitting.PROBE_PROMPTS))


def test_nothing_to_compare_where_the_first_batch_failed() -> None:
    model, prompts = tiny_model("rotary"), make_prompts(5)
    shapes: list[BatchShape] = []
    with little_memory(model, rows=2):
        found = list(generate_fitting(model, prompts, SPEC, on_shape=shapes.append))
    assert by_index(found) == by_index(list(generate(model, prompts, SPEC)))
    last = shapes[-1].to_json()
    assert (last["batch"], last["drawn"], last["agreement"], last["compared"]) == (2, 0, None, 0)


def test_one_image_that_does_not_fit_says_what_to_do() -> None:
    model = tiny_model("rotary")
    with little_memory(model, rows=0), pytest.raises(OutOfMemory, match=r"one image at a time .*bfloat16.*2\.00 GiB"):
        list(generate_fitting(model, make_prompts(3), SPEC))


def test_other_errors_come_through() -> None:
    model = tiny_model("rotary")
    with torch.no_grad():
        model.output.weight.fill_(float("nan"))
    with pytest.raises(NonFinite):
        list(generate_fitting(model, make_prompts(3), SPEC))


def test_the_caller_gets_the_memory_of_sampling(buffers: list[weakref.ref[Any]]) -> None:
    """Between two batches, as often as it runs out there; nothing is drawn twice, and no code is another."""
    model, prompts = tiny_model("rotary"), make_prompts(11)
    expected = by_index(list(generate(model, prompts, SPEC)))
    shapes: list[BatchShape] = []
    steps: list[int] = []
    batches = generate_fitting(model, prompts, SPEC, steps.append, on_shape=shapes.append)
    found = []
    for samples in batches:
        found.append(samples)
        if len(found) in (1, 3):
            assert buffers[-1]() is not None
            batches.shrink("CUDA out of memory")
            assert [buffer() for buffer in buffers] == [None] * len(buffers)
    assert by_index(found) == expected
    assert steps[-1] == 11 * 6
    decoding = "out of memory in decoding"
    assert [(shape.batch, shape.reason) for shape in shapes] == [(4, "declared"), (2, decoding), (1, decoding)]
    assert [shape.agreement for shape in shapes] == [None, 1.0, 1.0]


def test_after_the_last_batch_there_is_nothing_to_halve(buffers: list[weakref.ref[Any]]) -> None:
    model = tiny_model("rotary")
    shapes: list[BatchShape] = []
    batches = generate_fitting(model, make_prompts(2), replace(SPEC, batch=2, bucket=16), on_shape=shapes.append)
    for _ in batches:
        batches.shrink("CUDA out of memory")
        assert buffers[-1]() is None
    assert [shape.batch for shape in shapes] == [2]


def test_one_image_beside_which_none_can_be_decoded_says_so() -> None:
    batches = generate_fitting(tiny_model("rotary"), make_prompts(3), replace(SPEC, batch=1))
    drawn = iter(batches)
    assert next(drawn)
    with pytest.raises(OutOfMemory, match=r"one image at a time was sampled and decoded; .*\(2 GiB\)"):
        batches.shrink("2 GiB")
    with pytest.raises(OutOfMemory, match="while one image was decoded, and sampling holds none"):
        batches.shrink("2 GiB")


def test_batches_that_nobody_wants_hold_nothing(buffers: list[weakref.ref[Any]]) -> None:
    batches = iter(generate_fitting(tiny_model("rotary"), make_prompts(7), SPEC))
    assert next(batches)
    del batches
    assert [buffer() for buffer in buffers] == [None] * 3


def test_no_prompts_are_no_work() -> None:
    assert list(generate_fitting(tiny_model("rotary"), [], SPEC)) == []


def needed(model: Transformer, batch: int) -> int:
    found = footprint(model.config, replace(SPEC, batch=batch), 12, torch.float64)
    return int(fitting.HEADROOM * (found.total - found.weights))


def test_the_largest_batch_that_fits() -> None:
    model = tiny_model("rotary")
    spec = replace(SPEC, batch=12)

    def batch(available: int) -> int:
        return largest_batch(model.config, spec, 12, torch.float64, available)

    assert [batch(needed(model, size)) for size in (12, 6, 3, 1)] == [12, 6, 3, 1]
    assert batch(needed(model, 6) - 1) == 3
    with pytest.raises(OutOfMemory, match="run fewer workers"):
        batch(needed(model, 1) - 1)


def test_chooses_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny_model("rotary"), make_prompts(9)
    monkeypatch.setattr(fitting, "available_bytes", lambda device: needed(model, 2))
    shapes: list[BatchShape] = []
    with little_memory(model, rows=2):  # a larger one would show as out of memory
        found = list(generate_fitting(model, prompts, SPEC, on_shape=shapes.append))
    assert len(by_index(found)) == 9
    assert [(shape.batch, shape.declared, shape.reason) for shape in shapes] == [(2, 4, "predicted")]


def test_what_an_earlier_shard_left_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers in a reference cycle once made the next shard's batch smaller."""

    class Holder:
        itself: Any

    left = Holder()
    left.itself = left
    gone = weakref.ref(left)
    del left
    found: list[Any] = []
    monkeypatch.setattr(fitting, "available_bytes", lambda device: found.append(gone()))
    gc.disable()
    try:
        list(generate_fitting(tiny_model("rotary"), make_prompts(1), SPEC))
    finally:
        gc.enable()
    assert found == [None]


LIMITED = """
import resource, torch
from evalsvc.spec.model_config import ModelConfig
from evalsvc.models import DecodeStep, Transformer
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams, fitting

torch.set_num_threads(1)
config = ModelConfig(hidden_dim=256, n_layers=16, n_heads=2, seq_len=256, vocab_size=64, post_embed_norm=False,
    weight_tying=False, ffn_type="gelu", model_norm="rms_norm")
model = Transformer(config).requires_grad_(False).eval()
spec = SamplerSpec(range(32, 64), 16, SamplingParams(), batch=4096, path="plain")  # keys and values of 1 MB an image
limited = fitting.available_bytes
fitting.available_bytes = lambda device: None  # a prediction would not let it come so far
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000, used + 400_000_000))
assert limited("cpu") <= 400_000_000
shapes = []
prompts = [Prompt("a", (1, 2)), Prompt("b", (3,))]
found = list(fitting.generate_fitting(model, prompts, spec, on_shape=shapes.append))
print(sum(len(samples.indices) for samples in found), *[shape.batch for shape in shapes])
"""


@pytest.mark.usefixtures("child_process")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits the address space, as Linux does it")
@pytest.mark.long
def test_a_real_limit_is_survived() -> None:
    """torch's own error for the CPU is a plain RuntimeError; buffers held by its traceback would stay allocated."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    images, declared, *_, batch = map(int, done.stdout.split())
    assert (images, declared) == (2, 4096)
    assert 4 <= batch <= 512
