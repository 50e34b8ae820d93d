"""The checkpoints of a training on the disk: open_lm's files, or Hugging Face folders for models of other families.

    checkpoints/epoch_2.pt              the weights; next to them
    checkpoints/optimizer_2.pt          the optimizer's state
    checkpoints/ema_0.999_1_2.pt        an average
    checkpoints/step_80/                the weights as a Hugging Face folder; next to it
    checkpoints/step_80-ema_0.999/      an average

Epoch N is the Nth checkpoint, counted from 0. A step's weights are written last: when they exist, all files of the step
exist, and each is whole.
"""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from evalsvc.families.family import Source
from evalsvc.families.reading import family_of
from evalsvc.files.atomic import replacing, write_whole
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.spec.model_config import ModelConfig
from trainer import open_lm_files
from trainer.averages import Averages
from trainer.open_lm_files import MODE
from trainer.recipe import Recipe, parse_recipe
from trainer.starting import Start

RAW = "raw"
"""Variant of the weights themselves."""
RECIPE = "recipe.json"
LAYOUT = "layout.yaml"
FOLDER = "checkpoints"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Saved:
    """A file or a folder of weights."""

    step: int
    variant: str
    """`raw`, or an average such as `ema_0.999`."""
    path: Path


class CheckpointFiles(ABC):
    """The checkpoints of one training."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe

    @abstractmethod
    def path(self, step: int, decay: float | None = None) -> Path:
        """Return the place of the weights of a step, or of their average with this decay."""

    @abstractmethod
    def describe(self, start: Start) -> None:
        """Write the files next to the checkpoints that say which model and layout they have."""

    @abstractmethod
    def write(self, step: int, start: Start, optimizer: torch.optim.Optimizer, averages: Averages) -> None:
        """Write all files of a step, the weights last."""

    def saved(self) -> Iterator[Saved]:
        """Yield all weights of the steps that are complete, in order of the steps, and the averages first."""
        for step in self.recipe.kept:
            if self.path(step).exists():
                for decay in self.recipe.ema:
                    yield Saved(step, f"ema_{decay!r}", self.path(step, decay))
                yield Saved(step, RAW, self.path(step))


class OpenLMFiles(CheckpointFiles):
    """Files as open_lm writes them."""

    def path(self, step: int, decay: float | None = None) -> Path:
        name = "epoch" if decay is None else open_lm_files.average_name(decay)
        return self._path(name, step)

    def _path(self, name: str, step: int) -> Path:
        return self.folder / FOLDER / f"{name}_{self.recipe.kept.index(step)}.pt"

    def describe(self, start: Start) -> None:
        write_layout(start.layout, self.folder / LAYOUT)
        open_lm_files.write_run(self.folder, start.model.config, self.recipe)

    def write(self, step: int, start: Start, optimizer: torch.optim.Optimizer, averages: Averages) -> None:
        for decay, tensors in averages.by_decay.items():
            save(open_lm_files.average_content(start.model, tensors, decay, step), self.path(step, decay))
        epoch = self.recipe.kept.index(step)
        if self.recipe.optimizer_files:
            content = open_lm_files.optimizer_content(optimizer, self.recipe, epoch)
            save(content, self._path("optimizer", step))
        save(open_lm_files.epoch_content(start.model, self.recipe, epoch, step), self.path(step))


class HuggingFaceFolders(CheckpointFiles):
    """Folders that transformers opens too."""

    def path(self, step: int, decay: float | None = None) -> Path:
        return self.folder / FOLDER / (f"step_{step}" if decay is None else f"step_{step}-ema_{decay!r}")

    def describe(self, start: Start) -> None:
        write_layout(start.layout, self.folder / LAYOUT)

    def write(self, step: int, start: Start, optimizer: torch.optim.Optimizer, averages: Averages) -> None:
        for decay, tensors in averages.by_decay.items():
            self._write(start, dict(start.model.state_dict()) | tensors, self.path(step, decay))
        self._write(start, start.model.state_dict(), self.path(step))

    def _write(self, start: Start, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write a folder under another name, and rename it."""
        assert start.source is not None
        part = path.with_name(f"{path.name}.part")
        for leftover in (part, path):  # of an interrupted training
            shutil.rmtree(leftover, ignore_errors=True)
        part.mkdir()
        fields = json.loads((start.source / "config.json").read_text())
        fields |= {"vocab_size": start.layout.rows, "torch_dtype": "float32"}
        (part / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
        for name in TOKENIZER_FILES:
            if (start.source / name).is_file():
                shutil.copy(start.source / name, part)
        save_file(hugging_face_tensors(start, tensors), part / "model.safetensors", {"format": "pt"})
        part.replace(path)


def checkpoint_files(folder: Path, recipe: Recipe, start: Start) -> CheckpointFiles:
    """Return the files in which checkpoints of a model are written."""
    return OpenLMFiles(folder, recipe) if start.source is None else HuggingFaceFolders(folder, recipe)


def saved_checkpoints(folder: Path) -> list[Saved]:
    """Return all weights in the folder of a training, of the steps that are complete, in order of the steps."""
    path = folder / RECIPE
    if not path.exists():
        return []
    recipe = parse_recipe(json.loads(path.read_text()), str(path), folder)
    return [saved for kind in (OpenLMFiles, HuggingFaceFolders) for saved in kind(folder, recipe).saved()]


def hugging_face_tensors(start: Start, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of the Transformer's parameters under the full names of their family."""
    config = start.model.config
    head = family_of(config).head
    named = named_as_in_file(config, {name: tensor.detach().cpu() for name, tensor in tensors.items()})
    return {name if name in (head,) or name.startswith("gpt_neox.") else f"model.{name}": named[name] for name in named}


def named_as_in_file(config: ModelConfig, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file for the Transformer's parameters; a tied table has the embedding's name only."""
    given = family_of(config).sources(config)
    tensors: dict[str, Tensor] = {}
    for name, value in parameters.items():
        if name == "output.weight" and config.weight_tying:
            continue
        source = given.get(name, Source((name,)))
        if source.arrange is not None:
            value = value[source.arrange(torch.arange(len(value), device=value.device)).argsort()]
        parts = torch.split(value, list(source.rows or value.shape[:1]))
        tensors |= {part: rows.contiguous() for part, rows in zip(source.names, parts, strict=True)}
    return tensors


def write_layout(layout: VocabularyLayout, path: Path) -> None:
    """Write a layout with the path of its tokenizer."""
    content = yaml.safe_dump(layout.to_json(), sort_keys=False, default_flow_style=None)
    write_whole(path, content.encode(), mode=MODE)


def save(content: Any, path: Path) -> None:
    """Write a file of torch.save whole or not at all. The same content gives the same bytes under every name."""
    with replacing(path, mode=MODE) as stream:
        torch.save(content, stream)
