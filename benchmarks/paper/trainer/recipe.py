"""The recipe of a training: everything that decides the weights, as a frozen dataclass and as a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from evalsvc.errors import InvalidRequest
from evalsvc.spec.suite import check_keys, validation_message
from evalsvc.spec.yaml_text import read_yaml_mapping

RANDOM = "random"

Tuned = Literal["all", "tables", "norms", "first-half", "feed-forward"]
ImageRows = Literal["random", "like-text"] | Path
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(gt=0, lt=1)]

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class Replay:
    """Plain text among the sequences of a training."""

    share: Annotated[float, Field(gt=0, le=1)]
    """Share of the sequences that are plain text. The share is exact over the whole training, not in each batch."""
    text: Path
    """JSONL of records with `text` or `text_ids`. The records are one stream, of which windows are drawn."""
    length: Annotated[int, Field(ge=2, le=2**20)] = 128
    """Number of predicted tokens of a window."""


@dataclass(frozen=True, config=_STRICT)
class Recipe:
    """Everything that decides the weights of a training. Equal recipes give equal files on the same machine."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    """Name of the run, in its checkpoints."""
    steps: Annotated[int, Field(ge=0, le=10**8)]
    """Number of updates."""
    batch: Annotated[int, Field(ge=1, le=2**16)]
    """Number of sequences in a step."""
    learning_rate: Annotated[float, Field(gt=0, le=10)]
    """Highest learning rate, at the end of the warm-up."""
    start: Literal["random"] | Path = RANDOM
    """Weights to begin with: a file of open_lm, a Hugging Face folder, or `random`."""
    model: str | Path | None = None
    """Model of a random start: a registered name of open_lm, a model JSON, a `config.json`, or a Hugging Face folder
    [of `start`, the configuration next to the weights]."""
    layout: Path | None = None
    """Vocabulary layout. The model is widened to its rows [all rows are text; only without `data`]."""
    data: Path | None = None
    """Captions with images: a folder of shards as `prepare_data.py` writes them, JSONL or safetensors of pairs as the
    task `loss` reads them, or safetensors of a pool, see `sequences.py` [only text: `replay` with the share 1]."""
    floor: Share = 0.03
    """Learning rate at the end of the cosine, as a share of the highest; 1: constant after the warm-up."""
    warm_up: Annotated[int, Field(ge=0)] = 40
    """Number of steps in which the learning rate rises linearly."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """Decay of AdamW's first and second moment in a step."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Weight decay of matrices. Norms and biases have none."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of a step's gradient."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the new weights, and of the batches unless `order_seed` is given."""
    order_seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Seed of the batches, so that runs with different weights see the same batches [`seed`]."""
    tuned: Tuned = "all"
    """Parts of the model that are trained; see `parts.py` for the numbers of the paper's figure 6."""
    image_only: bool = False
    """Whether sequences are images without captions."""
    caption_drop: Share = 0.0
    """Share of the captions that are left out, for guidance."""
    image_rows: ImageRows = RANDOM
    """Rows of the tables that `start` does not have: `random` by open_lm's initialisation; `like-text` normal with mean
    and standard deviation of the text rows in each dimension; or a file of `aligned_rows.py`, where the special tokens'
    rows are random."""
    ema: tuple[Decay, ...] = ()
    """Decays of exponential moving averages of the weights, each with a file of its own at every checkpoint."""
    replay: Replay | None = None
    """Plain text among the sequences [none]."""
    checkpoint_steps: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Steps at which checkpoints are written; the last step always has a checkpoint."""
    state_every: Annotated[int, Field(ge=1)] = 100
    """Number of steps between two files from which an interrupted training resumes. Has no effect on the weights."""
    autocast: bool = False
    """Whether products are in bfloat16. Weights, moments, averages and sums are float32 in any case."""
    optimizer_files: bool = True
    """Whether a checkpoint of open_lm has `optimizer_N.pt` next to it, as open_lm writes."""

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.data is None and (self.replay is None or self.replay.share != 1):
            raise ValueError("there is nothing to train on; give `data`, or `replay` with the share 1")
        if self.data is not None and self.layout is None:
            raise ValueError("`data` needs a `layout`, which says which rows are image tokens")
        if self.start == RANDOM and self.model is None:
            raise ValueError("`start: random` needs a `model`, whose shape is built")
        if beyond := [step for step in self.checkpoint_steps if step > self.steps]:
            raise ValueError(
                f"checkpoint_steps has {beyond[0]}, beyond the last step {self.steps}; correct one of them"
            )
        return self

    @property
    def kept(self) -> tuple[int, ...]:
        """Return the steps that have checkpoints, in order."""
        return tuple(sorted({*self.checkpoint_steps, self.steps}))

    @property
    def batch_seed(self) -> int:
        """Return the seed of the batches."""
        return self.seed if self.order_seed is None else self.order_seed

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as plain values, by which a folder's recipe is compared."""
        content: dict[str, Any] = TypeAdapter(Recipe).dump_python(self, mode="json")
        return content


def read_recipe(path: Path) -> Recipe:
    """Read a YAML file with the fields of `Recipe`. Relative paths start from the file's folder.

    Raises:
        InvalidRequest: the file cannot be read or is not YAML, a field is unknown or wrong, or fields do not fit.
    """
    given = read_yaml_mapping(path, "recipe", "steps: 100", InvalidRequest)
    return parse_recipe(given, f"the recipe {path}", path.parent)


def parse_recipe(given: Mapping[str, Any], where: str, base: Path) -> Recipe:
    """Return the recipe that a mapping describes; `where` names the mapping in messages. Raises InvalidRequest."""
    check_keys(where, given, [field.name for field in fields(Recipe)], InvalidRequest)
    try:
        recipe = TypeAdapter(Recipe).validate_python(dict(given))
    except ValidationError as error:
        raise InvalidRequest(f"{where}: {validation_message(error)}") from None
    return _resolved(recipe, base)


def _resolved(recipe: Recipe, base: Path) -> Recipe:
    """Return the recipe with absolute paths."""
    content = {field.name: getattr(recipe, field.name) for field in fields(Recipe)}
    for name, value in content.items():
        if isinstance(value, Path) or (name == "model" and isinstance(value, str) and (base / value).exists()):
            content[name] = (base / value).resolve()
    if recipe.replay is not None:
        content["replay"] = Replay(recipe.replay.share, (base / recipe.replay.text).resolve(), recipe.replay.length)
    return Recipe(**content)
