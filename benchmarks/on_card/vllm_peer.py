"""How long vLLM takes for a step of the same model and batch, where it is installed.

Its weights are its own random ones of Llama's shape, and it draws from all rows of the table, without guidance: only
times are compared. Whatever it stumbles over is said and fails nothing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

from side_by_side import seconds

from on_card.kit import GIB, MOST_GIB, Kit, Row, figure, left_out
from on_card.shapes import Steps, Subject, large, shortened

BATCHES, SMALL_BATCHES = (256, 32), (4,)
CODES, SMALL_CODES = 256, 8
WARM_UP = 8


def run(kit: Kit) -> Iterator[Row]:
    """Time whole images of 256 codes by both, each engine alone on the card."""
    subject = shortened(large(kit, "rms_norm"), SMALL_CODES if kit.small else CODES)
    batches = SMALL_BATCHES if kit.small else BATCHES
    ours = {batch: _our_seconds(kit, subject, batch) for batch in batches}
    kit.release()
    try:
        theirs = _their_seconds(kit, subject, batches)
    except Exception as error:  # a peer's trouble is none of this card's
        yield left_out(f"{subject.name}: against vLLM", f"{type(error).__name__}: {error}".splitlines()[0][:200])
        return
    for batch in batches:
        mine, other = (1e3 * spent / subject.length for spent in (ours[batch], theirs[batch]))
        what = f"{subject.name}, batch {batch}, {subject.length} codes"
        yield figure(f"{what}: vLLM's step", other, "ms")
        yield figure(f"{what}: vLLM over ours", other / mine, "×", ours_ms=mine, theirs_ms=other)


def _our_seconds(kit: Kit, subject: Subject, batch: int) -> float:
    model, prompts = subject.build(kit.device), subject.prompts(batch)
    Steps(kit.device).draw(model, prompts, subject.spec(batch, length=WARM_UP))
    kit.release()
    return seconds(lambda: Steps(kit.device).draw(model, prompts, subject.spec(batch)))


def _their_seconds(kit: Kit, subject: Subject, batches: tuple[int, ...]) -> dict[int, float]:
    from transformers import LlamaConfig

    config, prompts = subject.config, {batch: subject.prompts(batch) for batch in batches}
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine ends with this process
    from vllm import LLM, SamplingParams

    llama = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_dim,
        intermediate_size=config.ffn_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.seq_len,
        tie_word_embeddings=False,
        dtype=subject.dtype_name,
    )
    with tempfile.TemporaryDirectory() as folder:
        llama.save_pretrained(folder)
        engine = LLM(
            folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            max_num_seqs=max(batches),
            gpu_memory_utilization=min(0.9, 0.8 * MOST_GIB * GIB / max(kit.free_bytes(), 1)),
        )
    found = {}
    for batch in batches:
        asked = [{"prompt_token_ids": list(prompt.ids)} for prompt in prompts[batch]]
        for length in (WARM_UP, subject.length):
            params = SamplingParams(temperature=1.0, max_tokens=length, ignore_eos=True, detokenize=False)
            found[batch] = seconds(lambda asked=asked, params=params: engine.generate(asked, params, use_tqdm=False))
    return found
