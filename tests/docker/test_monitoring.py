"""Alerts fire on the situations that they name and are quiet otherwise; dashboard and alerts use metrics that exist."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from app_in_process import app_in_process
from doc_blocks import DOCS, ROOT
from programs import find_program, output_of
from prometheus_client.parser import text_string_to_metric_families
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.api.routes.prometheus import FAMILIES

MONITORING = ROOT / "docker" / "monitoring"
ALERTS = MONITORING / "alerts.yaml"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
]
DASHBOARD = json.loads((MONITORING / "grafana.json").read_text())

Series = Mapping[str, str]
"""Values of a service by series, a value a minute in promtool's notation: `1x60` is 1 and 60 times the same, `0+2x60`
grows by 2 a minute, `_` is no value. A series is `NAME label=value …`."""

HEALTHY: Series = {
    "up": "1x600",
    "evalsvc_database_up": "1x600",
    "evalsvc_coordinator_up": "1x600",
    "evalsvc_workers": "4x600",
    "evalsvc_shards state=queued": "10x600",
    "evalsvc_shards state=running": "4x600",
    "evalsvc_queue_oldest_seconds": "600x600",
    "evalsvc_evaluations state=queued": "3x600",
    "evalsvc_attempts_total kind=loss stage=run outcome=succeeded": "1000+1x600",
    "evalsvc_failures_total code=invalid_data": "100x600",
    "evalsvc_disk_free_bytes folder=data": "500000000000-1000000x600",
    "evalsvc_disk_total_bytes folder=data": "1000000000000x600",
    "process_start_time_seconds": "1000x600",
    "process_open_fds": "100x600",
    "process_max_fds": "1024x600",
}

FROM_DATABASE = ("evalsvc_shards", "evalsvc_queue", "evalsvc_evaluations", "evalsvc_attempts", "evalsvc_failures")
"""Beginnings of the series that are read from the database, and are not shown while the database is away."""


def without(values: str, first: int, last: int = 600) -> str:
    """The values of a series of 601 values with none from minute `first` to `last`."""
    begin, _, step = values.partition("x")[0].partition("+")
    step, later = step or "0", int(begin) + int(step or 0) * (last + 1)
    rest = f" {later}+{step}x{599 - last}" if last < 600 else ""
    return f"{begin}+{step}x{first - 1} _x{last - first + 1}{rest}"


ALL_GONE: Series = {series: without(values, 60) for series, values in HEALTHY.items() if "-" not in values}
ALL_GONE |= {"evalsvc_disk_free_bytes folder=data": "_"}

DATABASE_AWAY: Series = {
    series: without(values, 100, 130) for series, values in HEALTHY.items() if series.startswith(FROM_DATABASE)
} | {"evalsvc_database_up": "1x99 0x30 1x469"}

SUCCEEDED = "evalsvc_attempts_total kind=loss stage=run outcome=succeeded"
FAILED = "evalsvc_failures_total code=out_of_memory"
QUEUED = "evalsvc_shards state=queued"
FREE = "evalsvc_disk_free_bytes folder=data"


@dataclass(frozen=True)
class Situation:
    """What differs from a healthy service, and the alerts that fire by minute."""

    changes: Series
    firing: Mapping[int, set[str]]


SITUATIONS = {
    "healthy": Situation({}, {59: set(), 130: set(), 380: set()}),
    "idle": Situation({QUEUED: "0x600", "evalsvc_queue_oldest_seconds": "0x600", SUCCEEDED: "5x600"}, {130: set()}),
    "new service, nothing asked for": Situation(
        {QUEUED: "0x600", "evalsvc_evaluations state=queued": "_", SUCCEEDED: "_", FAILED: "_"}, {10: set(), 130: set()}
    ),
    "does not answer": Situation({"up": "1x99 0x500"}, {104: set(), 106: {"EvalsvcDown"}, 170: {"EvalsvcDown"}}),
    "a scrape fails": Situation({"up": "1x99 0 1x500"}, {104: set(), 106: set()}),
    "nothing is scraped": Situation(ALL_GONE, {59: set(), 80: {"EvalsvcDown"}}),
    "restarted twice": Situation({"process_start_time_seconds": "1x99 2x9 3x400"}, {115: set()}),
    "restarts often": Situation(
        {"process_start_time_seconds": "1x99 2x9 3x9 4x400"}, {100: set(), 130: {"EvalsvcRestartsOften"}, 200: set()}
    ),
    "the database is away for half an hour": Situation(
        DATABASE_AWAY,
        {101: set(), 103: {"EvalsvcDatabaseDown"}, 129: {"EvalsvcDatabaseDown"}, 131: set(), 170: set(), 195: set()},
    ),
    "the coordinator stopped": Situation(
        {"evalsvc_coordinator_up": "1x99 0x500"}, {101: set(), 103: {"EvalsvcCoordinatorDown"}}
    ),
    "a worker is replaced": Situation({"evalsvc_workers": "4x99 0x5 4x400"}, {105: set(), 120: set()}),
    "no workers, nothing waits": Situation(
        {"evalsvc_workers": "4x99 0x500", QUEUED: "0x600"}, {105: set(), 111: {"EvalsvcNoWorkers"}}
    ),
    "a service that only reads": Situation({"evalsvc_workers": "_", "evalsvc_coordinator_up": "_"}, {130: set()}),
    "nothing evaluated for an hour": Situation(
        {SUCCEEDED: "0+1x99 99x500"}, {100: set(), 160: set(), 166: {"EvalsvcNothingEvaluated"}}
    ),
    "an idle hour ends": Situation(
        {SUCCEEDED: "5x600", QUEUED: "0x300 3x299"}, {310: set(), 360: set(), 367: {"EvalsvcNothingEvaluated"}}
    ),
    "the queue was empty in between": Situation({QUEUED: "3x100 0x39 3x460", SUCCEEDED: "5+1x90 95x509"}, {159: set()}),
    "one shard in an hour": Situation(
        {SUCCEEDED: "5x59 6x58 7x480"},
        {59: set(), 100: set(), 119: set(), 170: set(), 200: {"EvalsvcNothingEvaluated"}},
    ),
    "the first shard ever succeeded": Situation(
        {SUCCEEDED: "_x99 1x500"}, {70: {"EvalsvcNothingEvaluated"}, 105: set(), 155: set()}
    ),
    "nothing ever evaluated": Situation({SUCCEEDED: "_"}, {60: set(), 66: {"EvalsvcNothingEvaluated"}}),
    "the queue grows": Situation(
        {"evalsvc_queue_oldest_seconds": "0+60x600", "evalsvc_evaluations state=queued": "1+1x600"},
        {385: set(), 395: {"EvalsvcQueueGrows"}},
    ),
    "a long queue of short waits": Situation(
        {"evalsvc_queue_oldest_seconds": "20000x600", "evalsvc_evaluations state=queued": "1+1x600"}, {420: set()}
    ),
    "a long queue shrinks": Situation(
        {"evalsvc_queue_oldest_seconds": "0+60x600", "evalsvc_evaluations state=queued": "900-1x600"}, {420: set()}
    ),
    "evaluations of last week are retried": Situation(
        {"evalsvc_queue_oldest_seconds": "0x100 600000+60x499", "evalsvc_evaluations state=queued": "_x100 1+1x499"},
        {400: set()},
    ),
    "four attempts fail": Situation({FAILED: "3x99 7x500"}, {100: set(), 150: set()}),
    "attempts fail by a code that is new": Situation(
        {FAILED: "_x99 6x500"}, {90: set(), 101: {"EvalsvcFailures"}, 165: set()}
    ),
    "attempts fail by a known code": Situation(
        {FAILED: "50x99 50+1x500"}, {100: set(), 110: {"EvalsvcFailures"}, 170: {"EvalsvcFailures"}}
    ),
    "Prometheus is new, the failures are old": Situation({FAILED: "500x600"}, {10: set(), 59: set(), 70: set()}),
    "the disk fills up within a day": Situation(
        {FREE: "299000000000-250000000x600"}, {50: set(), 400: {"EvalsvcDiskFillsUp"}}
    ),
    "the disk is written, and large": Situation({FREE: "900000000000-700000000x600"}, {400: set()}),
    "the disk is almost full": Situation(
        {FREE: "60000000000x99 49000000000x500"}, {104: set(), 107: {"EvalsvcDiskAlmostFull"}}
    ),
    "connections are left open": Situation(
        {"process_open_fds": "100x99 900x500"}, {108: set(), 111: {"EvalsvcFilesRunOut"}}
    ),
}


@pytest.fixture
def promtool(child_process: None) -> str:
    return find_program("promtool", "Debian's package prometheus")


def series_of(changes: Series) -> list[dict[str, str]]:
    values = {**HEALTHY, **changes}
    return [{"series": _written(series), "values": text} for series, text in values.items()]


def _written(series: str) -> str:
    name, *labels = series.split()
    pairs = ['job="evalsvc"', 'instance="a:8321"', *(label.replace("=", '="') + '"' for label in labels)]
    return f"{name}{{{', '.join(pairs)}}}"


def promtool_test(situation: Situation) -> dict[str, Any]:
    """The unit test of a situation: exactly these alerts fire at these minutes."""
    expected = [
        {
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(names)],
        }
        for minute, names in situation.firing.items()
    ]
    return {"interval": "1m", "input_series": series_of(situation.changes), "promql_expr_test": expected}


def check_situation(promtool: str, name: str, rules: Path, folder: Path) -> None:
    document = {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [promtool_test(SITUATIONS[name])]}
    file = folder / "situation.yaml"
    file.write_text(yaml.safe_dump(document))
    output_of(promtool, "test", "rules", file)


def test_rules_are_rules(promtool: str) -> None:
    assert f"{len(RULES)} rules found" in output_of(promtool, "check", "rules", "--lint-fatal", ALERTS)


@pytest.mark.parametrize("name", SITUATIONS)
def test_exactly_the_alerts_of_a_situation_fire(promtool: str, name: str, tmp_path: Path) -> None:
    check_situation(promtool, name, ALERTS, tmp_path)


def test_every_alert_fires_in_a_situation() -> None:
    firing = set().union(*(names for situation in SITUATIONS.values() for names in situation.firing.values()))
    assert firing == {rule["alert"] for rule in RULES}


def test_an_alert_says_what_is_wrong_and_what_to_do() -> None:
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_the_page_lists_the_alerts() -> None:
    listed = re.findall(r"^\| `(Evalsvc\w+)` \| (\w+) \|", (DOCS / "how-to" / "monitor.md").read_text(), re.MULTILINE)
    assert listed == [(rule["alert"], rule["labels"]["severity"]) for rule in RULES]


# Expressions

WORDS = {"and", "or", "unless", "on", "by", "offset", "bool", "ignoring", "without", "group_left", "group_right"}
SELECTOR = re.compile(r"([A-Za-z_:][\w:]*)\s*(?:\{([^}]*)\})?")
OF_THE_SCRAPE = {"job", "instance"}


def expressions() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [rule["expr"] for rule in RULES] + panels


def labels_by_name() -> dict[str, set[str]]:
    """The labels of every name that a scrape shows."""
    shown = {"up": set[str]()}
    for name, family in FAMILIES.items():
        ends = {"gauge": [""], "counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}[family.kind]
        shown |= {name + end: set(family.labels) | ({"le"} if end == "_bucket" else set()) for end in ends}
    return shown


def selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Yield the name of each metric of an expression, with its matchers as (label, operator, value)."""
    plain = re.sub(r"\b(by|on) *\([^)]*\)|\[[^]]*\]|\boffset \w+", " ", expression)
    for found in SELECTOR.finditer(re.sub(r"\b[A-Za-z_]\w*\s*(?=\()", " ", plain)):
        if found[1] not in WORDS:
            yield found[1], re.findall(r'(\w+) *(=~|!~|!=|=) *"([^"]*)"', found[2] or "")


def test_expressions_use_metrics_and_labels_that_exist() -> None:
    shown = labels_by_name()
    for expression in expressions():
        found = list(selectors(expression))
        assert found, expression
        known: set[str] = set()
        for name, matchers in found:
            assert name in shown, f"{name}: {expression}"
            assert {label for label, _, _ in matchers} <= shown[name] | OF_THE_SCRAPE, expression
            known |= shown[name]
        for grouped in re.findall(r"\b(?:by|on) *\(([^)]*)\)", expression):
            assert set(re.findall(r"\w+", grouped)) <= known | OF_THE_SCRAPE, expression


def test_values_that_alerts_select_are_shown_by_a_service(tmp_path: Path) -> None:
    """A state that was renamed would make an alert silent for ever."""
    with app_in_process(tmp_path / "data") as app:
        enter(app.store, submission(25), suite())
        evaluate_whole(app.store, metric(1.5))
        enter(app.store, submission(50), suite())
        scraped = text_string_to_metric_families(app.http.get("/metrics").text)
        samples = [sample for family in scraped for sample in family.samples]
    selected = [
        (name, {label: value})
        for rule in RULES
        for name, matchers in selectors(rule["expr"])
        for label, operator, value in matchers
        if label not in OF_THE_SCRAPE and operator == "="
    ]
    assert {label for _, pair in selected for label in pair} == {"state", "outcome"}
    for name, pair in selected:
        assert any(sample.name == name and pair.items() <= sample.labels.items() for sample in samples), (name, pair)


# Dashboard


def test_the_expressions_of_the_dashboard_are_expressions(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$(job|instance)", ".*", text.replace("$__rate_interval", "5m"))}
        for number, text in enumerate(expressions())
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    output_of(promtool, "check", "rules", file)
    assert "$" not in file.read_text()


def test_panels_have_a_place_and_say_what_they_show() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith(".")
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    for first, second in combinations([panel["gridPos"] for panel in panels], 2):
        apart = [
            first[start] + first[length] <= second[start] or second[start] + second[length] <= first[start]
            for start, length in (("x", "w"), ("y", "h"))
        ]
        assert any(apart), (first, second)


def test_the_dashboard_shows_every_metric_of_the_service() -> None:
    """A metric that is added is shown, or named here as one that has nothing to show by itself."""
    shown = {
        name for panel in DASHBOARD["panels"] for target in panel["targets"] for name, _ in selectors(target["expr"])
    }
    left_out = {"process_virtual_memory_bytes", "process_start_time_seconds", "evalsvc_request_seconds_sum"}
    assert labels_by_name().keys() - shown == left_out | {"evalsvc_request_seconds_count"}
