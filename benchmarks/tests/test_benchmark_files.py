"""Files of benchmarks are imported in the first tier; `test_benchmarks.py` begins them, and runs them in small."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from evalsvc.tasks.text_to_image import pipeline
from evalsvc.worker.context import ShardContext

TESTS = Path(__file__).parent
BENCHMARKS = TESTS.parent


@pytest.mark.usefixtures("many_cases")
def test_every_file_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that was moved away left a benchmark unable to start for months, since none was begun by a short test."""
    for folder in ("", "miniature", "paper"):
        monkeypatch.syspath_prepend(BENCHMARKS / folder)
    # `drawn_images.py` replaces these two where it is imported, which is a worker otherwise.
    monkeypatch.setattr(pipeline, "generate_fitting", pipeline.generate_fitting)
    monkeypatch.setattr(ShardContext, "extractor", ShardContext.extractor)
    before = set(sys.modules)
    try:
        for path in sorted(set(BENCHMARKS.rglob("*.py")) - set(TESTS.rglob("*.py"))):
            spec = spec_from_file_location(f"benchmark {path.relative_to(BENCHMARKS)}", path)
            assert spec is not None
            assert spec.loader is not None
            module = sys.modules[spec.name] = module_from_spec(spec)
            spec.loader.exec_module(module)
    finally:
        for name in set(sys.modules) - before:
            if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]  # `text` or `measure` may be something else to another test
