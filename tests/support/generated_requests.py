"""Schemathesis as the tests use it: requests made from the OpenAPI document, and every answer checked against it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished

ACCEPTED = ["2xx", "3xx", "401", "403", "404", "409", "410", "429"]

CURSOR = "a cursor is one that a page before gave, and `from` is at most `to`"
REFUSED = ["400", "401", "403", "404", "405", "406", "409", "412", "413", "415", "422", "428", "429", "460", "5xx"]
"""How a request may be answered that is wrong by its schema; 412, 413 and 460 are of tus."""

REFUSED_BY_MEANING = {
    **{f"GET /v1/{lists}": CURSOR for lists in ("runs", "checkpoints", "evaluations", "protocols", "suites")},
    **{f"GET /v1/{of}/artifacts": CURSOR for of in ("runs/{run}", "evaluations/{evaluation_id}")},
    "POST /v1/checkpoints": "its file must be there, and what it names, or its expression, must make sense",
    "POST /v1/uploads": "its metadata has a digest, an empty file is none, and a large one has no room",
    "PATCH /v1/uploads/{sha256}": "the checksum is the digest of the body, which is no longer than the rest",
    "PUT /v1/suites/{name}": "each kind of task has parameters of its own, which the document does not have",
    "GET /v1/runs/{run}/metrics": "`points` and `limit` exclude one another, and a cursor is of a page before",
    "POST /v1/runs/{run}/metrics": "columns have one length, steps are there once, series are distinct",
    "PUT /v1/runs/{run}/retention": "a rule keeps something",
    "PUT /v1/runs/{run}/plan": "`at_most` is for one value of `when_behind`",
    "DELETE /v1/runs/{run}": "what is confirmed is the name in the address",
    "DELETE /v1/checkpoints/{checkpoint_id}": "what is confirmed is the name of the checkpoint",
    "GET /v1/headlines": "strips are for few runs",
    "GET /v1/compare": "a level lies between 0 and 1",
    "GET /v1/compare/curves": "a level lies between 0 and 1",
    "GET /v1/evaluations/{evaluation_id}/events": "an event must have been there",
}
"""Operations that refuse, by 422 or a status of tus, what their schema allows, and why no schema can say so."""

NOT_STORABLE = ("has a NUL character", "has a NUL or an unpaired surrogate")
"""Nor do schemas say that a text has none of these, which no database keeps."""

TOO_LONG = "Invalid HTTP request received."
"""What the server answers to an address of more than 64 KiB, before the application reads the request."""

schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")


@dataclass
class Found:
    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)


def generate(url: str, examples: int, weights: Path, *, seed: int = 1, headers: Any = None, **phases: bool) -> Found:
    """Ask everything of the service at `url`, `examples` times each beside what is systematic."""
    document = httpx2.get(f"{url}/openapi.json", headers=headers, trust_env=False).json()
    _make_realistic(document, weights)
    schema = schemathesis.openapi.from_dict(document, config=_config(url, examples, seed, headers, phases))
    schema.hook(map_body)
    found = Found()
    for event in from_schema(schema).execute():
        if isinstance(event, FatalError):
            raise event.exception
        if isinstance(event, NonFatalError):
            found.failures[event.label] = repr(event.value)
        if isinstance(event, ScenarioFinished):
            _count(found, event)
    return found


def map_body(_context: object, body: Any) -> Any:
    """With 25 for 25.0, which JSON schema counts among the whole numbers, and this service does not."""
    if isinstance(body, dict):
        return {key: map_body(None, value) for key, value in body.items()}
    if isinstance(body, list):
        return [map_body(None, value) for value in body]
    return int(body) if isinstance(body, float) and body.is_integer() else body


def _count(found: Found, event: ScenarioFinished) -> None:
    recorder = event.recorder
    for case_id, interaction in recorder.interactions.items():
        found.cases += 1
        response = interaction.response
        if response is not None:
            found.statuses[response.status_code] += 1
        for check in recorder.checks.get(case_id, ()):
            found.checks[check.name] += 1
            if check.failure_info is None:
                continue
            if response is not None and any(words in response.text for words in (*NOT_STORABLE, TOO_LONG)):
                continue
            case, failure = recorder.cases[case_id].value, check.failure_info.failure
            answer = "" if response is None else f"{response.status_code} {response.text[:500]}"
            key = f"{case.operation.label}: {failure.title}"
            found.failures.setdefault(key, f"{failure.message}\n{check.failure_info.code_sample}\n{answer}")


def _make_realistic(document: dict[str, Any], weights: Path) -> None:
    """Names and ids that are there: what is made up is hardly ever found, and then no answer but 404 is checked."""
    document["components"]["schemas"]["CheckpointInput"]["examples"][0]["uri"] = str(weights)
    known = {"run": "run-a", "step": 25, "name": "loss", "a": "run-a@25", "b": "run-a@25"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                name = parameter["name"]
                if parameter["in"] == "path":
                    parameter["example"] = known.get(name, 1)
                elif path == "/v1/compare" and name in known:
                    parameter["example"] = known[name]


def _config(url: str, examples: int, seed: int, headers: Any, phases: Mapping[str, bool]) -> SchemathesisConfig:
    refused = {"positive_data_acceptance": {"expected-statuses": [*ACCEPTED, "413", "422", "460"]}}
    accepted = {"positive_data_acceptance": {"expected-statuses": ACCEPTED}}
    how: dict[str, Any] = {"base-url": url, "seed": seed, "headers": dict(headers or {}), "workers": 1}
    how |= {"continue-on-failure": True, "request-timeout": 60, "tls-verify": False}
    how["checks"] = {"enabled": True, **accepted, "negative_data_rejection": {"expected-statuses": REFUSED}}
    how["generation"] = {"max-examples": examples, "deterministic": True, "database": "none", "no-shrink": True}
    how["phases"] = {name: {"enabled": enabled} for name, enabled in phases.items()}
    how["operations"] = [{"include-name": name, "checks": refused} for name in REFUSED_BY_MEANING]
    return SchemathesisConfig.from_dict(how)
