"""Where a result comes from: a file, or the service, which must be read as the same thing."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_in_process import App, app_in_process
from compared_runs import put
from gate_documents import document, value

from evalsvc.client import Client
from evalsvc.compare import source
from evalsvc.compare.comparison import compare_results
from evalsvc.compare.source import Service, read_result
from evalsvc.errors import InvalidData, UnknownName


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in_process(tmp_path / "data") as app:
        yield app


@pytest.fixture
def service(app: App) -> Iterator[Service]:
    with Client("http://evalsvc", transport=app.transport) as client:
        yield Service(client)


def test_a_file_and_a_checkpoint_of_the_service(app: App, service: Service, tmp_path: Path) -> None:
    """What one machine measured in CI is held against what the service knows, paired as two of the same kind are."""
    file = tmp_path / "result.json"
    file.write_text(json.dumps(put(app.store, "run-a", 0, 1, 0.7)))
    put(app.store, "run-b", 25, 2, 0.4)
    ours, stored, other = (read_result(name, service) for name in (str(file), "run-a@0", "run-b@25"))
    (first, second) = (compare_results(side, other).contrasts for side in (ours, stored))
    assert first == second
    assert {one.basis for one in first} == {"paired"}
    assert {one.verdict for one in compare_results(ours, stored).contrasts} == {"indistinguishable"}


def test_what_is_not_there(app: App, service: Service) -> None:
    with pytest.raises(UnknownName, match=r"there is no file nowhere\.json; write one with `evalsvc run SUITE"):
        read_result("nowhere.json", service)
    with pytest.raises(UnknownName, match="no run is named 'run-a'; there is no run yet"):
        read_result("run-a@0", service)
    put(app.store, "run-a", 0, 1, 0.7)
    with pytest.raises(UnknownName, match="no variant of run 'run-a' at step 0 is named 'ema'; available: raw"):
        read_result("run-a@0:ema", service)
    with pytest.raises(UnknownName, match=r"no suite .* is named 'test-1'; did you mean 'text-1'"):
        read_result("run-a@0", Service(service.client, "test-1"))


METRIC = value("a/b", 1.0).to_json()

WRONG_FIELDS: list[dict[str, Any]] = [
    *({"name": 3}, {"value": None}, {"stderr": "small"}, {"n": None}, {"n": "many"}, {"direction": "sideways"}),
    *({key: "a\n::error::b"} for key in ("name", "unit", "task", "protocol", "grouped_by")),
    *({"items": ["a\nb"]}, {"name": "\u202e"}),
    *({"protocol": [1]}, {"unit": None}, {"items": "x"}, {"items": [1]}, {"items": ["x", "y", "z"]}, {"task": [1]}),
    *({"n": -1}, {"n": 10**400}, {"n": True}, {"n": 3.0}, {"groups": 10**400}, {"drawn_from": 10**400}),
    *({"value": 10**400}, {"stderr": 10**400}, {"stderr": 1e308}, {"value": "1e3"}, {"value": True}, {"name": None}),
    *(
        {"low": low, "high": high}
        for low, high in ((2, 1), (10**400, None), (-math.inf, 1), (0.8, None), (math.nan, 1))
    ),
]


def nested(depth: int) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for _ in range(depth):
        content = {"x": content}
    return content


WRONG_PARTS: list[dict[str, Any]] = [
    *({"metrics": 3}, {"metrics": [{"name": "a/b"}]}, *({"metrics": [METRIC | wrong]} for wrong in WRONG_FIELDS)),
    *(
        {"protocols": [1]},
        {"protocols": {"x": 1}},
        {"protocols": {"x": nested(300)}},
        {"errors": [1]},
        {"errors": {"a": {}}},
    ),
    *({"errors": {"a\nb": {"code": "a", "message": "b"}}}, {"protocols": {"a\nb": {}}}, {"items": {"a\nb": []}}),
    *({"items": [1]}, {"items": {"a": [1]}}, {"items": {"a": [{"index": [0]}]}}),
]


def test_what_is_not_a_result(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "wrong.json"
    for text in ("", "{", "[" * 9999):
        path.write_text(text)
        with pytest.raises(InvalidData, match=r"wrong\.json is not JSON"):
            read_result(str(path), service)
    for content in ([1], *(document(value("a/b", 1.0)) | wrong for wrong in WRONG_PARTS)):
        path.write_text(json.dumps(content))
        with pytest.raises(InvalidData, match=r"wrong\.json is no result of `evalsvc run") as error:
            read_result(str(path), service)
        assert "\n" not in error.value.message
    monkeypatch.setattr(source, "MAX_BYTES", 64)
    with pytest.raises(InvalidData, match=r"wrong\.json has more than 64 bytes"):
        read_result(str(path), service)
    with pytest.raises(InvalidData, match="cannot be read: is a directory"):
        read_result(str(tmp_path), service)


def test_the_error_of_a_task_is_one_line(service: Service, tmp_path: Path) -> None:
    """A line of a stranger's file that begins with `::` is a command to the runner of a workflow."""
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document(errors={"a": "x\n::error::y\x1b[2J"})))
    error = read_result(str(path), service).error("a")
    assert error is not None
    assert error.message == r"x\x0a::error::y\x1b[2J"
