"""Suites made to cost: the parameters of every kind of task by their schemas, with values that nobody means.

    python tests/support/hostile_suites.py --count 2000

puts each into a service in this process and ends with a line of JSON: how many were answered with which status, and
every suite that was not answered as it should be. What this process may hold is limited beforehand, so that a suite
which is expanded fails instead of taking the machine down.
"""

import argparse
import functools
import json
import logging
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app_in_process import App, app_in_process

from evalsvc.spec import catalog

ANSWERS = (200, 201, 404, 413, 422)

MAX_SECONDS, MAX_GROWTH, MAX_ERROR = 1.0, 100_000_000, 6000

HEADROOM = 2_000_000_000
"""Bytes of address space beyond what this process has when it begins: threads take most of it."""

COUNTS = [-1, 0, 1, 3, 1000, 10**5, 10**6, 10**8, 2**31, 2**63 - 1, 2**63, 10**19, 10**100]
NUMBERS = [*COUNTS, -1.0, 1e-320, 0.5, 1e9, 1e308, float("nan"), float("inf"), float("-inf"), "1e400"]
LENGTHS = [0, 1, 17, 257, 1001, 5000, 12_000, 60_000, 200_000]
TEXTS = ["x", "/a", "a/", "../", "é", "\0", "\ud800", "{{ x }}", "*", "datasets:", "\n", "'", "%", "-", "&a ", "!!x "]
DEPTHS = [3, 40, 100, 900]
TASKS = [2, 64, 256, 257, 4000]
MAX_BODY = 1_200_000


def _until_full(values: Iterable[Any]) -> Iterator[Any]:
    size = 0
    for value in values:
        size += len(json.dumps(value))
        if size > MAX_BODY:
            return
        yield value


@dataclass
class Hostile:
    draw: random.Random
    definitions: Mapping[str, Any]

    def plain(self, schema: Mapping[str, Any]) -> Any:
        schema = self._resolved(schema)
        if "enum" in schema or "const" in schema:
            return self.draw.choice(schema.get("enum", [schema.get("const")]))
        if schema.get("type") == "array":
            items = schema.get("prefixItems") or [schema.get("items", {})] * self.draw.randint(1, 3)
            return [self.plain(item) for item in items]
        kinds: dict[str, Callable[[], Any]] = {
            "integer": lambda: self.draw.randint(schema.get("minimum", 1), min(schema.get("maximum", 64), 64)),
            "number": lambda: self.draw.choice([0.25, 1.0, 2.0]),
            "boolean": lambda: self.draw.random() < 0.5,
            "object": lambda: self._object(schema, only_required=self.draw.random() < 0.7),
            "null": lambda: None,
        }
        return kinds.get(schema.get("type", ""), lambda: f"datasets:name-{self.draw.randrange(10**6)}")()

    def hostile(self, schema: Mapping[str, Any]) -> Any:
        schema = self._resolved(schema)
        kinds: dict[str, Callable[[], Any]] = {
            "integer": lambda: self.draw.choice(COUNTS),
            "number": lambda: self.draw.choice(NUMBERS),
            "string": self._text,
            "array": lambda: self._list(schema),
            "object": lambda: self._object(schema, only_required=False, hostile=True),
        }
        kind = schema.get("type")
        if kind not in kinds or self.draw.random() < 0.2:
            return self.draw.choice([self._deep, self._text, lambda: self.draw.choice(NUMBERS), lambda: None])()
        return kinds[kind]()

    def task(self, schema: Mapping[str, Any], kind: str, hostile_fields: int) -> dict[str, Any]:
        task = {"kind": kind, **self._object(schema, only_required=self.draw.random() < 0.5)}
        for name in self.draw.sample(sorted(schema["properties"]), hostile_fields):
            task[name] = self.hostile(schema["properties"][name])
        return task

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        if "$ref" in schema:
            return self._resolved(self.definitions[schema["$ref"].rpartition("/")[2]])
        if "anyOf" in schema:
            return self._resolved(self.draw.choice([each for each in schema["anyOf"] if each.get("type") != "null"]))
        return schema

    def _object(self, schema: Mapping[str, Any], *, only_required: bool, hostile: bool = False) -> dict[str, Any]:
        names = schema.get("properties", {}).keys() - {"name"}
        needed = set(schema.get("required", []))
        chosen = [name for name in sorted(names) if name in needed or (not only_required and self.draw.random() < 0.3)]
        make = self.hostile if hostile else self.plain
        return {name: make(schema["properties"][name]) for name in chosen}

    def _list(self, schema: Mapping[str, Any]) -> list[Any]:
        item = (schema.get("prefixItems") or [schema.get("items", {})])[0]
        length = self.draw.choice(LENGTHS)
        if self.draw.random() < 0.5:
            return list(_until_full(self.hostile(item) for _ in range(min(length, 3000))))
        plain = self.plain(item)
        return [f"{plain}{index}" if isinstance(plain, str) else plain for index in range(length)]

    def _text(self) -> str:
        piece = self.draw.choice(TEXTS)
        return piece * (self.draw.choice(LENGTHS) // len(piece))

    def _deep(self) -> Any:
        value: Any = 1
        for _ in range(self.draw.choice(DEPTHS)):
            value = [value] if self.draw.random() < 0.5 else {"a": value}
        return value


EXPANDED = b"tasks: [{kind: completions, samples: 100000000}]"
"""A line that took 7.6 GB, since every seed became an object while the suite was checked."""


def hostile_suite(seed: int) -> tuple[bytes, str]:
    if seed == 0:
        return EXPANDED, "application/yaml"
    draw = random.Random(seed)
    kinds = catalog.names("tasks")
    kind = kinds[seed % len(kinds)]
    schema = _schema(kind)
    hostile = Hostile(draw, schema.get("$defs", {}))
    count = draw.choice([1, 1, 1, draw.choice(TASKS)])
    fields = draw.choice([1, 1, 2]) if count == 1 else draw.choice([0, 0, 1])
    task = hostile.task(schema, kind, fields)
    tasks = ({**task, "name": f"task-{index}"} if count > 1 else task for index in range(count))
    text = json.dumps({"tasks": list(_until_full(tasks)) or [task]})
    if draw.random() < 0.5:
        return text[:MAX_BODY].encode(), "application/json"
    return f"# JSON is YAML; what begins otherwise is read as such\n{text}".encode(), "application/yaml"


@functools.cache
def _schema(kind: str) -> dict[str, Any]:
    schema: dict[str, Any] = catalog.load("tasks", kind).model_json_schema()
    return schema


def put(app: App, seed: int) -> tuple[int, str]:
    body, content_type = hostile_suite(seed)
    before = _reset_peak()
    begun = time.process_time()
    response = app.http.put("/v1/suites/hostile", content=body, headers={"Content-Type": content_type})
    seconds, growth = time.process_time() - begun, _memory("VmHWM") - before
    kept, wrong = response.status_code in (200, 201), ""
    if response.status_code not in ANSWERS:
        wrong = f"answered with {response.status_code}: {response.text[:300]}"
    elif seconds > MAX_SECONDS:
        wrong = f"took {seconds:.2f} s"
    elif growth > MAX_GROWTH:
        wrong = f"took {growth / 1e6:.0f} MB"
    elif not kept and len(response.content) > MAX_ERROR:
        wrong = f"was refused with {len(response.content):,} bytes"
    elif kept and app.http.get("/v1/suites/hostile").status_code != 200:
        wrong = "was kept and cannot be read again"
    return response.status_code, wrong


def _reset_peak() -> int:
    """Make the peak of this process's memory that of now, which is given in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    options = parser.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory() as folder, app_in_process(Path(folder)) as app:
        app.http.get("/v1/suites")  # imports the tasks of those that are shipped
        for kind in catalog.names("tasks"):
            _schema(kind)
        limit = _memory("VmSize") + HEADROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        found = {seed: put(app, seed) for seed in range(options.count)}
    wrong = {seed: words for seed, (_, words) in found.items() if words}
    statuses = Counter(status for status, _ in found.values())
    print(json.dumps({"suites": len(found), "statuses": statuses, "wrong": wrong}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
