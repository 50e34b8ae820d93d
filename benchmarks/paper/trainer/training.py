"""A training in progress: the step, the files from which it resumes, and its log."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evalsvc.errors import NonFinite
from trainer.averages import Averages
from trainer.checkpoint_files import CheckpointFiles, checkpoint_files, save
from trainer.losses import Kinds, StepLoss, next_token_loss
from trainer.parts import tune
from trainer.recipe import Recipe
from trainer.sequences import open_batches
from trainer.starting import starting_model

EVERY = 50
"""Steps between two lines of progress on the terminal."""
LOG = "log.jsonl"
STATE = "state.pt"

OnCheckpoint = Callable[[int, Path], None]


class Training:
    """A training in progress. Its weights are a function of the recipe and the number of steps alone."""

    def __init__(self, recipe: Recipe, folder: Path, device: str) -> None:
        self.recipe, self.folder, self.device = recipe, folder, device
        self.start = starting_model(recipe, device)
        self.batches = open_batches(recipe, self.start.layout)
        self.kinds = Kinds(self.start.layout, device)
        self.tuned = tune(self.start.model, recipe.tuned)
        self.optimizer = _optimizer(self.tuned, recipe)
        self.averages = Averages(recipe.ema, self.tuned)
        self.files: CheckpointFiles = checkpoint_files(folder, recipe, self.start)
        self.step = 0
        self.seconds = 0.0

    def run(self, on_checkpoint: OnCheckpoint) -> None:
        """Train from the last state up to the last step, and write and announce the checkpoints that do not exist."""
        self.resume()
        self.files.describe(self.start)
        while True:
            path = self.files.path(self.step) if self.step in self.recipe.kept else None
            if path is not None and not path.exists():
                self.files.write(self.step, self.start, self.optimizer, self.averages)
                on_checkpoint(self.step, path)
            if self.step == self.recipe.steps:
                break
            self.advance()
            if self.step % self.recipe.state_every == 0 or self.step in self.recipe.kept:
                self._write_state()
        (self.folder / STATE).unlink(missing_ok=True)

    def advance(self) -> None:
        """Make one update, and write its line of the log."""
        begun = time.perf_counter()
        batch = self.batches.draw(self.step).to(self.device)
        rate = learning_rate(self.recipe, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.recipe.autocast):
            loss = next_token_loss(self.start.model, batch, self.kinds)
        if not math.isfinite(total := loss.total.item()):
            raise NonFinite(f"the loss is {total} at step {self.step}; lower `learning_rate`, or raise `warm_up`")
        self.optimizer.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(_all_parameters(self.optimizer), self.recipe.clip)
        self.optimizer.step()
        self.averages.update(self.tuned)
        self.step += 1
        self.seconds += time.perf_counter() - begun
        self._log(loss, rate, norm)

    def resume(self) -> None:
        """Take weights, moments, averages and the place in the data from the state file, if there is one."""
        path = self.folder / STATE
        if not path.exists():
            (self.folder / LOG).write_bytes(b"")
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.start.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averages.load(state["averages"])
        self.batches.load({name: tensor.cpu() for name, tensor in state["batches"].items()})
        self.step, self.seconds = state["step"], state["seconds"]
        with (self.folder / LOG).open("r+b") as log:  # lines of steps after the state are written again
            log.truncate(state["log_bytes"])

    def _write_state(self) -> None:
        content = {
            "step": self.step,
            "seconds": self.seconds,
            "log_bytes": (self.folder / LOG).stat().st_size,
            "model": self.start.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averages": self.averages.state(),
            "batches": self.batches.state(),
        }
        save(content, self.folder / STATE)

    def _log(self, loss: StepLoss, rate: float, norm: Tensor) -> None:
        line: dict[str, Any] = {
            "step": self.step,
            "loss": loss.total.item(),
            "parts": {name: {"loss": part.loss, "tokens": part.tokens} for name, part in loss.parts.items()},
            "rate": rate,
            "norm": norm.item(),
            "seconds": round(self.seconds, 3),
        }
        with (self.folder / LOG).open("a") as log:
            log.write(json.dumps(line) + "\n")
        if self.step % EVERY == 0 or self.step in (1, self.recipe.steps):
            parts = ", ".join(f"{name} {part.loss:.3f}" for name, part in loss.parts.items())
            print(f"{self.recipe.name}, step {self.step}: {parts}; {self.seconds:.0f} s", flush=True)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the learning rate of the update after `step` updates: a linear rise, and a cosine down to the floor."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    rise = (step + 1) / recipe.warm_up if recipe.warm_up else 1.0
    return recipe.learning_rate * min(rise, recipe.floor + (1 - recipe.floor) * cosine)


def _optimizer(tuned: dict[str, nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW, with weight decay for matrices only."""
    matrices = [parameter for parameter in tuned.values() if parameter.dim() == 2]
    others = [parameter for parameter in tuned.values() if parameter.dim() != 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)


def _all_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
