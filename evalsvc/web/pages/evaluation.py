"""An evaluation: its progress, its results, its errors with their cure, and how its numbers were made."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from evalsvc.client import Client
from evalsvc.spec.documents.fields import OVER
from evalsvc.spec.names import checkpoint_name
from evalsvc.web.page import Content, Page

MAX_ID = 2**31 - 1


class EvaluationPage(Page):
    """The evaluation of a checkpoint by a suite."""

    template: ClassVar = "evaluation.html"

    evaluation: Annotated[int, Field(ge=1, le=MAX_ID)]

    def content(self, client: Client) -> Content:
        """Return the evaluation, its suite and the lines that repeat it.

        Raises:
            UnknownName: there is no such evaluation.
        """
        evaluation = client.evaluation(self.evaluation)
        suite = client.evaluated_suite(self.evaluation)
        name = checkpoint_name(evaluation.run, evaluation.step, evaluation.variant)
        values = {
            "evaluation": evaluation,
            "name": name,
            "suite": suite,
            "tasks_json": json.dumps(suite.tasks, indent=2, ensure_ascii=False),
            "over": evaluation.state in OVER,
            "commands": _commands(name, evaluation.suite.name, evaluation.id),
        }
        return Content(f"{name}: {evaluation.suite.name}", values, [f"/v1/evaluations/{self.evaluation}"])


def _commands(name: str, suite: str, evaluation: int) -> Sequence[tuple[str, str]]:
    """Return what the command line does with the evaluation, as (purpose, line)."""
    again = f"evalsvc evaluations again {shlex.quote(name)} --suite {shlex.quote(suite)}"
    return [
        ("evaluate again", again),
        ("how the values were measured", f"evalsvc protocol show {shlex.quote(name)}"),
        ("results per item", f"evalsvc items {evaluation}"),
    ]
