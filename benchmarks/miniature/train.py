"""Train the miniature: a real, tiny text-to-image run, whose products are package data (evalsvc/miniature).

    pip install '.[worker,miniature]'
    python benchmarks/miniature/train.py --work /tmp/miniature

On two cores it takes about a quarter of an hour. Each stage leaves one file in the work folder and is skipped where
that exists, so an interrupted training goes on with the stage it was in. What has no order runs side by side, each
process with one thread: on tensors this small a second thread only gets in the way. The same seed gives the same
products on the same machine and torch; other machines round otherwise.

    tokenizers   image tokenizer (MoVQGAN), and beside it the language model on text
    codes        every training image encoded, plainly and in eleven warped variants
    runs         `pretrained` and `random-init` side by side, on the same batches in the same order
    package      what evalsvc ships, and a table of what it reached

`recipes/` has the trainings of the language model, which `benchmarks/paper/train.py` does.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

import cloze
import digits
import heldout_text
import image_tokenizer
import topics
from evalsvc.data.captions import read_captions
from evalsvc.decoders import load_decoder, to_uint8
from evalsvc.features.digit_classifier import DigitClassifier, features, kernel
from evalsvc.miniature import ROOT
from evalsvc.models import load_model
from evalsvc.spec.layout import VocabularyLayout, parse_layout
from measure import Reader, losses

PAPER = Path(__file__).parents[1] / "paper"
sys.path.append(str(PAPER))
from trainer.checkpoint_files import save, saved_checkpoints  # noqa: E402 - on the path from the line above
from trainer.sequences import write_pool  # noqa: E402

IMAGE_STEPS = 480
SEQUENCE = 132
"""Longest sequence: a held-out text of 128 tokens and its four markers."""
RECIPES = Path(__file__).with_name("recipes")
MODEL = "open_lm_miniature.json"
RUNS = ("pretrained", "random-init")
TRAININGS = ("text", *RUNS)
VARIANTS = 12
WARP = digits.Warp(shift=1.0, rotation=6, scale=0.06)
GAMMA, RIDGE = 0.25, 0.01
"""Of the classifier; any value near them reads the validation images as well."""
GUIDANCE = 2.0
INTERVALS = {f"loss_{of}_{end}_95": -1.0 for of in ("sequences", "tokens") for end in ("lower", "upper")}
"""What open_lm writes when it is not asked for confidence intervals."""


@dataclass(frozen=True)
class Workshop:
    """The work folder, the package's folder and the seed, and what every stage reads from them."""

    work: Path
    out: Path
    seed: int

    @cached_property
    def digits(self) -> digits.Digits:
        return digits.load(self.seed)

    @cached_property
    def topics(self) -> dict[str, Any]:
        return topics.read_topics(self.out / "topics.json")

    @property
    def tokenizer(self) -> Path:
        return self.out / "tokenizer.json"

    @cached_property
    def layout(self) -> VocabularyLayout:
        found = parse_layout(str(self.out / "runs" / "layout.yaml"))
        assert found.rows is not None
        return found.resolve(found.rows)

    def file(self, stage: str) -> Path:
        return self.work / f"{stage}.pt"

    def is_done(self, stage: str) -> bool:
        return (self.work / f"{stage}.seconds").exists()

    def load(self, stage: str) -> Any:
        return torch.load(self.file(stage), weights_only=True)


# data


def make_data(shop: Workshop) -> None:
    """Everything that needs no training: quick, and done anew each time."""
    (shop.out / "runs").mkdir(parents=True, exist_ok=True)
    if not (shop.out / "topics.json").exists():
        topics.write_topics(shop.out / "topics.json", shop.seed)
    topics.train_tokenizer(list(shop.topics["train"].values()), shop.tokenizer)
    write_layout(shop)
    write_recipes(shop)
    write_images(shop)
    write_captions(shop)
    write_classifier(shop)
    write_held_out(shop)


def write_held_out(shop: Workshop) -> None:
    """What the held-out topics alone say: as text, and as questions."""
    pieces = heldout_text.pieces(shop.topics["heldout"].values(), shop.topics["train"].values())
    lines = [{"text_ids": ids} for ids in topics.chunks(shop.tokenizer, pieces)]
    write_lines(shop.out / "heldout_text.jsonl", lines)
    write_lines(shop.out / "cloze.jsonl", cloze.questions(pieces, shop.seed))


def write_layout(shop: Workshop) -> None:
    content = parse_layout(
        {"preset": "image-then-special", "text_size": topics.VOCABULARY, "codebook_size": image_tokenizer.CODES}
    ).to_json()
    content["rows"] = max(content["special"].values()) + 1
    content["length"] = SEQUENCE
    content["text"]["tokenizer"] = "../tokenizer.json"
    del content["image"]["map"]
    (shop.out / "runs" / "layout.yaml").write_text(yaml.safe_dump(content, sort_keys=False, default_flow_style=None))


def write_recipes(shop: Workshop) -> None:
    """Write the recipes with the seed, and next to them the text, the layout and the model that they name."""
    for name in TRAININGS:
        recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
        recipe |= {"seed": shop.seed + (name in RUNS), "order_seed": shop.seed}
        (shop.work / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    shutil.copy(RECIPES / MODEL, shop.work)
    shutil.copy(shop.out / "runs" / "layout.yaml", shop.work)
    texts = topics.encode(shop.tokenizer, list(shop.topics["train"].values()))
    write_lines(shop.work / "topics.jsonl", [{"text_ids": ids} for ids in texts])


def write_images(shop: Workshop) -> None:
    """The held-out images. Those for training are scikit-learn's, and left out for their size."""
    data = shop.digits
    kept = data.test + data.validation
    save_file({"images": data.images[kept]}, shop.out / "images.safetensors")
    content = {"train": data.train, "validation": data.validation, "test": data.test}
    (shop.out / "splits.json").write_text(json.dumps(content) + "\n")


def write_captions(shop: Workshop) -> None:
    """One caption for each held-out image, from a template drawn at random."""
    generator = torch.Generator().manual_seed(shop.seed)
    data = shop.digits
    for name, part, start in (("captions", data.test, 0), ("validation_captions", data.validation, len(data.test))):
        lines = []
        for place, index in enumerate(part, start):
            label = int(data.labels[index])
            text = digits.draw_caption(label, generator)
            lines.append({"id": f"digit-{index}", "text": text, "image": place, "label": label})
        write_lines(shop.out / f"{name}.jsonl", lines)


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_classifier(shop: Workshop) -> None:
    """Kernel ridge regression on the training images: (K + λI) a = y, with y = 1 for the class and -1 for others."""
    data = shop.digits
    points, gamma = features(data.images[data.train]).half(), torch.tensor(GAMMA)
    targets = 2.0 * functional.one_hot(data.labels[data.train], 10).double() - 1
    matrix = kernel(points.float(), points.float(), gamma).double()
    matrix += RIDGE * torch.eye(len(points))
    coefficients = torch.linalg.solve(matrix, targets).float().contiguous()
    save_file({"points": points, "coefficients": coefficients, "gamma": gamma}, shop.out / "classifier.safetensors")


# stages, each in a process of its own


def train_images(shop: Workshop) -> None:
    save(image_tokenizer.train(shop.digits.images[shop.digits.train], IMAGE_STEPS, shop.seed), shop.file("images"))


def make_codes(shop: Workshop) -> None:
    """Write the codes of all training images, plain and then warped, with all captions of each image."""
    decoder, data = load_decoder(packed_decoder(shop)), shop.digits
    plain = digits.to_input(data.images[data.train])
    generator = torch.Generator().manual_seed(shop.seed)
    variants = [plain] + [WARP.apply(plain, generator) for _ in range(VARIANTS - 1)]
    codes = torch.stack([encode_all(decoder.encode, images) for images in variants])
    captions = [topics.encode(shop.tokenizer, digits.captions(label)) for label in range(10)]
    write_pool(shop.work / "pool.safetensors", codes, [captions[int(data.labels[image])] for image in data.train])


def encode_all(encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:  # [n, 64] uint8
    return torch.cat([encode(part) for part in torch.split(images, 100)]).to(torch.uint8)


def packed_decoder(shop: Workshop) -> Path:
    """The image tokenizer as it is shipped, so that the codes are those of the shipped one."""
    folder = shop.out / "movqgan"
    folder.mkdir(parents=True, exist_ok=True)
    image_tokenizer.write_config(folder / "config.yaml")
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in shop.load("images").items()}
    save(weights, folder / "movqgan_miniature.ckpt")
    return folder / "movqgan_miniature.ckpt"


def validation_pairs(shop: Workshop) -> list[tuple[list[int], list[int] | None]]:
    decoder = load_decoder(shop.out / "movqgan" / "movqgan_miniature.ckpt")
    return pairs(shop, decoder.encode, shop.digits.validation, "validation_captions")


def pairs(
    shop: Workshop, encode: Callable[[Tensor], Tensor], part: list[int], captions: str
) -> list[tuple[list[int], list[int] | None]]:
    codes = encode_all(encode, digits.to_input(shop.digits.images[part])).tolist()
    texts = [caption.text for caption in read_captions(shop.out / f"{captions}.jsonl").captions]
    return list(zip(topics.encode(shop.tokenizer, texts), codes, strict=True))


def train_language_model(shop: Workshop, name: str) -> None:
    command = [str(PAPER / "train.py"), str(shop.work / f"{name}.yaml"), "--work", str(shop.work / name)]
    subprocess.run([sys.executable, *command, "--threads", "1"], check=True)


STAGES = ("images", "codes", *TRAININGS)


def run_stage(shop: Workshop, stage: str) -> None:
    started = time.perf_counter()
    if stage in TRAININGS:
        train_language_model(shop, stage)
    else:
        {"images": train_images, "codes": make_codes}[stage](shop)
    (shop.work / f"{stage}.seconds").write_text(f"{time.perf_counter() - started:.0f}")


def run_side_by_side(shop: Workshop, *stages: str) -> None:
    """Stages that are not done yet, each in a process with one thread."""
    command = [sys.executable, __file__, "--work", str(shop.work), "--out", str(shop.out), "--seed", str(shop.seed)]
    waiting = [stage for stage in stages if not shop.is_done(stage)]
    processes = [subprocess.Popen([*command, "--stage", stage]) for stage in waiting]
    failed = [stage for stage, process in zip(waiting, processes, strict=True) if process.wait()]
    if failed:
        raise SystemExit(
            f"stage {', '.join(failed)} failed; see above, correct it and start again with the same --work"
        )


# package


def write_package(shop: Workshop) -> None:
    decoder = load_decoder(packed_decoder(shop))
    test = pairs(shop, decoder.encode, shop.digits.test, "captions")
    write_pairs(shop.out / "heldout_pairs.jsonl", test)
    write_pairs(shop.out / "training_pairs.jsonl", training_pairs(shop, decoder.encode))
    for name in RUNS:
        write_packed_run(shop, name)


def write_packed_run(shop: Workshop, name: str) -> None:
    """Write a run with weights in bfloat16, to be small, and with the loss of the validation images."""
    trained, folder = shop.work / name, shop.out / "runs" / name
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    shutil.copy(trained / MODEL, folder)
    (folder / "params.txt").write_text((trained / "params.txt").read_text().replace(str(shop.work), "/runs"))
    validation, index = validation_pairs(shop), []
    for saved in saved_checkpoints(trained):
        content = torch.load(saved.path, weights_only=True)
        loss = losses(load_model(saved.path), shop.layout, validation)["all"]
        content["evaluation_metrics"] = [
            {"loss": loss, **INTERVALS, "val_data": ["validation_captions.jsonl"], "model": MODEL}
        ]
        content["state_dict"] = {key: packed(key, tensor) for key, tensor in content["state_dict"].items()}
        save(content, folder / "checkpoints" / saved.path.name)
        index.append(f"{saved.path.name} {saved.step}\n")
    (folder / "steps.txt").write_text("".join(index))


def packed(name: str, tensor: Tensor) -> Tensor:
    return tensor if name.endswith("inv_freq") else tensor.to(torch.bfloat16)


def write_pairs(path: Path, found: list[tuple[list[int], list[int] | None]]) -> None:
    write_lines(path, [{"text_ids": ids, "image_codes": codes} for ids, codes in found])


def training_pairs(shop: Workshop, encode: Callable[[Tensor], Tensor]) -> list[tuple[list[int], list[int] | None]]:
    """Every training image once, unwarped, with one of the captions that the runs saw it with."""
    data = shop.digits
    generator = torch.Generator().manual_seed(shop.seed)
    texts = [digits.draw_caption(int(data.labels[index]), generator) for index in data.train]
    codes = encode_all(encode, digits.to_input(data.images[data.train])).tolist()
    return list(zip(topics.encode(shop.tokenizer, texts), codes, strict=True))


def report(shop: Workshop) -> None:
    """Print what the shipped files reach, read as anybody else reads them."""
    decoder = load_decoder(shop.out / "movqgan" / "movqgan_miniature.ckpt")
    classifier = DigitClassifier.from_path(shop.out / "classifier.safetensors")
    images, labels = shop.digits.images[shop.digits.test], shop.digits.labels[shop.digits.test]
    codes = decoder.encode(digits.to_input(images))
    rendered = decoder.decode(codes)
    full = render_unrounded(shop)
    share = torch.bincount(codes.flatten(), minlength=image_tokenizer.CODES) / codes.numel()
    print("\nstage seconds:", {s: int((shop.work / f"{s}.seconds").read_text()) for s in STAGES})
    print(f"classifier on {len(images)} real test images: {accuracy(classifier.predict(images), labels):.3f}")
    print(f"classifier on their reconstructions: {accuracy(classifier.predict(to_uint8(rendered)), labels):.3f}")
    print(f"PSNR {psnr(rendered, images):.2f} dB; before rounding the weights {psnr(full, images):.2f} dB")
    print(f"codes used {int((share > 0).sum())} of {len(share)}, perplexity {entropy(share):.1f}")
    print(
        f"\n| run | step | caption loss | image loss | held-out text loss | digit agreement | at guidance {GUIDANCE} |"
    )
    print("|---|---|---|---|---|---|---|")
    reader = Reader(shop.layout, shop.tokenizer, decoder, classifier)
    for name in RUNS:
        for path in sorted((shop.out / "runs" / name / "checkpoints").glob("epoch_*.pt")):
            print_row(shop, reader, name, path)
    total = sum(path.stat().st_size for path in shop.out.rglob("*") if path.is_file())
    print(f"\n{shop.out}: {total / 1e6:.1f} MB")


def print_row(shop: Workshop, reader: Reader, name: str, path: Path) -> None:
    model = load_model(path)
    captions = read_captions(shop.out / "captions.jsonl").captions
    pair = losses(model, shop.layout, read_records(shop.out / "heldout_pairs.jsonl"))
    text = losses(model, shop.layout, read_records(shop.out / "heldout_text.jsonl"))
    step = torch.load(path, weights_only=True)["step"]
    agreement = [reader.agreement(model, captions, guidance) for guidance in (1.0, GUIDANCE)]
    values = [pair["text"], pair["image"], text["text"], *agreement]
    print(f"| {name} | {step} | " + " | ".join(f"{value:.3f}" for value in values) + " |", flush=True)


def read_records(path: Path) -> list[tuple[list[int], list[int] | None]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["text_ids"], line.get("image_codes")) for line in lines]


def render_unrounded(shop: Workshop) -> Tensor:
    """The test images as the image tokenizer reconstructs them with the weights in full precision."""
    decoder = load_decoder(shop.file("images"), image_tokenizer.CONFIG)
    return decoder.decode(decoder.encode(digits.to_input(shop.digits.images[shop.digits.test])))


def accuracy(found: Tensor, labels: Tensor) -> float:
    return float((found == labels).float().mean())


def psnr(rendered: Tensor, images: Tensor) -> float:
    """In dB over the range 0…1, of the mean squared error over all images."""
    error = (to_uint8(rendered).float() - images.float()).div(255).square().mean()
    return float(-10 * error.log10())


def entropy(share: Tensor) -> float:
    return float(torch.special.entr(share).sum().exp())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the stages' files, outside the repository")
    parser.add_argument("--out", type=Path, default=ROOT, help="where the products go [evalsvc/miniature]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=STAGES, help="run this stage alone, in this process")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    shop = Workshop(arguments.work.resolve(), arguments.out.resolve(), arguments.seed)
    if arguments.stage:
        run_stage(shop, arguments.stage)
        return
    make_data(shop)
    run_side_by_side(shop, "images", "text")
    run_side_by_side(shop, "codes")
    run_side_by_side(shop, *RUNS)
    write_package(shop)
    report(shop)


if __name__ == "__main__":
    main()
