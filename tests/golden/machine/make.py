"""Make the golden values that `evalsvc verify machine` compares with; see README.md."""

import json
import math
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanfid import fid as clean_fid
from prdc import compute_prdc
from safetensors.torch import load_file, save_file
from scipy import stats
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

TESTS = Path(__file__).parents[2]
sys.path += [str(TESTS / "support"), str(TESTS.parent)]

import sampling_reference as reference  # noqa: E402
from programs import Inception, MoVQGAN, OpenLM, ask_cloze, token_losses  # noqa: E402

from evalsvc.data.captions import read_captions  # noqa: E402
from evalsvc.data.tokenizer import read_tokenizer  # noqa: E402
from evalsvc.data.tokens import read_tokens  # noqa: E402
from evalsvc.decoders import to_uint8  # noqa: E402
from evalsvc.miniature import ROOT  # noqa: E402
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams  # noqa: E402
from evalsvc.spec.layout import parse_layout  # noqa: E402
from evalsvc.verify.golden_checks import GOLDEN, drawn_image  # noqa: E402

CASES = ("03", "05", "07", "10", "11", "13")
MARGIN = 2e-4
"""Smallest lead of a drawn code over the next one: far above rounding, so that every device draws the same."""
LAYOUT = parse_layout(str(ROOT / "runs" / "layout.yaml")).resolve(583)
CHECKPOINTS = ROOT / "runs" / "pretrained" / "checkpoints"


def main() -> None:
    open_lm, movqgan, inception = map(Path, sys.argv[1:4])
    torch.set_grad_enabled(False)
    trained, english = (OpenLM(open_lm, CHECKPOINTS / f"epoch_{epoch}.pt") for epoch in (5, 0))
    decoder, network = MoVQGAN(movqgan), Inception(inception)
    copy_cases()
    values: dict[str, Any] = {"programs": programs()}
    values["losses"] = make_losses(trained, english)
    values["cloze"] = make_cloze(english)
    values["sampling"], digits = make_sampling(trained)
    make_decoding(decoder)
    make_features(network)
    values["digits"] = make_digits(decoder, network, digits)
    values["features"] = make_distances()
    values["student"] = make_student()
    (GOLDEN / "values.json").write_text(json.dumps(values, indent=1) + "\n")


def programs() -> dict[str, str]:
    packages = ("torch", "torch-fidelity", "clean-fid", "prdc", "scipy", "lm-eval", "tokenizers")
    found = {name: metadata.version(name) for name in packages}
    return found | {"open_lm": "9bb92ef", "MoVQGAN": "f3976d8"}


def copy_cases() -> None:
    """What open_lm wrote and computed, without the tensors that only the tests need."""
    for folder in sorted((TESTS / "golden" / "open_lm").iterdir()):
        if folder.name.startswith(CASES):
            target = GOLDEN / "open_lm" / folder.name
            (target / "checkpoints").mkdir(parents=True, exist_ok=True)
            for name in ("checkpoints/epoch_1.pt", f"golden_{folder.name}.json", "params.txt"):
                shutil.copyfile(folder / name, target / name)
            expected = load_file(folder / "expected.safetensors")
            kept = {name: expected[name] for name in ("input_ids", "logits_full", "logits_step")}
            save_file(kept, target / "expected.safetensors")


def make_losses(trained: nn.Module, english: nn.Module) -> dict[str, Any]:
    """Of 8 pairs of the trained model every token's loss, and its logits at every 16th place of the first two."""
    records = read_tokens(ROOT / "heldout_pairs.jsonl").records[:32]
    pairs = [LAYOUT.sequence(record.text_ids, record.image_codes).ids for record in records]
    losses = [token_losses(trained, ids) for ids in pairs]
    width = max(len(ids) for ids in pairs[:8])
    save_file(
        {
            "ids": torch.tensor([ids + [-1] * (width - len(ids)) for ids in pairs[:8]], dtype=torch.int32),
            "losses": torch.stack([functional.pad(row, (0, width - 1 - len(row))) for row in losses[:8]]).float(),
            "logits": torch.stack([trained(torch.tensor([ids[:80]]))[0, ::16] for ids in pairs[:2]]),
        },
        GOLDEN / "language_model.safetensors",
    )
    texts = [LAYOUT.sequence(record.text_ids, None).ids for record in read_tokens(ROOT / "heldout_text.jsonl").records]
    general = [token_losses(english, ids) for ids in texts[:8]]
    return {
        "pairs": {"sequences": 32, **mean_losses(pairs, losses)},
        "text": {"sequences": 8, **mean_losses(texts[:8], general)},
    }


def mean_losses(sequences: list[list[int]], losses: list[Tensor]) -> dict[str, float]:
    """Nats per token of each type that occurs."""
    targets = torch.tensor([target for ids in sequences for target in ids[1:]])
    each = torch.cat(losses)
    kinds = {"text": targets < 512, "image": (targets >= 512) & (targets < 576), "special": targets >= 576}
    return {kind: float(each[chosen].mean()) for kind, chosen in kinds.items() if chosen.any()}


def make_cloze(model: nn.Module) -> dict[str, Any]:
    accuracy, scores = ask_cloze(model, 60)
    lines = [row["text"] for row in map(json.loads, (ROOT / "validation_captions.jsonl").read_text().splitlines())]
    questions = [row["query"] for row in map(json.loads, (ROOT / "cloze.jsonl").read_text().splitlines()[:8])]
    texts = [*lines[:8], *questions, "naïve café — 日本語 🙂\t\n  two  spaces"]
    encode = Tokenizer.from_file(str(ROOT / "tokenizer.json")).encode
    ids = [encode(text, add_special_tokens=False).ids for text in texts]
    return {"questions": 60, "accuracy": accuracy, "scores": scores, "texts": texts, "ids": ids}


def prompts_of(count: int) -> list[Prompt]:
    encode = read_tokenizer(ROOT / "tokenizer.json").encode
    captions = read_captions(ROOT / "captions.jsonl").captions[:count]
    return [Prompt(caption.id, tuple(LAYOUT.prompt(encode(caption.text), 64).ids)) for caption in captions]


def make_sampling(model: nn.Module) -> tuple[dict[str, Any], Tensor]:
    """Codes of two ways of sampling, and those of the 96 images of the whole pipeline."""
    prompts = prompts_of(96)
    greedy, _ = first_clear(model, prompts[:24], 8, [SamplingParams(temperature=0)])
    seeds = [SamplingParams(temperature=0.9, top_k=40, top_p=0.95, guidance_scale=1.5, seed=seed) for seed in range(40)]
    warped, params = first_clear(model, prompts[:32], 8, seeds)
    plain, whole = first_clear(model, prompts, 96, [SamplingParams(seed=seed) for seed in range(40)])
    noise = [[reference.uniform(7, "digit-10", position, code) for code in range(64)] for position in (0, 63)]
    drawn = {"greedy": greedy, "warped": warped}
    tensors = {name: torch.tensor(list(codes.values()), dtype=torch.uint8) for name, codes in drawn.items()}
    save_file(tensors | {"uniform": torch.tensor(noise, dtype=torch.float64)}, GOLDEN / "sampling.safetensors")
    found = {"greedy": list(greedy), "warped": list(warped), "params": params.to_json(), "digits_seed": whole.seed}
    return found, torch.tensor([plain[prompt.id] for prompt in prompts])


def first_clear(
    model: nn.Module, prompts: list[Prompt], count: int, choices: Iterable[SamplingParams]
) -> tuple[dict[str, list[int]], SamplingParams]:
    """Codes by prompt under the first parameters by which `count` prompts have no code that rounding could change."""
    unconditional = tuple(LAYOUT.prompt(None, 64).ids)
    for params in choices:
        spec = SamplerSpec(LAYOUT.image_ids, 64, params, 1, unconditional)
        found: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            codes, margin = clear_codes(model, spec, prompt)
            if margin >= MARGIN:
                found[prompt.id] = codes
            if len(found) == count:
                return found, params
            if len(found) + len(prompts) - index - 1 < count:
                break
        print("not clear enough:", params, len(found), file=sys.stderr)
    raise SystemExit("no parameters give clear codes")


def clear_codes(model: nn.Module, spec: SamplerSpec, prompt: Prompt) -> tuple[list[int], float]:
    """`sampling_reference.codes_of`, and the smallest lead of a code; stops at the first that is too small."""
    codes: list[int] = []
    smallest = math.inf
    greedy = spec.params.temperature == 0
    warm = SamplerSpec(spec.image_ids, 64, SamplingParams(), 1) if greedy else spec
    while len(codes) < 64 and smallest >= MARGIN:
        chances = reference.step_probabilities(model, warm, prompt, codes)
        if not greedy and not clear_border(model, spec, prompt, codes):
            return codes, 0.0
        scores = [
            -math.inf if p == 0 else math.log(p) + (0 if greedy else gumbel(spec, prompt, len(codes), code))
            for code, p in enumerate(chances)
        ]
        best, second = sorted(scores, reverse=True)[:2]
        codes.append(scores.index(best))
        smallest = min(smallest, best - second)
    return codes, smallest


def clear_border(model: nn.Module, spec: SamplerSpec, prompt: Prompt, codes: list[int]) -> bool:
    """Whether rounding leaves the codes that top-k and top-p keep as they are."""
    if spec.params.top_k is None and spec.params.top_p is None:
        return True
    params = spec.params
    free = replace(spec, params=replace(params, top_k=None, top_p=None))
    chances = sorted(reference.step_probabilities(model, free, prompt, codes), reverse=True)
    top_k, top_p = params.top_k or len(chances), params.top_p or 1
    if top_k < len(chances) and math.log(chances[top_k - 1] / chances[top_k]) < MARGIN:
        return False
    sums = np.cumsum(chances[:top_k]) / sum(chances[:top_k])
    last = min(int((sums < top_p).sum()), top_k - 1)
    after = chances[last + 1] if last + 1 < top_k else 0
    return bool(np.abs(sums - top_p).min() > MARGIN / 4) and (after == 0 or math.log(chances[last] / after) > MARGIN)


def gumbel(spec: SamplerSpec, prompt: Prompt, position: int, code: int) -> float:
    return -math.log(-math.log(reference.uniform(spec.params.seed, prompt.id, position, code)))


def make_decoding(decoder: MoVQGAN) -> None:
    codes = torch.tensor([record.image_codes for record in read_tokens(ROOT / "heldout_pairs.jsonl").records[:4]])
    images = load_file(ROOT / "images.safetensors")["images"].float() / 127.5 - 1
    found, gaps = decoder.encode(images[:64])
    clear = (gaps.min(1).values > 1e-3).nonzero()[:4, 0]
    encoded = {"places": clear, "encoded": found[clear].to(torch.uint8)}
    tensors = {"codes": codes.to(torch.uint8), "decoded": decoder.decode(codes), **encoded}
    save_file(tensors, GOLDEN / "decoding.safetensors")


def make_features(network: Inception) -> None:
    """Of two digits and of a drawn image that is larger than the network's input."""
    digits = load_file(ROOT / "images.safetensors")["images"][:2]
    drawn = drawn_image(340, 420)[None]
    tensors = {}
    for resize, features in (("tf1-bilinear", network.torch_fidelity), ("pil-bicubic", network.clean_fid)):
        small, large = features(digits), features(drawn)
        tensors |= {f"{resize}/{tap}": torch.cat((small[tap], large[tap])) for tap in (64, 2048)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, GOLDEN / "inception.safetensors")


def make_digits(decoder: MoVQGAN, network: Inception, codes: Tensor) -> dict[str, Any]:
    """fid64 of 96 sampled digits to the real images of their captions."""
    sampled = to_uint8(torch.cat([decoder.decode(part) for part in codes.split(16)]))
    captions = read_captions(ROOT / "captions.jsonl").captions[:96]
    real = load_file(ROOT / "images.safetensors")["images"][[int(caption.image) for caption in captions]]
    mine, theirs = (network.clean_fid(images, deep=False)[64] for images in (sampled, real))
    return {"images": 96, "fid64": fidelity_distance(mine, theirs)}


def fidelity_distance(first: Tensor, second: Tensor) -> float:
    statistics = [fid_features_to_statistics(features) for features in (first, second)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


def make_distances() -> dict[str, float]:
    """Distances between 256 sampled and 256 real images by their first 64 features, kept as float16."""
    kept = np.load(TESTS / "golden" / "anytime" / "features.npz")
    samples, real = (torch.tensor(part).contiguous() for part in (kept["same"][:, 0], kept["reference"][:256]))
    save_file({"samples": samples, "real": real}, GOLDEN / "features.safetensors")
    samples, real = samples.double(), real.double()
    kid = kid_features_to_metric(
        samples, real, kid_subsets=1, kid_subset_size=256, rng_seed=0, verbose=False,
        kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1,
    )  # fmt: skip
    nearest = prc_features_to_metric(samples, real, prc_neighborhood=3, prc_batch_size=256, verbose=False)
    return {
        "torch-fidelity/fid": fidelity_distance(samples, real),
        "clean-fid/fid": float(clean_fid.fid_from_feats(samples.numpy(), real.numpy())),
        "torch-fidelity/kid": float(kid["kernel_inception_distance_mean"]),
        "torch-fidelity/precision": float(nearest["precision"]),
        "torch-fidelity/recall": float(nearest["recall"]),
        **{f"prdc/{name}": float(value) for name, value in compute_prdc(real, samples, nearest_k=5).items()},
    }


def make_student() -> dict[str, Any]:
    """Critical values of Student's t, and the interval of the mean of a fixed sample."""
    sample = [0.1 * index + 0.01 * (index * index % 7) for index in range(12)]
    mean, error = float(np.mean(sample)), float(stats.sem(sample))
    low, high = stats.t.interval(0.95, len(sample) - 1, mean, error)
    grid = [(level, dof) for level in (0.25, 0.05, 0.025, 0.001) for dof in (1, 2.5, 7, 30, 1000)]
    return {
        "sample": sample,
        "interval": [float(low), float(high)],
        "critical": [[level, dof, float(stats.t.isf(level, dof))] for level, dof in grid],
    }


if __name__ == "__main__":
    main()
