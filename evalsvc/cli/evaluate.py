"""`evalsvc run`: evaluate a checkpoint in this process, without a service."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.cli.options import (
    FAILED,
    WRONG_USE,
    Device,
    Engine,
    Layout,
    Model,
    Suites,
    Threads,
    local_settings,
    require_folders,
)
from evalsvc.cli.printer import print_errors, print_metrics, print_warnings
from evalsvc.cli.progress import print_interim, show_bars
from evalsvc.cli.terminal import say
from evalsvc.cli.weights import checkpoint_reference, inline_layout, inline_model
from evalsvc.compare.text_pages import ENDINGS, forms_of, rendered
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest, is_untried
from evalsvc.spec.engines import parse_engines, with_engines
from evalsvc.spec.suite import Suite, find_suite

commands = typer.Typer()


@commands.command(name="run")
def run_here(
    suite: Annotated[str, Argument(help="Suite: a name, or a YAML file.")],
    checkpoint: Annotated[str, Option(help="Weights: a path, a URI, or an expression, such as lerp(a.pt, b.pt, 0.3).")],
    model: Model = None,
    layout: Layout = None,
    base: Annotated[
        str | None, Option(help="Weights to compare with, such as those before training.", show_default="none")
    ] = None,
    base_model: Annotated[
        str | None, Option(help="Model of the base.", show_default="from the folder of the base")
    ] = None,
    base_layout: Annotated[
        str | None, Option(help="Vocabulary layout of the base.", show_default="that of the checkpoint")
    ] = None,
    engine: Engine = None,
    output: Annotated[
        Path | None, Option(help="File to write the result to, as JSON; artifacts go into a folder of the same name.")
    ] = None,
    suites: Suites = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Evaluate a checkpoint on this machine, without a service.

    The exit code is 1 if a task failed. The exit code is 2 if no task could start, because an option, the suite or a
    data file is wrong, or a package or asset is missing.
    """
    require_folders({"--output": output})
    if base is None and (option := "--base-model" if base_model else "--base-layout" if base_layout else None):
        raise InvalidRequest(f"{option} is given without --base; name the weights of the base by --base")
    settings = local_settings(device, threads, suites)
    checkpoint_layout = inline_layout(layout)
    base_reference = None
    if base is not None:
        layout_of_base = checkpoint_layout if base_layout is None else inline_layout(base_layout, "--base-layout")
        base_reference = checkpoint_reference(base, inline_model(base_model, "--base-model"), layout_of_base, settings)
    reference = checkpoint_reference(checkpoint, inline_model(model), checkpoint_layout, settings, base_reference)
    chosen = with_engines(find_suite(suite, settings.suites_path), parse_engines(engine or ()))
    evaluate_here(chosen, reference, settings, output, base_reference)


def evaluate_here(
    suite: Suite, checkpoint: CheckpointRef, settings: Settings, output: Path | None, base: CheckpointRef | None = None
) -> None:
    """Evaluate a checkpoint in this process, write the result to `output`, print metrics, and exit by the errors."""
    # PyTorch takes seconds to import and is not on every machine; `--help` and a mistyped option need no PyTorch.
    from evalsvc.worker.local import run_suite

    with show_bars() as bars:
        result = run_suite(suite, checkpoint, bars.show, base, print_interim, settings=settings)
    folder = None if output is None else output.with_suffix("")
    artifacts = {
        task: [_write_artifact(artifact, folder and folder / task) for artifact in artifacts_of_task]
        for task, artifacts_of_task in result.artifacts.items()
    }
    result = result.model_copy(update={"artifacts": artifacts})
    if output is not None:
        output.write_text(json.dumps(result.model_dump(), indent=2) + "\n")
    print_metrics(result.metrics, result.protocols)
    for warnings in result.warnings.values():
        print_warnings(warnings)
    print_errors(result.errors)
    for task in suite.tasks:
        metrics_of: dict[str, list[str]] = {}
        notes: Any = result.provenance.get(task.name, {}).get("notes", {}) if task.kind == "images" else {}
        for metric, reason in notes.get("left_out", {}).items():
            metrics_of.setdefault(reason, []).append(metric)
        for reason, metrics in metrics_of.items():
            say(f"{task.name}: not measured, since {reason}: {', '.join(metrics)}", err=True)
    if result.errors:
        untried = all(is_untried(error.code) for error in result.errors.values())
        raise typer.Exit(WRONG_USE if untried else FAILED)


def _write_artifact(artifact: Mapping[str, object], folder: Path | None) -> dict[str, object]:
    written = {key: value for key, value in artifact.items() if key != "content"}
    content = artifact["content"]
    if folder is None:
        return written
    assert isinstance(content, bytes), "a task gives the content of its artifacts"
    path = folder / str(artifact["name"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    for form in forms_of(str(artifact["kind"])):
        path.with_suffix(ENDINGS[form]).write_text(rendered(str(artifact["kind"]), content, form), "utf-8")
    return written | {"path": str(path)}
