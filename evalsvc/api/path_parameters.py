"""What the parameters in the paths of routes are: a parameter means the same in every route."""

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
    "protocol_id": "The id of the protocol.",
    "upload_id": "The id of the upload.",
}
"""The description of each parameter, by name; a parameter that a route describes keeps that description."""


def add_path_parameters_to_openapi(app: FastAPI) -> None:
    """Have the application's OpenAPI document describe the parameters in paths."""
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
