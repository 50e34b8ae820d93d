"""`evalsvc score`: measure external images, on this machine or as a step of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.checkpoints.formats import IMAGES
from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.cli.evaluate import evaluate_here
from evalsvc.cli.options import (
    FAILED,
    Device,
    Replace,
    Suites,
    Threads,
    Url,
    complete_run,
    connect,
    local_settings,
    refuse,
    require_folders,
)
from evalsvc.cli.options import Suite as SuiteOption
from evalsvc.cli.progress import show_transfer
from evalsvc.cli.submit import show_posted, wait_for
from evalsvc.errors import InvalidRequest
from evalsvc.spec.suite import Suite, find_suite, parse_suite

commands = typer.Typer()


@commands.command()
def score(
    images: Annotated[Path, Argument(metavar="IMAGES", help="Folder of image files, or an archive.")],
    prompts: Annotated[Path | None, Option(help="File of prompts.", show_default="prompts.jsonl in IMAGES")] = None,
    suite: SuiteOption = None,
    reference: Annotated[str | None, Option(help="Real images, without --run.", show_default="the suite's")] = None,
    clip: Annotated[str | None, Option(help="CLIP, without --run.", show_default="the suite's")] = None,
    run: Annotated[str | None, Option(help="Run to post to.", show_default="none", autocompletion=complete_run)] = None,
    step: Annotated[int | None, Option(min=0, help="Training step of the images, with --run.")] = None,
    variant: Annotated[str | None, Option(help="Variant, such as cfg4, with --run.", show_default="raw")] = None,
    replace_images: Replace = False,
    wait: Annotated[bool, Option("--wait", help="Wait for the evaluations, and show their metrics.")] = False,
    output: Annotated[Path | None, Option(help="File for the result as JSON, without --run.")] = None,
    suites: Suites = None,
    device: Device = None,
    threads: Threads = None,
    url: Url = None,
) -> None:
    """Measure external images, such as those of a diffusion model, with errors.

    IMAGES is a folder, a .tar, .npz, .parquet or .safetensors file. An image is named after the id of its prompt, as
    ID.png, or ID_0.png, ID_1.png and so on; images in an .npz file have the order of the prompts. Without --run, the
    suite `images` or a YAML file measures them on this machine. With --run and --step, images and prompts are uploaded
    and become a step of the run. The exit code is 1 if a task failed.
    """
    of_service = {"--step": step, "--variant": variant, "--replace": replace_images, "--wait": wait, "--url": url}
    of_machine = {"--reference": reference, "--clip": clip, "--output": output, "--suites": suites, "--device": device}
    if run is None:
        refuse(of_service, "without --run")
        require_folders({"--output": output})
        if len(names := suite or ["images"]) > 1:
            raise InvalidRequest("--suite is given several times without --run; give one suite")
        settings = local_settings(device, threads, suites)
        given = {"captions": _absolute(prompts), "reference": _named(reference), "clip": _named(clip)}
        chosen = _with(find_suite(names[0], settings.suites_path), given)
        evaluate_here(chosen, CheckpointRef(_absolute(images), model=IMAGES, label=str(images)), settings, output)
        return
    refuse({**of_machine, "--threads": threads}, "with --run, where the service measures")
    if step is None:
        raise InvalidRequest("--run is given without --step; give the training step of the images")
    with connect(url) as client:
        with show_transfer() as report:
            posted = client.log_images(
                run, step, images, prompts, variant=variant, suites=suite, replace=replace_images, report=report
            )
        show_posted(posted)
        if wait and not wait_for(client, [evaluation.id for evaluation in posted.evaluations]):
            raise typer.Exit(FAILED)


def _absolute(path: Path | None) -> str:
    return "" if path is None else str(path.expanduser().absolute())


def _named(asset: str | None) -> str | None:
    """Return the name of an asset as it is, and a path that exists as an absolute path."""
    return _absolute(Path(asset)) if asset and Path(asset).expanduser().exists() else asset


def _with(suite: Suite, given: Mapping[str, object]) -> Suite:
    """Return a suite whose tasks of images have these parameters, in place of their own."""
    if "images" not in suite.reads:
        raise InvalidRequest(f"suite {suite.name} has no task of kind images; name one that has: --suite images")
    content, named = suite.to_json(), {name: value for name, value in given.items() if value}
    content["tasks"] = [task | named if task["kind"] == "images" else task for task in suite.tasks_to_json()]
    return parse_suite(content, suite.name)
