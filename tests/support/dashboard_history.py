"""A service with a small history of everything that the dashboard shows, among it texts of somebody hostile."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import queue_steps
from app_in_process import InlineCoordinator, app_on_port
from forgetting_reports import FLIP, ROW, content, flipped
from history_reference import Point, imported
from PIL import Image
from queue_steps import act, enter, enter_virtual, evaluate_whole, metric, store_result, submission, suite

from evalsvc.api.state import State
from evalsvc.config import Settings
from evalsvc.files.artifacts import KeptArtifact, keep_content
from evalsvc.messages import ShardError
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.store.history.imports import import_values
from evalsvc.store.session import Store

RUN, OTHER, LONG, VIRTUAL = "digits", "digits-2", "imported", "mean"
"""Names of the runs: two that are alike, one with a long imported history, and one that was computed from others."""

STEPS = (0, 1000, 2000, 3000, 4000)

PLACES = {"run": RUN, "evaluation": "1", "protocol": Protocol({"limit": 1}).id}
"""Values for the path of a page."""

PANEL_QUERIES: Mapping[str, str] = {
    "curve": f"run={RUN}&run={OTHER}&metric=loss/text&smooth=0.6",
    "difference": f"a={RUN}&b={OTHER}&metric=loss/text",
    "loss_map": "evaluation=1&task=loss-0",
    "contrasts": f"a={RUN}%404000&b={OTHER}%404000",
}
"""A query of each panel."""


MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)> 🐈 {{ 7 * 7 }} \"'&lt;"
"""The name of a metric that a page must show as text."""

HOSTILE = f"{MARKUP} \u202eright to left\u202c"
"""A prompt, a completion and an error that a page must show as text. Names have no control characters."""

PROMPTS = ("a red seven", HOSTILE, "a seven " * 1250, "eine größe Acht")


@dataclass(frozen=True)
class Dashboard:
    url: str
    state: State


@contextmanager
def dashboard_on_port(folder: Path, **settings: Any) -> Iterator[Dashboard]:
    with app_on_port(folder, **settings) as (url, state):
        fill(state)
        yield Dashboard(url, state)


def fill(state: State) -> None:
    store, settings = state.store, state.settings
    for seed, run in enumerate((RUN, OTHER)):
        for step in STEPS:
            _evaluate(store, settings, run, step, seed)
    enter(store, submission(4000, run=RUN, variant="ema", uri="/ema.pt", path="/ema.pt"), suite("quick"))
    evaluate_whole(store, *losses(random.Random(5), 4000))
    enter_virtual(store, VIRTUAL, f"avg({RUN}@3000, {RUN}@4000)", suite("quick"), step=4000)
    evaluate_whole(store, *losses(random.Random(6), 4000))
    # Two thousand steps of a metric: more than a chart has pixels.
    points = [Point(step, 2 + math.exp(-step / 500), 0.01, 400) for step in range(2000)]
    act(store, import_values, LONG, "tracker", [imported("lower/loss", points)], replace=False)
    # A failed evaluation, and one in the middle of its work.
    coordinator = state.coordinator
    assert isinstance(coordinator, InlineCoordinator)
    coordinator.error = ShardError("out_of_memory", f"the card has too little memory for {HOSTILE}")
    enter(store, submission(5000, run=RUN, uri="/failed.pt", path="/failed.pt"), suite("quick"))
    coordinator.work()
    coordinator.error = None
    enter(store, submission(6000, run=RUN, uri="/runs.pt", path="/runs.pt"), suite("quick"))
    store_result(store, queue_steps.dispatched(store, "plan"), queue_steps.plan(4))
    first, *_ = [queue_steps.dispatched(store, "run") for _ in range(4)]
    store_result(store, first, queue_steps.ran(sum=1))


def _evaluate(store: Store, settings: Settings, run: str, step: int, seed: int) -> None:
    path = f"/checkpoints/{run}/epoch_{step}.pt"
    tokens = step * 2048 + 1
    posted = submission(step, run=run, uri=path, path=path, tokens_seen=tokens, tags={"seed": str(seed), "lr": "1e-4"})
    own = random.Random(f"{run} {step}")
    warnings = [{"code": "inputs_cut", "metric": "loss/text", "message": f"12 of 2,376 inputs were cut: {HOSTILE}"}]
    enter(store, posted, suite("quick"))
    notes = warnings if step == STEPS[-1] else []
    evaluate_whole(store, *losses(own, step), warnings=notes, artifacts=[loss_profile(settings, step)])
    enter(store, posted, suite("text", kind="language"))
    rows = answers(seed, step)
    evaluate_whole(store, *accuracies(rows), items=rows)
    enter(store, posted, suite("images", kind="text_to_image"))
    evaluate_whole(store, fid(own, step), artifacts=pictures(settings, run, step))
    enter(store, posted, suite("words", kind="completions"))
    evaluate_whole(store, metric(0.1, "completions/seq_rep_4", unit="fraction"), items=completions(run, step))
    enter(store, posted, suite("memory", kind="forgetting"))
    evaluate_whole(store, metric(0.9, "retained/acc", unit="fraction"), artifacts=forgetting(settings))


def losses(own: random.Random, step: int) -> list[MetricValue]:
    fall = math.exp(-step / 3000)
    return [
        metric(3 + 4 * fall + own.gauss(0, 0.02), baseline=11.1, stderr=0.02),
        metric(5 + 2 * fall + own.gauss(0, 0.02), "loss/image", stderr=0.02),
        metric(math.nan if step == 2000 else 1 + fall, "loss/special", stderr=None),
        metric(fall, f"loss/{MARKUP}", stderr=None),
    ]


def answers(seed: int, step: int, n: int = 40) -> list[dict[str, Any]]:
    """Return answers to questions that are as hard for every run."""
    own = random.Random(seed)
    ease = [random.Random(index).random() + 0.2 * own.random() for index in range(n)]
    return [{"benchmark": "arc", "index": i, "acc": float(ease[i] < 0.3 + step / 8000)} for i in range(n)]


def accuracies(rows: Sequence[Mapping[str, Any]]) -> list[MetricValue]:
    n, share = len(rows), sum(row["acc"] for row in rows) / len(rows)
    fields: dict[str, Any] = {"unit": "fraction", "direction": "higher", "baseline": 0.25, "items": ("acc",), "n": n}
    return [metric(share, "arc/acc", stderr=math.sqrt(share * (1 - share) / (n - 1)), **fields)]


def fid(own: random.Random, step: int) -> MetricValue:
    protocol = Protocol({"sampling": {"seed": 0, "temperature": 1.0}, "limit": 2})
    return metric(80 - step / 100 + own.random(), "text_to_image/fid64", unit="distance", stderr=1.5, protocol=protocol)


def pictures(settings: Settings, run: str, step: int) -> list[KeptArtifact]:
    sampling = {"seed": 0, "temperature": 1.0, "guidance_scale": 3.0}
    content = png((step // 20 % 256, 90, 200 if run == RUN else 20))
    samples = [
        kept(settings, "sample", f"{i:05d}.png", "image/png", content, {"id": str(i), "prompt": prompt, **sampling})
        for i, prompt in enumerate(PROMPTS)
    ]
    details = {"images": len(PROMPTS), "columns": 4, "prompts": list(PROMPTS), **sampling}
    return [kept(settings, "grid", "grid.png", "image/png", content, details), *samples]


def loss_profile(settings: Settings, step: int, rows: int = 6, columns: int = 8) -> KeptArtifact:
    places = range(1, rows * columns)
    loss = [5 - place / 20 + math.exp(-step / 3000) for place in places]
    content = {"version": 2, "grid": [rows, columns], "image_cell": {"start": [*places], "loss": loss}}
    details = {"groups": ["image_cell"], "grid": [rows, columns]}
    data = json.dumps(content).encode()
    return kept(settings, "loss_profile", "loss_profile.json", "application/json", data, details)


def png(colour: tuple[int, int, int], size: int = 16) -> bytes:
    stream = BytesIO()
    Image.new("RGB", (size, size), colour).save(stream, "PNG")
    return stream.getvalue()


def completions(run: str, step: int) -> list[dict[str, Any]]:
    words = f"a {run} of step {step} says hello to the world".split()
    same = {"way": "greedy", "drawn": 32, "base": "a base says hello"}
    texts = [" ".join([*words[: 3 + index], HOSTILE]) for index, _ in enumerate(PROMPTS)]
    return [
        {"index": index, "prompt": prompt, "text": texts[index], "ids": [step, index, 7], "image_ids": index, **same}
        for index, prompt in enumerate(PROMPTS)
    ]


def forgetting(settings: Settings) -> list[KeptArtifact]:
    rows = [
        {**ROW, "retained": 0.6, "retained_low": 0.4, "retained_high": 0.8},
        {**ROW, "scope": "text", "checkpoint": 0.49, "change": -0.01, "verdict": "indistinguishable"},
        {**ROW, "what": "text", "metric": "loss", "unit": "nats/token", "change": -0.65, "verdict": "gained"},
    ]
    details = {"base": f"{RUN}@0", "checkpoint": f"{RUN}@1000"}
    report = content(*rows, **details, flipped=[flipped({**FLIP, "question": HOSTILE})])
    return [kept(settings, "forgetting", "forgetting.json", "application/json", report, details)]


def kept(settings: Settings, kind: str, name: str, media_type: str, content: bytes, details: Any) -> KeptArtifact:
    sha256 = keep_content(settings.artifacts_path, content)
    return KeptArtifact(kind, name, media_type, details, sha256, len(content))
