"""Finding and reading the configuration of a checkpoint's model, of any family.

A configuration that was read is passed on as JSON-able fields: those of open_lm's model JSON, or those of `ModelConfig`
with the name of another family.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import cast

from evalsvc.errors import CheckpointMismatch, InvalidModelConfig, InvalidRequest, UnknownName, UnsupportedModel
from evalsvc.families.family import STEP_FILES, Family, is_file, json_files, read_json, validated
from evalsvc.families.meta import meta_family
from evalsvc.families.open_lm import (
    MAMBA,
    by_stem,
    describes_open_lm,
    folder_of,
    open_lm_fields,
    params_file,
    recorded_model,
    registered_models,
    with_training_flags,
)
from evalsvc.families.refused import refuse_model
from evalsvc.families.transformers import TRANSFORMERS_FAMILY
from evalsvc.spec import catalog
from evalsvc.spec.bounds import shortened
from evalsvc.spec.model_config import OPEN_LM, OPEN_LM_FIELDS, TRANSFORMERS, ModelConfig

THE_GIVEN = "the given model configuration"
BY_TRANSFORMERS: dict[str, object] = {"family": TRANSFORMERS}
"""Fields of `model: transformers`, which takes all others from the checkpoint's `config.json`."""
SWITCHES: dict[str, object] = {
    name: field.default for name, field in ModelConfig.model_fields.items() if name not in OPEN_LM_FIELDS
}
"""Switches with the values that they have in open_lm."""


def family_of(config: ModelConfig) -> Family:
    return _family(config.family)


def _family(name: str) -> Family:
    return cast(Family, catalog.load("families", name))


def computed_by(config: ModelConfig) -> dict[str, str]:
    """Return the version of the package transformers if the package computes the model; empty for other models. Answers
    and values are kept with the version, since another version may compute other numbers."""
    if config.family != TRANSFORMERS:
        return {}
    try:
        return {"transformers": metadata.version("transformers")}
    except metadata.PackageNotFoundError:  # loading the model fails, by an error that names the package
        return {"transformers": ""}


def read_model_spec(model: str | Mapping[str, object], base: Path | None = None) -> dict[str, object]:
    """Return the fields of `model`: a registered name, a JSON file relative to `base`, or fields; Hugging Face's are
    translated. Of open_lm's, only those that `model` sets are returned: `params.txt` can supply the rest."""
    if isinstance(model, str):
        fields, source = _read_named(model, base)
        shown: Mapping[str, object] = {}
    else:
        fields, source, shown = _translated(model, THE_GIVEN, (), model), THE_GIVEN, model
    if fields != BY_TRANSFORMERS:
        _config(fields, source, shown)
    return fields


def resolve_config(model: str | Mapping[str, object] | None, checkpoint: Path) -> ModelConfig:
    """Return the complete configuration of the model in a checkpoint, that of `find_model_config` if `model` is None.
    The `params.txt` of an open_lm run always supplies the fields that the model does not set."""
    if model is None:
        discovered = find_fields(checkpoint)
        if discovered is None:
            raise InvalidModelConfig(
                f"no model configuration was given for {checkpoint} and none was found in its folder or the parent "
                "folder (config.json, params.txt with its model JSON, or one *.json with hidden_dim); "
                "set `model` to a registered name such as 'open_lm_1b', the path of a model JSON (for torchtitan and "
                "OLMo-core, a config.json of Hugging Face with the model's sizes), or its fields"
            )
        fields, source = discovered
    else:
        fields = read_model_spec(model)
        source = f"model {model!r}" if isinstance(model, str) else THE_GIVEN
        if fields == BY_TRANSFORMERS:
            config_file = folder_of(checkpoint) / "config.json"
            return TRANSFORMERS_FAMILY.read(read_json(config_file), str(config_file), {})
    return _completed(fields, source, checkpoint, model if isinstance(model, Mapping) else {})


def require_one_model(models: Mapping[str, Mapping[str, object]]) -> None:
    """Raise CheckpointMismatch if two of `models`, by their checkpoints' names, differ in a field that both have; a
    switch that is left out counts as open_lm's. Models of the package transformers are refused."""
    (first, first_fields), *rest = ((name, {**SWITCHES, **fields}) for name, fields in models.items())
    for name, fields in rest:
        if differing := [
            f"{key} {shortened(value)} and {shortened(fields[key])}"
            for key, value in first_fields.items()
            if key in fields and value != fields[key]
        ]:
            raise CheckpointMismatch(
                f"{first} and {name} are different models: {', '.join(differing)}; only checkpoints of one model "
                "configuration can be combined"
            )
    if first_fields["family"] == TRANSFORMERS:
        raise UnsupportedModel(
            f"{first} is a model of the package transformers, which cannot be combined; combine checkpoints of a family"
        )


def find_model_config(checkpoint: Path) -> dict[str, object] | None:
    """Search the folder of `checkpoint` for its configuration; return plain JSON values, or None if there is none.

    Searched in this order: a `config.json` of a family in the folder, or in the parent of a folder of
    torch.distributed.checkpoint; Meta's `params.json` in the folder; `params.txt` in the folder or its parent, with the
    `<model>.json` next to it or the registered name that it gives; the only *.json with `hidden_dim` in the folder,
    then in its parent; a `config.json` of any other model, for the package transformers.
    """
    discovered = find_fields(checkpoint)
    return None if discovered is None else _completed(*discovered, checkpoint).model_dump(mode="json")


def sent_model(checkpoint: Path, given: Mapping[str, object] | None = None) -> Mapping[str, object]:
    """Return the given configuration, or that next to a checkpoint, complete for a service without these files."""
    fields = find_model_config(checkpoint) if given is None else given
    if fields == BY_TRANSFORMERS:  # the rest of the description is in the config.json next to the checkpoint
        fields = resolve_config(BY_TRANSFORMERS, checkpoint).model_dump(mode="json")
    if fields is None:
        raise InvalidRequest(
            f"no file next to {checkpoint} describes its model: there is no params.txt, config.json or JSON file with "
            "hidden_dim; describe the model by --model"
        )
    return fields


def _completed(
    fields: dict[str, object], source: str, checkpoint: Path, shown: Mapping[str, object] | None = None
) -> ModelConfig:
    return _config(with_training_flags(fields, checkpoint) if _is_open_lm(fields) else fields, source, shown)


def _config(fields: Mapping[str, object], source: str, shown: Mapping[str, object] | None = None) -> ModelConfig:
    """Validate a configuration. Messages quote only values in `shown`."""
    if _is_open_lm(fields):
        return _family(OPEN_LM).read(fields, source, shown or {})
    if fields["family"] == TRANSFORMERS:
        return TRANSFORMERS_FAMILY.reread(fields, source, shown or {})
    config = validated(ModelConfig, fields, source, shown or {}, "a model configuration")
    family_of(config)
    return config


def _is_open_lm(fields: Mapping[str, object]) -> bool:
    return fields.get("family", OPEN_LM) == OPEN_LM


def _translated(
    fields: Mapping[str, object], source: str, folders: tuple[Path, ...], shown: Mapping[str, object] | None = None
) -> dict[str, object]:
    refuse_model(source, fields)
    kind = _model_type(fields)
    if kind is None and (describes_open_lm(fields) or not isinstance(fields.get("model_type"), str)):
        return open_lm_fields(fields, source, folders)
    return _family(kind or TRANSFORMERS).read(fields, source, shown or {}).model_dump(mode="json")


def _model_type(fields: Mapping[str, object]) -> str | None:
    kind = meta_family(fields) or fields.get("model_type")
    return kind if isinstance(kind, str) and kind != OPEN_LM and kind in catalog.names("families") else None


def _read_named(model: str, base: Path | None) -> tuple[dict[str, object], str]:
    if model == TRANSFORMERS:
        return BY_TRANSFORMERS, "model 'transformers'"
    registered = registered_models()
    if model in registered:
        return registered[model], f"model {model!r}"
    if "mamba" in model.rsplit("/", 1)[-1]:
        raise UnsupportedModel(MAMBA.format(source=f"model {model!r}"))
    path = (base or Path()) / model
    if is_file(path):
        return _translated(read_json(path), str(path), (path.parent,)), str(path)
    if "/" in model or model.endswith(".json"):
        raise InvalidModelConfig(f"there is no model JSON at {path}; give a path, a registered name, or the fields")
    raise UnknownName.among("model", model, registered, hint="or give the path of a model JSON")


def find_fields(checkpoint: Path) -> tuple[dict[str, object], str] | None:
    """Return the fields of `find_model_config` as they stand in their file, and the file."""
    folder = folder_of(checkpoint)
    hf_config = folder / "config.json"
    if not is_file(hf_config) and any(is_file(folder / name) for name in STEP_FILES):
        hf_config = folder.parent / "config.json"
    meta = folder / "params.json"
    if not hf_config.is_file() and meta.is_file() and meta_family(fields := read_json(meta)):
        return _translated(fields, str(meta), (folder,)), str(meta)
    hf_fields = read_json(hf_config) if hf_config.is_file() else {}
    refuse_model(str(hf_config), hf_fields)
    if _model_type(hf_fields) is not None or describes_open_lm(hf_fields):
        return _translated(hf_fields, str(hf_config), (folder,)), str(hf_config)
    params, stem = params_file(checkpoint), recorded_model(checkpoint)
    if params and stem is not None and (recorded := by_stem(stem, (params.parent, folder))) is not None:
        return recorded
    for place in (folder, folder.parent):
        candidates = [(path, fields) for path, fields in json_files(place) if "hidden_dim" in fields]
        if len(candidates) > 1:
            names = ", ".join(path.name for path, _ in candidates[:5])
            raise InvalidModelConfig(
                f"{len(candidates)} model JSONs are in {place}: {names}; set `model` to one of them"
            )
        for path, fields in candidates:
            return open_lm_fields(fields, str(path), ()), str(path)
    # A model_type without a family: the package transformers may have the model.
    known = isinstance(hf_fields.get("model_type"), str)
    return (_translated(hf_fields, str(hf_config), (folder,)), str(hf_config)) if known else None
