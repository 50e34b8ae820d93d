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
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import evalsvc

PACKAGE = Path(evalsvc.__file__).parent

STAGES = {"models", "sampling", "scoring", "language", "decoders", "features", "metrics"}

# A part is a file or a folder directly under evalsvc. What is not listed is ground floor.
PARTS = {
    **{stage: {"ground"} for stage in STAGES},
    "sampling": {"ground", "models"},
    "scoring": {"ground", "models", "metrics"},
    "language": {"ground", "models", "sampling", "scoring", "metrics"},
    "tasks": {"ground", *STAGES},
    "runner": {"ground", *STAGES, "tasks"},
    "store": {"ground"},
    "dask_settings": {"ground"},
    "worker": {"ground", "dask_settings"},
    "supervisor": {"ground", "dask_settings", "worker"},
    "scheduler": {"ground", "dask_settings"},
    "slurm": {"ground", "dask_settings"},
    "cluster": {"ground", "dask_settings", "worker"},
    "placement": {"ground", "store"},
    "spooler": {"ground", "store"},
    "pruner": {"ground", "store"},
    "shard_files": {"ground", "store"},
    "coordinator": {"ground", "store", "cluster", "placement", "shard_files", "spooler", "pruner"},
    "api": {"ground", "store", "cluster", "coordinator", "pruner", "compare", "difference_curves", "result", "metrics"},
    "web": {"ground", "store", "cluster", "coordinator", "api"},
    "client": {"ground"},
    "doctor": {"ground", "store", "cluster", *STAGES},
    "result": {"ground", "metrics"},
    "result_source": {"ground", "client", "result"},
    "gate_rules": {"ground", "metrics"},
    "gate_verdict": {"ground", "gate_rules", "metrics"},
    "gate": {"ground", "gate_rules", "gate_verdict", "result", "result_source", "metrics"},
    "compare": {"ground", "result", "metrics"},
    "difference_curves": {"ground", "compare", "result", "metrics"},
    "gate_until": {"ground", "gate", "gate_rules", "result", "metrics", "runner"},
    "layout_doctor": {"ground", "metrics"},
    "watch": {"ground", "client"},
    "demo": {"ground", "client", "store", "cluster", "coordinator", "api", "runner"},
    "cli": {
        "ground",
        "supervisor",
        "scheduler",
        "store",
        "cluster",
        "coordinator",
        "api",
        "web",
        "client",
        "doctor",
        "gate",
        "gate_rules",
        "watch",
        "demo",
        "result",
        "result_source",
        "compare",
        "layout_doctor",
        "difference_curves",
        "metrics",
    },
}

LATE = {
    ("cli", "runner"),
    ("cli", "gate_until"),
    ("doctor", "runner"),
    ("cli", "language"),
    ("layout_doctor", "runner"),
    ("layout_doctor", "tasks"),
}
"""Allowed inside a function only: these commands do in their own process what workers do."""


@dataclass(frozen=True)
class Import:
    file: Path
    line: int
    target: str
    """Dotted name below evalsvc, e.g. `tasks.loss`; empty for evalsvc itself."""
    late: bool
    """Inside a function: done only when it is called."""

    @property
    def parts(self) -> tuple[str, str]:
        importer = self.file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        return importer, self.target.partition(".")[0]


def imports_of(file: Path) -> Iterator[Import]:
    tree = ast.parse(file.read_text())
    typing_only = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test).endswith("TYPE_CHECKING")
        for statement in branch.body
        for node in ast.walk(statement)
    }
    late = {
        node
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if node not in typing_only:
            for name in names_of(node):
                if name.split(".")[0] == "evalsvc":
                    yield Import(file, node.lineno, name.partition(".")[2], node in late)


def names_of(node: ast.AST) -> list[str]:
    """Dotted names of modules that `node` imports; relative imports are not used here, see below."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        module = node.module or ""
        return [f"{module}.{alias.name}" for alias in node.names] if module == "evalsvc" else [module]
    return []


def group_of(part: str) -> str:
    return part if part in PARTS else "ground"


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file: Path) -> None:
    wrong = []
    for item in imports_of(file):
        importer, target = (group_of(part) for part in item.parts)
        allowed = {*PARTS.get(importer, {"ground"}), importer}
        if target not in allowed and not (item.late and (importer, target) in LATE):
            wrong.append(f"{file.name}:{item.line}: {importer} must not import {target} ({item.target})")
    assert wrong == []


def test_the_table_has_no_circle() -> None:
    def reachable(part: str, seen: frozenset[str]) -> None:
        assert part not in seen, f"{part} imports itself by way of {sorted(seen)}"
        for other in PARTS.get(part, set()):
            reachable(other, seen | {part})

    for part in PARTS:
        reachable(part, frozenset())


def test_the_coordinator_names_the_runner_only_as_a_string() -> None:
    """The service process imports neither tasks nor torch; the workers import the runner."""
    files = [PACKAGE / "coordinator.py", PACKAGE / "cluster.py", *(PACKAGE / "api").glob("*.py")]
    for file in files:
        if file.exists():
            assert not [item for item in imports_of(file) if item.parts[1] in ("runner", "tasks")], file


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
    assert done.returncode == 0, done.stderr


def modules_of(*parts: str) -> list[str]:
    """The modules of files and folders under evalsvc, of those that exist."""
    files = [file for file in FILES if file.relative_to(PACKAGE).parts[0].removesuffix(".py") in parts]
    names = (".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files)
    return [name.removesuffix(".__init__") for name in names]


WORKER_PACKAGES = {"torch", "numpy", "PIL", "safetensors", "tokenizers", "transformers"}

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


def test_the_service_starts_and_checks_suites_without_torch() -> None:
    """It runs on machines that have no GPU and no torch; its workers are other processes."""
    shown = ("cli", "client", "gate", "compare", "difference_curves", "result", "result_source", "layout_doctor")
    own = (*shown, "watch", "data")
    parts = ("api", "web", "coordinator", "cluster", "store", "spooler", "pruner", *own)
    run_blocked(
        WORKER_PACKAGES, [*modules_of(*parts), "evalsvc.spec.layout", "evalsvc.spec.model_config"], CHECK_SUITES
    )


def test_the_client_needs_none_of_the_services_packages() -> None:
    """A training job posts its checkpoints with it, from an environment of its own."""
    service = {"fastapi", "starlette", "sqlalchemy", "alembic", "distributed", "dask", "uvicorn", "psycopg"}
    run_blocked({*WORKER_PACKAGES, *service}, modules_of("client"))


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
    readers = {str(file.relative_to(PACKAGE)) for file in FILES if {"environ", "getenv"} & names_in(file)}
    # cli/options.py and demo.py hand settings on to a process that reads them; devices.py reads CUDA's own variable.
    assert readers <= {"config.py", "cli/options.py", "devices.py", "demo.py"}


def test_only_the_terminal_prints() -> None:
    """What is printed otherwise is obeyed by the terminal, whoever wrote it."""
    printing = {str(file.relative_to(PACKAGE)) for file in FILES if calls_print(file)}
    assert printing == {"terminal.py"}


def calls_print(file: Path) -> bool:
    nodes = ast.walk(ast.parse(file.read_text()))
    return any(isinstance(node, ast.Name) and node.id == "print" for node in nodes)


def names_in(file: Path) -> set[str]:
    return {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
