"""Pages: which there are; and their scripts and templates: typed, small, within the policy, and unforgiving."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from app_in_process import app_in_process
from dashboard_history import kept
from jinja2 import UndefinedError
from markupsafe import escape
from programs import find_program, output_of
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.api.routes.pages import POLICY
from evalsvc.installation import pip_install
from evalsvc.spec.documents.fields import Number
from evalsvc.spec.documents.history import BestPoint, HeadlineSeries
from evalsvc.web import formats
from evalsvc.web.page import _TABLE, HERE, PAGES, STATIC, Content, Surroundings, _labelled, html_of, page_class
from evalsvc.web.site import MODULES, classic_script

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
    with pytest.raises(UndefinedError, match="'detail' is undefined"):
        html_of("problem.html", Content("a problem", {}), AROUND)


def test_without_the_package_of_charts_a_page_says_how_to_install_it() -> None:
    content = Content("a problem", {"detail": ""})
    assert str(escape(pip_install("dashboard"))) in html_of("problem.html", content, AROUND)
    assert "[dashboard]" not in html_of("problem.html", content, Surroundings("/vega/vega-1.js", "http://host"))
    copy = html_of("problem.html", content, Surroundings(None, "http://host", link=lambda address: None, is_copy=True))
    for words in ('href="/', 'type="module"', "/status"):
        assert words not in copy, "a copy has no modules and no addresses of the service"


def test_a_page_of_a_run_without_its_content_says_so(tmp_path: Path) -> None:
    """A run that had artifacts of another kind alone, or was held against a run without completions, got 404."""
    with app_in_process(tmp_path / "data") as app:
        pixels = kept(app.settings, "loss_profile", "a.png", "image/png", b"pixels", {})
        for run, artifacts in (("maps", [pixels]), ("none", [])):
            enter(app.store, submission(10, run=run, uri=f"/{run}.pt", path=f"/{run}.pt"), suite(run))
            evaluate_whole(app.store, metric(1.0), artifacts=artifacts)
        pages = [pattern.format(run=run) for pattern in PAGES if "{run}" in pattern for run in ("maps", "none")]
        pages += ["/runs/none/text?against=maps", "/runs/none/images?with=maps", "/runs/maps?with=none"]
        assert {page: app.http.get(page).status_code for page in pages} == dict.fromkeys(pages, 200)
        assert "This run has no images." in app.http.get("/runs/maps/images").text
        assert "This run has no completions." in app.http.get("/runs/maps/text").text


LINES = 1500
"""Most lines of JavaScript of our own. More of it would want a framework, and a bundler, and their updates."""

SCRIPTS = sorted(STATIC.glob("*.js"))
TEMPLATES = sorted((HERE / "templates").glob("*.html"))

STRICT = ("--noEmit", "--allowJs", "--checkJs", "--strict", "--noUncheckedIndexedAccess", "--noUnusedLocals")
MODERN = ("--target", "es2022", "--module", "es2022", "--lib", "es2022,dom,dom.iterable")

FORBIDDEN = {
    "writes markup": r"\.(inner|outer)HTML\s*[+]?=(?!=)|insertAdjacentHTML|document\.write|createContextualFragment",
    "computes code": r"\beval\s*\(|new Function|\bFunction\s*\(|set(Timeout|Interval)\s*\(\s*[\"'`]|import\s*\(",
    "writes an attribute that is code": r"setAttribute\(\s*[\"'`](on|style|srcdoc)|\.srcdoc\b|javascript:",
    "asks another address": r"https?://(?!www\.w3\.org/)",
    "has a type that the compiler does not read": r"/?\*\*?[ \t]+[^@*\s][^@*\n]*\s@(?:type|param|returns)\b",
    "keeps something in the browser": r"document\.cookie|localStorage|sessionStorage|indexedDB",
}

IN_TEMPLATES = {
    "has a script of its own": r"<script(?![^>]*\ssrc=)[^>]*>",
    "has a style of its own": r"<style|\sstyle\s*=",
    "handles an event": r"<[^>]*\son\w+\s*=",
    "asks another address": r"(?:src|href|action)\s*=\s*[\"'](?:https?:)?//|javascript:|data:text",
    "escapes nothing": r"autoescape\s+false|\|\s*tojson(?!\s*\|\s*forceescape)",
    "has an attribute without quotes": r"<[a-z][^<>]*\s[a-z-]+={{",
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_does_nothing_that_lets_a_text_become_code(script: Path) -> None:
    text = script.read_text()
    assert [what for what, pattern in FORBIDDEN.items() if re.search(pattern, text)] == []
    assert sum(len(script.read_text().splitlines()) for script in SCRIPTS) < LINES


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        *((FORBIDDEN, text) for text in ("element.innerHTML = text", "element.outerHTML += text", "eval(text)")),
        *((FORBIDDEN, text) for text in ("element.insertAdjacentHTML('beforeend', text)", "new Function(text)")),
        *((FORBIDDEN, text) for text in ("setTimeout('go()', 5)", "element.setAttribute('onclick', text)")),
        *((FORBIDDEN, text) for text in ("fetch('https://host.example/x')", "document.cookie = text")),
        (FORBIDDEN, "/** The chosen. @type {string[]} */"),
        *((IN_TEMPLATES, text) for text in ("<script>go()</script>", '<p style="color: red">')),
        *((IN_TEMPLATES, text) for text in ('<button\nonclick="go()">', '<img src="//host.example/x.png">')),
        *((IN_TEMPLATES, text) for text in ("{{ details | tojson }}", "<a href={{ address }}>")),
    ],
)
def test_a_rule_finds(rules: dict[str, str], text: str) -> None:
    assert len([what for what, pattern in rules.items() if re.search(pattern, text, re.DOTALL)]) == 1


def test_the_static_copy_has_every_script_after_those_that_it_imports_and_no_name_twice() -> None:
    """One that is left out is missed only when a button does nothing; of two functions with one name, one is gone."""
    assert sorted(MODULES) == [script.stem for script in SCRIPTS]
    for place, name in enumerate(MODULES):
        imported = re.findall(r'from "\./([a-z_]+)\.js"', (STATIC / f"{name}.js").read_text())
        assert set(imported) <= set(MODULES[:place])
    script = classic_script()
    assert re.findall(r"^(?:import|export)\b.*", script, re.MULTILINE) == []
    names = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", script, re.MULTILINE)
    assert len(names) > 40
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_a_template_has_nothing_that_the_policy_forbids(template: Path) -> None:
    """A value of a submitter that is `safe` is a script in the browser of everybody who looks: only literals are."""
    text = template.read_text()
    assert [what for what, pattern in IN_TEMPLATES.items() if re.search(pattern, text, re.DOTALL)] == []
    literals = re.findall(r"""(?:'[^'{}]*'|"[^"{}]*")\s*\|\s*safe\b""", text)
    assert len(literals) == len(re.findall(r"\|\s*safe\b", text))
    wrong = r"\bMarkup\b|autoescape\s*=\s*False|HTMLResponse"
    assert [path.name for path in HERE.rglob("*.py") if re.search(wrong, path.read_text())] == []


def test_the_policy_has_no_exception() -> None:
    directives = dict(directive.split(" ", 1) for directive in POLICY.split("; "))
    assert directives.pop("default-src") == "'none'"
    assert set(directives.values()) == {"'self'", "'none'"}
    assert {"base-uri", "form-action", "frame-ancestors"} <= set(directives), "these do not follow default-src"


def test_types_of_scripts_fit(child_process: None) -> None:
    """TypeScript's compiler reads the types in the comments of JavaScript."""
    output_of(find_program("tsc", "Debian's package node-typescript"), *STRICT, *MODERN, *SCRIPTS)


# Numbers, times and names


@pytest.mark.parametrize(
    ("shown", "texts"),
    [
        (
            formats.number,
            {
                None: "–",
                1234567: "1,234,567",
                0.123456: "0.12346",
                -1e-12: "−1 × 10⁻¹²",
                1.7e-126: "1.7 × 10⁻¹²⁶",
                math.nan: "nan",
            },
        ),
        (formats.number, {math.inf: "inf", True: "True", "NaN": "NaN", "<b>": "<b>"}),
        (formats.error, {0.01234: "± 0.012", 138.0: "± 140", 0.02: "± 0.020", 1e-9: "± 1 × 10⁻⁹", None: "", "NaN": ""}),
        (formats.signed, {1.0: "+1", -0.12345: "−0.123", None: "–"}),
        (formats.sentence, {"no worker": "No worker.", "digits has no step 3": "digits has no step 3.", "": ""}),
        (formats.sentence, {"post it: evalsvc submit RUN": "Post it: evalsvc submit RUN", "a/b: cut": "a/b: cut."}),
        (formats.bytes_, {0: "0 B", 999: "999 B", 1000: "1 kB", 1_536_000: "1.54 MB", 5 * 10**15: "5e+03 TB"}),
        (formats.duration, {0.2: "0 s", 89: "89 s", 91: "2 min", 5500: "2 h", 86_400 * 3: "3 days"}),
        (formats.segment, {"a/b": "a%2Fb", "..": "..", "ü ?#": "%C3%BC%20%3F%23"}),
    ],
)
def test_numbers_errors_sizes_durations_and_segments_of_a_path(
    shown: Callable[[Any], str], texts: dict[Any, str]
) -> None:
    assert {value: shown(value) for value in texts} == texts


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (13.66784, 0.095, "13.668"),
        (7193.2, 138.0, "7,190"),
        (0.5, 0.1, "0.50"),
        (-1e-7, 0.1, "0.00"),
        (0.26333, 0.0, "0.26333"),
    ],
)
def test_a_value_has_the_digits_that_its_error_leaves(value: float, stderr: float, text: str) -> None:
    assert formats.number(value, stderr) == text


def test_each_cell_has_the_name_of_its_column() -> None:
    """On a narrow screen a row is a card: a number without the name of its column says nothing."""
    shown = (
        '<table><thead><tr><th scope="col">field</th><th scope="col" class="n"><a>value</a> <small>B</small></th></tr>'
        '</thead><tbody><tr><th scope="row">a</th><td>1</td></tr></tbody></table>'
    )
    labelled = re.sub(_TABLE, _labelled, shown)
    assert '<td data-label="value" data-n>1' in labelled
    assert 'data-label="field' not in labelled, "the heading of the card"
    told = html_of("find.html", Content("x", {"query": {"q": ""}, "hits": [], "most": 1}), AROUND)
    assert "data-label" not in told


def sparkline(steps: list[int], values: list[Number], best: int | None = None) -> tuple[list[Any], Any] | None:
    """The points of the line, and the place of its dot."""
    points = {
        step: BestPoint(step=step, value=value, stderr=None, n=None, groups=None, import_=None)
        for step, value in zip(steps, values, strict=True)
    }
    head: dict[str, Any] = {"metric": "x", "variant": "raw", "protocol": "", "unit": "", "direction": "lower"}
    head |= {"baseline": None, "differs": {}, "base": None, "base_name": None, "x": steps, "values": values}
    series = HeadlineSeries(**head, latest=points[steps[-1]], best=None if best is None else points[best])
    found = formats.sparkline(series, width=92, height=22)
    return found and ([tuple(map(float, pair.split(","))) for pair in found[0].split()], found[1])


def test_a_sparkline_goes_through_the_finite_values_at_their_steps() -> None:
    """Placed by index, values of rare late steps took as much room as those of many early ones."""
    assert sparkline([0, 10, 20, 30], [1.0, "NaN", 3.0, 2.0]) == ([(1, 21), (61, 1), (91, 11)], None)
    assert sparkline([0, 10, 30], [3.0, 1.0, 2.0], best=10)[1] == ("31.0", "21.0"), "a dot marks the best"
    values: list[list[Number]] = [[1.0], ["NaN", "NaN"], ["NaN", 1.0]]
    assert [sparkline([*range(len(each))], each) for each in values] == [None] * 3
    assert {y for _, y in sparkline([0, 10, 20], [2.0, 2.0, 2.0])[0]} == {21.0}


def test_steps_of_several_decades_are_placed_by_their_logarithm() -> None:
    steps = [0, 10, 20, 80, 300, 3000]
    across = [x for x, _ in sparkline(steps, [9.4, 7.0, 5.0, 4.0, 3.3, 3.2])[0]]
    assert across == pytest.approx([1 + 90 * math.log1p(step) / math.log1p(3000) for step in steps], abs=0.1)
