"""The largest batch that fits, and the memory that sampling takes and the system has."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sampling_reference import make_prompts, tiny_model
from small_models import small_model

from evalsvc.errors import NonFinite, OutOfMemory
from evalsvc.models import Transformer
from evalsvc.sampling import Prompt, SamplerSpec, Samples, SamplingParams, fitting, generate, memory
from evalsvc.sampling.fitting import BatchShape, FittingBatches, KeptSampler, generate_fitting, largest_batch
from evalsvc.sampling.memory import Footprint, available_bytes, footprint
from evalsvc.sampling.sampler import Sampler

IMAGE_ROWS = range(20, 36)
SPEC = SamplerSpec(IMAGE_ROWS, length=6, params=SamplingParams(), batch=4, bucket=4)
DECODING = "out of memory in decoding"


def rows_of(found: Sequence[Samples]) -> list[tuple[int, list[int]]]:
    return sorted(pair for samples in found for pair in zip(samples.indices, samples.codes.tolist(), strict=True))


def drawn(
    model: Transformer,
    prompts: Sequence[Prompt],
    spec: SamplerSpec = SPEC,
    after: Callable[[int, FittingBatches], object] = lambda count, batches: None,
) -> list[BatchShape]:
    """Require all codes of `generate`, with progress that ends with them all; return the shapes of the batches.

    `after` is called between batches with their number.
    """
    shapes: list[BatchShape] = []
    steps: list[int] = []
    batches = generate_fitting(model, prompts, spec, steps.append, on_shape=shapes.append)
    found = []
    for samples in batches:
        found.append(samples)
        after(len(found), batches)
    assert steps[-1] == len(prompts) * spec.length
    model.tok_embeddings._forward_pre_hooks.clear()  # of `little_memory`
    assert rows_of(found) == rows_of(list(generate(model, prompts, spec)))
    return shapes


def little_memory(rows: int, after: int = 0) -> Transformer:
    """A model for which more than `rows` sequences at once run out of memory, from the `after`-th forward pass on."""
    model, passes = tiny_model("rotary"), 0

    def allocate(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal passes
        passes += 1
        if passes > after and inputs[0].shape[0] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model.tok_embeddings.register_forward_pre_hook(allocate)
    return model


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_goes_on_with_half_the_batch(scale: float) -> None:
    """Memory runs out in the second batch: the first stays, the rest is drawn, and the provenance says what moved."""
    spec = replace(SPEC, params=SamplingParams(guidance_scale=scale), unconditional=(36, 37))
    shapes = drawn(little_memory(1 if scale == 1 else 2, after=10), make_prompts(11), spec)
    assert [(shape.batch, shape.reason) for shape in shapes] == [(4, "declared"), (1, "out of memory")]
    count = shapes[1].drawn
    assert 0 < count < 11
    assert (shapes[1].agreement, shapes[1].compared) == (1.0, 6 * min(count, fitting.PROBE_PROMPTS))


def test_the_first_batch_may_fail_or_not_and_one_image_that_does_not_fit_says_what_to_do() -> None:
    first, last = drawn(little_memory(2), make_prompts(5))
    assert (first.batch, first.reason, first.agreement) == (4, "declared", None)
    assert (last.batch, last.drawn, last.agreement, last.compared) == (2, 0, None, 0)
    assert list(generate_fitting(tiny_model("rotary"), [], SPEC)) == []
    with pytest.raises(OutOfMemory, match=r"one image at a time .*bfloat16.*2\.00 GiB"):
        list(generate_fitting(little_memory(0), make_prompts(3), SPEC))
    model = tiny_model("rotary")
    model.output.weight.fill_(float("nan"))
    with pytest.raises(NonFinite):
        list(generate_fitting(model, make_prompts(3), SPEC))


def test_the_caller_gets_the_memory_of_sampling(buffers: list[weakref.ref[Any]]) -> None:
    """Between two batches, as often as it runs out there; nothing is drawn twice, and no code is another."""

    def shrink(count: int, batches: FittingBatches) -> None:
        if count in (1, 3):
            assert buffers[-1]() is not None
            batches.shrink("CUDA out of memory")
            assert [buffer() for buffer in buffers] == [None] * len(buffers)

    shapes = drawn(tiny_model("rotary"), make_prompts(11), after=shrink)
    expected = [(4, "declared", None), (2, DECODING, 1.0), (1, DECODING, 1.0)]
    assert [(shape.batch, shape.reason, shape.agreement) for shape in shapes] == expected
    few = replace(SPEC, batch=2, bucket=16)
    shapes = drawn(tiny_model("rotary"), make_prompts(2), few, lambda count, batches: batches.shrink("CUDA"))
    assert [shape.batch for shape in shapes] == [2], "after the last batch there is nothing to halve"


def test_batches_that_nobody_wants_hold_nothing(buffers: list[weakref.ref[Any]]) -> None:
    batches = generate_fitting(tiny_model("rotary"), make_prompts(3), replace(SPEC, batch=1))
    images = iter(batches)
    assert next(images)
    with pytest.raises(OutOfMemory, match=r"one image at a time was sampled and decoded; .*\(2 GiB\)"):
        batches.shrink("2 GiB")
    with pytest.raises(OutOfMemory, match="while one image was decoded, and sampling holds none"):
        batches.shrink("2 GiB")
    images = iter(generate_fitting(tiny_model("rotary"), make_prompts(7), SPEC))
    assert next(images)
    del images
    assert [buffer() for buffer in buffers] == [None] * len(buffers)


GRAPH = replace(SPEC, path="graph")


def alive(buffers: Sequence[weakref.ref[Any]]) -> int:
    """The number of steps whose buffers exist."""
    return sum(buffer() is not None for buffer in buffers[::3])


def test_a_kept_sampler_draws_the_codes_of_a_new_one(buffers: list[weakref.ref[Any]]) -> None:
    """Codes of shards are those of `generate`, guided with padding too, and one sampler draws them all."""
    model, kept, prompts = tiny_model("rotary"), KeptSampler(), make_prompts(12)
    spec = replace(GRAPH, params=SamplingParams(guidance_scale=2.0, top_k=5), unconditional=(36, 37), bucket=16)
    for shard in (prompts[:5], prompts[5:], prompts[3:9]):
        found = rows_of(list(generate_fitting(model, shard, spec, kept=kept)))
        assert (len(buffers), alive(buffers)) == (3, 1)
        expected = rows_of(list(generate(model, shard, spec)))
        assert found == expected
        del buffers[3:]
    assert kept.cache_bytes == footprint(model.config, spec, 16, model.dtype).cache
    assert (kept.drop(), alive(buffers), kept.drop(), kept.cache_bytes) == (True, 0, False, 0)


@pytest.mark.parametrize(
    ("model", "changes", "count"),
    [("rotary", {"batch": 3}, 3), ("none", {}, 3), ("rotary", {"length": 7}, 3), ("rotary", {}, 9)],
)
def test_there_is_never_a_second_sampler(
    model: Any, changes: dict[str, Any], count: int, buffers: list[weakref.ref[Any]]
) -> None:
    """Of another model, batch or length, or for longer prompts, the sampler is freed before the next is made."""
    kept, most = KeptSampler(), []
    list(generate_fitting(tiny_model("rotary"), make_prompts(3), GRAPH, kept=kept))
    other = replace(GRAPH, bucket=64 if count == 9 else 4, **changes)
    list(
        generate_fitting(
            tiny_model(model), make_prompts(count), other, lambda _: most.append(alive(buffers)), kept=kept
        )
    )
    assert (len(buffers), set(most), alive(buffers)) == (6, {1}, 1)
    kept.drop()


def test_a_sampler_is_kept_for_one_owner_and_a_while(
    buffers: list[weakref.ref[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept after an error, of a path without graphs, for another task, or after an evaluation."""
    model, kept = tiny_model("rotary"), KeptSampler()

    def left(spec: SamplerSpec = GRAPH, **options: Any) -> int:
        list(generate_fitting(model, make_prompts(3), spec, **options, kept=kept))
        return alive(buffers)

    def refuse(_: int) -> None:
        raise NonFinite("")

    kept.reserve("task")
    assert (left(SPEC), left()) == (0, 1)
    kept.reserve("task")
    assert alive(buffers) == 1
    kept.reserve("other task")
    assert (alive(buffers), left()) == (0, 1)
    with pytest.raises(NonFinite):
        left(on_step=refuse)
    assert alive(buffers) == 0
    monkeypatch.setattr(fitting, "IDLE_SECONDS", 0.01)
    left()
    kept._idle.join(20)
    assert alive(buffers) == 0


def test_kept_memory_is_used_or_freed(buffers: list[weakref.ref[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as available for the next batch, and decoding gets it when memory runs out after the last batch."""
    model, kept = tiny_model("rotary"), KeptSampler()
    enough = needed(model, 4, GRAPH)
    monkeypatch.setattr(fitting, "available_bytes", lambda device: enough - kept.cache_bytes)
    for size in (4, 3):
        shapes: list[BatchShape] = []
        prompts = [Prompt(str(index), tuple(range(9, 18))) for index in range(size)]
        batches = generate_fitting(model, prompts, GRAPH, on_shape=shapes.append, kept=kept)
        list(batches)
        assert [(shape.batch, shape.reason, shape.available_bytes) for shape in shapes] == [(4, "declared", enough)]
    assert (len(buffers), alive(buffers)) == (3, 1)
    batches.shrink("CUDA out of memory")
    assert alive(buffers) == 0
    with pytest.raises(OutOfMemory, match="sampling holds none"):
        batches.shrink("CUDA out of memory")


def needed(model: Transformer, batch: int, spec: SamplerSpec = SPEC) -> int:
    found = footprint(model.config, replace(spec, batch=batch), 12, torch.float64)
    return int(fitting.HEADROOM * (found.total - found.weights))


def test_the_largest_batch_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen before anything is allocated: a larger one would show as out of memory."""
    model = tiny_model("rotary")

    def batch(available: int) -> int:
        return largest_batch(model.config, replace(SPEC, batch=12), 12, torch.float64, available)

    assert [batch(needed(model, size)) for size in (12, 6, 3, 1)] == [12, 6, 3, 1]
    assert batch(needed(model, 6) - 1) == 3
    with pytest.raises(OutOfMemory, match="run fewer workers"):
        batch(needed(model, 1) - 1)
    monkeypatch.setattr(fitting, "available_bytes", lambda device: needed(model, 2))
    [shape] = drawn(little_memory(2), make_prompts(9))
    assert (shape.batch, shape.declared, shape.reason) == (2, 4, "predicted")


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


# memory


@pytest.mark.parametrize("cache_dtype", ["bfloat16", "float8"])
@pytest.mark.parametrize("path", ["plain", "graph"])
def test_keys_and_values_are_predicted_exactly(path: Any, cache_dtype: str) -> None:
    """They are most of it. Each path rounds the slots in its own way."""
    model = tiny_model("rotary", dtype="float32")
    spec = replace(SPEC, path=path, cache_dtype=cache_dtype)
    cache: Any = Sampler(model, spec, longest=12).step.cache
    assert footprint(model.config, spec, 12, torch.float32).cache == cache.keys.nbytes + cache.values.nbytes


@pytest.mark.parametrize("path", ["plain", "graph"])
@pytest.mark.parametrize("image_ids", [IMAGE_ROWS, tuple(IMAGE_ROWS), tuple(reversed(IMAGE_ROWS))])
@pytest.mark.parametrize("kind", ["gemma_geglu", "swiglu"])
def test_copies_of_weights_are_predicted(path: Any, image_ids: Any, kind: Any) -> None:
    """A step joins gate and values of a GeGLU, and copies rows of the table that are not consecutive."""
    model = small_model(torch.float64, ffn_type=kind)  # nothing is packed, as on a GPU
    spec = replace(GRAPH, path=path, image_ids=image_ids)
    found: set[int] = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    copies: dict[int, int] = {}
    weights: Any = Sampler(model, spec, longest=12).step.weights
    for product in (weights.head, *(getattr(layer, f.name) for layer in weights.layers for f in fields(layer))):
        for cell in product.__closure__:
            if isinstance(cell.cell_contents, torch.Tensor) and cell.cell_contents.dim() == 2:
                storage = cell.cell_contents.untyped_storage()
                copies |= {} if storage.data_ptr() in found else {storage.data_ptr(): storage.nbytes()}
    assert footprint(model.config, spec, 12, torch.float64, device="cuda").packed == sum(copies.values())


def test_decoding_and_workspaces_count() -> None:
    """On a CPU images are decoded between two batches, when nothing of a step is left; on a GPU beside the next, and
    cuBLAS keeps a workspace for each stream that it has worked on."""

    def use(**options: Any) -> Footprint:
        return footprint(tiny_model("rotary").config, SPEC, 12, torch.float64, **options)

    alone, small, large, gpu = use(), use(reserved=1), use(reserved=10**9), use(device="cuda:1", reserved=1)
    assert (alone.workspaces, small.total) == (0, alone.total)
    assert large.total == alone.total - alone.step + 10**9
    assert (gpu.transient, gpu.workspaces) == (gpu.step + 1, 3 * 32 * 2**20)
    assert gpu.total == gpu.weights + gpu.packed + gpu.cache + gpu.step + 1 + gpu.workspaces


def write(folder: Path, **files: int | str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_the_tightest_control_group_counts(tmp_path: Path) -> None:
    """Pages of files are in a group's usage and yet free: a worker that had read its checkpoint once looked full."""
    membership = tmp_path / "membership"
    membership.write_text("0::/service/worker\n")
    root = tmp_path / "fs"
    write(root / "service/worker", memory__max="max", memory__current=5)
    assert memory._group_bytes(root, membership) is None
    stat = "anon 300\ninactive_file 150\nactive_file 50"
    write(root / "service", memory__max=1000, memory__current=600, memory__stat=stat)
    assert memory._group_bytes(root, membership) == 600
    write(root / "service/worker", memory__max=500, memory__current=450)
    assert memory._group_bytes(root, membership) == 50
    # Of version 1, in a container: the path is the host's, and only the top is there.
    membership.write_text("12:cpu:/docker/abc\n4:memory:/docker/abc\n")
    stat = "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 0"
    write(tmp_path / "fs/memory", memory__limit_in_bytes=1000, memory__usage_in_bytes=600, memory__stat=stat)
    assert memory._group_bytes(tmp_path / "fs", membership) == 500
    found = available_bytes("cpu")
    assert found is None or 10**7 < found < 10**14, "of this machine"


def test_a_share_of_a_gpu_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """`set_per_process_memory_fraction` bounds what torch holds, unused blocks included."""
    found = {"mem_get_info": (70, 100), "memory_reserved": 20, "memory_allocated": 15}
    for name, value in found.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    for fraction, available in ((1.0, 75), (0.5, 35)):
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device, value=fraction: value)
        assert available_bytes("cuda:0") == available


@pytest.mark.parametrize("kind", [RuntimeError, torch.AcceleratorError])
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't", True),
        ("shapes differ", False),
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", True),
        ("CUDA driver error: out of memory", True),
        ("Triton Error [CUDA]: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`", False),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", False),
    ],
)
def test_libraries_of_a_gpu_run_out_of_memory_in_their_own_words(
    kind: Callable[[str], BaseException], message: str, expected: bool
) -> None:
    """Each takes memory behind the allocator's back: such a shard once failed instead of halving its batch. And
    torch.compile has its own error for everything: once a worker that ran out of memory looked like a bug."""
    assert memory.is_out_of_memory(kind(message)) is expected
    wrapper = RuntimeError("InternalTorchDynamoError: MemoryError: std::bad_alloc")
    assert not memory.is_out_of_memory(wrapper)
    wrapper.__context__ = MemoryError("std::bad_alloc")  # what `raise … from None` leaves
    assert memory.is_out_of_memory(wrapper)
