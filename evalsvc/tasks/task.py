"""What a task is: its parameters, and how it is planned, run in shards and merged.

Each is two classes: a `Task` holds the parameters, which the service reads to check a suite, and is imported without
torch; a `Work` does what is to be done on a worker.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.errors import InvalidRequest
from evalsvc.files.artifacts import Artifact
from evalsvc.files.codec import Codec, generic_arguments
from evalsvc.files.kept import KeptFiles
from evalsvc.files.opened import Allow
from evalsvc.metrics.definitions import may_return, plain_names
from evalsvc.spec.bounds import MAX_SHARDS
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.spec.looks import Until
from evalsvc.spec.model_config import ModelConfig
from evalsvc.spec.protocol import MetricValue

if TYPE_CHECKING:
    from evalsvc.data.images import ImageSource
    from evalsvc.decoders import ImageDecoder
    from evalsvc.features import FeatureExtractor
    from evalsvc.features.digit_classifier import DigitClassifier
    from evalsvc.models import Transformer


def require_few_shards(count: int) -> None:
    """Raise InvalidRequest for more shards than the queue of the service takes for one task."""
    if count > MAX_SHARDS:
        raise InvalidRequest(
            f"the task is cut into {count:,} shards, at most {MAX_SHARDS:,} are queued; raise `shard_size`, or ask for "
            "fewer `shards`"
        )


def cut(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Return the first unit and the one behind the last of each shard. Raises InvalidRequest for too many shards."""
    require_few_shards(-(-count // size))
    return pairwise([*range(0, count, size), count])


@dataclass(frozen=True)
class Shard:
    """A part of a task that is done, and done again, by itself. A subclass adds what `run` and `merge` need to know.

    It must be a frozen dataclass of JSON-able fields. Where a task has several kinds of shards, each has a field `part`
    with a `Literal` of its own.
    """

    units: int
    """How much work the shard is, in the unit of the plan."""


ShardKind = TypeVar("ShardKind", bound=Shard)
"""The task's subclass of `Shard`, or a union of several."""


@dataclass(frozen=True)
class Plan(Generic[ShardKind]):
    """How a task is cut."""

    shards: Sequence[ShardKind]
    unit: str
    """What progress counts, in the plural: `sequences`, `images`."""
    looks: Sequence[tuple[int, int]] = ()
    """After how many shards `merge` may be asked for a result of those so far, and how many units it then rests on;
    the last is all of them. See `looks.schedule`. Empty: only at the end."""
    until: Until | None = None
    """When the task may stop at one of its looks."""

    def __post_init__(self) -> None:
        require_few_shards(len(self.shards))

    @property
    def total(self) -> int:
        """Units of work in all shards together."""
        return sum(shard.units for shard in self.shards)


@dataclass(frozen=True)
class TaskWarning:
    """A suspicion about a result: a number that cannot be right, or that rests on too little."""

    code: str
    """Stable name of the rule, such as `inputs_cut`."""
    metric: str
    """Name of the metric, `<task>/<metric>`; of the task where no metric is meant."""
    message: str
    """What is suspicious, the figures, and what to look at."""

    def to_json(self) -> dict[str, str]:
        return {"code": self.code, "metric": self.metric, "message": self.message}


@dataclass(frozen=True)
class TaskResult:
    metrics: Sequence[MetricValue]
    items: Sequence[Mapping[str, Any]] = ()
    """Results per item, JSON-able, in the order of the data. Paired comparisons rest on them: the key `index` (and
    `benchmark`, where a task has several) says which item it is, and `MetricValue.items` what is compared."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Counts that a reader should know (sequences cut to length, items skipped); part of the provenance."""
    artifacts: Sequence[Artifact] = ()
    """What to look at: grids, samples."""
    warnings: Sequence[TaskWarning] = ()
    """Suspicions, shown wherever the result is; see `suspicions` for the common ones."""


class Context(ABC):
    """What a task may ask for while it works. `worker.context` implements it."""

    checkpoint: CheckpointRef
    device: str
    batch_tokens: int
    allow_benchmark_code: bool
    """Whether YAML files of benchmarks may run code."""
    base: Context | None
    """The same for the checkpoint that the run is compared with, e.g. before it saw images; None: the run has none."""
    readable: Allow
    """What may be read of the paths that `dataset` gives: for whoever opens them, since links lead on."""
    is_first: bool
    """Whether the checkpoint is known to be its run's base or the run's first step, where nothing is forgotten yet."""
    kept: KeptFiles
    """Files for later evaluations: statistics of real images, answers of checkpoints."""
    provenance: dict[str, Any]
    """Empty at first. What a task puts into it, JSON-able, becomes part of this shard's provenance."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the checkpoint's files."""

    @abstractmethod
    def model(self, *, dtype: str, rotary_inv_freq_dtype: str) -> Transformer:
        """The checkpoint's model, loaded once per worker process."""

    @abstractmethod
    def rotary(self) -> Mapping[str, str]:
        """What protocols say of the model's rotary frequencies, read without its other weights.

        Empty where they are open_lm's table; `{"rotary": "file"}` where the checkpoint's own count.
        """

    @abstractmethod
    def model_config(self) -> ModelConfig:
        """The configuration of the checkpoint's model, read without its weights."""

    @abstractmethod
    def layout(self) -> VocabularyLayout:
        """The checkpoint's vocabulary layout, checked against its table."""

    @abstractmethod
    def dataset(self, path: str) -> str:
        """The local path of a data file; resolves `datasets:NAME`."""

    @abstractmethod
    def images(self, path: str) -> ImageSource:
        """The images of a folder or file; every file is opened where suites may read, wherever links lead."""

    @abstractmethod
    def classifier(self, path: str) -> DigitClassifier:
        """The classifier of digits in a file."""

    @abstractmethod
    def asset(self, name: str) -> Path:
        """The file of an asset by name; a path stands for itself. Raises AssetMissing with the command to run."""

    @abstractmethod
    def decoder(self, name: str, config: str | None = None, ema: bool = False, dtype: str = "float32") -> ImageDecoder:
        """The image decoder in an asset or file, loaded once per worker process."""

    @abstractmethod
    def extractor(self, name: str, kind: str = "inception") -> FeatureExtractor:
        """The feature extractor in an asset, file or folder, loaded once per worker process."""

    report: Callable[[int], None]
    """Call with the units done in this shard so far, between steps; raises Cancelled when the work is to stop."""


class Task(BaseModel):
    """One part of a suite. The fields of a subclass are its parameters; every field has a docstring.

    Strangers set them: every whole number, list and text has a bound (see `bounds`), and a validator expands nothing.

    The same parameters, checkpoint and data give the same numbers whatever the shards, batches and workers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: ClassVar[str]
    work: ClassVar[str]
    """The class that does the work, as `module:class`. It is imported on workers only, and may need torch."""
    needs: ClassVar[str] = ""
    """What a suite's author has to bring beside the checkpoint, in a few words."""
    example: ClassVar[Mapping[str, Any]] = {}
    """Parameters that `evalsvc suites new` sets. A path is `/path/to/…`, with a name that says what belongs there."""

    name: str
    """First half of the names of the task's metrics."""

    def may_measure(self, metric: str) -> bool:
        """Say whether the task may return a metric with this full name, such as `captions/text`."""
        first, slash, second = metric.partition("/")
        return bool(slash) and first == self.name and may_return(self.kind, second)

    def usual_metrics(self) -> list[str]:
        """Return full names of metrics that tasks of this kind have, for the near misses of a wrong name."""
        return [f"{self.name}/{name}" for name in plain_names(self.kind)]


Parameters = TypeVar("Parameters", bound=Task)


Output = TypeVar("Output")
"""The frozen dataclass of what a shard leaves for the merge, or a union of several."""


NAME_TYPES = (
    "write `class …(Work[Parameters, Shard, Output])` with the class of the parameters and two frozen dataclasses"
)


class Work(ABC, Generic[Parameters, ShardKind, Output]):
    """How a task is planned, run in shards and merged.

    A subclass names its types: `class LossWork(Work[Loss, LossShard, LossOutput])`. Shards are stored as JSON and
    outputs as MessagePack between the stages, each of which may run on another machine.
    """

    shard_codec: ClassVar[Codec[Any]]
    output_codec: ClassVar[Codec[Any]]

    def __class_getitem__(cls, arguments: Any) -> Any:
        """Raise TypeError for fewer types than three."""
        if cls is Work and not (isinstance(arguments, tuple) and len(arguments) == 3):
            raise TypeError(f"Work has other types than three; {NAME_TYPES}")
        return super().__class_getitem__(arguments)  # type: ignore[misc]

    def __init_subclass__(cls) -> None:
        """Raise TypeError where the types are missing, or cannot travel from one stage to the next."""
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
        """Read and check the data, cut it into shards. Needs no weights."""

    def inputs(self, context: Context, shards: Sequence[ShardKind]) -> Mapping[str, object]:
        """Return what the task's values follow from, as JSON, besides parameters, checkpoint, base, model and layout.

        `evalsvc run --reuse` takes earlier values over where all of it is equal. Override the method where the shards
        say what does not move the values, or do not tell the content of a file that does.
        """
        return {"plan": [self.shard_codec.to_json(shard) for shard in shards]}

    @abstractmethod
    def run(self, context: Context, shard: ShardKind) -> Output:
        """Do one shard; the output goes to `merge`."""

    @abstractmethod
    def merge(self, context: Context, shards: Sequence[ShardKind], outputs: Sequence[Output]) -> TaskResult:
        """Metrics from the outputs of all shards, given in the order of the plan; or of the first, at a look."""


def work_of(task: Parameters) -> Work[Parameters, Any, Any]:
    """Import the class that does the work of a task, and give it the task's parameters."""
    module, _, name = task.work.partition(":")
    work: Work[Parameters, Any, Any] = getattr(importlib.import_module(module), name)(task)
    return work
