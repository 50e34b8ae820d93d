"""What several commands take, and how it is read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from evalsvc.cli.terminal import say_json
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest

if TYPE_CHECKING:
    from evalsvc.checkpoints.reference import CheckpointRef
    from evalsvc.client import Client


FAILED = 1
"""Exit code: the evaluation failed."""


class Spool(StrEnum):
    none = "none"
    link = "link"
    copy = "copy"


class Axis(StrEnum):
    step = "step"
    tokens = "tokens"


class Better(StrEnum):
    LOWER = "lower"
    HIGHER = "higher"
    NONE = "none"


class Until(StrEnum):
    decided = "decided"


class Spending(StrEnum):
    obrien_fleming = "obrien-fleming"
    pocock = "pocock"


class Band(StrEnum):
    pointwise = "pointwise"
    simultaneous = "simultaneous"


class Family(StrEnum):
    none = "none"
    holm = "holm"


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"


Url = Annotated[str | None, typer.Option(help="Address of the service.", show_default="http://127.0.0.1:8321")]
Suites = Annotated[Path | None, typer.Option(help="Folder with suites of your own, one YAML file each.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of a worker.", show_default="cores / workers")]
TlsCa = Annotated[Path | None, typer.Option(help="Certificate authority of the scheduler.")]
TlsCert = Annotated[Path | None, typer.Option(help="Certificate for the scheduler.")]
TlsKey = Annotated[Path | None, typer.Option(help="Private key for the scheduler.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="open_lm model: a registered name, a JSON file, or JSON.", show_default="what lies beside the checkpoint"
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(help="Vocabulary layout: a preset's name, a YAML or JSON file, or JSON.", show_default="all text"),
]


def connect(url: str | None) -> Client:
    """The client of the service at `url` [EVALSVC_URL], with the token of the settings."""
    from evalsvc.client import Client

    settings = Settings.load(url=url)
    return Client(settings.url, token=settings.client_token(), ca=settings.https_ca or None)


class StepCommand(TyperCommand):
    """Says what is wrong with a negative step, which would else be read as an option that does not exist."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for before, argument in zip(["", *args], args, strict=False):
            if re.fullmatch(r"-\d+(\.\d+)?", argument) and not before.startswith("--"):
                raise InvalidRequest(f"step {argument}: a step is a whole number of at least 0")
        return super().parse_args(ctx, args)


def show_found(
    format: Format,  # noqa: A002
    found: dict[str, Any],
    table: Callable[[Mapping[str, Any]], None],
    csv: Callable[[Mapping[str, Any]], None],
) -> None:
    """Print what the service answered."""
    if format is Format.json:
        say_json(found)
    elif format is Format.csv:
        csv(found)
    else:
        table(found)


def text_of(path: Path | None) -> str | None:
    return None if path is None else str(path)


def absolute_uri(uri: str) -> str:
    """A relative path is meant from this folder, which the service does not know; an expression stays as it is."""
    if is_virtual(uri):
        return uri
    return uri if "://" in uri or "::" in uri else str(Path(uri).expanduser().absolute())


def is_virtual(uri: str) -> bool:
    """Whether an argument is an expression over checkpoints, and not a file of this folder that looks like one."""
    from evalsvc.checkpoints.expression_parser import is_expression

    return is_expression(uri) and not os.path.exists(uri)


def hand_on(settings: Settings) -> None:
    """To the runner, which reads its settings where every worker process finds them."""
    os.environ.update(settings.environment())


def checkpoint_reference(uri: str, model: Any, layout: Any, base: CheckpointRef | None = None) -> CheckpointRef:
    """The weights in a file or folder, or an expression over such; `base` is what that means in it."""
    from evalsvc.checkpoints.reference import CheckpointRef
    from evalsvc.checkpoints.remote.fetch import locate_checkpoint

    if is_virtual(uri):
        return _virtual_reference(uri, model, layout, base)
    path, identity = locate_checkpoint(absolute_uri(uri), Settings.load())
    known = identity if identity.etag is not None else None
    return CheckpointRef(path=path, identity=known, model=model, layout=layout, label=uri)


def _virtual_reference(uri: str, model: Any, layout: Any, base: CheckpointRef | None) -> CheckpointRef:
    from evalsvc.checkpoints.expression import Base, File, canonical, written
    from evalsvc.checkpoints.expression_parser import parse_expression
    from evalsvc.checkpoints.reference import CheckpointRef, Virtual

    expression = parse_expression(uri)
    parents = {}
    for leaf in written(expression):
        if isinstance(leaf, File):
            parents[str(leaf)] = checkpoint_reference(leaf.path, model, layout)
        elif not isinstance(leaf, Base):
            raise InvalidRequest(
                f"{leaf} is a checkpoint of a service, and none is asked here; give the path of its weights, or post "
                "the expression: evalsvc submit RUN STEP EXPRESSION"
            )
        elif base is None or base.virtual is not None:
            found = "an expression itself: write it out" if base else "not given: name its weights by --base"
            raise InvalidRequest(f"{uri} is made of base, which is {found}")
        else:
            parents[str(leaf)] = base
    text = canonical(expression)
    return CheckpointRef(text, layout=layout, label=text, virtual=Virtual(expression, parents))


def inline_model(text: str | None, option: str = "--model") -> Any:
    from evalsvc.spec.model_config import read_model_spec

    return _inline(option, text, read_model_spec)


def inline_layout(text: str | None, option: str = "--layout") -> Any:
    from evalsvc.spec.layout import parse_layout

    return _inline(option, text, lambda spec, base: parse_layout(spec, base).to_json())


def _inline(option: str, text: str | None, read: Callable[[Any, Path], dict[str, Any]]) -> Any:
    """What a name, a file of this machine or JSON stands for, checked here: the service need not find the file."""
    if text is None:
        return None
    if not text.lstrip().startswith("{"):
        return read(text, Path.cwd())
    try:
        return read(json.loads(text), Path.cwd())
    except ValueError as error:
        raise InvalidRequest(f"{option} is not JSON: {error}") from None
