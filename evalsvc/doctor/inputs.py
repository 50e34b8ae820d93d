"""The files and assets that the tasks of a suite name, and which of them are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from evalsvc.assets import locate_asset
from evalsvc.config import Settings
from evalsvc.errors import EvalsvcError, MissingPackage
from evalsvc.spec.images import PROGRAMS
from evalsvc.spec.new_suite import PLACEHOLDER
from evalsvc.spec.paths import DATASETS, local_data
from evalsvc.spec.suite import Suite, TaskSpec
from evalsvc.tasks.text_to_image.spec import AGREEMENT


def missing_inputs(task: TaskSpec, settings: Settings) -> Iterator[str]:
    """Yield the place, the problem and the remedy of each file and asset that an evaluation could not read."""
    for where, path in files_of(task, settings):
        if problem := path_problem(path, settings):
            yield f"{where}: {problem}"
    without_features = task.parameters.get("metrics") in ([], [AGREEMENT])
    for parameter in ("decoder", "extractor", "clip", "dinov2"):  # an asset, or else a file
        name = task.parameters.get(parameter)
        if isinstance(name, str) and "/" not in name and not (without_features and parameter == "extractor"):
            # Any of a program's assets will do.
            assets = PROGRAMS[name].assets if name in PROGRAMS else (name,)
            problems = [_error_of(locate_asset, asset, settings.assets_path) for asset in assets]
            if all(problems):
                yield f"{parameter}: {problems[-1]}"
    reference = task.parameters.get("reference")
    is_name = isinstance(reference, str) and not {"/", ":"} & set(reference)
    if is_name and not (settings.statistics_path / f"{reference}.npz").exists():
        yield (
            f"reference: there are no statistics named {reference!r} in {settings.statistics_path}; run: evalsvc "
            f"reference import, or for a folder of images write its path with a slash: ./{reference}"
        )


def outside_roots(suite: Suite, settings: Settings) -> Iterator[str]:
    """Yield an error for each path in a suite that evaluations may not read."""
    for task in suite.tasks:
        for where, path in paths_of(task, settings):
            if problem := _error_of(local_data, settings, str(path)):
                yield f"task {task.name!r}: {where}: {problem}"


def path_problem(path: Path, settings: Settings) -> str:
    """Return why an evaluation could not read a path, and what to do; empty if the path exists and may be read."""
    if str(path).startswith(PLACEHOLDER):
        return f"{path} is a placeholder; replace it with your own path"
    if (problem := _error_of(local_data, settings, str(path))) or path.exists():
        return problem
    add_file = path.is_relative_to(settings.datasets_path)
    do = "add the file, or set EVALSVC_DATASETS to its folder" if add_file else "correct the path"
    return f"{path} does not exist; {do}"


def _error_of(check: Callable[..., object], *arguments: object) -> str:
    try:
        check(*arguments)
    except EvalsvcError as error:
        return error.message
    return ""


def files_of(task: TaskSpec, settings: Settings) -> Iterator[tuple[str, Path]]:
    """Yield each data file that a task names, with its place, and those in the definitions of its benchmarks."""
    yield from (located := dict(paths_of(task, settings))).items()
    # A benchmark's own `data` replaces the files in its definition.
    names = [item["name"] for item in task.parameters.get("benchmarks") or () if item["data"] is None]
    folders = tuple(Path(folder) for folder in task.parameters.get("include_path") or ())
    try:
        # Needs lm-eval, which a machine with the service only lacks; another check reports that.
        from evalsvc.language.definitions import Rules, named_files
    except MissingPackage:
        return
    files = named_files(names, folders, Rules.of(settings))
    yield from (("benchmarks", path) for path in files if path not in located.values())


def paths_of(task: TaskSpec, settings: Settings) -> Iterator[tuple[str, Path]]:
    """Yield each path in the parameters of a checked task, with its place, such as `benchmarks.0.data`."""
    # Prompts are text, whatever they begin with.
    return _located({name: value for name, value in task.parameters.items() if name != "prompts"}, settings, "")


def _located(value: object, settings: Settings, where: str) -> Iterator[tuple[str, Path]]:
    if isinstance(value, str) and value.startswith(DATASETS):
        yield where, settings.datasets_path / value.removeprefix(DATASETS)
    elif isinstance(value, str) and value.startswith("/"):
        yield where, Path(value)
    elif isinstance(value, (Mapping, list, tuple)):
        items: Iterable[tuple[object, object]] = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _located(item, settings, f"{where}.{key}" if where else str(key))
