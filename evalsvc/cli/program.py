"""The command line: which commands there are, and where each of them is."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from evalsvc import __version__
from evalsvc.cli.lazy_group import Entry, LazyGroup
from evalsvc.cli.terminal import complain, say, warn
from evalsvc.config import unknown_variables
from evalsvc.errors import EvalsvcError, InvalidRequest

SERVICE, POST, HOLD, READ, ALONE, WRITE = (
    "Run a service",
    "Post checkpoints",
    "See and change what the service has",
    "Read results",
    "Evaluate without a service",
    "Write suites",
)
"""Titles of the sections of `evalsvc --help`."""

COMMANDS = {
    "serve": Entry("evalsvc.cli.serve", SERVICE, "Run the service and its workers on this machine."),
    "worker": Entry("evalsvc.cli.cluster", SERVICE, "Run workers for the scheduler of another machine."),
    "scheduler": Entry("evalsvc.cli.cluster", SERVICE, "Run the scheduler between a service and its workers."),
    "certificates": Entry("evalsvc.cli.cluster", SERVICE, "Make the certificates of scheduler, service and workers."),
    "status": Entry("evalsvc.cli.status", SERVICE, "Show workers, queue, and running and failed evaluations."),
    "tokens": Entry("evalsvc.cli.tokens", SERVICE, "Make, list and revoke access tokens."),
    "backup": Entry("evalsvc.cli.backup", SERVICE, "Write the database and the data folder to one file."),
    "restore": Entry("evalsvc.cli.backup", SERVICE, "Restore a backup into an empty database and data folder."),
    "submit": Entry("evalsvc.cli.checkpoints", POST, "Post a checkpoint and have it evaluated."),
    "watch": Entry("evalsvc.cli.watch", POST, "Post every checkpoint that appears in a folder."),
    "sweep": Entry("evalsvc.cli.checkpoints", POST, "Post mixtures of two checkpoints' weights."),
    "import": Entry("evalsvc.cli.history", POST, "Enter values that other tools measured."),
    "runs": Entry("evalsvc.cli.runs", HOLD, "List, show, rename and delete runs; set their bases."),
    "checkpoints": Entry("evalsvc.cli.checkpoints", HOLD, "List, show and delete checkpoints."),
    "evaluations": Entry("evalsvc.cli.evaluations", HOLD, "List, show, cancel, retry and repeat evaluations."),
    "plan": Entry("evalsvc.cli.plan", HOLD, "Show or set the suites that a run's checkpoints get."),
    "history": Entry("evalsvc.cli.history", READ, "Show the metrics of runs by training step."),
    "compare": Entry("evalsvc.cli.compare", READ, "Compare checkpoints or runs, with intervals and verdicts."),
    "gate": Entry("evalsvc.cli.gate", READ, "Fail if a checkpoint is worse than a baseline, as in CI."),
    "completions": Entry("evalsvc.cli.completions", READ, "Show what checkpoints made of fixed prompts."),
    "artifacts": Entry("evalsvc.cli.artifacts", READ, "List, fetch, keep and prune image grids and pages."),
    "items": Entry("evalsvc.cli.items", READ, "Fetch results per item: per image, caption or question."),
    "protocol": Entry("evalsvc.cli.protocol", READ, "Show how a value was measured, and what differs."),
    "demo": Entry("evalsvc.cli.demo", ALONE, "Evaluate the small run that comes with evalsvc."),
    "run": Entry("evalsvc.cli.evaluate", ALONE, "Evaluate a checkpoint here, without a service."),
    "verify": Entry("evalsvc.cli.verify", ALONE, "Compute numbers a second time, by other programs."),
    "doctor": Entry("evalsvc.cli.doctor", ALONE, "Show settings and what is missing; find a layout."),
    "suites": Entry("evalsvc.cli.suites", WRITE, "Write, check and list suites; keep them in the service."),
    "tasks": Entry("evalsvc.cli.tasks", WRITE, "Show the kinds of tasks and their parameters."),
    "metrics": Entry("evalsvc.cli.metrics", WRITE, "Show how metrics are defined."),
    "benchmarks": Entry("evalsvc.cli.benchmarks", WRITE, "List and prepare lm-eval's benchmarks."),
    "reference": Entry("evalsvc.cli.reference", WRITE, "Import statistics of real images for FID."),
    "assets": Entry("evalsvc.cli.assets", WRITE, "Fetch the weights of networks that suites need."),
}
"""The commands in the order of `evalsvc --help`, which imports none of them."""

OLD_NAMES = {
    "show": "runs show",
    "rename-run": "runs rename",
    "delete-run": "runs delete",
    "base": "runs base",
    "token": "tokens",
}
"""Names of commands in the version before, which work for one more version."""


class Commands(LazyGroup):
    entries, old_names = COMMANDS, OLD_NAMES


app = typer.Typer(
    name="evalsvc",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    options_metavar="[-h] [--version [--verbose]]",
    help="Evaluate the checkpoints of auto-regressive text-to-image models, and keep one history of metrics per "
    "training step.",
    epilog="`evalsvc COMMAND -h` shows a command and its options. Options that are settings can also be given as "
    "variables EVALSVC_NAME; `evalsvc doctor` lists them. `evalsvc --install-completion` has the shell complete "
    "commands, options and names.",
)

WRONG_USE, INTERRUPTED = 2, 130
"""Exit codes: it could not be tried; Ctrl-C."""


def main() -> NoReturn:
    """The console script: every error that evalsvc raises on purpose is one line and exit code 2."""
    try:
        app(prog_name="evalsvc")
    except EvalsvcError as error:
        complain(f"{error.message} [{error.code}]")
        sys.exit(WRONG_USE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(0)


def _show_version(context: typer.Context, wanted: bool) -> None:
    # `--verbose` is eager, so its value is there, wherever it stands.
    is_verbose = context.params.get("verbose", False)
    if is_verbose and not wanted:
        raise InvalidRequest("--verbose says more about --version; give both: evalsvc --version --verbose")
    if not wanted:
        return
    if is_verbose:
        from evalsvc.doctor.bug_report import report_lines

        for line in report_lines():
            say(line)
    else:
        say(f"evalsvc {__version__}")
    raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, help="Show the version and exit.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            is_eager=True,
            help="With --version, show what a bug report needs: versions, cards, database, settings; no secrets.",
        ),
    ] = False,
) -> None:
    for warning in unknown_variables():
        warn(warning)
