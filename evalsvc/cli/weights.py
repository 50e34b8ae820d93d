"""Arguments that name checkpoints, models and layouts: paths, URIs, expressions, names, files and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from evalsvc.checkpoints.expression import (
    Base,
    Expression,
    File,
    Sum,
    canonical,
    is_expression,
    parse_expression,
    written,
)
from evalsvc.checkpoints.formats import ADAPTER_FILES, adapter, weights_at
from evalsvc.checkpoints.posted import sum_at
from evalsvc.checkpoints.reference import CheckpointRef, Virtual
from evalsvc.checkpoints.remote.fetch import locate_checkpoint
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest
from evalsvc.families.reading import read_model_spec, sent_model
from evalsvc.spec.layout import parse_layout

Description: TypeAlias = Mapping[str, object] | None
"""Checked model or layout in the form that the service accepts; None if none is given."""


def absolute_uri(uri: str) -> str:
    """Return a path as an absolute path, since the service runs in another folder; keep URIs and expressions."""
    if is_virtual(uri):
        return uri
    return uri if "://" in uri or "::" in uri else str(Path(uri).expanduser().absolute())


def local_file(uri: str) -> Path | None:
    """Return the file or folder of this machine that an argument names; None if it does not exist."""
    path = Path(absolute_uri(uri).removeprefix("file://"))
    return path if not is_virtual(uri) and path.exists() else None


def is_virtual(uri: str) -> bool:
    """Return whether an argument is an expression over checkpoints and not the path of an existing file."""
    return is_expression(uri) and not os.path.exists(uri)


def checkpoint_reference(
    uri: str, model: Description, layout: Description, settings: Settings, base: CheckpointRef | None = None
) -> CheckpointRef:
    """Return a reference to weights: a file, a folder, or an expression, in which `base` stands for `base`.

    The folder of an adapter stands for the sum of its base and the adapter. The base is the folder that the adapter's
    configuration names, or else `base`.
    """
    if is_virtual(uri):
        return _virtual_reference(parse_expression(uri), model, layout, settings, base)
    if (on := sum_at(Path(locate_checkpoint(absolute_uri(uri), settings)[0]), settings)) is not None:
        return _virtual_reference(on, model, layout, settings, base)
    return _file_reference(uri, model, layout, settings)


def _file_reference(uri: str, model: Description, layout: Description, settings: Settings) -> CheckpointRef:
    path, identity = locate_checkpoint(absolute_uri(uri), settings)
    known = identity if identity.etag is not None else None
    return CheckpointRef(path=path, identity=known, model=model, layout=layout, label=uri)


def _virtual_reference(
    expression: Expression, model: Description, layout: Description, settings: Settings, base: CheckpointRef | None
) -> CheckpointRef:
    text, parents = canonical(expression), {}
    parts = [(part.first, part.adapter) if isinstance(part, Sum) else (part,) for part in written(expression)]
    for leaf in chain.from_iterable(parts):
        if isinstance(leaf, File):
            parents[str(leaf)] = _file_reference(leaf.path, model, layout, settings)
        elif not isinstance(leaf, Base):
            raise InvalidRequest(
                f"{leaf} names a checkpoint of the service, and this command reads files; give the path of its "
                "weights, or post the expression: evalsvc submit RUN STEP EXPRESSION"
            )
        elif base is None or base.virtual is not None:
            problem = "an expression; write the expression out" if base else "not given; name its weights by --base"
            raise InvalidRequest(f"{text} uses base, which is {problem}")
        else:
            parents[str(leaf)] = base
    return CheckpointRef(text, layout=layout, label=text, virtual=Virtual(expression, parents))


def inline_model(text: str | None, option: str = "--model") -> Description:
    return None if text is None else _inline(option, text, read_model_spec)


def uploaded_path(uri: str) -> str:
    """Return the absolute path of a file or folder to upload; refuse expressions and addresses."""
    if is_virtual(uri) or "://" in uri:
        raise InvalidRequest(f"--upload sends a file of this machine, and {uri} is no such file; leave --upload out")
    path = absolute_uri(uri)
    # A folder that is no checkpoint is refused before it is read.
    if os.path.isdir(path) and weights_at(Path(path), uri).name in ADAPTER_FILES:
        raise adapter(uri)
    return path


def uploaded_model(uri: str, model: str | None) -> Description:
    """Return the model that `model` describes, or else the files next to a checkpoint, which are not uploaded."""
    return sent_model(Path(uploaded_path(uri)), inline_model(model))


def inline_layout(text: str | None, option: str = "--layout") -> Description:
    return None if text is None else read_layout(text, option)


def read_layout(text: str, option: str = "--layout") -> Mapping[str, object]:
    return _inline(option, text, lambda spec, base: parse_layout(spec, base).to_json())


def _inline(
    option: str, text: str, read: Callable[[str | Mapping[str, object], Path], Mapping[str, object]]
) -> Mapping[str, object]:
    """Read and check a name, a file of this machine or JSON, so that the service does not need the file."""
    if not text.lstrip().startswith("{"):
        return read(text, Path.cwd())
    try:
        return read(json.loads(text), Path.cwd())
    except ValueError as error:
        raise InvalidRequest(f"{option} is not JSON: {error}; correct the JSON, or give the name of a file") from None
