"""`evalsvc run`: measuring here and now, without a service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.cli.options import FAILED, Device, Layout, Model, Suites, Threads, require_folders
from evalsvc.cli.progress import print_interim, show_bars
from evalsvc.cli.tables import print_metrics, print_warnings
from evalsvc.cli.terminal import complain
from evalsvc.cli.weights import checkpoint_reference, inline_layout, inline_model
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest
from evalsvc.spec.suite import find_suite

commands = typer.Typer()


@commands.command(name="run")
def run_here(
    suite: Annotated[str, typer.Argument(help="A suite's name, or its YAML file.")],
    checkpoint: Annotated[
        str, typer.Option(help="The weights: a path, a uri, or an expression, e.g. lerp(a.pt, b.pt, 0.3).")
    ],
    model: Model = None,
    layout: Layout = None,
    base: Annotated[
        str | None, typer.Option(help="Weights to compare with, e.g. those before training.", show_default="none")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="open_lm model of the base.", show_default="the base's folder")
    ] = None,
    base_layout: Annotated[
        str | None, typer.Option(help="Vocabulary layout of the base.", show_default="the checkpoint's")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the whole result here, as JSON, and artifacts into a folder beside it.")
    ] = None,
    suites: Suites = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Evaluate a checkpoint here and now, without a service.

    The exit code is 1 when a task failed.
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
    result = _run_suite(settings, suite, reference, beside)
    _write_artifacts(result["artifacts"], output)
    if output is not None:
        output.write_text(json.dumps(result, indent=2) + "\n")
    print_metrics(result["metrics"], result["protocols"])
    for warnings in result["warnings"].values():
        print_warnings(warnings)
    for task, error in (result.get("errors") or {}).items():
        complain(f"{task}: {error['message']} [{error['code']}]")
    if result.get("errors"):
        raise typer.Exit(FAILED)


def _run_suite(
    settings: Settings, suite_name: str, checkpoint: CheckpointRef, base: CheckpointRef | None
) -> dict[str, Any]:
    # Its PyTorch takes seconds, for which neither `--help` nor a mistyped option waits, and is not on every machine.
    from evalsvc.worker.local import run_suite

    suite = find_suite(suite_name, settings.suites_path)
    with show_bars() as bars:
        return run_suite(suite, checkpoint, bars.show, base, print_interim, settings=settings)


def _write_artifacts(artifacts: dict[str, list[dict[str, Any]]], output: Path | None) -> None:
    """Put the contents into files beside the result, which then has their paths in their place."""
    for task, left in artifacts.items():
        for artifact in left:
            content = artifact.pop("content")
            if output is not None:
                path = output.with_suffix("") / task / artifact["name"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                artifact["path"] = str(path)
