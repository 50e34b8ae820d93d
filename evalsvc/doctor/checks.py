"""The checks of `evalsvc doctor`, as data."""

from __future__ import annotations

import importlib
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from evalsvc.assets import ASSETS, locate_asset
from evalsvc.cluster.devices import device_list
from evalsvc.config import OPEN_ROOTS, Settings
from evalsvc.doctor.verification import last_verification, present_versions
from evalsvc.errors import AssetCorrupt, AssetMissing, EvalsvcError, MissingPackage, UnknownName
from evalsvc.installation import pip_install
from evalsvc.spec.images import PROGRAMS
from evalsvc.spec.parameters import PLACEHOLDER
from evalsvc.spec.paths import DATASETS, local_data
from evalsvc.spec.suite import SHIPPED_SUITES, Suite, TaskSpec, load_suite, suite_files
from evalsvc.store.session import Store, translated
from evalsvc.store.tokens import has_tokens
from evalsvc.tasks.image_task import AGREEMENT

TORCH = "2.10"
LM_EVAL = "0.4.13"
GPU_BATCH = 128
"""Batch below which a step mostly reads the weights, whatever the number of images."""
WANTED = {
    "dtype": "`dtype: bfloat16`, several times faster than float32 without TF32 and half of its memory",
    "batch": "`batch: 256`, which is halved where memory is short",
    "weights": "`weights: plain`, since int8 is slower on a GPU",
}
"""Remedies by parameters of a task that samples images."""


@dataclass
class Check:
    name: str
    ok: bool
    found: str
    do: str = ""
    needed: bool = True
    """Whether a failure matters; false for optional parts, such as a shipped suite's data."""

    def __post_init__(self) -> None:
        if self.ok:
            self.do = ""


def run_checks(settings: Settings, suites: Sequence[str] = ()) -> list[Check]:
    """Check everything; if suites are named, check only those of the suites."""
    files = suite_files(settings.suites_path)
    for name in suites:
        if name not in files:
            hint = "doctor checks files; suites that were put to a service by REST are at GET /v1/suites"
            raise UnknownName.among("suite", name, files, hint)
    return [
        Check("python", True, platform.python_version()),  # pip installs evalsvc for no older one
        *_check_torch(settings),
        check_lm_eval(settings),
        check_verification(settings),
        *_check_data_folder(settings),
        *_check_database(settings),
        *(_check_asset(name, settings) for name in ASSETS),
        *(_check_suite(name, files[name], settings, needed=bool(suites)) for name in suites or files),
        *(check_speed(files[name]) for name in suites if _uses_card(settings)),
    ]


def _check_torch(settings: Settings) -> Iterator[Check]:
    needed = not settings.scheduler
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        do = f"workers on this machine need it; run: {pip_install('worker')}"
        yield Check("torch", False, f"not installed ({error})", do, needed)
        return
    version: str = torch.__version__
    do = f"older versions open hostile checkpoints unsafely; install torch {TORCH} or newer"
    yield Check("torch", _numbers(version) >= _numbers(TORCH), version, do, needed)
    cards = {f"cuda:{index}": torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    wanted = device_list(settings.devices)
    missing = [name for name in wanted if name not in ("cpu", *cards) and not (name == "cuda" and cards)]
    listed = [*(f"{card} ({model})" for card, model in cards.items()), "cpu"]
    state = f"{', '.join(listed)}; workers would use {', '.join(wanted)}"
    do = f"torch does not see {', '.join(missing)}; install a driver that fits it, or change EVALSVC_DEVICES"
    yield Check("devices", not missing, state, do)


def check_lm_eval(settings: Settings) -> Check:
    """Check lm-eval without importing it, which takes seconds. The service does not need lm-eval."""
    needed = not settings.scheduler
    try:
        version = metadata.version("lm-eval")
    except metadata.PackageNotFoundError:
        do = f"workers on this machine need it for benchmarks; run: {pip_install('worker')}"
        return Check("lm-eval", False, "not there", do, needed)
    ok = _numbers(LM_EVAL) <= _numbers(version) < _numbers("0.5")
    do = f"other versions build other prompts; run: pip install 'lm-eval>={LM_EVAL},<0.5'"
    return Check("lm-eval", ok, version, do, needed)


def check_verification(settings: Settings) -> Check:
    """Check that this machine was verified with the current versions, and that all results agreed."""
    do = "run: evalsvc verify machine"
    try:
        last = last_verification(settings.data_path)
    except (OSError, ValueError) as error:
        return Check("verify", False, str(error), do, needed=False)
    if last is None:
        return Check("verify", False, "not run", do, needed=False)
    where = f"on {last.device}, {last.at}"
    differing = [row.quantity for row in last.findings if row.verdict == "WRONG"]
    if differing or not last.agrees:
        state = f"{'; '.join(differing) or 'nothing agreed'} {where}"
        do = f"do not trust numbers of this machine; correct the installation, then {do}"
        return Check("verify", False, state, do, needed=not settings.scheduler)
    if last.versions != present_versions():
        versions = ", ".join(f"{name} {version}" for name, version in last.versions.items())
        return Check("verify", False, f"of {versions} {where}", f"the versions have changed; {do}", needed=False)
    agreed = sum(row.verdict == "ok" for row in last.findings)
    untried = f", {len(last.findings) - agreed} not tried," if agreed < len(last.findings) else ""
    return Check("verify", True, f"{agreed} rows agree{untried} {where}")


def _check_data_folder(settings: Settings) -> Iterator[Check]:
    folder = settings.data_path
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    ok = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    state = str(folder) + ("" if folder.exists() else " (created at the first start)")
    do = f"{existing} cannot be written; change its permissions, or set another folder by --data-dir (EVALSVC_DATA_DIR)"
    yield Check("data folder", ok, state, do)
    spool = folder / "spool" if (folder / "spool").exists() else existing
    roots = [root for root in settings.root_paths if settings.has_roots and root.exists()]
    if apart := [str(root) for root in roots if root.stat().st_dev != spool.stat().st_dev]:
        state = f"spool=link cannot link from {', '.join(apart)}: another file system than {folder / 'spool'}"
        yield Check("spool", False, state, "post checkpoints with spool=copy", needed=False)


def _check_database(settings: Settings) -> Iterator[Check]:
    # Without tokens only users of this machine may submit, so open roots are accepted.
    any_tokens, file = False, settings.database.removeprefix("sqlite:///")
    if file != settings.database and not Path(file).exists():
        yield Check("database", True, f"{file} (created at the first start)")
    else:
        try:
            with closing(Store(settings.database)) as store:
                if version := store.schema_version():
                    store.check_schema()
                    with translated(store.url), store.reading() as session:
                        any_tokens = has_tokens(session)
            yield Check("database", True, f"answers; schema {version or 'created at the first start'}")
        except EvalsvcError as error:
            state, _, do = error.message.partition("; ")
            yield Check("database", False, state, do or "start the database or correct EVALSVC_DATABASE_URL")
    if names := ", ".join(map(str, settings.useless_roots)):
        do = f"{names} is in the data folder, where nothing is read; change EVALSVC_ROOTS"
        yield Check("roots", False, settings.roots, do)
    else:
        is_safe = settings.has_roots or not any_tokens
        state = settings.roots if is_safe else f"{settings.roots} though there are tokens"
        yield Check("roots", is_safe, state, OPEN_ROOTS)


def _check_asset(name: str, settings: Settings) -> Check:
    try:
        return Check(f"asset {name}", True, str(locate_asset(name, settings.assets_path)))
    except AssetMissing:
        do = f"for suites that use it, run: evalsvc assets pull {name}"
        return Check(f"asset {name}", False, f"not in {settings.assets_path}", do, needed=False)
    except AssetCorrupt as error:
        state, _, do = error.message.partition("; ")
        return Check(f"asset {name}", False, state, do)


def _check_suite(name: str, path: Path, settings: Settings, needed: bool) -> Check:
    title, needed = f"suite {name}", needed or path.parent != SHIPPED_SUITES
    try:
        suite = load_suite(path)
    except EvalsvcError as error:
        return Check(title, False, error.message, f"correct {path}", needed)
    problems = [problem for task in suite.tasks for problem in missing_inputs(task, settings)]
    if not problems:
        return Check(title, True, f"{len(suite.tasks)} tasks, all data present")
    # Without the place in the suite, which `evalsvc suites check` says: tasks share files and assets.
    parts = [problem.partition(": ")[2].partition("; ") for problem in problems]
    states, remedies = (dict.fromkeys(part[index] for part in parts) for index in (0, 2))
    return Check(title, False, "; ".join(states), "; ".join(remedies), needed)


def _uses_card(settings: Settings) -> bool:
    return any(device != "cpu" for device in device_list(settings.devices))


def check_speed(path: Path) -> Check:
    """Check that a suite samples images on a GPU in the dtype and batch that a GPU wants. They are part of the protocol
    or move tokens by rounding, so the suite's author chooses."""
    title = f"speed of {path.stem} on a GPU"
    try:
        tasks = [task for task in load_suite(path).tasks if task.kind == "text_to_image"]
    except EvalsvcError:  # another check reports it
        return Check(title, True, "not read")
    states: list[str] = []
    remedies: dict[str, str] = {}
    for task in tasks:
        slow = {"dtype": task.parameters["dtype"] == "float32", "batch": task.parameters["batch"] < GPU_BATCH}
        slow["weights"] = task.parameters["weights"] == "int8"
        states += [f"{task.name}: {name} {task.parameters[name]}" for name in slow if slow[name]]
        remedies |= {name: WANTED[name] for name in slow if slow[name]}
    do = f"set {', '.join(remedies.values())}; another dtype or format of weights is another series"
    return Check(title, not states, "; ".join(states) or "as a GPU wants it", do, needed=False)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def missing_inputs(task: TaskSpec, settings: Settings) -> Iterator[str]:
    """Yield the place, the problem and the remedy of each file and asset that an evaluation could not read."""
    for where, path in files_of(task, settings):
        if problem := path_problem(path, settings):
            yield f"{where}: {problem}"
    without_features = task.parameters.get("metrics") in ([], [AGREEMENT])
    for parameter in ("decoder", "extractor", "clip", "dinov2", "lpips"):  # an asset, or else a file
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
