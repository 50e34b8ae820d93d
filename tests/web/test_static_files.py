"""Scripts and templates of the pages: typed, small, and without anything that the policy of the pages forbids."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from programs import find_program, output_of

from evalsvc.api.routes.pages import POLICY
from evalsvc.web.page import HERE, STATIC
from evalsvc.web.site import MODULES, classic_script

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


def test_there_is_little_javascript() -> None:
    assert sum(len(script.read_text().splitlines()) for script in SCRIPTS) < LINES


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_does_nothing_that_lets_a_text_become_code(script: Path) -> None:
    text = script.read_text()
    assert [what for what, pattern in FORBIDDEN.items() if re.search(pattern, text)] == []


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        (FORBIDDEN, "element.innerHTML = text"),
        (FORBIDDEN, "element.outerHTML += text"),
        (FORBIDDEN, "element.insertAdjacentHTML('beforeend', text)"),
        (FORBIDDEN, "eval(text)"),
        (FORBIDDEN, "new Function(text)"),
        (FORBIDDEN, "setTimeout('go()', 5)"),
        (FORBIDDEN, "element.setAttribute('onclick', text)"),
        (FORBIDDEN, "fetch('https://host.example/x')"),
        (FORBIDDEN, "document.cookie = text"),
        (FORBIDDEN, "/** The chosen. @type {string[]} */"),
        (IN_TEMPLATES, "<script>go()</script>"),
        (IN_TEMPLATES, '<p style="color: red">'),
        (IN_TEMPLATES, '<button\nonclick="go()">'),
        (IN_TEMPLATES, '<img src="//host.example/x.png">'),
        (IN_TEMPLATES, "{{ details | tojson }}"),
        (IN_TEMPLATES, "<a href={{ address }}>"),
    ],
)
def test_a_rule_finds(rules: dict[str, str], text: str) -> None:
    assert len([what for what, pattern in rules.items() if re.search(pattern, text, re.DOTALL)]) == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_begins_with_what_it_is_for(script: Path) -> None:
    assert re.match(r"// [A-Z].*\.\n\n", script.read_text())


def test_the_static_copy_has_every_script_after_those_that_it_imports() -> None:
    """One that is left out is missed only when a button does nothing."""
    assert sorted(MODULES) == [script.stem for script in SCRIPTS]
    for place, name in enumerate(MODULES):
        imported = re.findall(r'from "\./([a-z_]+)\.js"', (STATIC / f"{name}.js").read_text())
        assert set(imported) <= set(MODULES[:place])


def test_the_script_of_the_static_copy_has_no_name_twice_and_nothing_of_modules() -> None:
    """Of two functions with one name, the first is gone without an error."""
    script = classic_script()
    assert re.findall(r"^(?:import|export)\b.*", script, re.MULTILINE) == []
    names = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", script, re.MULTILINE)
    assert len(names) > 40
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_a_template_has_nothing_that_the_policy_forbids(template: Path) -> None:
    text = template.read_text()
    assert [what for what, pattern in IN_TEMPLATES.items() if re.search(pattern, text, re.DOTALL)] == []


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_only_literals_of_a_template_are_markup(template: Path) -> None:
    """A value of a submitter that is `safe` is a script in the browser of everybody who looks."""
    text = template.read_text()
    literals = re.findall(r"""(?:'[^'{}]*'|"[^"{}]*")\s*\|\s*safe\b""", text)
    assert len(literals) == len(re.findall(r"\|\s*safe\b", text))


def test_no_module_makes_markup_of_a_text() -> None:
    wrong = r"\bMarkup\b|autoescape\s*=\s*False|HTMLResponse"
    assert [path.name for path in HERE.rglob("*.py") if re.search(wrong, path.read_text())] == []


def test_the_policy_has_no_exception() -> None:
    directives = dict(directive.split(" ", 1) for directive in POLICY.split("; "))
    assert directives.pop("default-src") == "'none'"
    assert set(directives.values()) == {"'self'", "'none'"}
    assert {"base-uri", "form-action", "frame-ancestors"} <= set(directives), "these do not follow default-src"


@pytest.fixture(scope="module")
def tsc(child_process: None) -> str:
    """TypeScript's compiler, which reads the types in the comments of JavaScript."""
    return find_program("tsc", "Debian's package node-typescript")


def test_types_of_scripts_fit(tsc: str) -> None:
    output_of(tsc, *STRICT, *MODERN, *SCRIPTS)


def test_a_wrong_type_is_noticed(tsc: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.js"
    wrong.write_text('/** @param {number} count */\nexport const twice = (count) => 2 * count;\ntwice("2");\n')
    with pytest.raises(AssertionError, match=r"wrong\.js\(3,7\): error TS2345"):
        output_of(tsc, *STRICT, *MODERN, wrong)
