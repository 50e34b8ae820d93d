"""Continue a widened Llama on the miniature's captioned digits, and keep checkpoints on the way.

The captions and codes of training are those in `training_pairs.jsonl` of the miniature, the captions in ids of the
Llama's tokenizer. The batch of a step depends on the seed and the step alone, so an interrupted training goes on with
the same batches.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM
from widened_llama import LAYOUT, Widened, save_folder, widen, write_layout

from evalsvc.miniature import ROOT
from evalsvc.spec.layout import VocabularyLayout

CODES = 64
"""Codes of the miniature's image tokenizer."""
IGNORED = -100
"""Target of padding."""
EVERY = 25
"""Steps between two lines of progress."""


@dataclass(frozen=True)
class Recipe:
    """Parameters of the training."""

    kept: Sequence[int] = (0, 10, 20, 50, 100, 200)
    """Steps at which checkpoints are written; the last step ends the training."""
    batch: int = 4
    """Number of captioned digits in a step."""
    rate: float = 5e-4
    """Learning rate after the warm-up; constant, so that a checkpoint does not depend on the number of steps."""
    warmup: int = 10
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    autocast: bool = True
    """Whether products are in bfloat16; weights, moments and sums stay in float32."""
    clip: float = 1.0
    """Largest norm of a gradient."""
    seed: int = 0


@dataclass
class Record:
    """Progress of a training, in the file `training.json`."""

    step: int = 0
    seconds: float = 0.0
    """Seconds of all steps, without the time of saving."""
    threads: int = 0
    losses: list[float] = field(default_factory=list)
    """Mean loss of each step, in nats a token."""


Pair = tuple[list[int], list[int]]
"""Ids of a caption, and the codes of its image."""


def read_pairs(name: str) -> list[tuple[str, list[int]]]:
    """Return caption and codes of each line of one of the miniature's files of pairs."""
    decode = Tokenizer.from_file(str(ROOT / "tokenizer.json")).decode
    lines = [json.loads(line) for line in (ROOT / name).read_text().splitlines()]
    return [(decode(line["text_ids"]), line["image_codes"]) for line in lines]


def read_texts(name: str) -> list[str]:
    """Return the text of each line of one of the miniature's files of text."""
    decode = Tokenizer.from_file(str(ROOT / "tokenizer.json")).decode
    return [decode(json.loads(line)["text_ids"]) for line in (ROOT / name).read_text().splitlines()]


def checkpoint_folder(work: Path, step: int) -> Path:
    return work / "checkpoints" / f"step_{step}"


def train(model_folder: Path, work: Path, recipe: Recipe) -> Record:
    """Train up to the last step of `recipe.kept`, starting where an interrupted training stopped."""
    known = work / "training.json"
    record = Record(**json.loads(known.read_text())) if known.exists() else Record()
    if record.step == recipe.kept[-1] and all(checkpoint_folder(work, step).exists() for step in recipe.kept):
        return record
    widened = widen(model_folder, CODES, recipe.seed)
    (work / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_layout(widened.layout, widened.tokenizer, work / LAYOUT)
    training = Training(widened, work, recipe, record)
    training.resume()
    training.run()
    return training.record


@dataclass
class Training:
    """A training in progress."""

    widened: Widened
    work: Path
    recipe: Recipe
    record: Record

    def __post_init__(self) -> None:
        encode = Tokenizer.from_file(str(self.widened.tokenizer)).encode
        pairs = read_pairs("training_pairs.jsonl")
        self.pairs = [(encode(text, add_special_tokens=False).ids, codes) for text, codes in pairs]
        self.optimizer = _optimizer(self.model, self.recipe)
        self.record.threads = torch.get_num_threads()

    @property
    def model(self) -> LlamaForCausalLM:
        return self.widened.model

    def resume(self) -> None:
        """Take weights, moments and progress from `state.pt`, where an interrupted training left one."""
        path = self.work / "state.pt"
        if path.exists():
            # The progress is in the same file: training.json may be older if the training was interrupted in between.
            state = torch.load(path, weights_only=True)
            self.record = Record(**state["record"])
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        elif self.record.step:
            raise SystemExit(f"{path} is missing, and training.json is of step {self.record.step}; remove {self.work}")

    def run(self) -> None:
        self.model.train()
        kept, last = set(self.recipe.kept), self.recipe.kept[-1]
        while True:
            step = self.record.step
            if step in kept and not checkpoint_folder(self.work, step).exists():
                save_folder(self.model, checkpoint_folder(self.work, step))
            if step == last:
                self._write_record()
                (self.work / "state.pt").unlink(missing_ok=True)
                return
            self._step(step)
            if self.record.step in kept or self.record.step % EVERY == 0:
                self._write_state()

    def _step(self, step: int) -> None:
        begun = time.perf_counter()
        ids, targets = _batch(self.widened.layout, self.pairs, step, self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate * min(1.0, (step + 1) / self.recipe.warmup)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.autocast):
            hidden = self.model.model(ids, use_cache=False).last_hidden_state[targets != IGNORED]
            logits = self.model.lm_head(hidden)
        loss = functional.cross_entropy(logits.float(), targets[targets != IGNORED])
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.record.step = step + 1
        self.record.seconds += time.perf_counter() - begun
        self.record.losses.append(loss.item())
        if self.record.step % EVERY == 0 or self.record.step in self.recipe.kept:
            print(f"step {self.record.step}: loss {loss.item():.3f}, {self.record.seconds:.0f} s", flush=True)

    def _write_state(self) -> None:
        part = self.work / "state.part"
        content = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({"record": vars(self.record), **content}, part)
        part.replace(self.work / "state.pt")
        self._write_record()

    def _write_record(self) -> None:
        part = self.work / "training.part"
        part.write_text(json.dumps(vars(self.record)))
        part.replace(self.work / "training.json")


def _optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() != 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=recipe.betas, fused=True)


def _batch(layout: VocabularyLayout, pairs: Sequence[Pair], step: int, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Return the ids and the targets of a step, [batch, T] each.

    All pairs are used once, in random order, before any is used again. No token attends to the padding on the right.
    """
    places = range(step * recipe.batch, (step + 1) * recipe.batch)
    sequences = [layout.sequence(*pairs[_pair_at(place, len(pairs), recipe.seed)]).ids for place in places]
    width = max(map(len, sequences))
    assert layout.pad_id is not None
    ids = torch.tensor([ids + [layout.pad_id] * (width - len(ids)) for ids in sequences])
    targets = ids[:, 1:].clone()
    targets[targets == layout.pad_id] = IGNORED
    return ids[:, :-1], targets


def _pair_at(place: int, count: int, seed: int) -> int:
    turn, place = divmod(place, count)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + turn)
    return int(torch.randperm(count, generator=generator)[place])
