"""The image wall as HTML: what is in view, in which order, and what it does with files that are no images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import unescape
from typing import Any

import dashboard_history
import pytest
from app_in_process import App, app_in_process
from dashboard_history import MARKUP, png
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.files.artifacts import KeptArtifact, artifact_path
from evalsvc.web.pages.images import reduced

PROMPTS = ["a one", MARKUP, "a three " * 1250, "\u202eruof a\u202c 🐈 =1+1"]

HTML = b"<script>alert(1)</script>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def kept(app: App, kind: str, name: str, content: bytes, of: str = "image/png", **details: Any) -> KeptArtifact:
    return dashboard_history.kept(app.settings, kind, name, of, content, details)


def store(app: App, step: int, samples: Sequence[KeptArtifact], run: str = "run-a") -> None:
    path = f"/{run}/epoch_{step}.pt"
    enter(app.store, submission(step, run=run, uri=path, path=path), suite("images", kind="text_to_image"))
    grid = kept(app, "grid", "grid.png", png((step % 256, 0, 0)), prompts=PROMPTS, seed=0, temperature=1.0)
    evaluate_whole(app.store, metric(1.0, "text_to_image/fid64", unit="distance"), artifacts=[grid, *samples])


def samples(app: App, brightness: Sequence[int]) -> list[KeptArtifact]:
    return [
        kept(app, "sample", f"{i:05d}.png", png((grey,) * 3), prompt=PROMPTS[i], seed=0)
        for i, grey in enumerate(brightness)
    ]


@pytest.fixture(scope="module")
def app(many_cases: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with app_in_process(tmp_path_factory.mktemp("images") / "data") as app:
        store(app, 100, samples(app, [0, 0, 0, 0]))
        store(app, 200, samples(app, [51, 255, 0, 102]))
        store(app, 100, samples(app, [9, 9, 9, 9]), run="run-b")
        enter(app.store, submission(300, run="run-a", uri="/late.pt", path="/late.pt"), suite("quick"))
        evaluate_whole(app.store, metric(1.0))
        yield app


def page(app: App, query: str = "", run: str = "run-a") -> str:
    answer = app.http.get(f"/runs/{run}/images{query}")
    assert answer.status_code == 200, answer.text
    return answer.text


def prompts(text: str) -> list[str]:
    return [unescape(prompt) for prompt in re.findall(r'<tr data-prompt="([^"]*)"', text)]


def test_the_rows_that_changed_most_come_first(app: App) -> None:
    assert prompts(page(app)) == PROMPTS
    images = re.findall(r"<img[^>]*>", page(app))
    assert images
    assert all('loading="lazy"' in image and "width=" in image and "height=" in image for image in images)
    text = page(app, "?order=changed")
    assert prompts(text) == [PROMPTS[1], PROMPTS[3], PROMPTS[0], PROMPTS[2]]
    assert re.findall(r"([\d.]+) % changed", text) == ["100.0", "40.0", "20.0", "0.0"]
    assert 'name="between"' in text
    assert 'name="between"' not in page(app), "two steps have no meaning in the order of the prompts"
    assert prompts(page(app, "?order=changed&between=2&between=2")) == PROMPTS, "nothing to compare"


def test_the_order_stays_when_the_slider_moves(app: App) -> None:
    """A step chosen by the slider had the order of the prompts, under a control that said otherwise."""
    text = page(app, "?order=changed&at=200")
    assert prompts(text) == [PROMPTS[1], PROMPTS[3], PROMPTS[0], PROMPTS[2]]
    assert re.findall(r"([\d.]+) % changed", text) == ["100.0", "40.0", "20.0", "0.0"]
    assert text.count("<img") == 5, "one of each prompt, and the grid"
    assert text.count('data-step="100"') == 4, "to lay them over each other"
    assert "<title>run-a: images · evalsvc</title>" in text


def test_steps_without_a_column_and_runs_without_a_step_are_named(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Run-b has no images" not in page(app)
    assert "run-b has no images at step 200." in page(app, "?with=run-b")
    monkeypatch.setattr("evalsvc.web.pages.images.COLUMNS", 1)
    assert "Steps whose images are not shown: 100." in page(app)


def test_a_step_without_images_shows_none_and_one_step_of_several_runs_is_kept_by_links(app: App) -> None:
    """A slider that goes on with the image of another step has people read what is not there."""
    text = page(app, "?at=300")
    assert "run-a has no images at step 300." in text
    assert "<img" not in text
    assert 'data-steps=" 100 200 300" data-shown="100 200"' in text
    for step in (100, 200):
        text = page(app, f"?at={step}&with=run-b&find=one")
        heads = re.findall(r'<th scope="col">(?!prompt)([^/]*)</th>', text)
        assert heads == [f"run-a<br>step {step}", f"run-b<br>step {step}"]
    assert "run-b has no images at step 200." in text
    links = [unescape(link) for link in re.findall(r'href="([?][^"]*)"', text)]
    assert links, "of the page, which keep its state"
    for link in links:
        assert "with=run-b" in link
        assert "find=one" in link
        page(app, link)


WRONG = {
    "HTML": (HTML, "text/html"),
    "SVG": (SVG, "image/svg+xml"),
    "no type": (png((1, 2, 3)), "<b>"),
    "HTML as PNG": (HTML, "image/png"),
    "SVG as PNG": (SVG, "image/png"),
    "half a PNG": (png((1, 2, 3), 64)[:60], "image/png"),
    "nothing": (b"", "image/png"),
    "a bomb": (png((0, 0, 0), 1)[:16] + b"\x00\x00\xff\xff\x00\x00\xff\xff" + png((0, 0, 0), 1)[24:], "image/png"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_no_image(app: App, name: str) -> None:
    """Opened directly, a script in it has no origin; in the wall it is a picture that is broken, or words."""
    content, of = WRONG[name]
    run = f"wrong-{list(WRONG).index(name)}"
    for step, first in enumerate((content, png((7, 7, 7)))):
        media_type = of if step == 0 else "image/png"
        store(app, step, [kept(app, "sample", "00000.png", first, media_type, prompt="a one", seed=HTML.decode())], run)
    text = page(app, "?order=changed", run)
    assert "<script>alert" not in text
    assert "not compared" in text or name == "no type"
    assert ("no image: " in text) == (of != "image/png")
    addresses = set(re.findall(r'(?:src|href)="(/v1/artifacts/\d+)"', text))
    for address in addresses:
        headers = app.http.get(address).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].endswith("; sandbox")
        assert "script-src" not in headers["content-security-policy"]
    assert addresses
    assert reduced(png((10, 20, 30), 4)) == bytes((10, 20, 30)) * 1024
    assert reduced(WRONG["a bomb"][0]) is None


def test_a_lost_image_leaves_the_rest_of_the_page_and_odd_details_are_text(app: App) -> None:
    odd = {"prompt": ["a"], "x" * 5000: "y" * 5000, "nested": {"a": [HTML.decode()]}, "nothing": None}
    odd |= {f"field {i}": i for i in range(1000)}
    lost = kept(app, "sample", "00000.png", png((77, 1, 1)), prompt="a one")
    store(app, 1, [lost, kept(app, "sample", "00001.png", png((5, 5, 5)), **odd)], "lost")
    store(app, 2, samples(app, [3]), "lost")
    artifact_path(app.settings.artifacts_path, lost.sha256).unlink()
    text = page(app, "?order=changed", "lost")
    assert "not compared" in text
    assert not any(words in text for words in ("<script>alert", "y" * 400, "field 900"))


@pytest.mark.parametrize("query", ["?at=-1", "?at=a", "?order=x", "?between=0", "?between=9", "?step=1e9", "?page=0"])
def test_addresses_that_no_page_has(app: App, query: str) -> None:
    assert app.http.get(f"/runs/run-a/images{query}").status_code == 422
