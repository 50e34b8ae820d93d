"""The checks of `evalsvc inspect`: what a file or folder of weights is, and the commands that evaluate it.

    tensors → trainer and step → configuration → do the tensors fit it? → layouts that fit the table → commands

The readers, the families and the watcher decide what a format, a model and a step is: what they learn appears here. All
files are read as for an evaluation, opened once and checked. Weights are mapped and not copied.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from evalsvc.checkpoints.expression import File, Sum, canonical
from evalsvc.checkpoints.formats import ADAPTER_CONFIG, format_of, legible, weights_at
from evalsvc.checkpoints.opening import checkpoint_rule, locate, opened
from evalsvc.checkpoints.reference import CheckpointRef, files_of
from evalsvc.checkpoints.torch_file import read_outline
from evalsvc.config import Settings
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.doctor.checks import Check
from evalsvc.errors import EvalsvcError, NotACheckpoint, ShardedCheckpoint, UnsupportedModel, first_few, os_reason
from evalsvc.families.family import is_file, read_json
from evalsvc.families.open_lm import folder_of
from evalsvc.families.reading import find_fields, resolve_config
from evalsvc.spec import catalog
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.layout_presets import TEXT_ROWS, TOKENIZER_SIZE, PublishedPreset, presets
from evalsvc.spec.model_config import OPEN_LM, TRANSFORMERS, ModelConfig
from evalsvc.watch.completeness import Classifier, Memory, Verdict
from evalsvc.watch.folders import Candidate, LocalFolder, look_at
from evalsvc.watch.wide_table import SPARE_ROWS

if TYPE_CHECKING:
    from evalsvc.checkpoints.weights import Weights

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

MOST, SHOWN = 50, 9
"""Most files and folders of a run that are opened, and most names in one cell."""


def inspect_checkpoint(
    path: Path, settings: Settings, model: Mapping[str, object] | None = None, options: str = ""
) -> Inspection:
    """Find out what a file or folder of this machine is. Nothing in it is executed.

    `model` is the configuration, None for the one next to the weights; `options` are those by which the user gave it.
    """
    catalog.load("models", "evalsvc")  # or say how to install PyTorch, without which commands start
    from evalsvc.checkpoints.adapter import read_adapter
    from evalsvc.checkpoints.weights import read_weights
    from evalsvc.models.loading import check_tensors

    it, quoted = Inspection(path, settings), shlex.quote(str(path))
    if is_file(folder_of(path) / ADAPTER_CONFIG):
        if (adapter := it.read(lambda place: read_adapter(folder_of(place)), "format")) is not None:
            it.describe_adapter(len(adapter.added), len(adapter.whole))
        return it
    weights = it.read(read_weights, "format")
    if weights is None and ((path.is_dir() and it.is_of_a_run()) or not it.located):
        return it
    if weights is not None:
        it.describe(weights)
    step = it.find_origin(is_read=weights is not None)
    config = it.read(lambda place: resolve_config(model, place), "" if weights is None else "model")
    if config is not None:
        source = "--model" if model is not None else it.read(_source_of_model)
        it.identified = True
        it.facts["model"] = {"from": source, **config.model_dump(mode="json", exclude_defaults=True)}
        shape = f"{config.n_layers} layers of {config.hidden_dim:,}, a table of {config.vocab_size:,} rows"
        it.add("model", True, f"{config.family}, from {source}: {shape}")
    elif weights is not None and it.knows_names(list(weights.tensors)):
        it.commands.append(f"evalsvc inspect {quoted} --model MODEL")
    if weights is None or config is None:
        return it
    if config.family != TRANSFORMERS:  # the package compares when it loads the model
        if it.read(lambda place: check_tensors(place, config, weights), "fit") is None:
            return it
        it.add("fit", True, "the tensors have the names and shapes of the model")
    options += it.find_layout(config, f"evalsvc layout {quoted}{options} --pairs PAIRS --output layout.yaml")
    it.commands.append(f"evalsvc run SUITE --checkpoint {quoted}{options}")
    it.commands.append(f"evalsvc submit RUN {'STEP' if step is None else step} {quoted} --suite SUITE{options}")
    return it


class Inspection:
    """Everything that is known about a file or folder."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path, self.located, self._rule = path, "", checkpoint_rule(settings)
        self.identified = False
        """Whether it is known what this is. A model that evalsvc refuses by name is identified."""
        self.facts: dict[str, Any] = {}
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
            about = re.sub(rf"^{re.escape(path)}(: | )", "", problem.message).replace(f"{path}/", "")
            said, _, do = about.partition("; ")
            self.add(name, False, said, do)
        return None

    def describe(self, weights: Weights) -> None:
        sizes = self.read(lambda place: [file.stat().st_size for file in files_of(place)]) or []
        dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in weights.tensors.values())
        count, total = len(weights.tensors), sum(math.prod(tensor.shape) for tensor in weights.tensors.values())
        self.facts |= {"format": weights.format, "bytes": sum(sizes), "parameters": total, "dtypes": dict(dtypes)}
        averaged = ", and averaged weights under `ema`" if weights.averaged else ""
        files = f"{len(sizes):,} file{'s' * (len(sizes) != 1)}, {sum(sizes):,} bytes"
        self.add("format", True, f"{weights.format}{averaged}; {files}")
        kinds = first_few([f"{number:,} {dtype}" for dtype, number in dtypes.most_common()], SHOWN)
        self.add("tensors", True, f"{count:,} with {total:,} parameters: {kinds}")

    def find_origin(self, is_read: bool) -> int | None:
        """Add which trainer wrote the weights, and at which step; return the step. `is_read` are readable weights."""
        entries = self.read(_entries) or {}
        names = sorted({self.path.name, *entries, *(self.read(_names_near) or ())})
        signs = {trainer: list(filter(re.compile(sign).fullmatch, names)) for trainer, sign in TRAINERS.items()}
        trainers = self.facts["trainers"] = [trainer for trainer, files in signs.items() if files]
        self.identified |= "peft" in trainers
        shown = [f"{trainer} ({legible(signs[trainer][0])})" for trainer in trainers]
        self.add("trainer", trainers, ", ".join(shown) or "no name of a file or entry tells", needed=False)
        # Of weights that cannot be read, the watcher would say the same as their reader.
        verdict = next(_verdicts([look_at(self.path) if is_read else None]))
        if verdict.kind == "checkpoint":
            self.facts |= {"step": verdict.step, "variant": verdict.variant}
            self.add("step", True, f"{verdict.step}{'' if verdict.variant == 'raw' else f', {verdict.variant}'}")
            return verdict.step
        inside = self.read(lambda place: read_json(folder_of(place) / "trainer_state.json")) or entries
        steps = (inside.get(key) for key in ("step", "global_step", "steps"))
        step = next((number for number in steps if type(number) is int and number >= 0), None)
        why = f"`evalsvc watch` leaves it alone: {verdict.reason}" if verdict.reason else ""
        self.facts["step"] = step
        self.add("step", False, "not known" if step is None else f"{step} in its content", why, needed=False)
        return step

    def describe_adapter(self, products: int, whole: int) -> None:
        """Add what an adapter changes, its base and its step, and the commands that evaluate the merged weights."""
        self.add("format", True, f"LoRA adapter of {products:,} products and {whole:,} whole tensors")
        step = self.find_origin(is_read=True)
        fields = self.read(lambda place: read_json(folder_of(place) / ADAPTER_CONFIG)) or {}
        base = self.facts["base"] = fields.get("base_model_name_or_path")
        self.add("base", base, legible(str(base)), "name its weights in place of BASE")
        place = base if isinstance(base, str) and base.startswith("/") and base.isprintable() else "BASE"
        merged = shlex.quote(canonical(Sum(File(place), File(str(folder_of(self.path))))))
        self.commands.append(f"evalsvc run SUITE --checkpoint {merged}")
        self.commands.append(f"evalsvc submit RUN {'STEP' if step is None else step} {merged} --suite SUITE")

    def knows_names(self, tensors: list[str]) -> bool:
        """Add what the names of tensors tell without a configuration; return whether they may be a language model's."""
        is_decoder = {"quantize", "decoder"} <= {word for name in tensors for word in name.split(".")}
        known = {name: catalog.load("families", name) for name in catalog.names("families") if name != TRANSFORMERS}
        likely = {getattr(family, "name", name) for name, family in known.items() if family.embedding in tensors}
        families = sorted(likely if any(".in_proj." in name for name in tensors) else likely - {OPEN_LM})
        said = f"as those of {first_few(families, SHOWN)}" if families else "as those of no family"
        said = "as those of an image tokenizer, which suites name as `decoder`" if is_decoder else said
        self.identified = bool(families) or is_decoder
        self.add("names", self.identified, said, f"the first are {first_few(list(map(legible, tensors)), 3)}")
        return not is_decoder

    def find_layout(self, config: ModelConfig, find: str) -> str:
        """Add what the rows of the table may mean; return the option that says it."""
        rows = config.vocab_size
        ids, before = self.read(_tokenizer, "tokenizer") or (0, [])
        is_fit = 0 < ids <= rows
        text: dict[str, object] = {"tokenizer": str(folder_of(self.path) / "tokenizer.json")} if is_fit else {}
        if self.checks[-1].name != "tokenizer":  # as it is if the file cannot be read
            said = f"tokenizer.json, {ids:,} ids" if ids else "no tokenizer.json is near"
            do = "give the model's: it has no more ids than the table has rows"
            do = do if ids else "tasks that read text need one: `text.tokenizer` of the layout"
            self.add("tokenizer", is_fit, said, do, needed=ids > 0)
        if not ids and config.family == OPEN_LM and rows >= TOKENIZER_SIZE:
            ids = TOKENIZER_SIZE
        fits = self.facts["layouts"] = list(fitting_layouts(rows, config.family, ids))
        names = list(dict.fromkeys(str(fit["preset"]) for fit in fits))
        if names and names[0] in PUBLISHED:
            self.add("layout", True, f"{' or '.join(names)}, by the size of the table")
            return f" --layout {shlex.quote(json.dumps({**fits[0], 'text': text}) if text else names[0])}"
        if ids and rows > ids + SPARE_ROWS:
            said = f"{rows - ids:,} rows more than the tokenizer has ids; of this size: {first_few(names, SHOWN)}"
            self.add("layout", False, said, "find it by real pairs: evalsvc layout")
            self.commands.append(find)
            return " --layout layout.yaml"
        do = "if some rows are of images, `evalsvc layout` finds these by real pairs"
        self.add("layout", ids, "every row is text" if ids else "without a layout every row is text", do, needed=False)
        text |= {"size": rows, **({"bos": before[0]} if before else {})}
        return f" --layout {shlex.quote(json.dumps({'text': text}))}" if "tokenizer" in text else ""

    def is_of_a_run(self) -> bool:
        """Return whether this is a folder around checkpoints, and then say so in place of everything else."""
        candidates = sorted(LocalFolder(self.path).list(), key=lambda candidate: candidate.uri)[:MOST]
        verdicts = zip(_verdicts(candidates), candidates, strict=True)
        steps = sorted((verdict.step, item.uri) for verdict, item in verdicts if verdict.kind == "checkpoint")
        if steps:
            uris = self.facts["checkpoints"] = [uri for _, uri in steps]
            names = first_few([legible(str(Path(uri).relative_to(self.path))) for uri in uris], SHOWN)
            self.identified, self.checks = True, [Check("format", True, f"folder of a run, with {names}")]
            watch = f"evalsvc watch {shlex.quote(str(self.path))} --run RUN --suite SUITE"
            self.commands = [f"evalsvc inspect {shlex.quote(uris[-1])}", watch]
        return bool(steps)


def _verdicts(candidates: Iterable[Candidate | None]) -> Iterator[Verdict]:
    """Yield what the watcher thinks of candidates, each of which counts as complete, and forget it."""
    with TemporaryDirectory(prefix="evalsvc-") as folder:
        classifier = Classifier(Memory(Path(folder) / "memory.json"), settle=0)
        for candidate in candidates:
            yield Verdict("waits") if candidate is None else classifier.classify(candidate)


def _names_near(place: Path) -> list[str]:
    folder = folder_of(place)
    return [entry.name for near in (folder, folder.parent) for entry in near.iterdir()]


def _entries(place: Path) -> Mapping[str, object]:
    file = weights_at(place, place.name)
    return read_outline(file) if format_of(file) == "torch" else {}


def _source_of_model(place: Path) -> str:
    folder, fields = folder_of(place), find_fields(place)
    return "" if fields is None else fields[1].replace(f"{folder}/", "").replace(f"{folder.parent}/", "../")


def _tokenizer(place: Path) -> tuple[int, list[int]]:
    """Return the number of ids, and the ids that the tokenizer puts before every text; 0 without a tokenizer."""
    if not is_file(path := folder_of(place) / "tokenizer.json"):
        return 0, []
    tokenizer = read_tokenizer(path)
    return tokenizer.size, tokenizer.added_before


def fitting_layouts(rows: int, family: str, ids: int) -> Iterator[dict[str, object]]:
    """Yield the presets whose blocks fill a table of `rows` rows, up to SPARE_ROWS: that of a published model of the
    family, or a text block for `ids` ids with the largest codebook of a power of two that fits."""
    widths = (ids, *([TEXT_ROWS] if ids == TOKENIZER_SIZE else [])) if 0 < ids < rows - SPARE_ROWS else ()
    for name, preset in presets().items():
        own = (preset.text_size,) if PUBLISHED.get(name) == family else ()
        for text in own if isinstance(preset, PublishedPreset) else widths:
            codes = preset.codebook_size if own else 1 << max(rows - text, 1).bit_length() - 1
            fields: dict[str, object] = {"preset": name, "text_size": text, "codebook_size": codes}
            try:
                layout = parse_layout(fields).resolve(rows)
            except EvalsvcError:
                continue
            apart = len(layout.image_range or ()) + len({*layout.special.values()})
            if rows - sum(map(len, layout.text_ranges)) - apart <= SPARE_ROWS:
                yield fields
