"""What a family of models is: a reader of its configurations, and the names of its tensors.

The small files of a configuration are read here too, with bounds.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from evalsvc.errors import InvalidModelConfig, json_reason, near_misses, os_reason
from evalsvc.spec.model_config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

Fields = TypeVar("Fields", bound=BaseModel)

OTHERWISE = "give `transformers` as the model: that package may compute it, slower"
"""Advice for a model that the Transformer does not compute, as the end of a message."""

LISTS = (".metadata", "model_and_optim/.metadata", "pytorch_model_fsdp_0/.metadata")
"""Files that list the tensors of a folder of torch.distributed.checkpoint, written last: of the folder itself, and of
those inside a step's folder of OLMo-core and of accelerate."""

MODEL_STATES = "mp_rank_00_model_states.pt"
"""File of the model in a step's folder of DeepSpeed."""

STEP_FILES = (*LISTS, MODEL_STATES)
"""Files in folders of steps to which trainers add no configuration: one next to these folders is that of all steps."""

MAX_JSON_FILES = 100
"""Maximum number of JSON files in a checkpoint's folder that are searched for its model."""

MAX_CONFIG_BYTES = 10_000_000
"""Maximum number of bytes of a configuration. Chameleon's and Emu3's name every token: up to 6.6 MB."""

MAX_CONFIG_VALUES = 500_000
"""Maximum number of commas and brackets in a configuration, since a value of two bytes becomes an object of 64."""

MAX_MODEL_BYTES = 100_000
"""Maximum number of bytes of a model JSON that was found by searching; those of open_lm have 400 bytes."""


@dataclass(frozen=True)
class Source:
    """Tensors of a file from which a parameter of the Transformer is made."""

    names: tuple[str, ...]
    """Names of the tensors whose rows, concatenated, are the rows of the parameter."""
    rows: tuple[int, ...] = ()
    """Number of rows of each tensor; required if there are several tensors."""
    aliases: tuple[str, ...] = ()
    """Other names of a single tensor. A file may have the tensor under any of the names, or equal under several."""
    arrange: Callable[[Tensor], Tensor] | None = None
    """Function that makes the parameter of the concatenated rows of the file, such as by another order."""
    shapes: tuple[tuple[int, ...], ...] = ()
    """Shape of each tensor, if `arrange` makes a parameter of another width or number of rows of the tensors."""


class Family(ABC):
    """A family of models. The catalog lists an instance under each `model_type` of its configurations."""

    runs: str = "evalsvc"
    """Name in the catalog's group `models` of the function that loads and runs the models of the family."""
    embedding: str = "tok_embeddings.weight"
    head: str = "output.weight"
    """Name of the output table in a file; a file of tied tables may have either name, or both."""

    @abstractmethod
    def read(self, fields: Mapping[str, object], source: str, shown: Mapping[str, object]) -> ModelConfig:
        """Return the configuration that `fields` of a file or request describe; `source` names it in messages. Messages
        quote only values in `shown`: those of a request, never those of a file."""

    @abstractmethod
    def sources(self, config: ModelConfig) -> Mapping[str, Source]:
        """Return the tensors of a file for each parameter of the Transformer, by the parameter's name. A parameter that
        is left out has the same name in the file, without `module.`, `model.` and names of wrappers (`_orig_mod.`)."""

    def sources_in(self, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Source]:
        """Return the `sources` for a file of tensors with these shapes, by name; for families with several forms."""
        del shapes
        return self.sources(config)

    def ignores(self, name: str) -> bool:
        """Return whether a tensor of a file is no parameter, such as a buffer that older versions saved."""
        del name
        return False


def validated(
    kind: type[Fields],
    fields: Mapping[str, object],
    source: str,
    shown: Mapping[str, object],
    what: str,
    names: Mapping[str, str] | None = None,
) -> Fields:
    """Return `fields` as an instance of `kind`; an error calls the configuration `what`. `names` are those of fields in
    the source, where they differ from those of `kind`."""

    def problem(location: tuple[int | str, ...], error: str, message: str) -> str:
        field = str(location[0]) if location else ""
        name = (names or {}).get(field, field)
        if error == "missing":
            unknown = [key for key in fields if key not in kind.model_fields]
            near = near_misses(field, unknown, cutoff=0.5)
            return f"{name} is missing" + (f" (found {', '.join(near)}: is one of these meant?)" if near else "")
        if not name:
            return message.removeprefix("Value error, ")
        shown_value = f" is {str(shown[name])[:60]!r}" if name in shown else ""
        return f"{name}{shown_value}: {message[0].lower()}{message[1:]}"

    try:
        return kind.model_validate(dict(fields))
    except ValidationError as error:
        problems = "; ".join(problem(item["loc"], item["type"], item["msg"]) for item in error.errors())
        raise InvalidModelConfig(f"{source} is not {what}: {problems}") from error


def read_json(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, object]:
    """Return the object in a JSON file of at most `limit` bytes."""
    if not is_file(path):
        raise InvalidModelConfig(f"{path} is not a file; use the path of a model JSON")
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise InvalidModelConfig(
                f"{path} is larger than {limit:,} bytes, too many for a model JSON; check the path"
            )
        if sum(map(content.count, (b",", b"[", b"{"))) > MAX_CONFIG_VALUES:
            raise InvalidModelConfig(
                f"{path} has more than {MAX_CONFIG_VALUES:,} values, too many for a model JSON; check the path"
            )
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidModelConfig(f"{path} is not JSON: {json_reason(error)}; correct the file") from error
    except OSError as error:
        raise InvalidModelConfig(f"{path} cannot be read: {os_reason(error)}; check its permissions") from error
    if not isinstance(fields, dict):
        raise InvalidModelConfig(f"{path} holds a {type(fields).__name__}; a model JSON is an object")
    return fields


def json_files(folder: Path) -> Iterator[tuple[Path, dict[str, object]]]:
    """Yield the JSON objects in `folder`; other files are skipped."""
    paths = sorted(folder.glob("*.json"))
    if len(paths) > MAX_JSON_FILES:
        raise InvalidModelConfig(
            f"{folder} holds more than {MAX_JSON_FILES} JSON files, too many to search for the model; set "
            "`model` to a path, a registered name such as 'open_lm_1b', or the fields"
        )
    for path in paths:
        try:
            yield path, read_json(path, MAX_MODEL_BYTES)
        except InvalidModelConfig:
            continue


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long, or the folder is not accessible
        return False
