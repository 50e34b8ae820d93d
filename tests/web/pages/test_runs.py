"""The pages of all runs, of one and of its checkpoints, as a browser without JavaScript gets them."""

import re
from html import unescape
from typing import Any

import httpx2
import pytest
from app_in_process import App
from compared_runs import put
from dashboard_history import Dashboard
from history_reference import Point, write
from queue_steps import enter, evaluate_whole, measure, metric, submission, suite
from told_run import OTHER, RUN, losses

from evalsvc.api.own_reader import OwnReader
from evalsvc.client import Client
from evalsvc.client.reader import ServiceReader
from evalsvc.spec.documents import RunSummary
from evalsvc.web.pages import run as pages
from evalsvc.web.pages.run import SHOWN_ROWS, CheckpointsPage
from evalsvc.web.pages.runs import Group, grouped, groups_of


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
    return [" ".join(unescape(re.sub(r"<[^>]*>", " ", cell)).split()) for cell in found]


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
    assert re.fullmatch(r"0\.\d+ ± 0\.\d+ best of 3 −0\.\d+ ≈ within noise base \+0\.\d+ ▲ better", accuracy), accuracy
    assert "fraction, higher is better" in unescape(text)
    assert "better than base: " in text
    assert text.count("<polyline") == len(metrics)
    assert "seed=1" in text


def test_a_newest_value_that_is_the_best_or_no_number_and_no_error_that_is_invented(app: App) -> None:
    write(app.store, {"lower/x": points(3, 1, 2, stderr=None)}, "bare")
    write(app.store, {"higher/x": points(1, 2, 3)}, "best")
    write(app.store, {"lower/x": points(1, float("nan"))}, "none")
    text = page(app)
    assert "2 best of 3 +1 no error known base −1 no error known" in cells(text, "bare")
    assert "3.000 ± 0.010 best of 3 base +2 ▲ better" in cells(text, "best")
    assert any(cell.startswith("NaN ± 0.010 best of 1 – no error known") for cell in cells(text, "none"))


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
    assert [cell.split()[0] for cell in cells(page(several, "?metric=lower/x"), "a")[3:]] == ["3.000"]
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
    expected = "seed=1 a , c draw them over each other"
    expected += " 0.250 ± 0.071 0.2 to 0.3, 2 runs step 0 2.50 ± 0.71 2 to 3, 2 runs step 0"
    assert rows[1] == expected
    assert rows[3] == "without the tag seed d"


def groups(client: Client, *metrics: str) -> list[Group]:
    return list(groups_of(client, grouped(client.runs(), "across", "seed"), metrics))


def test_groups_by_the_value_of_a_tag_and_across_its_values() -> None:
    tags = {
        "a": {"seed": "1", "lr": "high"},
        "b": {"seed": "2", "lr": "high"},
        "c": {"seed": "1", "lr": "low"},
        "d": {},
    }
    counts: dict[str, Any] = {"checkpoints": 1, "last_step": 1, "values": 1, "created_at": ""}
    runs = [RunSummary(name=name, tags=of_run, **counts) for name, of_run in tags.items()]
    by, across, one = (
        {title: "".join(run.name for run in group) for title, group in found.items()}
        for found in (grouped(runs, "by", "seed"), grouped(runs, "across", "seed"), grouped(runs[:1], "across", "lr"))
    )
    assert by == {"seed=1": "ac", "seed=2": "b", "without the tag seed": "d"}
    assert across == {"lr=high": "ab", "lr=low": "c", "without the tag seed": "d"}
    assert one == {"seed=1": "a"}
    runs = [RunSummary(name="a", tags={"seed": "1"}, **counts)]
    assert list(grouped(runs, "across", "seed")) == ["no tag but seed"]


def test_values_of_a_group_are_those_at_the_highest_step_that_all_have_reached(app: App, client: Client) -> None:
    """A seed that has trained longer would make its group look better than it is."""
    for seed, last in (("1", 40), ("2", 20), ("3", 30)):
        enter(app.store, submission(0, run=f"run-{seed}", tags={"seed": seed, "lr": "high"}))
        points = [Point(step, float(seed) - step / 10, None, None) for step in range(0, last + 1, 10)]
        write(app.store, {"lower/x": points}, f"run-{seed}")
    [group] = groups(client)
    spread = group.spreads["lower/x"]
    assert (group.title, spread.n, spread.first_step, spread.last_step) == ("lr=high", 3, 20, 20)
    assert (spread.mean, spread.deviation, spread.low, spread.high) == (0.0, 1.0, -1.0, 1.0)


def test_values_of_another_protocol_are_left_out_of_a_group_and_counted(app: App, client: Client) -> None:
    """One run has no spread."""
    for seed, limit, value in (("1", 1, 1.0), ("2", 2, 9.0), ("3", 1, 2.0)):
        measure(app.store, 10, value, limit=limit, run=f"run-{seed}", tags={"seed": seed})
        [group] = groups(client, "loss/text", "loss/unknown")
        assert list(group.spreads) == ["loss/text"]
        if seed == "1":
            assert (group.spreads["loss/text"].mean, group.spreads["loss/text"].deviation) == (1.0, None)
    spread = group.spreads["loss/text"]
    assert (spread.mean, spread.n, spread.other_protocols) == (1.5, 2, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_have_no_mean(app: App, client: Client, value: float) -> None:
    measure(app.store, 10, value, tags={"seed": "1"})
    [group] = groups(client)
    assert group.spreads == {}


@pytest.mark.parametrize(
    "query",
    ["?sort=value", "?group=seed", "?page=0", "?limit=3", "?find=a&find=b", "?verdicts=some", "?sort=", "?tag="],
)
def test_wrong_and_empty_parameters(several: App, query: str) -> None:
    response = several.http.get(f"/{query}")
    assert response.status_code == (200 if query.endswith("=") else 422)


def test_fifty_runs_of_many_cost_two_questions(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row once asked for its run, its headline, its curves and its summary."""
    assert "evalsvc submit RUN STEP FILE" in page(app)
    assert "No run fits" in page(app, "?find=x")
    for number in range(60):
        write(app.store, {"lower/x": points(3, 2, 1)}, f"run-{number:02d}")
    asked: list[str] = []

    class Counted(OwnReader):
        def __getattribute__(self, name: str) -> Any:
            if name in vars(ServiceReader) and not name.startswith("_"):
                asked.append(name)
            return super().__getattribute__(name)

    monkeypatch.setattr("evalsvc.api.routes.pages.OwnReader", Counted)
    first = names(page(app))
    assert (len(first), asked) == (50, ["runs", "headlines"])
    assert len(names(page(app, "?page=2"))) == 10
    assert 'href="/?page=2"' in page(app)
    assert names(page(app, "?sort=metric:loss/text")) == first, "of more runs than a request may name"
    asked.clear()
    page(app, "?sort=metric:lower/x")
    assert asked == ["runs", "headlines", "headlines"]


def test_runs_that_are_not_compared_yet_have_a_link(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(app.store, 0, 2.0)
    measure(app.store, 10, 1.0)
    monkeypatch.setattr("evalsvc.web.pages.runs.QUICK_SECONDS", 1e-9)
    assert 'id="all-verdicts" href="/?verdicts=all"' in page(app)
    assert "all-verdicts" not in page(app, "?verdicts=all")
    assert "all-verdicts" not in page(app), "the service kept them"


# The pages of a run and of its checkpoints


def run_page(app: App, query: str = "", run: str = RUN) -> str:
    return page(app, f"runs/{run}{query}")


def headline(text: str) -> list[str]:
    return re.findall(r'data-metric="([^"]*)"', text)


def rest(text: str) -> dict[str, bool]:
    """Return the metrics below the headline, and whether each is shown before anybody looks for it."""
    below = text[text.index('id="rest"') :]
    found = re.findall(r'<figure class="panel" data-name="([^"]*)"( data-companion hidden)?>', below)
    return {name: not hidden for name, hidden in found}


def test_a_companion_is_shown_with_its_metric(told: App) -> None:
    text = run_page(told)
    assert headline(text) == ["loss/image", "loss/text"] or headline(text) == ["loss/text", "loss/image"]
    assert rest(text) == {"loss/text_perplexity": False, "loss/text_unigram": False}
    assert rest(run_page(told, "?find=perp")) == {"loss/text_perplexity": True}
    assert "No metric has “nothing” in its name." in run_page(told, "?find=nothing")


def test_the_state_of_the_page_is_in_the_addresses_of_its_charts(told: App) -> None:
    text = run_page(told, f"?with={OTHER}&scale=log&along=log&smooth=0.6&from=100&to=300")
    addresses = re.findall(r'data-spec="([^"]*)"', text) or re.findall(r'href="(/panels/curve[.]csv[^"]*)"', text)
    assert addresses
    parts = {"scale=log", "along=log", "smooth=0.6", "from=100", "to=300", "base=text-1b%400", f"run={OTHER}"}
    for address in map(unescape, addresses):
        assert parts <= set(re.split("[?&]", address))
        assert told.http.get(address).status_code == 200


def test_a_table_below_a_chart_has_the_newest_rows(told: App) -> None:
    for step in range(1000, 1000 + SHOWN_ROWS):
        enter(told.store, submission(step, run="many"), suite())
        evaluate_whole(told.store, metric(float(step)))
    enter(told.store, submission(1000 + SHOWN_ROWS, run="many"), suite())
    evaluate_whole(told.store, metric(5.0), warnings=[{"code": "few", "metric": "loss/text", "message": "too <few>"}])
    text = run_page(told, run="many")
    assert f"The newest {SHOWN_ROWS} of {SHOWN_ROWS + 1} rows." in text
    assert "<td>1,000</td>" not in text
    assert f'<p class="warning" role="note">many@{1000 + SHOWN_ROWS}, loss/text: too &lt;few&gt;.</p>' in text


def test_a_run_without_tokens_says_so(told: App) -> None:
    enter(told.store, submission(5, run="bare"), suite())
    assert "This run has no values yet." in run_page(told, run="bare")
    evaluate_whole(told.store, *losses(5))
    assert "read the history with x=step" in run_page(told, "?x=tokens", "bare")
    assert headline(run_page(told, "?x=tokens")), "a run with tokens has its panels"


def test_what_the_page_cannot_show_is_refused(told: App) -> None:
    for query in ("?smooth=2", "?x=time", "?from=5&to=3", "?with=" + "&with=".join("abcdefgh")):
        assert told.http.get(f"/runs/{RUN}{query}").status_code in (400, 422), query
    assert told.http.get("/runs/nobody").status_code == 404
    hostile = "<script>alert(1)</script>"
    for field in ("base", "variant", "protocol", "metric", "points", "theme", "from"):
        query = {"run": RUN, "metric": "loss/text", field: hostile}
        answer = told.http.get("/panels/curve.html", params=query)
        assert answer.status_code in (200, 400, 404, 422), field
        assert "<script>alert" not in answer.text, field
    assert told.http.get("/panels/curve.html", params={"run": RUN, "metric": "m" * 10_000}).status_code == 422


def test_the_checkpoints_are_listed_newest_first_with_a_link_to_each_evaluation(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(dashboard.url) as client:
        checkpoints = client.run(RUN).checkpoints
        text = httpx2.get(f"{dashboard.url}/runs/{RUN}/checkpoints").text
        failed = CheckpointsPage(run=RUN, state="failed").content(client).values
        everything: Any = CheckpointsPage(run=RUN, verdicts="all").content(client).values
        metric, contrasts = everything["metric"], everything["contrasts"]
        verdict = client.compare(f"{RUN}@2000", f"{RUN}@3000", [metric]).contrasts[0].verdict
        monkeypatch.setattr(pages, "CHECKPOINTS", 2)
        values: list[Any] = [CheckpointsPage(run=RUN, page=number).content(client).values for number in (1, 2, 99)]
    wanted = {evaluation.id for checkpoint in checkpoints for evaluation in checkpoint.evaluations}
    assert {int(number) for number in re.findall(r'href="/evaluations/(\d+)"', text)} == wanted
    assert '<span class="state failed">failed</span>' in text
    steps = [checkpoint.step for checkpoint in checkpoints][::-1]
    assert [[row[0].step for row in page["rows"]] for page in values] == [steps[:2], steps[2:4], []]
    assert values[0]["pages"] == -(-len(steps) // 2)
    assert [row[1:] for row in failed["rows"]] == [(f"{RUN}@5000", "failed", None)]
    before = {name: earlier for _, name, _, earlier in everything["rows"]}
    assert before[f"{RUN}@3000"] == f"{RUN}@2000"
    assert before[f"{RUN}@4000:ema"] is None, "another variant"
    assert contrasts[f"{RUN}@3000"].verdict == verdict, "that of the comparison"
    assert f'href="/compare?a={RUN}%402000&amp;b={RUN}%403000"' in text
    assert 'formaction="/evaluations/' in text
