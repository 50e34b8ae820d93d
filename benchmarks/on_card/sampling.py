"""How many images a second are drawn, how far that is from what the card's memory allows, and how fast a peer is.

The peer is Hugging Face's Llama with a static cache and its step compiled as `generate` does by default. It has RMS
norms where the registered 1B model has layer norms, so the ratios are of our steps with RMS norms, and the images a
second of the registered model. A static cache is attended to as a whole at every step, whatever of it is live: at the
smallest batch whole images are timed, at the others steps near the beginning.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from roofline import COCO, Card
from torch import Tensor

from evalsvc.models import Transformer, can_compile
from evalsvc.sampling import Prompt, SamplingParams, cache_bytes
from evalsvc.sampling.memory import footprint
from on_card.kit import GIB, Kit, Row, at_most, figure, goal, left_out
from on_card.rates import bandwidth, product_rate
from on_card.shapes import Course, Steps, Subject, codes_of, exact, large

CASES = ((256, False), (128, True), (32, False), (128, False))
"""Images at once, and whether they are guided: what matters most comes first."""
SMALL_CASES = ((8, False), (4, True), (4, False))
PEER_BATCHES = (256, 32, 128)
SMALL_PEER_BATCHES = (8, 4)
LIVE, SMALL_LIVE = (128, 512, 1_024), (20, 30, 45)
"""Tokens that are attended to in the steps whose cost is shown."""
OF_BANDWIDTH = 0.8
"""Goal at the largest batch."""
WARM_UP = 4
SETTLED = 12
"""Steps after which the peer's step has been compiled and captured."""
PEER_STEPS = 40
EQUAL_SHARE = 0.99
COMPARED = 128
"""Images whose likeliest codes are compared: one that turns by rounding, with the rest of its image, is within 1 %."""
NARROWED = {
    "guidance 7.5, top-k": SamplingParams(guidance_scale=7.5, top_k=50),
    "guidance 7.5, top-p": SamplingParams(guidance_scale=7.5, top_p=0.9),
}
SECONDS = 120.0
"""After which no further batch of the peer is begun; each is compiled anew."""
PEER_BYTES = 6 * GIB
"""That the peer takes beside its cache, at most: weights, prompts, logits of the whole table, graphs."""


def run(kit: Kit) -> Iterator[Row]:
    """Draw whole images, and compare codes from a part of the codebook by graphs with plain ones."""
    cases, live = (SMALL_CASES, SMALL_LIVE) if kit.small else (CASES, LIVE)
    subject = large(kit)
    model = subject.build(kit.device)
    for batch, guided in cases:
        yield from _whole(kit, subject, model, batch, guided, live)
    del model
    kit.release()
    yield from _narrowed(kit)


def _narrowed(kit: Kit) -> Iterator[Row]:
    """Draw as the shipped suite does, guided from the likeliest codes, by graphs with a copy of the weights."""
    subject = exact(kit)
    model, prompts = subject.build(kit.device), subject.prompts(COMPARED)
    other = kit.touched(copy.deepcopy(model))
    for name, params in NARROWED.items():
        specs = (replace(subject.spec(COMPARED, guided=True, path=path), params=params) for path in ("graph", "plain"))
        found, expected = (codes_of(one, prompts, spec) for one, spec in zip((other, model), specs, strict=True))
        differing = float((found != expected).double().mean())
        yield at_most(f"{name}: codes by graphs that differ from plain ones", differing, 1 - EQUAL_SHARE)


def run_peers(kit: Kit) -> Iterator[Row]:
    """Compare likeliest codes with the peer's, then time steps of both."""
    started = time.perf_counter()
    _, live = (SMALL_CASES, SMALL_LIVE) if kit.small else (CASES, LIVE)
    yield from _equal(kit)
    kit.release()
    twin = large(kit, "rms_norm")
    spent = 0.0
    for batch in SMALL_PEER_BATCHES if kit.small else PEER_BATCHES:
        begun = time.perf_counter()
        if begun - started + spent > SECONDS:
            yield left_out(f"{twin.name}, batch {batch}: against transformers", f"{begun - started:.0f} s are over")
            continue
        yield from _against(kit, twin, batch, live)
        spent = time.perf_counter() - begun


# whole images


def _whole(
    kit: Kit, subject: Subject, model: Transformer, batch: int, guided: bool, live: tuple[int, ...]
) -> Iterator[Row]:
    what = f"{subject.name}, batch {batch}{' guided' if guided else ''}"
    spec, prompts = subject.spec(batch, guided=guided), subject.prompts(batch)
    predicted = footprint(subject.config, spec, subject.padded, subject.dtype, device=str(kit.device))
    if reason := _too_large(kit, predicted.total - predicted.weights):
        yield left_out(f"{what}: images/s", reason)
        return
    codes_of(model, prompts, subject.spec(batch, guided=guided, length=WARM_UP))
    kit.release()
    steps = Steps(kit.device)
    _wait(kit)
    begun = time.perf_counter()
    steps.draw(model, prompts, spec)
    _wait(kit)
    spent = time.perf_counter() - begun
    course = Course(subject, steps.seconds())
    work, card = subject.work(batch, guided=guided), _card(kit, subject)
    share = work.batch_seconds(card) / spent
    peak = kit.peak_bytes() / GIB
    yield figure(f"{what}: images/s", batch / spent, seconds=spent, peak_gib=peak, predicted_gib=predicted.total / GIB)
    row = f"{what}: share of the roofline"
    asked = (batch, guided) == (SMALL_CASES if kit.small else CASES)[0]
    yield goal(row, share, OF_BANDWIDTH) if asked else figure(row, share)
    yield figure(f"{what}: {COCO:,} images", COCO / batch * spent / 3600, "h")
    for tokens in live:
        if (step := course.at(tokens)) is None:
            continue
        least = work.bytes_read(tokens) / card.bandwidth
        yield figure(f"{what}: step at {tokens:,} live", 1e3 * step, "ms", of_bandwidth=least / step)
    captures = course.captures
    if kit.on_card:
        yield figure(f"{what}: captures in all", sum(captures), "s", count=len(captures), of_all=sum(captures) / spent)
    else:
        yield left_out(f"{what}: captures in all", "nothing is captured on a CPU")
    kit.release()


def _card(kit: Kit, subject: Subject) -> Card:
    rate = product_rate(kit.device, subject.dtype)
    return Card(bandwidth(kit.device), half=rate, single=rate)


def _too_large(kit: Kit, count: int) -> str:
    """Return why so many bytes cannot be taken; empty where they can."""
    free = kit.free_bytes()
    return "" if count <= free else f"needs {count / GIB:.1f} GiB, {free / GIB:.1f} free"


def _wait(kit: Kit) -> None:
    if kit.on_card:
        torch.cuda.synchronize(kit.device)


# the peer


@dataclass(frozen=True)
class TwinShape:
    """What `loss.build_theirs` reads of a case."""

    hidden_dim: int
    n_layers: int
    n_heads: int
    rows: int


def _peer(subject: Subject, model: Transformer) -> Any:
    """Return Hugging Face's Llama over the weights of `model`."""
    from loss import build_theirs

    config = subject.config
    shape = TwinShape(config.hidden_dim, config.n_layers, config.n_heads, config.vocab_size)
    theirs = build_theirs(shape, model)  # type: ignore[arg-type]
    theirs.model.rotary_emb.to(model.tok_embeddings.weight.device)
    return theirs


def _peers_codes(
    subject: Subject,
    theirs: Any,
    prompts: list[Prompt],
    *,
    greedy: bool,
    compiled: bool,
    steps: Steps,
    until: int | None = None,
) -> Tensor:  # [len(prompts), drawn]
    """Draw from the image rows, in a cache for whole images; with `until` stop after so many codes."""
    from transformers import LogitsProcessorList, StoppingCriteriaList

    device = theirs.device
    ids = torch.tensor([prompt.ids for prompt in prompts], device=device)
    bias = torch.full((subject.config.vocab_size,), float("-inf"), device=device)
    bias[-subject.codebook :] = 0
    drawn = 0

    def image_rows_only(_: Tensor, scores: Tensor) -> Tensor:
        nonlocal drawn
        steps.mark()
        drawn += 1
        return scores + bias

    def enough(input_ids: Tensor, _: Tensor) -> Tensor:
        done = until is not None and drawn >= until
        return torch.full((len(input_ids),), done, dtype=torch.bool, device=device)

    sampling = {} if greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    found = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=not greedy,
        min_new_tokens=subject.length,
        max_new_tokens=subject.length,
        cache_implementation="static",
        disable_compile=not compiled,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([image_rows_only]),
        stopping_criteria=StoppingCriteriaList([enough]),
        **sampling,
    )
    codes: Tensor = found[:, ids.shape[1] :] - (subject.config.vocab_size - subject.codebook)
    return codes.cpu()


def _equal(kit: Kit) -> Iterator[Row]:
    """Compare likeliest codes in float32, our weights a copy."""
    subject = exact(kit, "rms_norm")
    model = subject.build(kit.device)
    prompts = subject.prompts(COMPARED)
    theirs = _peer(subject, model)
    codes = _peers_codes(subject, theirs, prompts, greedy=True, compiled=False, steps=Steps(kit.device))
    ours = codes_of(kit.touched(copy.deepcopy(model)), prompts, subject.spec(COMPARED, temperature=0))
    differing = float((ours != codes).double().mean())
    yield at_most("likeliest codes that differ from transformers'", differing, 1 - EQUAL_SHARE, codes=codes.numel())


def _against(kit: Kit, subject: Subject, batch: int, live: tuple[int, ...]) -> Iterator[Row]:
    """Time our steps, then the peer's in the same process: at large batches their caches do not fit together."""
    what = f"{subject.name}, batch {batch}"
    whole = batch == min(SMALL_PEER_BATCHES if kit.small else PEER_BATCHES)
    cache = cache_bytes(subject.config, batch, subject.prompt + subject.length, subject.dtype)
    if reason := _too_large(kit, cache + PEER_BYTES):
        yield left_out(f"{what}: against transformers", reason)
        return
    model = subject.build(kit.device)
    prompts = subject.prompts(batch)
    ours = _our_course(kit, subject, model, batch, live[-1] if whole else live[-2])
    steps = Steps(kit.device)
    theirs = _peer(subject, model)
    until = None if whole else min(subject.length, SETTLED + PEER_STEPS)
    compiled = kit.on_card and can_compile("cuda")
    begun = time.perf_counter()
    try:
        with _every_attention():
            _peers_codes(subject, theirs, prompts, greedy=False, compiled=compiled, steps=steps, until=until)
    except torch.OutOfMemoryError as error:
        yield left_out(f"{what}: against transformers", f"it ran out of memory: {error}".splitlines()[0][:200])
        return
    finally:
        del theirs
        if compiled:  # for another batch it would be compiled with a shape that varies, which is slower
            torch.compiler.reset()
        kit.release()
    spent, peer = time.perf_counter() - begun, Course(subject, steps.seconds())
    settled = statistics.median(peer.seconds[SETTLED:])
    details = {
        "compiled": compiled,
        "cache_length": subject.prompt + subject.length,
        "seconds": spent,
    }
    yield figure(f"{what}: transformers' step", 1e3 * settled, "ms", **details)
    for tokens in live:
        mine, other = ours.at(tokens), peer.at(tokens) if whole else settled
        if mine is not None and other is not None:
            row = f"{what}: transformers over ours at {tokens:,} live"
            yield figure(row, other / mine, "×", ours_ms=1e3 * mine, theirs_ms=1e3 * other, theirs_at_place=whole)


@contextmanager
def _every_attention() -> Iterator[None]:
    """Let the peer choose among all of torch's attentions, as it does where nobody has switched one off."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _our_course(kit: Kit, subject: Subject, model: Transformer, batch: int, live: int) -> Course:
    """Draw until `live` tokens and some more are attended to, after a warm-up."""
    prompts, steps = subject.prompts(batch), Steps(kit.device)
    codes_of(model, prompts, subject.spec(batch, length=WARM_UP))
    kit.release()
    steps.draw(model, prompts, subject.spec(batch), until=min(subject.length, live - subject.prompt + 10))
    course = Course(subject, steps.seconds())
    kit.release()
    return course
