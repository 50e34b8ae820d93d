"""The page of all runs, as a browser without JavaScript gets it."""

import html
import re
from typing import Any

import pytest
from app_in_process import App
from compared_runs import put
from history_reference import Point, write
from queue_steps import enter, measure, submission, suite

from evalsvc.api.own_reader import OwnReader
from evalsvc.client.reader import ServiceReader


@pytest.fixture(autouse=True)
def _pages_wait_for_comparisons_also_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalsvc.web.pages.runs.QUICK_SECONDS", 5.0)


def page(app: App, query: str = "") -> str:
    response = app.http.get(f"/{query}")
    assert response.status_code == 200, response.text
    return response.text


def names(text: str) -> list[str]:
    return re.findall(r'<th scope="row">.*?<a href="/runs/[^"]*">([^<]*)</a>', text, re.DOTALL)


def cells(text: str, run: str) -> list[str]:
    row = next(row for row in re.findall(r"<tr>.*?</tr>", text, re.DOTALL) if f">{run}</a>" in row)
    found = re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL)
    return [" ".join(html.unescape(re.sub(r"<[^>]*>", " ", cell)).split()) for cell in found]


def points(*values: float, **fields: Any) -> list[Point]:
    rest = {"stderr": 0.01, "n": 400, **fields}
    return [Point(10 * place, value, **rest) for place, value in enumerate(values)]


def test_a_row_says_how_far_a_run_is_and_how_good(app: App) -> None:
    put(app.store, "run-a", 0, 1, 0.3, tags={"seed": "1"})
    put(app.store, "run-a", 10, 2, 0.7)
    put(app.store, "run-a", 20, 3, 0.68)
    enter(app.store, submission(30, run="run-a", tags={"seed": "1"}), suite("waits"))
    text = page(app)
    last, queue, base, *metrics = cells(text, "run-a")
    assert (last, queue, base) == ("30 values to 20", "1 waiting", "run-a@0")
    accuracy = metrics[0]
    assert re.fullmatch(r"0\.\d+ ± 0\.\d+ best of 3 −0\.\d+ within noise base \+0\.\d+ better", accuracy), accuracy
    assert "fraction, higher is better" in html.unescape(text)
    assert text.count("<polyline") == len(metrics)
    assert "seed=1" in text


def test_a_newest_value_that_is_the_best_or_no_number_and_no_error_that_is_invented(app: App) -> None:
    write(app.store, {"lower/x": points(3, 1, 2, stderr=None)}, "bare")
    write(app.store, {"higher/x": points(1, 2, 3)}, "best")
    write(app.store, {"lower/x": points(1, float("nan"))}, "none")
    text = page(app)
    assert "2 best of 3 +1 no error known base −1 no error known" in cells(text, "bare")
    assert "3 ± 0.01 best of 3 base +2 better" in cells(text, "best")
    assert any(cell.startswith("NaN ± 0.01 best of 1 – no error known") for cell in cells(text, "none"))


@pytest.fixture
def several(app: App) -> App:
    for name, low, high, seed in (("c", 2.0, 0.2, "1"), ("a", 3.0, 0.3, "1"), ("b", 1.0, 0.1, "2")):
        enter(app.store, submission(ord(name), run=name, tags={"seed": seed}))
        write(app.store, {"lower/x": points(low), "higher/y": points(high)}, name)
    enter(app.store, submission(1, run="d"))
    return app


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "abcd"),
        ("?reverse=true", "dcba"),
        ("?sort=steps", "cbad"),
        ("?sort=evaluated", "abcd"),
        ("?sort=metric:lower/x", "bcad"),
        ("?sort=metric:higher/y", "acbd"),
        ("?sort=metric:lower/x&reverse=true", "acbd"),
        ("?sort=metric:unknown", "abcd"),
        ("?tag=seed", "abc"),
        ("?tag=seed%3D1", "ac"),
        ("?tag=seed%3D1&tag=lr", ""),
        ("?find=B", "b"),
        ("?only=d&only=a", "ad"),
        ("?page=2", ""),
    ],
)
def test_order_and_filters(several: App, query: str, expected: str) -> None:
    assert "".join(names(page(several, query))) == expected


def test_columns_may_be_chosen_and_the_one_that_orders_says_so(several: App) -> None:
    assert [cell.split()[0] for cell in cells(page(several, "?metric=lower/x"), "a")[3:]] == ["3"]
    queries = ("", "?sort=steps", "?sort=metric:higher/y&reverse=true")
    ways = [re.findall(r'aria-sort="(\w+)"', page(several, query)) for query in queries]
    assert ways == [["ascending"], ["descending"], ["ascending"]]


def test_chosen_runs_have_a_link_to_their_curves_over_each_other(several: App) -> None:
    text = page(several, "?only=c&only=a")
    assert 'href="/runs/c?with=a"' in text
    assert re.findall(r'name="only" value="(.)"[^>]* checked', text) == ["a", "c"]
    assert "over each other</a>" not in page(several, "?only=c")


def test_groups(several: App) -> None:
    text = page(several, "?group=by:seed")
    rows = [" ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in re.findall(r"<tr>.*?</tr>", text, re.DOTALL)]
    expected = (
        "seed=1 a , c draw them over each other 0.25 ± 0.071 0.2 to 0.3, 2 runs step 0 2.5 ± 0.71 2 to 3, 2 runs step 0"
    )
    assert rows[1] == expected
    assert rows[3] == "without the tag seed d"


@pytest.mark.parametrize(
    "query",
    ["?sort=value", "?group=seed", "?page=0", "?limit=3", "?find=a&find=b", "?verdicts=some", "?sort=", "?tag="],
)
def test_wrong_and_empty_parameters(several: App, query: str) -> None:
    response = several.http.get(f"/{query}")
    assert response.status_code == (200 if query.endswith("=") else 422)


def test_fifty_runs_cost_two_questions(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row once asked for its run, its headline, its curves and its summary."""
    for number in range(50):
        write(app.store, {"lower/x": points(3, 2, 1)}, f"run-{number:02d}")
    asked: list[str] = []

    class Counted(OwnReader):
        def __getattribute__(self, name: str) -> Any:
            if name in vars(ServiceReader) and not name.startswith("_"):
                asked.append(name)
            return super().__getattribute__(name)

    monkeypatch.setattr("evalsvc.api.routes.pages.OwnReader", Counted)
    assert len(names(page(app))) == 50
    assert asked == ["runs", "headlines"]
    asked.clear()
    page(app, "?sort=metric:lower/x")
    assert asked == ["runs", "headlines", "headlines"]


def test_pages_of_many_runs(app: App) -> None:
    for number in range(60):
        enter(app.store, submission(1, run=f"run-{number:02d}"))
    first, second = names(page(app)), names(page(app, "?page=2"))
    assert (len(first), len(second)) == (50, 10)
    assert 'href="/?page=2"' in page(app)
    assert names(page(app, "?sort=metric:loss/text")) == first, "of more runs than a request may name"


def test_runs_that_are_not_compared_yet_have_a_link(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(app.store, 0, 2.0)
    measure(app.store, 10, 1.0)
    monkeypatch.setattr("evalsvc.web.pages.runs.QUICK_SECONDS", 1e-9)
    assert 'id="all-verdicts" href="/?verdicts=all"' in page(app)
    assert "all-verdicts" not in page(app, "?verdicts=all")
    assert "all-verdicts" not in page(app), "the service kept them"


def test_no_runs(app: App) -> None:
    assert "evalsvc submit RUN STEP FILE" in page(app)
    assert "No run fits" in page(app, "?find=x")


def test_the_same_page_twice_has_no_new_answer(app: App) -> None:
    measure(app.store, 0, 2.0)
    tag = app.http.get("/").headers["etag"]
    assert app.http.get("/", headers={"If-None-Match": tag}).status_code == 304
    measure(app.store, 10, 2.0)
    assert app.http.get("/", headers={"If-None-Match": tag}).status_code == 200
