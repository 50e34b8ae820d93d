"""Benchmarks as a task loads them: from the YAML files of a test, or with the rows in ../shared/golden/text_tasks."""

from pathlib import Path
from typing import Any

from evalsvc.config import Settings
from evalsvc.language.benchmarks import Benchmark, Loaded, LoadOptions, load_benchmarks
from evalsvc.language.definitions import Rules
from evalsvc.spec.benchmark import BenchmarkSpec

TEXT_TASKS = Path(__file__).parents[2] / "evalsvc" / "text_tasks"


def rules_of(root: Path) -> Rules:
    """Of a worker that may read below `root`."""
    return Rules.of(Settings(roots=str(root), data_dir=str(root.parent / "data")))


def load(folder: Path, *specs: Any, **options: Any) -> Loaded:
    """Load benchmarks by name, or by the fields of their specs, where `folder` has YAML files."""
    chosen = [BenchmarkSpec.model_validate(spec) for spec in specs]
    return load_benchmarks(chosen, LoadOptions(include_path=(folder,), **options))


def load_one(folder: Path, name: str, rules: Rules | None = None, **fields: Any) -> Benchmark:
    (benchmark,) = load(folder, {"name": name, **fields}, rules=rules or Rules()).benchmarks
    return benchmark


def load_golden(shared: Path, name: str, limit: int | None) -> Benchmark:
    golden = shared / "golden" / "text_tasks"
    rules = Rules(resolve=lambda path: str(golden / path.removeprefix("datasets:text/")))
    return load(TEXT_TASKS, name, limit=limit, rules=rules).benchmarks[0]
