"""Arguments of an upload: the file to send, and the description of its model."""

from __future__ import annotations

from pathlib import Path

from evalsvc.cli.weights import Description, inline_model, is_virtual
from evalsvc.errors import InvalidRequest
from evalsvc.families.reading import BY_TRANSFORMERS, find_model_config, resolve_config


def uploaded_path(uri: str) -> str:
    """Return the absolute path of a file to upload.

    Raises:
        InvalidRequest: the argument is an expression or an address.
    """
    if is_virtual(uri) or "://" in uri:
        raise InvalidRequest(f"--upload sends a file of this machine, and {uri} is no such file; leave --upload out")
    return str(Path(uri).expanduser().absolute())


def uploaded_model(uri: str, model: str | None) -> Description:
    """Return the model that `--model` describes, or else the model that files next to the checkpoint describe.

    The files next to the checkpoint are not uploaded, so the post has to carry the description.

    Raises:
        InvalidRequest: neither describes the model.
        InvalidModelConfig: see `find_model_config`.
    """
    path = Path(uploaded_path(uri))
    description = find_model_config(path) if model is None else inline_model(model)
    if description == BY_TRANSFORMERS:  # the rest of the description is in the config.json next to the checkpoint
        description = resolve_config(BY_TRANSFORMERS, path).model_dump(mode="json")
    if description is None:
        raise InvalidRequest(
            f"no file next to {uri} describes its model: there is no params.txt, config.json or JSON file with "
            "hidden_dim; describe the model by --model"
        )
    return description
