"""The checks of `evalsvc inspect`: what a file or folder of weights is, and the commands that evaluate it.

The readers, the families and the watcher decide what a format, a model and a step is: what they learn appears here. All
files are read as for an evaluation, opened and then checked. Weights are mapped and not copied.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from evalsvc.checkpoints.adapter import read_adapter
from evalsvc.checkpoints.expression import File
from evalsvc.checkpoints.formats import ADAPTER_CONFIG, format_of, legible, weights_at
from evalsvc.checkpoints.opening import checkpoint_rule, is_images, locate, opened
from evalsvc.checkpoints.posted import sum_at
from evalsvc.checkpoints.reference import CheckpointRef, files_of
from evalsvc.checkpoints.torch_file import read_outline
from evalsvc.checkpoints.weights import Weights, read_weights
from evalsvc.config import Settings
from evalsvc.data.captions import read_captions
from evalsvc.data.images import read_images
from evalsvc.data.prompted_images import pair_images, prompts_with
from evalsvc.data.tokenizer import TextTokenizer, read_tokenizer
from evalsvc.doctor.checks import Check
from evalsvc.errors import EvalsvcError, NotACheckpoint, ShardedCheckpoint, UnsupportedModel, first_few, os_reason
from evalsvc.families.family import is_file
from evalsvc.families.open_lm import folder_of
from evalsvc.families.reading import find_fields, resolve_config
from evalsvc.models.loading import check_tensors
from evalsvc.spec import catalog
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.layout_presets import TOKENIZER_SIZE, PublishedPreset, presets
from evalsvc.spec.model_config import OPEN_LM, TRANSFORMERS, ModelConfig
from evalsvc.watch.completeness import NO_WEIGHTS, Classifier, Memory, folder_reason
from evalsvc.watch.folders import look_at
from evalsvc.watch.wide_table import SPARE_ROWS

T = TypeVar("T")

TRAINERS: Mapping[str, str] = {
    "peft": r"adapter_config\.json",
    "Hugging Face Trainer": r"trainer_state\.json|training_args\.bin",
    "DeepSpeed": r"zero_to_fp32\.py|(bf16_)?(zero|mp_rank)_.*_states\.pt",
    "accelerate": r"pytorch_model_fsdp.*|random_states_\d+\.pkl",
    "OLMo-core": r"model_and_optim",
    "torch.distributed.checkpoint": r"\.metadata|.*\.distcp",
    "Lightning": r"pytorch-lightning_version",
    "LlamaGen": r"steps",
    "nanochat": r"meta_\d+\.json",
    "open_lm": r"params\.txt|av_model_sd",
    "Meta": r"params\.json",
    "transformers": r"config\.json",
}
"""Pattern of files next to the weights, or of entries of their file, by the program that writes them."""

PUBLISHED = {"liquid": "gemma", "simplear": "qwen2", "chameleon": "chameleon", "anole": "chameleon", "emu3": "emu3"}
PUBLISHED |= {"janus": "janus", "janus-1.3b": "janus"}
"""Family of each published model whose layout is a preset."""

SHOWN = 9
"""Most names in one cell."""


def inspect_checkpoint(
    path: Path, settings: Settings, model: Mapping[str, object] | None = None, options: str = ""
) -> Inspection:
    """Find out what a file or folder of this machine is. Nothing in it is executed.

    `model` is the configuration, None for the one next to the weights; `options` are those by which the user gave it.
    """
    it = Inspection(path, settings)
    if it.are_images():
        return it
    if is_file(path / ADAPTER_CONFIG):
        if (adapter := it.read(read_adapter, "format")) is not None:
            parts = f"{len(adapter.added):,} products and {len(adapter.whole):,} whole tensors"
            it.add("format", True, f"LoRA adapter of {parts}")
            it.find_origin(is_read=True)
            on = sum_at(path, settings)
            is_near = on is not None and isinstance(on.first, File)
            said = legible(str(on.first)) if on is not None and is_near else "named by no path that may be read"
            it.add("base", is_near, said, "name its weights in place of BASE", needed=False)
            it.suggest(base="" if is_near else " --base BASE")
        return it
    weights = it.read(read_weights, "format")
    if not it.located:
        return it
    if weights is not None:
        it.describe(weights)
    elif (reason := folder_reason(path)) not in (None, NO_WEIGHTS):
        it.identified, it.checks = True, [Check("format", True, reason)]
        it.commands.append(f"evalsvc watch {it.quoted} --run RUN --suite SUITE")
        return it
    it.find_origin(is_read=weights is not None)
    config = it.read(lambda place: resolve_config(model, place), "" if weights is None else "model")
    if config is not None:
        source = "--model" if model is not None else it.read(_source_of_model)
        it.identified |= weights is not None
        it.facts["model"] = config.model_dump(mode="json", exclude_defaults=True)
        shape = f"{config.n_layers} layers of {config.hidden_dim:,}, a table of {config.vocab_size:,} rows"
        it.add("model", True, f"{config.family}, from {source}: {shape}")
    elif weights is not None:
        known = {name: catalog.load("families", name) for name in catalog.names("families") if name != TRANSFORMERS}
        families = [name for name, family in known.items() if family.embedding in weights.tensors]
        it.identified = bool(families)
        do = f"the first are {first_few(list(map(legible, weights.tensors)), 3)}"
        it.add("names", families, f"as those of {first_few(families, SHOWN) if families else 'no family'}", do)
        it.commands.append(f"evalsvc inspect {it.quoted} --model MODEL")
    if weights is None or config is None:
        return it
    if config.family != TRANSFORMERS:  # the package compares when it loads the model
        if it.read(lambda place: check_tensors(place, config, weights), "fit") is None:
            return it
        it.add("fit", True, "the tensors have the names and shapes of the model")
    it.suggest(options + it.find_layout(config, options))
    return it


class Inspection:
    """Everything that is known about a file or folder."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path, self.quoted, self.located = path, shlex.quote(str(path)), ""
        self._rule = checkpoint_rule(settings)
        self.identified = False
        """Whether it is known what this is. A model that evalsvc refuses by name is identified."""
        self.facts: dict[str, Any] = {"step": None}
        self.checks: list[Check] = []
        self.commands: list[str] = []
        """Commands that evaluate the weights, or say more. Words in capitals stand for the user's choice."""

    def to_json(self) -> dict[str, Any]:
        facts = {"path": str(self.path), "identified": self.identified, **self.facts}
        return {**facts, "checks": [asdict(check) for check in self.checks], "commands": self.commands}

    def add(self, name: str, ok: object, found: str, do: str = "", needed: bool = True) -> None:
        self.checks.append(Check(name, bool(ok), found, do, needed))

    def read(self, reader: Callable[[Path], T], name: str = "") -> T | None:
        """Return what `reader` reads. If it raises an error, add the error as the check `name`, and return None."""
        path = str(self.path)
        try:
            self.located = self.located or str(locate(path, self._rule))
            with opened(CheckpointRef(self.located, rule=self._rule, label=path)) as pinned:
                return reader(Path(pinned.path))
        except (EvalsvcError, OSError) as error:
            reason = f"{path} cannot be read: {os_reason(error)}; check its permissions"
            problem = error if isinstance(error, EvalsvcError) else NotACheckpoint(reason)
        if name:
            self.identified |= isinstance(problem, ShardedCheckpoint | UnsupportedModel)
            self.facts.setdefault("error", problem.code)
            said, _, do = problem.message.replace(f"{path}/", "").removeprefix(path).lstrip(": ").partition("; ")
            self.add(name, False, said, do)
        return None

    def are_images(self) -> bool:
        """Return whether the path is of images; if a single file is of images in a form that is not read, add why."""
        try:
            return is_images(self.path, self._rule) and self._describe_images()
        except (EvalsvcError, OSError) as error:
            if not isinstance(error, NotACheckpoint) or self.path.is_dir():
                return False
            said, _, do = error.message.removeprefix(str(self.path)).strip().partition("; ")
            self.add("images", False, said, do)
            return True

    def _describe_images(self) -> bool:
        def read(place: Path) -> tuple[str, str]:
            source, listed = read_images(place, self._rule), prompts_with(place, self._rule)
            height, width = source.load(0, None).shape[1:]
            images = f"{len(source):,} images; the first, {legible(source.name(0))}, has {width}×{height} pixels"
            captions = None if listed is None else read_captions(listed, self._rule)
            paired = None if not (captions or source.captions) else pair_images(source, captions, "first", None, 0)
            return images, "" if paired is None else f"{len(paired.images):,} images have a prompt"

        if (described := self.read(read, "images")) is not None:
            self.identified, (images, prompts) = True, described
            self.add("images", True, images)
            do = "give them by --prompts, for metrics such as clip_score"
            self.add("prompts", prompts, prompts or "none are next to the images", do, needed=False)
            more = "" if prompts else " --prompts PROMPTS"
            self.commands.append(f"evalsvc score {self.quoted}{more} --reference IMAGES")
            self.commands.append(f"evalsvc score {self.quoted}{more} --run RUN --step STEP --suite SUITE")
        return True

    def describe(self, weights: Weights) -> None:
        sizes = self.read(lambda place: [file.stat().st_size for file in files_of(place)]) or []
        dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in weights.tensors.values())
        total = self.facts["parameters"] = sum(math.prod(tensor.shape) for tensor in weights.tensors.values())
        averaged = ", and averaged weights under `ema`" if weights.averaged else ""
        files = f"{len(sizes):,} file{'s' * (len(sizes) != 1)}, {sum(sizes):,} bytes"
        self.add("format", True, f"{weights.format}{averaged}; {files}")
        kinds = first_few([f"{number:,} {dtype}" for dtype, number in dtypes.most_common()], SHOWN)
        self.add("tensors", True, f"{len(weights.tensors):,} with {total:,} parameters: {kinds}")

    def find_origin(self, is_read: bool) -> None:
        """Add which trainer wrote the weights, and if they can be read, at which step."""
        near = self.read(lambda place: [*folder_of(place).iterdir(), *folder_of(place).parent.iterdir()]) or ()
        names = sorted({self.path.name, *(self.read(_entries) or ()), *(path.name for path in near)})
        signs = {trainer: next(filter(re.compile(sign).fullmatch, names), None) for trainer, sign in TRAINERS.items()}
        shown = {trainer: f"{trainer} ({legible(name)})" for trainer, name in signs.items() if name is not None}
        self.facts["trainers"] = list(shown)
        self.identified |= "peft" in shown
        self.add("trainer", shown, ", ".join(shown.values()) or "no name of a file or entry tells", needed=False)
        if not is_read or (candidate := look_at(self.path)) is None:
            return
        with TemporaryDirectory(prefix="evalsvc-") as folder:
            verdict = Classifier(Memory(Path(folder) / "memory.json"), settle=0).classify(candidate)
        if verdict.kind == "checkpoint":
            self.facts["step"] = verdict.step
            self.add("step", True, f"{verdict.step}{'' if verdict.variant == 'raw' else f', {verdict.variant}'}")
        else:
            self.add("step", False, "not known", f"`evalsvc watch` leaves it alone: {verdict.reason}", needed=False)

    def find_layout(self, config: ModelConfig, options: str) -> str:
        """Add what the rows of the table may mean; return the option that says it."""
        rows, place = config.vocab_size, folder_of(self.path) / "tokenizer.json"
        ids = TOKENIZER_SIZE if config.family == OPEN_LM and rows >= TOKENIZER_SIZE else 0
        tokenizer: TextTokenizer | None = None
        text: dict[str, object] = {}
        if not is_file(place):
            do = "tasks that read text need one: `text.tokenizer` of the layout"
            self.add("tokenizer", False, "no tokenizer.json is near", do, needed=False)
        elif tokenizer := self.read(lambda near: read_tokenizer(folder_of(near) / place.name), "tokenizer"):
            ids, do = tokenizer.size, "give the model's: it has no more ids than the table has rows"
            self.add("tokenizer", ids <= rows, f"tokenizer.json, {ids:,} ids", do)
            text = {"tokenizer": str(place)} if ids <= rows else {}
        names = list(fitting_layouts(rows, config.family, ids))
        if published := [name for name in names if name in PUBLISHED]:
            self.add("layout", True, f"{' or '.join(published)}, by the size of the table")
            layout = json.dumps({"preset": published[0], "text": text}) if text else published[0]
            return f" --layout {shlex.quote(layout)}"
        if ids and rows > ids + SPARE_ROWS:
            said = f"{rows - ids:,} rows more than the tokenizer has ids; of this size: {first_few(names, SHOWN)}"
            self.add("layout", False, said, "find it by real pairs: evalsvc layout")
            self.commands.append(f"evalsvc layout {self.quoted}{options} --pairs PAIRS --output layout.yaml")
            return " --layout layout.yaml"
        do = "if some rows are of images, `evalsvc layout` finds these by real pairs"
        self.add("layout", ids, "every row is text" if ids else "without a layout every row is text", do, needed=False)
        if tokenizer is None or not text:
            return ""
        text |= {"size": rows} | ({"bos": tokenizer.added_before[0]} if tokenizer.added_before else {})
        return f" --layout {shlex.quote(json.dumps({'text': text}))}"

    def suggest(self, options: str = "", base: str = "") -> None:
        step = "STEP" if self.facts["step"] is None else self.facts["step"]
        self.commands.append(f"evalsvc run SUITE --checkpoint {self.quoted}{options}{base}")
        self.commands.append(f"evalsvc submit RUN {step} {self.quoted} --suite SUITE{options}")


def _entries(place: Path) -> Mapping[str, object]:
    file = weights_at(place, place.name)
    return read_outline(file) if format_of(file) == "torch" else {}


def _source_of_model(place: Path) -> str:
    folder, fields = folder_of(place), find_fields(place)
    return "" if fields is None else fields[1].replace(f"{folder}/", "").replace(f"{folder.parent}/", "../")


def fitting_layouts(rows: int, family: str, ids: int) -> Iterator[str]:
    """Yield the presets whose blocks fill a table of `rows` rows, up to SPARE_ROWS: that of a published model of the
    family, or a text block for `ids` ids with the largest codebook of a power of two that fits."""
    codes = 1 << max(rows - ids, 1).bit_length() - 1
    for name, preset in presets().items():
        fields: dict[str, object] = {"preset": name}
        if not isinstance(preset, PublishedPreset):
            fields |= {"text_size": ids, "codebook_size": codes}
        if PUBLISHED.get(name) == family if len(fields) == 1 else 0 < ids < rows - SPARE_ROWS:
            with suppress(EvalsvcError):
                layout = parse_layout(fields).resolve(rows)
                apart = len(layout.image_range or ()) + len({*layout.special.values()})
                if rows - sum(map(len, layout.text_ranges)) - apart <= SPARE_ROWS:
                    yield name
