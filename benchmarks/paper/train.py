"""Train a language model on text and images: a loop to learn from, over the project's own Transformer.

    python benchmarks/paper/train.py RECIPE.yaml --work DIR [--server URL --run NAME]

`trainer/recipe.py` says what a recipe has, and `benchmarks/miniature/recipes/` has examples. The loop is in
`trainer/training.py`: draw a batch, compute the loss by the forward pass that evaluations use too, clip, update by
AdamW, average. Everything is in the work folder, and a training that was interrupted anywhere goes on when the same
command is run again, to the same bytes.

With `--server`, a thread posts every checkpoint to the service, averages as variants. The training never waits for the
service: what could not be posted is tried again, and listed at the end.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from trainer.checkpoint_files import FOLDER, RAW, RECIPE, saved_checkpoints
from trainer.posting import Poster, Target
from trainer.recipe import Recipe, read_recipe
from trainer.training import STATE, Training

from evalsvc.errors import Conflict, EvalsvcError, InvalidRequest
from evalsvc.files.atomic import PARTIAL, write_whole


def train(
    recipe: Recipe,
    folder: Path,
    *,
    device: str = "cpu",
    on_checkpoint: Callable[[int, Path], None] | None = None,
) -> None:
    """Train by `recipe`, from what lies in `folder` up to the last step, and return.

    The folder holds `recipe.json`, `log.jsonl` with a line for each step, `layout.yaml`, `checkpoints/`, and while the
    training is not done `state.pt`. A training that was interrupted anywhere resumes with the same arguments, and ends
    with the same bytes in `checkpoints/` on the same machine with the same number of threads.

    `on_checkpoint` gets the step and the path of every checkpoint in order of the steps, when all files of the step are
    written. An interrupted training calls it again for the checkpoints that an earlier call wrote. Averages lie next to
    the checkpoint; `saved_checkpoints` of `trainer/checkpoint_files.py` lists all files with step and variant.

    Raises:
        Conflict: the folder belongs to another recipe, or to a training that runs.
        InvalidData: data or text do not fit the layout.
        CheckpointError: the start cannot be read, or does not fit model or layout.
        NonFinite: a loss is NaN or infinite; the message names the step.
    """
    notify = on_checkpoint or (lambda step, path: None)
    folder = folder.resolve()
    with claimed(folder, recipe):
        written = [saved for saved in saved_checkpoints(folder) if saved.variant == RAW]
        for saved in written:
            notify(saved.step, saved.path)
        if len(written) < len(recipe.kept):
            Training(recipe, folder, device).run(notify)


@contextmanager
def claimed(folder: Path, recipe: Recipe) -> Iterator[None]:
    """Keep other trainings out of the folder, and remove what an interrupted one left half written.

    Raises:
        Conflict: the folder belongs to another recipe, or to a training that runs.
    """
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
        except BlockingIOError:
            raise Conflict(f"another training runs in {folder}; wait for it, or use another folder") from None
        _require_recipe(folder / RECIPE, recipe)
        for pattern in (f"{STATE}.*{PARTIAL}", f"{FOLDER}/*{PARTIAL}"):  # the thread that posts writes files too
            for leftover in folder.glob(pattern):
                leftover.unlink()
        yield


def _require_recipe(path: Path, recipe: Recipe) -> None:
    """Write the recipe, or compare it with the one that the folder has."""
    wanted = recipe.to_json()
    known = json.loads(path.read_text()) if path.exists() else wanted
    if differing := sorted(name for name in {*wanted, *known} if wanted.get(name) != known.get(name)):
        raise Conflict(
            f"{path.parent} holds a training by another recipe: {', '.join(differing)} differ; use another folder, or "
            "delete this one"
        )
    write_whole(path, (json.dumps(wanted, indent=1) + "\n").encode(), mode=0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="YAML file with the fields of trainer/recipe.py")
    parser.add_argument("--work", type=Path, required=True, help="folder of everything that is written")
    parser.add_argument("--device", default="cpu", help="device of torch, such as cuda [cpu]")
    parser.add_argument("--threads", type=int, help="threads of torch [all cores]")
    parser.add_argument("--server", help="address of the service to which checkpoints are posted [none]")
    parser.add_argument("--run", help="name of the run on the service [the recipe's name]")
    parser.add_argument(
        "--suite", action="append", default=[], help="suite to evaluate; may be repeated [the run's plan]"
    )
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        run(options)
    except EvalsvcError as error:
        sys.exit(f"error: {error.message}")
    except OSError as error:
        sys.exit(f"error: --work {options.work} cannot be used: {error}; check space and permissions")


def run(options: argparse.Namespace) -> None:
    recipe = read_recipe(options.recipe)
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidRequest(f"--device {options.device} cannot be used: {reason}; give cpu or cuda") from None
    if options.server is None:
        train(recipe, options.work, device=options.device)
        return
    target = Target(options.server, options.run or recipe.name, options.suite)
    folder = options.work.resolve()
    with Poster(target, folder) as poster:
        train(recipe, folder, device=options.device, on_checkpoint=poster.announce)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
