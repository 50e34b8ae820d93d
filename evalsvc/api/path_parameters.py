"""Descriptions of the parameters in paths, which mean the same in every route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

DESCRIPTIONS: Mapping[str, str] = {
    "run": "The name of the run.",
    "step": "The training step of the checkpoint.",
    "name": "The name of the suite.",
    "checkpoint_id": "The id of the checkpoint.",
    "evaluation_id": "The id of the evaluation.",
    "artifact_id": "The id of the artifact.",
    "sha256": "The SHA-256 of the file in hexadecimal digits.",
    "protocol_id": "The id of the protocol.",
}
"""The description of each parameter by name. A description in a route takes precedence."""


def add_path_parameters_to_openapi(app: FastAPI) -> None:
    """Add descriptions of the parameters in paths to the application's OpenAPI document."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        is_new = app.openapi_schema is None
        content = plain()
        if is_new:
            _describe(content)
        return content

    app.openapi = openapi  # type: ignore[method-assign]


def _describe(content: dict[str, Any]) -> None:
    operations = [operation for item in content["paths"].values() for operation in item.values()]
    for parameter in (parameter for operation in operations for parameter in operation.get("parameters", ())):
        if parameter["in"] == "path" and parameter["name"] in DESCRIPTIONS:
            parameter.setdefault("description", DESCRIPTIONS[parameter["name"]])
