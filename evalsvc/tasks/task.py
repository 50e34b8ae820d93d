"""The interface of tasks: parameters, planning, running in shards, and merging.

A task consists of two classes: a `Task` holds the parameters, which the service reads to check a suite, and is imported
without torch; a `Work` runs on a worker.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.files.artifacts import Artifact
from evalsvc.files.codec import Codec, generic_arguments
from evalsvc.files.kept import KeptFolder
from evalsvc.files.opened import Allow
from evalsvc.metrics.definitions import may_return, plain_names
from evalsvc.spec.bounds import MAX_SHARDS, MAX_TOKENS, Beginning, TokenId
from evalsvc.spec.engines import Engine, chosen_engines, engine_names
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.spec.looks import Until
from evalsvc.spec.model_config import ModelConfig
from evalsvc.spec.paths import DataPath
from evalsvc.spec.protocol import MetricValue

if TYPE_CHECKING:
    from evalsvc.data.images import ImageSource
    from evalsvc.decoders import ImageDecoder
    from evalsvc.features import FeatureExtractor
    from evalsvc.features.lpips import LPIPS
    from evalsvc.models.language_model import LanguageModel
    from evalsvc.sampling.fitting import KeptSampler


def require_few_shards(count: int) -> None:
    if count > MAX_SHARDS:
        raise InvalidRequest(
            f"the task is cut into {count:,} shards, more than {MAX_SHARDS:,}; raise `shard_size`, or set "
            "fewer `shards`"
        )


def cut(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the range [start, stop) of each shard."""
    require_few_shards(-(-count // size))
    return pairwise([*range(0, count, size), count])


@dataclass(frozen=True)
class Shard:
    """A restartable part of a task. A subclass adds the fields that `run` and `merge` need.

    A subclass must be a frozen dataclass of JSON-able fields. If a task has several kinds of shards, each has a field
    `part` with a different `Literal`.
    """

    units: int
    """Amount of work in the shard, in the unit of the plan."""


ShardKind = TypeVar("ShardKind", bound=Shard)
"""The task's subclass of `Shard`, or a union of several."""


@dataclass(frozen=True)
class Plan(Generic[ShardKind]):
    """The shards and looks of a task."""

    shards: Sequence[ShardKind]
    unit: str
    """Name of the unit of work, in the plural: `sequences`, `images`."""
    looks: Sequence[tuple[int, int]] = ()
    """Looks at the task, as (shards, units of work) that an early `merge` rests on; the last covers the whole plan. See
    `looks.schedule`. Empty if there is only the final merge."""
    until: Until | None = None
    """Condition for stopping at a look."""

    def __post_init__(self) -> None:
        require_few_shards(len(self.shards))

    @property
    def total(self) -> int:
        return sum(shard.units for shard in self.shards)


@dataclass(frozen=True)
class TaskWarning:
    """A suspicion about a result: a number that cannot be right, or that rests on too little."""

    code: str
    """Stable name of the rule, such as `inputs_cut`."""
    metric: str
    """Name of the metric, `<task>/<metric>`; the task's name if no metric is meant."""
    message: str
    """Suspicion, figures, and what to check."""


@dataclass(frozen=True)
class TaskResult:
    metrics: Sequence[MetricValue]
    items: Sequence[Mapping[str, Any]] = ()
    """Results per item, JSON-able, in the order of the data. Paired comparisons match items by the key `index` (and
    `benchmark`, if a task has several) and compare the keys in `MetricValue.items`."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Counts for readers (sequences cut to length, items skipped); part of the provenance."""
    artifacts: Sequence[Artifact] = ()
    """Files for people to look at: grids, samples."""
    warnings: Sequence[TaskWarning] = ()
    """Suspicions, shown with every result; see `result_warnings` for common ones."""


class Context(ABC):
    """The resources of a task while it works, which `worker.context` provides."""

    checkpoint: CheckpointRef
    device: str
    batch_tokens: int
    allow_benchmark_code: bool
    """Whether YAML files of benchmarks may run code."""
    base: Context | None
    """Context of the checkpoint that the run is compared with, e.g. before it saw images; None without a base."""
    readable: Allow
    """Rule for which paths from `dataset` may be read. Who opens them must apply it again: links may lead outside."""
    is_first: bool
    """Whether the checkpoint is known to be its run's base or first step, where nothing is forgotten yet."""
    kept: KeptFolder
    """Files for later evaluations: statistics of real images, answers of checkpoints."""
    provenance: dict[str, Any]
    """Provenance of the shard; empty at first. A task may add JSON-able values."""
    sampler: KeptSampler
    """Sampler of the last shard, kept while shards of one task follow each other."""

    @abstractmethod
    def digest(self) -> str:
        """Return the SHA-256 of the checkpoint's files."""

    @abstractmethod
    def model(self, *, dtype: str, rotary_inv_freq_dtype: str) -> LanguageModel:
        """Return the checkpoint's model, loaded once per worker process."""

    @abstractmethod
    def rotary(self) -> Mapping[str, str]:
        """Return the protocol's content for the model's rotary frequencies, without reading its other weights.

        Empty if the frequencies are open_lm's table; `{"rotary": "file"}` if the checkpoint has its own.
        """

    @abstractmethod
    def model_config(self) -> ModelConfig:
        """Return the configuration of the checkpoint's model, without reading its weights."""

    @abstractmethod
    def layout(self) -> VocabularyLayout:
        """Return the checkpoint's vocabulary layout, checked against its table."""

    @abstractmethod
    def dataset(self, path: str) -> str:
        """Return the local path of a data file; resolves `datasets:NAME`."""

    @abstractmethod
    def images(self, path: str) -> ImageSource:
        """Return the images of a folder or file. Each is opened only if suites may read it, wherever links lead."""

    @abstractmethod
    def asset(self, name: str) -> Path:
        """Return the file of an asset by name, or a path unchanged. Raises AssetMissing with the command to run."""

    @abstractmethod
    def decoder(self, name: str, config: str | None = None, ema: bool = False, dtype: str = "float32") -> ImageDecoder:
        """Return the image decoder in an asset or file, loaded once per worker process."""

    @abstractmethod
    def extractor(self, name: str, kind: str = "inception") -> FeatureExtractor:
        """Return the feature extractor in an asset, file or folder, loaded once per worker process."""

    @abstractmethod
    def lpips(self, name: str) -> LPIPS:
        """Return LPIPS with the networks in an asset or folder, loaded once per worker process."""

    report: Callable[[int], None]
    """Callback for the units done in this shard so far, called between steps. Raises Cancelled when work must stop."""


class Task(BaseModel):
    """One part of a suite. The fields of a subclass are its parameters, and every field has a docstring.

    Untrusted users set parameters: every whole number, list and text has a bound (see `bounds`), and validators expand
    nothing.

    The same parameters, checkpoint and data give the same numbers, whatever the shards, batches and workers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: ClassVar[str]
    work: ClassVar[str]
    """Class that does the work, as `module:class`. Only workers import it, so it may need torch."""
    needs: ClassVar[str] = ""
    """Inputs that the suite's author provides in addition to the checkpoint, in a few words."""
    example: ClassVar[Mapping[str, Any]] = {}
    """Parameters that `evalsvc suites new` sets. Paths begin with `/path/to/` and have a descriptive file name."""

    stages: ClassVar[tuple[str, ...]] = ("model",)
    """Stages of the task that another engine can compute."""
    reads: ClassVar[Literal["weights", "images"]] = "weights"
    """Content of the checkpoints that the task evaluates."""

    name: str
    """First half of the names of the task's metrics."""
    engine: Engine | None = None
    """Programs that compute stages of the task instead of evalsvc, such as `{model: open_lm}`. Metrics by another
    engine are series of their own [evalsvc]."""

    @field_validator("engine")
    @classmethod
    def _check_engine(cls, engine: Engine | None) -> Engine | None:
        chosen = {} if engine is None else chosen_engines(engine.model_dump())
        for stage, name in chosen.items():
            if stage not in cls.stages:
                stages = ", ".join(cls.stages) or "none"
                raise ValueError(f"a task of kind {cls.kind} has no stage {stage}; its stages are {stages}")
            if name not in (known := engine_names(stage)):
                raise ValueError(UnknownName.among(f"engine of the stage {stage}", name, known).message)
        return Engine(**chosen) if chosen else None

    @property
    def engines(self) -> dict[str, str]:
        """Return the engines of stages that evalsvc does not compute."""
        return {} if self.engine is None else chosen_engines(self.engine.model_dump())

    def work_class(self) -> str:
        """Return the class that does the work of these parameters, as `module:class`."""
        return self.work

    def may_measure(self, metric: str) -> bool:
        """Say whether the task may return a metric with this full name, such as `captions/text`."""
        first, slash, second = metric.partition("/")
        return bool(slash) and first == self.name and may_return(self.kind, second)

    def usual_metrics(self) -> list[str]:
        """Return full names of metrics that tasks of this kind have, for the near misses of a wrong name."""
        return [f"{self.name}/{name}" for name in plain_names(self.kind)]


class TextTask(Task):
    """A task that puts text to a model."""

    tokenizer: DataPath | None = None
    """The `tokenizer.json` that the model was trained with [the layout's]."""
    bos: Beginning | None = None
    """Id of the tokenizer to put before every text that the model continues, or `none` [the layout's `text.bos`]."""
    end_of_text: TokenId | None = None
    """Id of the tokenizer that ends a completion, and replaces an empty context without `bos` [the tokenizer's]."""
    max_length: int | None = Field(default=None, ge=2, le=MAX_TOKENS)
    """Longest input in tokens, with drawn tokens; a longer one is cut from the left and counted [the model's]."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of weights and activations; logits are always float32."""
    rotary_inv_freq_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type to which training rounded the rotary frequencies; `auto` takes it from the run's configuration."""


Parameters = TypeVar("Parameters", bound=Task)


Output = TypeVar("Output")
"""Frozen dataclass of a shard's output for the merge, or a union of several."""


NAME_TYPES = (
    "write `class …(Work[Parameters, Shard, Output])` with the class of the parameters and two frozen dataclasses"
)


class Work(ABC, Generic[Parameters, ShardKind, Output]):
    """Planning, running in shards and merging of a task.

    A subclass names its types: `class LossWork(Work[Loss, LossShard, LossOutput])`. Shards are stored as JSON and
    outputs as MessagePack between the stages, which may run on different machines.
    """

    shard_codec: ClassVar[Codec[Any]]
    output_codec: ClassVar[Codec[Any]]

    def __class_getitem__(cls, arguments: Any) -> Any:
        if cls is Work and not (isinstance(arguments, tuple) and len(arguments) == 3):
            raise TypeError(f"Work needs three types; {NAME_TYPES}")
        return super().__class_getitem__(arguments)  # type: ignore[misc]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        arguments = generic_arguments(cls, Work)
        if not arguments:
            raise TypeError(f"{cls.__qualname__} does not name its types; {NAME_TYPES}")
        if not any(isinstance(argument, TypeVar) for argument in arguments):
            cls.shard_codec, cls.output_codec = Codec(arguments[1]), Codec(arguments[2])
            if not all(issubclass(member, Shard) for member in cls.shard_codec.members):
                raise TypeError(
                    f"{cls.__qualname__} has shards without `units`; derive {cls.shard_codec.name} from Shard"
                )

    def __init__(self, task: Parameters) -> None:
        self.task = task

    @abstractmethod
    def plan(self, context: Context) -> Plan[ShardKind]:
        """Read and check the data, and cut it into shards. Needs no weights."""

    @abstractmethod
    def run(self, context: Context, shard: ShardKind) -> Output:
        """Run one shard; its output goes to `merge`."""

    @abstractmethod
    def merge(self, context: Context, shards: Sequence[ShardKind], outputs: Sequence[Output]) -> TaskResult:
        """Return metrics from the outputs of all shards in the plan's order, or at a look from the first outputs."""


def work_of(task: Parameters) -> Work[Parameters, Any, Any]:
    """Import the class that does the work of a task, and create it with the task's parameters."""
    module, _, name = task.work_class().partition(":")
    work: Work[Parameters, Any, Any] = getattr(importlib.import_module(module), name)(task)
    return work
