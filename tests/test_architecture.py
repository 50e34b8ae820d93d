"""Who may import whom.

The service must start without torch and the client without the service's packages, and a stage that imports another
one cannot be replaced alone. Imports are what breaks this unseen, so they are held to a table here.
"""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import evalsvc

PACKAGE = Path(evalsvc.__file__).parent

FLOORS = (
    ("errors", "access_tokens", "precision", "miniature"),
    ("connection_errors", "files"),
    ("config", "installation"),
    ("spec",),
    ("families",),
    ("log", "checkpoints", "metrics", "client"),
    ("cluster", "data", "models"),
    ("compare", "decoders", "features", "messages", "watch"),
    ("assets", "sampling", "scoring", "store"),
    ("language", "service", "web"),
    ("tasks",),
    ("worker",),
    ("doctor", "verify"),
    ("api",),
    ("cli",),
)
"""Rooms, files and folders under evalsvc, low to high: each imports from itself and from lower floors only."""

FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


@dataclass(frozen=True)
class Import:
    importer: str
    """Dotted name of a module below evalsvc, e.g. `tasks.loss.spec`."""
    line: int
    target: str
    """The same, of what is imported; empty for evalsvc itself."""

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imports_of(module: str, file: Path) -> Iterator[Import]:
    """All imports of evalsvc's own modules, those for type checkers alone included."""
    for node in ast.walk(ast.parse(file.read_text())):
        for name in names_of(node):
            if name.split(".")[0] == "evalsvc":
                yield Import(module, getattr(node, "lineno", 0), name.partition(".")[2])


def names_of(node: ast.AST) -> list[str]:
    """Dotted names of modules that `node` imports; relative imports are not used here."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        inside = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name.partition(".")[2] in MODULES else str(node.module) for name in inside]
    return []


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix("."): file
    for file in FILES
}
IMPORTS = [item for module, file in MODULES.items() for item in imports_of(module, file) if item.target]


def test_every_room_has_its_floor() -> None:
    assert {room_of(module) for module in MODULES if module} == set(FLOOR_OF)


def test_imports_go_down() -> None:
    wrong = [
        str(item)
        for item in IMPORTS
        if (above := room_of(item.importer)) != (below := room_of(item.target))
        and above
        and FLOOR_OF[below] >= FLOOR_OF[above]
    ]
    assert wrong == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for item in IMPORTS:
        if item.target != item.importer and item.target in graph:
            graph[item.importer].add(item.target)
    order = TopologicalSorter(graph)
    order.prepare()  # raises CycleError, which names the modules


def test_the_service_names_the_shard_only_as_a_string() -> None:
    """The service process imports neither tasks nor torch; its workers import `worker.shard`."""
    upward = {"worker", "tasks"}
    wrong = [str(item) for item in IMPORTS if room_of(item.importer) in ("service", "cluster", "api")]
    assert [text for text in wrong if text.rpartition(" ")[2].partition(".")[0] in upward] == []


BLOCK = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None

sys.meta_path.insert(0, Blocked())
for name in {modules!r}:
    importlib.import_module(name)
{then}
"""


def run_blocked(blocked: set[str], modules: list[str], then: str = "") -> None:
    """Import `modules` in a process where the packages `blocked` are not installed."""
    script = BLOCK.format(blocked=blocked, modules=modules, then=then)
    root = str(PACKAGE.parent)
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def modules_of(*rooms: str) -> list[str]:
    """The modules of these rooms."""
    return [f"evalsvc.{module}" for module in MODULES if module and room_of(module) in rooms]


WORKER_PACKAGES = {"lm_eval", "datasets", "torch", "numpy", "PIL", "safetensors", "tokenizers", "transformers"}

CHECK_SUITES = """
from evalsvc.spec import catalog
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.suite import load_suite, suite_files
for task in catalog.COMPONENTS["tasks"]:
    assert catalog.load("tasks", task).model_fields
for path in suite_files(None).values():
    load_suite(path)
parse_layout("image-then-special").resolve(66_823)
"""

START = """
from evalsvc.api.app import create_app
from evalsvc.config import Settings
create_app(Settings())
late = [name for name in {modules!r} if name not in sys.modules]
assert late == [], late
"""


MEASURING = ("evalsvc.doctor.inspection", "evalsvc.doctor.layout.checkup")


@pytest.mark.usefixtures("short_process")
def test_the_service_starts_and_checks_suites_without_torch() -> None:
    """It runs on machines that have no GPU and no torch; its workers are other processes.

    Commands that measure on this machine import the worker when they run.
    """
    rooms = ("api", "cli", "client", "cluster", "compare", "doctor", "service", "store", "watch")
    modules = [*modules_of(*rooms), "evalsvc.data.tokens", "evalsvc.spec.layout", *modules_of("families")]
    modules = [name for name in modules if name not in MEASURING]
    run_blocked(WORKER_PACKAGES, modules, CHECK_SUITES)


@pytest.mark.usefixtures("short_process")
def test_pages_and_suites_are_imported_at_the_start_of_the_service_and_without_torch() -> None:
    """Threads that imported them at once saw half a module, and the first page after a start answered 500."""
    modules = [name for name in modules_of("web") if name != "evalsvc.web.site"]  # of `evalsvc export`
    modules += [name for name in modules_of("tasks") if name.endswith(".spec")]
    run_blocked(WORKER_PACKAGES, [], START.format(modules=modules))


@pytest.mark.usefixtures("short_process")
def test_the_client_needs_none_of_the_services_packages() -> None:
    """A training job posts its checkpoints with it, from an environment of its own."""
    service = {"fastapi", "starlette", "sqlalchemy", "alembic", "distributed", "dask", "uvicorn", "psycopg"}
    others = {"typer", "yaml"}
    run_blocked({*WORKER_PACKAGES, *service, *others}, modules_of("client"))


TESTS_WITHOUT_TORCH = ("api", "client", "cluster", "compare", "files", "service", "spec", "store", "watch")
TESTS_WITH_TORCH = (
    "compare/test_damaged_checkpoint.py",
    "compare/test_text_pages.py",
    "service/test_service.py",
    "store/queue/test_upgrade.py",
)
"""Among those: they evaluate checkpoints, or ask what does."""


@pytest.mark.usefixtures("child_process")
def test_the_services_tests_are_collected_without_torch() -> None:
    """Importing it takes longer than most of them, and one that needs it by accident proves nothing of the service."""
    tests = Path(__file__).parent
    found = [tests / name if (tests / name).is_dir() else tests / f"test_{name}.py" for name in TESTS_WITHOUT_TORCH]
    ignored = [f"--ignore={tests / name}" for name in TESTS_WITH_TORCH]
    arguments = ["--collect-only", "-qqq", "-p", "no:cacheprovider", *map(str, found), *ignored]
    run_blocked({"torch"}, ["pytest"], f"sys.exit(sys.modules['pytest'].main({arguments!r}))")


@pytest.mark.usefixtures("short_process")
def test_a_blocked_package_is_noticed() -> None:
    """The two tests above prove nothing if the block does not work."""
    with pytest.raises(AssertionError, match="No module named 'torch'"):
        run_blocked({"torch"}, ["evalsvc.models"])


@pytest.mark.parametrize(
    ("package", "vulnerable"), [("h11", "0.14.0"), ("jinja2", "3.1.5"), ("starlette", "1.3.0"), ("pillow", "12.3.0")]
)
def test_no_version_with_a_known_hole_is_admitted(package: str, vulnerable: str) -> None:
    """They read what strangers send: requests, templates and images. Others bring them in without a floor."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["worker"]]
    [found] = [item for item in map(Requirement, listed) if item.name == package]
    assert not found.specifier.contains(vulnerable)
    assert found.specifier.contains(metadata.version(package)), "the tests run with one that is admitted"


def test_settings_are_read_in_one_place() -> None:
    """Two readers of one variable drift apart, and `--help` shows only one of them."""
    readers = {module for module, file in MODULES.items() if {"environ", "getenv"} & contents(file).attributes}
    # Two of `cli` hand settings on to a process that reads them; `cluster.devices` reads CUDA's own variable.
    assert readers <= {"config", "cli.options", "cli.demo", "cluster.devices"}


def test_one_module_asks_how_far_two_values_are_apart() -> None:
    """Two ways to a difference had two errors, and a verdict of one command was none of the other."""
    arithmetic = {"distance", "difference_of"}
    askers = {module for module, file in MODULES.items() if arithmetic & contents(file).arithmetic}
    assert askers == {"compare.contrast"}


def test_only_the_terminal_prints() -> None:
    """What is printed otherwise is obeyed by the terminal, whoever wrote it."""
    assert {module for module, file in MODULES.items() if contents(file).prints} == {"cli.terminal"}


@dataclass(frozen=True)
class Contents:
    attributes: frozenset[str]
    arithmetic: frozenset[str]
    """What the file imports from the arithmetic of differences."""
    prints: bool


@cache
def contents(file: Path) -> Contents:
    """Return what the tests above ask of a file, which is parsed once for all of them."""
    attributes, arithmetic, prints = set(), set(), False
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute):
            attributes.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module == "evalsvc.metrics.distance":
            arithmetic.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Name) and node.id == "print":
            prints = True
    return Contents(frozenset(attributes), frozenset(arithmetic), prints)
