import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from evalsvc.models import DecodeStep


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Every test of this folder runs on one thread."""


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[Any]]]:
    """Every step that is made, its cache, and the keys in the latter. Reference cycles stay."""
    references: list[weakref.ref[Any]] = []

    class WatchedStep(DecodeStep):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            cache: Any = self.cache
            references.extend(weakref.ref(part) for part in (self, cache, cache.keys))

    monkeypatch.setattr("evalsvc.models.transformer.DecodeStep", WatchedStep)
    gc.collect()
    gc.disable()
    yield references
    gc.enable()
