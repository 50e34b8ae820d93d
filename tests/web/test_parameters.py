"""Every parameter of every page, panel and route that reads, for values that no form sends.

The application says which there are, so a new parameter is asked as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote

import httpx2
import pytest
from dashboard_history import OTHER, PANEL_QUERIES, PLACES, RUN, Dashboard
from lxml import html

from evalsvc.api.app import create_app
from evalsvc.config import Settings
from evalsvc.web.page import PAGES, page_class
from evalsvc.web.panel import PANELS, panel_class

pytestmark = pytest.mark.usefixtures("many_cases")

VALUES: Mapping[str, str] = {
    "markup": quote("\"'><script>alert(1)</script><img src=x onerror=alert(1)>", safe=""),
    "nothing that is text": "%ed%a0%80%00%0d%0aSet-Cookie:a=b",
    "right to left": quote("\u202e../../etc/passwd", safe=""),
    "long": "9" * 5_000,
    "above every number": str(2**63),
    "above every step": f"{RUN}%40{'9' * 18}",
    "no number": "nan",
    "less than none": "-1",
    "nearly one": "0.9999999999999999",
    "a pattern": quote("*a" * 60 + "[!b]", safe=""),
    "another run": OTHER,
    "no step": f"{RUN}%40best%3Ano%2Fmetric",
}

REPEATED = 1_000

NEEDED: Mapping[str, str] = {
    "/compare": f"a={RUN}%404000&b={OTHER}%404000",
    "/v1/compare": f"a={RUN}%404000&b={OTHER}%404000",
    "/v1/compare/curves": f"a={RUN}&b={OTHER}",
    "/v1/headlines": f"run={RUN}",
    "/v1/named": f"name={RUN}%40best",
    "/v1/runs/{run}/results/{step}": "variant=raw",
}
"""What a path does not answer without."""


def targets() -> Iterator[tuple[str, str, list[str]]]:
    """Yield paths, each with the query that it needs, and the names of all parameters."""
    for pattern in PAGES:
        fields = page_class(pattern).model_fields.items()
        yield pattern, NEEDED.get(pattern, ""), [field.alias or name for name, field in fields]
    for panel, query in PANEL_QUERIES.items():
        fields = panel_class(panel).model_fields.items()
        for kind in ("html", "json", "csv"):
            yield f"/panels/{panel}.{kind}", query, [field.alias or name for name, field in fields]
    for path, operations in create_app(Settings(data_dir="/nowhere")).openapi()["paths"].items():
        names = [parameter["name"] for parameter in operations.get("get", {}).get("parameters", ())]
        if names and not path.endswith("/events"):  # which are a stream
            yield path, NEEDED.get(path, ""), names


TARGETS = list(targets())


def addresses(path: str, needed: str, name: str) -> Iterator[str]:
    fixed = [pair for pair in needed.split("&") if pair and pair.partition("=")[0] != name]
    others = {"run": RUN, "step": "4000", "name": "quick", **PLACES}
    for value in VALUES.values():
        in_path = path.replace(f"{{{name}}}", value)
        pairs = fixed if in_path != path else [*fixed, f"{name}={value}"]
        yield re.sub(r"{(\w+)}", lambda found: others.get(found[1], "1"), in_path) + "?" + "&".join(pairs)
    if f"{{{name}}}" not in path:
        pairs = [*fixed, *[f"{name}={RUN}"] * REPEATED]
        yield re.sub(r"{(\w+)}", lambda found: others.get(found[1], "1"), path) + "?" + "&".join(pairs)


def test_the_parameters_are_those_of_the_application() -> None:
    assert set(PANEL_QUERIES) == set(PANELS)
    asked = {path: names for path, _, names in TARGETS}
    assert {"find", "tag", "only", "metric", "sort", "reverse", "group", "pin", "page", "verdicts"} <= {*asked["/"]}
    assert {"run", "metric", "from", "to", "points", "theme", "width"} <= {*asked["/panels/curve.html"]}
    assert len(asked) > 40


@pytest.mark.parametrize(("path", "needed", "names"), TARGETS, ids=[path for path, _, _ in TARGETS])
def test_no_value_of_a_parameter_is_a_bug(dashboard: Dashboard, path: str, needed: str, names: list[str]) -> None:
    """A level that is no number, a step above the largest one, and an artifact of 5,000 digits were."""
    with httpx2.Client(base_url=dashboard.url, trust_env=False) as http:
        for name in names:
            for address in addresses(path, needed, name):
                answer = http.get(address)
                shown = address[:300]
                assert answer.status_code in (200, 307, 403, 404, 405, 409, 410, 422), (shown, answer.text[:2000])
                assert "set-cookie" not in answer.headers, shown
                assert answer.elapsed.total_seconds() < 10, shown
                if not answer.headers["content-type"].startswith("text/html"):
                    continue
                policy = answer.headers["content-security-policy"]
                assert policy.startswith("default-src 'none';"), shown
                assert "unsafe" not in policy, shown
                page = html.fromstring(answer.text)
                assert not page.xpath("//script[not(@src)] | //@onerror | //img[@src='x']"), shown
                if answer.is_error:
                    assert len(page.find(".//main").text_content().split()) > 8, "a message says what to do"
