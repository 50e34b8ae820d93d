"""`evalsvc doctor`, `inspect` and `layout`: what is missing for evaluations, what a checkpoint is, and its layout."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from evalsvc.cli.options import (
    FAILED,
    DatabaseUrl,
    DataDir,
    Device,
    Form,
    Model,
    Suites,
    Threads,
    local_settings,
    require_folders,
    write_output,
)
from evalsvc.cli.options import Output as AnswerFile
from evalsvc.cli.printer import print_rows, printed_to
from evalsvc.cli.progress import show_bars
from evalsvc.cli.terminal import print_table, say, say_json
from evalsvc.cli.weights import checkpoint_reference, inline_model, local_file, read_layout
from evalsvc.config import PREFIX, Settings, setting_sources
from evalsvc.doctor.bug_report import shown_setting
from evalsvc.doctor.checks import Check, run_checks
from evalsvc.errors import InvalidRequest
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.protocol import plain_json

DERIVED = {"data_dir": "data_path", "database_url": "database", "datasets": "datasets_path", "assets": "assets_path"}
"""Properties of `Settings` with the value in force of settings that may be empty."""

commands = typer.Typer()


@commands.command()
def doctor(
    suite: Annotated[
        list[str] | None, Argument(help="Check the data of these suites only.", show_default="all")
    ] = None,
    suites: Suites = None,
    form: Form = "table",
    output: AnswerFile = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Show every setting, and anything that is missing for an evaluation.

    The exit code is 1 if something that is needed is missing.
    """
    given: dict[str, Any] = {"suites": suites, "data_dir": data_dir, "database_url": database_url}
    settings = Settings.load(**given)
    rows = [
        {
            "setting": PREFIX + name.upper(),
            "value": shown_setting(name, getattr(settings, DERIVED.get(name, name))),
            "from": source if given.get(name) is None else "option",
        }
        for name, source in setting_sources().items()
    ]
    checks = run_checks(settings, suite or [])
    with printed_to(output):
        if form == "json":
            say_json({"settings": rows, "checks": [asdict(check) for check in checks]})
        elif form == "csv":
            print_rows([asdict(check) for check in checks], form, "checks", "")
        else:
            print_rows(rows, form, "settings", "")
            _print_checks("check", checks)
    if not all(check.ok or not check.needed for check in checks):
        raise typer.Exit(FAILED)


@commands.command()
def inspect(
    path: Annotated[str, Argument(help="File or folder with weights, on this machine.")],
    model: Model = None,
    form: Form = "table",
) -> None:
    """Show what a file or folder is, who wrote it, which model and layout fit, and how it is evaluated.

    Nothing in it is executed. The exit code is 1 if evalsvc cannot tell what it is.
    """
    # PyTorch takes seconds to import and is not on every machine; `--help` and a mistyped option need no PyTorch.
    from evalsvc.doctor.inspection import inspect_checkpoint

    if (place := local_file(path)) is None:
        raise InvalidRequest(f"there is no file or folder {path} on this machine; give the path of weights")
    option = "" if model is None else f" --model {shlex.quote(model)}"
    inspection = inspect_checkpoint(place, Settings.load(), inline_model(model), option)
    if form == "json":
        say_json(plain_json(inspection.to_json()))
    elif form == "csv":
        print_rows([asdict(check) for check in inspection.checks], form, "checks", "")
    else:
        say(str(inspection.path))
        _print_checks("part", inspection.checks)
        for command in inspection.commands:
            say(command)
    if not inspection.identified:
        raise typer.Exit(FAILED)


@commands.command()
def layout(
    checkpoint: Annotated[str, Argument(help="Weights: a path or a file:// URI.")],
    pairs: Annotated[
        Path, Option(help="File of real pairs: JSON lines with `text_ids` and `image_codes`, or safetensors.")
    ],
    model: Model = None,
    text_size: Annotated[
        list[int] | None,
        Option(min=1, help="Number of rows of the text block; repeat to try several numbers.", show_default="inferred"),
    ] = None,
    codebook_size: Annotated[
        int | None, Option(min=1, help="Number of codes of the image tokenizer.", show_default="inferred")
    ] = None,
    layouts: Annotated[
        list[str] | None,
        Option("--layout", help="Layout to try next to the presets; repeat for several.", show_default="none"),
    ] = None,
    limit: Annotated[int, Option(min=2, help="Number of pairs to use, from the start of the file.")] = 16,
    tokenizer: Annotated[
        Path | None,
        Option(help="File tokenizer.json, for pairs with `text` instead of `text_ids`.", show_default="none"),
    ] = None,
    output: Annotated[
        Path | None, Option(help="File to write the layout to, for --layout; written only if the layout is decided.")
    ] = None,
    findings_file: Annotated[
        Path | None, Option("--findings", help="File to write all findings to, as JSON.", show_default="none")
    ] = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Find the vocabulary layout that a checkpoint was trained with, by the losses of real pairs.

    The exit code is 1 if the layout is not decided. A layout is never guessed, since every number depends on it.
    """
    require_folders({"--output": output, "--findings": findings_file})
    from evalsvc.doctor.layout.checkup import LEGEND, conclusion, examine, layout_yaml, ranking_rows, summary

    settings = local_settings(device, threads)
    with show_bars() as bars:
        findings = examine(
            checkpoint_reference(checkpoint, inline_model(model), None, settings),
            str(pairs),
            settings,
            lambda done: bars.show("layouts", done, None, "scored"),
            text_sizes=text_size or (),
            codebook_size=codebook_size,
            limit=limit,
            layouts={name: parse_layout(read_layout(name)) for name in layouts or ()},
            tokenizer=None if tokenizer is None else str(tokenizer),
        )
    if findings_file is not None:
        write_output("--findings", findings_file, json.dumps(plain_json(findings), indent=2) + "\n")
    if output is not None and findings["decided"]:
        write_output("--output", output, layout_yaml(findings))
    for line in summary(findings):
        say(line)
    print_rows(ranking_rows(findings), "table", "", "")
    say(LEGEND)
    if findings["dropped"]:
        print_table(["does not fit", "because"], [[*item.values()] for item in findings["dropped"]])
    _print_checks("rule", [Check(**condition) for condition in findings["conditions"]])
    say(conclusion(findings))
    if not findings["decided"]:
        raise typer.Exit(FAILED)


def _print_checks(title: str, checks: Sequence[Check]) -> None:
    states = ["ok" if check.ok else "NO" if check.needed else "-" for check in checks]
    cells = [[check.name, state, check.found, check.do] for check, state in zip(checks, states, strict=True)]
    print_table([title, "", "found", "do"], cells)
