"""The benchmarks of `evalsvc/text_tasks` with the rows in ../shared/golden/text_tasks."""

from pathlib import Path

from evalsvc.language.benchmarks import Benchmark, LoadOptions, load_benchmarks
from evalsvc.language.definitions import Rules
from evalsvc.spec.benchmark import BenchmarkSpec

TEXT_TASKS = Path(__file__).parents[2] / "evalsvc" / "text_tasks"


def load_golden(shared: Path, name: str, limit: int | None) -> Benchmark:
    golden = shared / "golden" / "text_tasks"
    rules = Rules(resolve=lambda path: str(golden / path.removeprefix("datasets:text/")))
    options = LoadOptions(include_path=(TEXT_TASKS,), limit=limit, rules=rules)
    return load_benchmarks([BenchmarkSpec(name=name)], options).benchmarks[0]
