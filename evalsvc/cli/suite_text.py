"""Tasks of a suite, printed as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from evalsvc.cli.terminal import say


def print_suite_tasks(tasks: Sequence[Mapping[str, object]]) -> None:
    """Print the tasks of a suite with all their parameters."""
    for task in tasks:
        say(f"task {task.get('name')}, kind {task.get('kind')}:")
        for key, value in task.items():
            if key not in ("name", "kind"):
                say(f"  {key}: {json.dumps(value, ensure_ascii=False)}")
