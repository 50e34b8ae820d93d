"""`evalsvc run`: measuring here and now, without a service."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.cli.options import FAILED, WRONG_USE, Device, Layout, Model, Suites, Threads, require_folders
from evalsvc.cli.progress import print_interim, show_bars
from evalsvc.cli.tables import print_metrics, print_warnings
from evalsvc.cli.terminal import complain, say, warn
from evalsvc.cli.weights import checkpoint_reference, inline_layout, inline_model
from evalsvc.compare.source import read_file
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest, UnknownName, is_untried
from evalsvc.spec.documents import ResultFile
from evalsvc.spec.documents.reading import content_of
from evalsvc.spec.suite import find_suite

commands = typer.Typer()


Base = Annotated[
    str | None, typer.Option(help="Weights to compare with, e.g. those before training.", show_default="none")
]
BaseModel = Annotated[str | None, typer.Option(help="open_lm model of the base.", show_default="the base's folder")]
BaseLayout = Annotated[str | None, typer.Option(help="Vocabulary layout of the base.", show_default="the checkpoint's")]
Reuse = Annotated[
    Path | None,
    typer.Option(
        help="Result of an earlier run: take over the values of tasks whose data, parameters and weights are the same.",
        show_default="measure everything",
    ),
]
Output = Annotated[
    Path | None, typer.Option(help="Write the whole result here, as JSON, and artifacts into a folder beside it.")
]


@commands.command(name="run")
def run_here(
    suite: Annotated[str, typer.Argument(help="A suite's name, or its YAML file.")],
    checkpoint: Annotated[
        str, typer.Option(help="The weights: a path, a uri, or an expression, e.g. lerp(a.pt, b.pt, 0.3).")
    ],
    model: Model = None,
    layout: Layout = None,
    base: Base = None,
    base_model: BaseModel = None,
    base_layout: BaseLayout = None,
    output: Output = None,
    reuse: Reuse = None,
    suites: Suites = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Evaluate a checkpoint here and now, without a service.

    The exit code is 1 when a task failed, and 2 when nothing is known of the weights: a wrong option, suite or data
    file, or a missing package or asset.
    """
    require_folders({"--output": output})
    if base is None and (option := "--base-model" if base_model else "--base-layout" if base_layout else None):
        raise InvalidRequest(f"{option} is given without --base; name the weights that it describes")
    settings = Settings.load(suites=suites, device=device, threads=threads)
    read_layout = inline_layout(layout)
    beside = None
    if base is not None:
        own_layout = read_layout if base_layout is None else inline_layout(base_layout, "--base-layout")
        beside = checkpoint_reference(base, inline_model(base_model, "--base-model"), own_layout, settings)
    reference = checkpoint_reference(checkpoint, inline_model(model), read_layout, settings, beside)
    result = _write_result(_run_suite(settings, suite, reference, beside, reuse), output)
    print_metrics(result.metrics, result.protocols)
    for warnings in result.warnings.values():
        print_warnings(warnings)
    for task, error in result.errors.items():
        complain(f"{task}: {error.message} [{error.code}]")
    if result.errors:
        untried = all(is_untried(error.code) for error in result.errors.values())
        raise typer.Exit(WRONG_USE if untried else FAILED)


def _run_suite(
    settings: Settings, suite_name: str, checkpoint: CheckpointRef, base: CheckpointRef | None, reuse: Path | None
) -> ResultFile:
    suite = find_suite(suite_name, settings.suites_path)
    document = None if reuse is None else _read_earlier(reuse)
    # Its PyTorch takes seconds, for which neither `--help` nor a mistyped option waits, and is not on every machine.
    from evalsvc.worker.local import run_suite
    from evalsvc.worker.reuse import Earlier

    earlier = None if document is None else Earlier(document, str(reuse), partial(say, err=True))
    with show_bars() as bars:
        return run_suite(suite, checkpoint, bars.show, base, print_interim, settings=settings, earlier=earlier)


def _read_earlier(path: Path) -> ResultFile | None:
    """Read the result that `--reuse` names; None where there is none yet, as in the first build of a CI."""
    try:
        return read_file(path, ResultFile)
    except UnknownName:
        warn(f"--reuse {path}: there is no such file; everything is measured")
        return None


def _write_result(result: ResultFile, output: Path | None) -> ResultFile:
    """Return the result without the contents of artifacts, and write it, with them in files next to it."""
    artifacts = {
        task: [
            _write_artifact(artifact, None if output is None else output.with_suffix("") / task)
            if "content" in artifact
            else artifact  # of a task that was not measured again
            for artifact in left
        ]
        for task, left in result.artifacts.items()
    }
    written = replace(result, artifacts=artifacts)
    if output is not None:
        output.write_text(json.dumps(content_of(written), indent=2) + "\n")
    return written


def _write_artifact(artifact: Mapping[str, object], folder: Path | None) -> dict[str, object]:
    """Return the artifact with the path of its content in place of the content; without a folder, with neither."""
    written = {key: value for key, value in artifact.items() if key != "content"}
    content = artifact["content"]
    if folder is None:
        return written
    assert isinstance(content, bytes), "a task gives the content of its artifacts"
    path = folder / str(artifact["name"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return written | {"path": str(path)}
