"""The files and assets that the tasks of a suite name, and which of them are missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from evalsvc.assets import locate_asset
from evalsvc.config import Settings
from evalsvc.errors import AssetCorrupt, AssetMissing, EvalsvcError, MissingPackage
from evalsvc.spec.images import PROGRAMS
from evalsvc.spec.new_suite import PLACEHOLDER
from evalsvc.spec.paths import DATASETS, Readable, local_data
from evalsvc.spec.suite import Suite, TaskSpec
from evalsvc.tasks.text_to_image.spec import AGREEMENT

ASSET_PARAMETERS = ("decoder", "extractor", "clip", "dinov2")
"""Parameters of a task that may name an asset instead of a file."""

TEXT_PARAMETERS = ("prompts",)
"""Parameters of a task that are not paths, whatever they begin with."""


def missing_inputs(task: TaskSpec, settings: Settings) -> Iterator[str]:
    """Yield the place, the problem and the remedy of each file and asset that an evaluation could not read."""
    for where, path in files_of(task, settings):
        if str(path).startswith(PLACEHOLDER):
            yield f"{where}: {path} is a placeholder; replace it with your own path"
        elif problem := path_problem(path, settings):
            yield f"{where}: {problem}"
    without_features = task.parameters.get("metrics") in ([], [AGREEMENT])
    for parameter in ASSET_PARAMETERS:
        name = task.parameters.get(parameter)
        if isinstance(name, str) and "/" not in name and not (without_features and parameter == "extractor"):
            try:
                _locate(name, settings)
            except EvalsvcError as error:
                yield f"{parameter}: {error.message}"
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
            try:
                local_data(settings, str(path))
            except EvalsvcError as error:
                yield f"task {task.name!r}: {where}: {error.message}"


def path_problem(path: Path, settings: Settings) -> str | None:
    """Return why an evaluation could not read a path, and what to do; None if the path exists and may be read."""
    try:
        Readable(settings)(path.resolve(), str(path))
    except EvalsvcError as error:
        return error.message
    if path.exists():
        return None
    if path.is_relative_to(settings.datasets_path):
        return f"{path} does not exist; add the file, or set EVALSVC_DATASETS to its folder"
    return f"{path} does not exist; correct the path"


def _locate(name: str, settings: Settings) -> Path:
    """Locate an asset; for a program, its first asset that was pulled."""
    *preferred, last = PROGRAMS[name].assets if name in PROGRAMS else (name,)
    for asset in preferred:
        try:
            return locate_asset(asset, settings.assets_path)
        except (AssetMissing, AssetCorrupt):
            continue
    return locate_asset(last, settings.assets_path)


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
    rules = Rules(bool(settings.allow_benchmark_code), partial(local_data, settings), Readable(settings))
    yield from (("benchmarks", path) for path in named_files(names, folders, rules) if path not in located.values())


def paths_of(task: TaskSpec, settings: Settings) -> Iterator[tuple[str, Path]]:
    """Yield each path in the parameters of a checked task, with its place, such as `benchmarks.0.data`."""
    parameters = {name: value for name, value in task.parameters.items() if name not in TEXT_PARAMETERS}
    return _located(parameters, settings, "")


def _located(value: object, settings: Settings, where: str) -> Iterator[tuple[str, Path]]:
    """Yield the data files in a value of a checked suite: absolute paths and `datasets:NAME`. No other text has these
    forms."""
    if isinstance(value, str) and value.startswith(DATASETS):
        yield where, settings.datasets_path / value.removeprefix(DATASETS)
    elif isinstance(value, str) and value.startswith("/"):
        yield where, Path(value)
    elif isinstance(value, (Mapping, list, tuple)):
        items: Iterable[tuple[object, object]] = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _located(item, settings, f"{where}.{key}" if where else str(key))
