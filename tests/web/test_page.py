"""Pages: which there are, and that no template is forgiving."""

import re
from pathlib import Path

import pytest
from app_in_process import app_in_process
from jinja2 import UndefinedError
from markupsafe import escape
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.files.artifacts import KeptArtifact, keep_content
from evalsvc.installation import pip_install
from evalsvc.web.page import HERE, PAGES, Content, Surroundings, html_of, page_class

AROUND = Surroundings(vega=None, url="http://host")


@pytest.mark.parametrize("pattern", PAGES)
def test_every_page_has_its_parameters_and_its_template(pattern: str) -> None:
    page = page_class(pattern)
    assert set(re.findall(r"{(\w+)}", pattern)) <= set(page.model_fields)
    assert (HERE / "templates" / page.template).is_file()


def test_what_a_page_shows_is_text() -> None:
    hostile = "<script>alert(1)</script>\"'"
    shown = html_of("problem.html", Content(hostile, {"detail": hostile}), AROUND)
    assert "<script>alert" not in shown
    assert shown.count("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;") == 3, "the title, the heading and the detail"


def test_a_variable_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'detail' is undefined"):
        html_of("problem.html", Content("a problem", {}), AROUND)


def test_without_the_package_of_charts_a_page_says_how_to_install_it() -> None:
    content = Content("a problem", {"detail": ""})
    assert str(escape(pip_install("dashboard"))) in html_of("problem.html", content, AROUND)
    assert "[dashboard]" not in html_of("problem.html", content, Surroundings("/vega/vega-1.js", "http://host"))


def test_a_copy_has_no_modules_and_no_addresses_of_the_service() -> None:
    content = Content("a problem", {"detail": ""})
    shown = html_of("problem.html", content, Surroundings(None, "http://host", link=lambda address: None, is_copy=True))
    assert 'href="/' not in shown
    assert 'type="module"' not in shown
    assert "/status" not in shown


def test_a_page_of_a_run_without_its_content_says_so(tmp_path: Path) -> None:
    """A run that had artifacts of another kind alone, or was held against a run without completions, got 404."""
    with app_in_process(tmp_path / "data") as app:
        content = keep_content(app.settings.artifacts_path, b"pixels")
        for run, artifacts in (
            ("maps", [KeptArtifact("loss_profile", "a.png", "image/png", {}, content, 6)]),
            ("none", []),
        ):
            enter(app.store, submission(10, run=run, uri=f"/{run}.pt", path=f"/{run}.pt"), suite(run))
            evaluate_whole(app.store, metric(1.0), artifacts=artifacts)
        pages = [pattern.format(run=run) for pattern in PAGES if "{run}" in pattern for run in ("maps", "none")]
        pages += ["/runs/none/text?against=maps", "/runs/none/images?with=maps", "/runs/maps?with=none"]
        assert {page: app.http.get(page).status_code for page in pages} == dict.fromkeys(pages, 200)
        assert "This run has no images." in app.http.get("/runs/maps/images").text
        assert "This run has no completions." in app.http.get("/runs/maps/text").text
