"""What a post says of a checkpoint besides the weights: its model and its layout, read when it is posted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from evalsvc.checkpoints.expression import Base, File, Sum
from evalsvc.checkpoints.formats import ADAPTER_CONFIG, HEADS, IMAGES, MAX_ADAPTER_CONFIG, is_adapter
from evalsvc.checkpoints.opening import checkpoint_rule, is_images, locate, opened, opened_neighbours
from evalsvc.checkpoints.reference import CheckpointRef, Identity
from evalsvc.checkpoints.remote.objects import ObjectSource
from evalsvc.checkpoints.remote.source import METADATA_SECONDS, within
from evalsvc.checkpoints.remote.uri import HTTP, RemoteUri, parse_remote
from evalsvc.config import Settings
from evalsvc.errors import CheckpointError, CheckpointNotAllowed, InvalidModelConfig, InvalidRequest
from evalsvc.families.family import LISTS, MAX_CONFIG_BYTES, MODEL_STATES, read_json
from evalsvc.families.open_lm import MAX_PARAMS_BYTES
from evalsvc.families.reading import find_model_config, read_model_spec
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.model_config import ModelConfig
from evalsvc.spec.paths import local_data

NAMES_FILE = re.compile(r"/|\.(json|ya?ml)\Z")
"""Found in a model or a layout that is the name of a file; other texts are registered names."""

MAX_MODEL_FILES = 20
"""Maximum number of JSON files in a remote folder that is searched for a model's. Folders with more hold data."""


def sum_at(path: Path, settings: Settings) -> Sum | None:
    """Return the sum that the folder of an adapter stands for: the adapter on the folder that its configuration names,
    or else on `base`; None for another file or folder."""
    if not is_adapter(path):
        return None
    with opened_neighbours(path, checkpoint_rule(settings)) as folder:
        recorded = read_json(folder / ADAPTER_CONFIG, MAX_ADAPTER_CONFIG).get("base_model_name_or_path")
    with suppress(CheckpointError):
        if isinstance(recorded, str) and not is_adapter(base := locate(recorded, checkpoint_rule(settings))):
            return Sum(File(str(base)), File(str(path)))
    return Sum(Base(), File(str(path)))


def posted_model(
    model: str | Mapping[str, object] | None, path: str, identity: Identity, settings: Settings
) -> Mapping[str, object] | None:
    if is_images(Path(path), checkpoint_rule(settings)) if identity.etag is None else path.endswith((*HEADS,)):
        return images_model(model)
    if model is None:
        if identity.etag is not None:
            return remote_model(path, settings)
        with opened_neighbours(Path(path), checkpoint_rule(settings)) as checkpoint:
            return find_model_config(checkpoint)
    return given_model(model, settings)


def images_model(model: str | Mapping[str, object] | None) -> Mapping[str, object]:
    """Return the model of a checkpoint that is images, for which the post has given `model`."""
    if model is not None:
        raise InvalidRequest("model is given, and the checkpoint is images, which have no weights; leave model out")
    return IMAGES


def uploaded_model(files: Mapping[str, Path]) -> Mapping[str, object] | None:
    """Return the configuration among the files of an uploaded folder by name, see `find_model_config`."""
    with TemporaryDirectory(prefix="evalsvc-") as private:
        folder = Path(private) / "parent" / "content"
        for name, path in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(path)
        try:
            return find_model_config(folder)
        except InvalidModelConfig as error:
            raise InvalidModelConfig(error.message.replace(str(folder), "the uploaded folder")) from None


def given_model(model: str | Mapping[str, object], settings: Settings) -> Mapping[str, object]:
    """Return the fields of `model`: a registered name, the path of a JSON file that may be read, or the fields."""
    if isinstance(model, str) and NAMES_FILE.search(model):
        rule = checkpoint_rule(settings)
        with opened(CheckpointRef(str(locate(model, rule)), rule=rule, label="the checkpoint")) as pinned:
            return read_model_spec(pinned.path)
    # With the base /, a name never refers to a file in the working directory of the service.
    return read_model_spec(model, base=Path("/"))


def posted_layout(
    layout: str | Mapping[str, object] | None, model: Mapping[str, object] | None, settings: Settings
) -> Mapping[str, object] | None:
    """Return a layout as JSON, checked against the size of the model's vocabulary if the size is known."""
    if layout is None:
        return None
    if model == IMAGES:
        raise InvalidRequest("layout is given, and the checkpoint is images, which have no table; leave layout out")
    rule = checkpoint_rule(settings)
    if isinstance(layout, str) and NAMES_FILE.search(layout):
        layout = str(locate(layout, rule))
    image = layout.get("image") if isinstance(layout, Mapping) else None
    if isinstance(image, Mapping) and isinstance(image.get("map"), str):
        locate(image["map"], rule)
    parsed = parse_layout(layout, allow=rule)
    if parsed.text.tokenizer is not None:
        local_data(settings, parsed.text.tokenizer)
    rows = (model or {}).get("vocab_size")
    if isinstance(rows, int):
        resolved = parsed.resolve(rows)
        if model is not None and model.get("image_tables") is not None:
            ModelConfig.model_validate(dict(model)).require_image_rows(resolved.image_range)
    return parsed.to_json()


def remote_model(uri: str, settings: Settings) -> dict[str, object] | None:
    """Return the configuration near a remote checkpoint, see `find_model_config`; None for http."""
    parsed = parse_remote(uri, settings)
    if parsed.scheme in HTTP:
        return None
    with TemporaryDirectory(prefix="evalsvc-") as folder:
        parent_copy = Path(folder) / "parent"
        folder_copy = parent_copy / "content"
        folder_copy.mkdir(parents=True)
        inside = within(METADATA_SECONDS, parsed, lambda: _copy_small_files(parsed, settings, folder_copy))
        try:
            return find_model_config(folder_copy if inside else folder_copy / parsed.name)
        except InvalidModelConfig as error:
            parent = str(_parent(parsed))
            message = error.message.replace(str(folder_copy), str(parsed) if inside else parent)
            raise InvalidModelConfig(message.replace(str(parent_copy), parent)) from None


def _copy_small_files(uri: RemoteUri, settings: Settings, folder_copy: Path) -> bool:
    """Return whether `uri` is a folder, which is then copied to `folder_copy`."""
    is_folder = ObjectSource(uri).list().is_folder
    folder = uri if is_folder else _parent(uri)
    for place in (folder_copy, folder_copy.parent):
        if folder is None or not _is_allowed(folder, settings):
            break
        source = ObjectSource(folder)
        try:
            files, _ = source.inside()
        except (CheckpointNotAllowed, FileNotFoundError):  # a store may permit reading an object but not listing
            files = ()
        for name in {file.name for file in files} & {LISTS[0], MODEL_STATES}:
            (place / name).touch()
        wanted = [file for file in files if file.name.endswith(".json") or file.name == "params.txt"]
        for file in wanted if len(wanted) <= MAX_MODEL_FILES else ():
            most = MAX_CONFIG_BYTES if file.name == "config.json" else MAX_PARAMS_BYTES
            if file.size <= most:
                content = b"".join(source.read(file, 0))[: most + 1]
                (place / file.name).write_bytes(content)
        folder = _parent(folder)
    return is_folder


def _parent(uri: RemoteUri) -> RemoteUri | None:
    path = uri.path.rpartition("/")[0]
    return replace(uri, path=path) if path else None


def _is_allowed(folder: RemoteUri, settings: Settings) -> bool:
    try:
        parse_remote(str(folder), settings)
    except CheckpointNotAllowed:
        return folder.scheme == "hf" and not settings.remote_roots
    return True
