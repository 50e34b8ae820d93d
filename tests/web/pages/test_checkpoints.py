"""The page of a run's checkpoints: the way to its evaluations."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from dashboard_history import RUN, Dashboard

from evalsvc.client import Client
from evalsvc.web.pages import checkpoints
from evalsvc.web.pages.checkpoints import CheckpointsPage


@pytest.mark.usefixtures("many_cases")
def test_every_evaluation_of_a_run_is_linked(dashboard: Dashboard) -> None:
    with Client(dashboard.url) as client:
        run = client.run(RUN)
    page = httpx.get(f"{dashboard.url}/runs/{RUN}/checkpoints").text
    wanted = {evaluation.id for checkpoint in run.checkpoints for evaluation in checkpoint.evaluations}
    assert {int(number) for number in re.findall(r'href="/evaluations/(\d+)"', page)} == wanted
    assert "failed</span>" in page


def test_the_newest_are_first_and_pages_have_the_others(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "ROWS", 2)
    with Client(dashboard.url) as client:
        pages: list[Any] = [CheckpointsPage(run=RUN, page=number).content(client).values for number in (1, 2, 99)]
        steps = [checkpoint.step for checkpoint in client.run(RUN).checkpoints]
    assert [row.step for row in pages[0]["rows"]] == steps[::-1][:2]
    assert [row.step for row in pages[1]["rows"]] == steps[::-1][2:4]
    assert (pages[0]["pages"], pages[2]["rows"]) == (-(-len(steps) // 2), [])
