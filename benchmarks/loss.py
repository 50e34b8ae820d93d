"""The loss task against Hugging Face's Llama with full logits: tokens per second and peak memory.

Both run the same weights over the same image–caption sequences, alternating in one process; the memory is measured
with each side alone in a process of its own. Their losses are compared before anything is timed.

    python benchmarks/loss.py [--quick]

Prints a card (shape, bytes, operations), a table, the distance from the matrix product that this machine manages,
and as last line one JSON document; `ratios` has Hugging Face's time over ours, above 1 when ours is faster.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from side_by_side import gemm_rate, interleaved, machine, medians, peak_bytes, print_last_line, ratios
from transformers import LlamaConfig, LlamaForCausalLM

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.models import Transformer
from evalsvc.spec.layout import VocabularyLayout, parse_layout
from evalsvc.spec.model_config import ModelConfig
from evalsvc.tasks.loss.teacher_forcing import sequence_sums

THEIRS = "transformers, all logits"
MEMORY_LIMIT = 2_000_000_000
"""Bytes that our side must stay below, weights and libraries included."""


@dataclass(frozen=True)
class Case:
    hidden_dim: int
    n_layers: int
    n_heads: int
    layout: VocabularyLayout
    sequences: int
    repetitions: int

    @property
    def rows(self) -> int:
        assert self.layout.rows is not None
        return self.layout.rows

    @property
    def length(self) -> int:
        assert self.layout.length is not None
        return self.layout.length

    @property
    def tokens(self) -> int:
        return self.sequences * self.length


# open_lm_160m with the paper's vocabulary and sequence, and a small one that shows only that the benchmark works.
FULL = Case(768, 12, 12, parse_layout("image-then-special").resolve(66_823), sequences=4, repetitions=3)
SMALL = parse_layout({"preset": "image-then-special", "text_size": 2_048, "codebook_size": 1_024}).resolve(3_079)
QUICK = Case(128, 2, 4, SMALL, sequences=1, repetitions=2)


class BenchmarkWork:
    """The loss of a model that is in no checkpoint."""

    def __init__(self, case: Case) -> None:
        self.checkpoint = CheckpointRef("")
        self.device = "cpu"
        self.batch_tokens = case.tokens
        self.report: Callable[[int], None] = lambda done: None


def build_ours(case: Case) -> Transformer:
    config = ModelConfig(
        hidden_dim=case.hidden_dim,
        n_layers=case.n_layers,
        n_heads=case.n_heads,
        seq_len=2_048,
        vocab_size=case.rows,
        post_embed_norm=False,
        weight_tying=False,
        model_norm="rms_norm",
    )
    torch.manual_seed(0)
    return Transformer(config).requires_grad_(False).eval()


def build_theirs(case: Case, ours: Transformer) -> LlamaForCausalLM:
    """Llama with our weights: views, so that one process holds them once."""
    config = LlamaConfig(
        hidden_size=case.hidden_dim,
        intermediate_size=ours.config.ffn_dim,
        num_hidden_layers=case.n_layers,
        num_attention_heads=case.n_heads,
        num_key_value_heads=case.n_heads,
        vocab_size=case.rows,
        max_position_embeddings=2_048,
        rms_norm_eps=ours.config.norm_eps,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        theirs = LlamaForCausalLM(config)
    weights = {
        "model.embed_tokens.weight": ours.tok_embeddings.weight,
        "model.norm.weight": ours.norm.weight,
        "lm_head.weight": ours.output.weight,
    }
    for index in range(case.n_layers):
        weights |= _layer_weights(ours.state_dict(), f"layers.{index}.", f"model.layers.{index}.")
    theirs.load_state_dict(weights, strict=True, assign=True)
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config)
    return theirs.requires_grad_(False).eval()


def _layer_weights(state: dict[str, torch.Tensor], ours: str, theirs: str) -> dict[str, torch.Tensor]:
    parts = zip(("q", "k", "v"), state[ours + "attention.in_proj.weight"].chunk(3), strict=True)
    gate, up = state[ours + "feed_forward.w12.weight"].chunk(2)
    return {theirs + f"self_attn.{name}_proj.weight": part for name, part in parts} | {
        theirs + "self_attn.o_proj.weight": state[ours + "attention.out_proj.weight"],
        theirs + "mlp.gate_proj.weight": gate,
        theirs + "mlp.up_proj.weight": up,
        theirs + "mlp.down_proj.weight": state[ours + "feed_forward.w3.weight"],
        theirs + "input_layernorm.weight": state[ours + "attention_norm.weight"],
        theirs + "post_attention_layernorm.weight": state[ours + "ffn_norm.weight"],
    }


def make_sequences(case: Case) -> list[list[int]]:
    """Random captions and codes in the layout's template, each as long as it allows."""
    draw = random.Random(0)
    image = case.layout.image
    assert image is not None
    sequences = []
    for _ in range(case.sequences):
        text = [draw.randrange(case.layout.text.size) for _ in range(case.length)]
        sequences.append(
            case.layout.sequence(text, [draw.randrange(image.size) for _ in range(min(1_024, image.size))])
        )
    return [sequence.ids for sequence in sequences]


def our_loss(case: Case, model: Transformer, sequences: list[list[int]]) -> float:
    names = [f"sequence {index}" for index in range(len(sequences))]
    sums = sequence_sums(BenchmarkWork(case), model, case.layout, sequences, names)
    kinds = ("text", "image", "special")
    return sum(sum(sums[f"nll_{kind}"]) for kind in kinds) / sum(sum(sums[f"n_{kind}"]) for kind in kinds)


def their_loss(model: LlamaForCausalLM, sequences: list[list[int]]) -> float:
    ids = torch.tensor(sequences)
    with torch.inference_mode():
        return float(model(ids, labels=ids, use_cache=False).loss)


def operations(case: Case, model: Transformer) -> int:
    """Floating point operations of our side: two per weight and token, and causal attention over half the square."""
    weights = sum(parameter.numel() for name, parameter in model.named_parameters() if name != "tok_embeddings.weight")
    attention = case.n_layers * 2 * case.length * case.hidden_dim
    return case.tokens * (2 * weights + attention)


def measure_memory(side: str, quick: bool) -> int:
    """Bytes of a process that does nothing but one side's loss, weights and libraries included."""
    command = [sys.executable, __file__, "--side", side, *(["--quick"] if quick else [])]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def run_side(case: Case, side: str) -> None:
    ours = build_ours(case)
    sequences = make_sequences(case)
    if side == "ours":
        our_loss(case, ours, sequences)
    else:
        their_loss(build_theirs(case, ours), sequences)
    print(peak_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a small model: shows that the benchmark works")
    parser.add_argument("--side", choices=("ours", "theirs"), help="one side once; prints its peak memory in bytes")
    arguments = parser.parse_args()
    case = QUICK if arguments.quick else FULL
    if arguments.side:
        run_side(case, arguments.side)
        return
    compare(case, arguments.quick)


def compare(case: Case, quick: bool) -> None:
    ours = build_ours(case)
    theirs = build_theirs(case, ours)
    sequences = make_sequences(case)
    flops = operations(case, ours)
    print_card(case, ours, flops)
    losses = our_loss(case, ours, sequences), their_loss(theirs, sequences)  # also the warm-up
    if abs(losses[0] - losses[1]) > 1e-4 * losses[1]:
        raise SystemExit(f"the losses differ: ours {losses[0]:.6f}, theirs {losses[1]:.6f}")
    sides = {"evalsvc": lambda: our_loss(case, ours, sequences), THEIRS: lambda: their_loss(theirs, sequences)}
    times = interleaved(sides, case.repetitions)
    ceiling = gemm_rate(torch.float32)
    memory = {side: measure_memory(side, quick) for side in ("ours", "theirs")}
    print_results(case, flops, losses, times, ceiling, memory)
    if memory["ours"] > MEMORY_LIMIT:
        raise SystemExit(f"our side took {memory['ours'] / 1e9:.2f} GB, more than {MEMORY_LIMIT / 1e9:.0f} GB")


def print_card(case: Case, model: Transformer, flops: int) -> None:
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"model     {case.hidden_dim} wide, {case.n_layers} layers, {case.n_heads} heads, {case.rows:,} rows, float32"
    )
    print(f"weights   {weights / 1e6:.1f} M, {4 * weights / 1e9:.2f} GB")
    print(f"tokens    {case.sequences} × {case.length:,}, all logits {4 * case.tokens * case.rows / 1e9:.2f} GB")
    print(f"work      {flops / 1e12:.3f} TFLOP a pass, {flops / case.tokens / 1e6:.0f} MFLOP a token")
    print(f"machine   {machine()}\n")


def print_results(
    case: Case,
    flops: int,
    losses: tuple[float, float],
    times: Mapping[str, Sequence[float]],
    ceiling: float,
    memory: dict[str, int],
) -> None:
    typical = medians(times)
    print(f"{'':26}{'tokens/s':>10}{'seconds':>10}{'peak GB':>10}{'loss':>12}{'of ceiling':>12}")
    for (name, seconds), peak, loss in zip(typical.items(), memory.values(), losses, strict=True):
        rate = flops / seconds / ceiling
        print(f"{name:26}{case.tokens / seconds:10.0f}{seconds:10.2f}{peak / 1e9:10.2f}{loss:12.6f}{rate:12.0%}")
    print(f"\nceiling   {ceiling / 1e9:.0f} GFLOP/s, a float32 matrix product\n")
    print_last_line(
        "loss",
        ratios(times, "evalsvc"),
        tokens_per_second={name: case.tokens / seconds for name, seconds in typical.items()},
        peak_bytes=memory,
        losses={"ours": losses[0], "theirs": losses[1]},
        ceiling_flops=ceiling,
        of_ceiling=flops / typical["evalsvc"] / ceiling,
    )


if __name__ == "__main__":
    main()
