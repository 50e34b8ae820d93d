"""Alerts fire on the situations that they name and are quiet otherwise; dashboard and alerts use metrics that exist."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

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
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
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
WAIT, WAITING, WORKERS = "evalsvc_queue_oldest_seconds", "evalsvc_evaluations state=queued", "evalsvc_workers"


SITUATIONS: dict[str, tuple[Series, Mapping[int, str]]] = {
    "healthy": ({}, {59: "", 130: "", 380: ""}),
    "idle": ({QUEUED: "0x600", WAIT: "0x600", SUCCEEDED: "5x600"}, {130: ""}),
    "new service, nothing asked for": ({QUEUED: "0x600", WAITING: "_", SUCCEEDED: "_", FAILED: "_"}, {10: "", 130: ""}),
    "does not answer": ({"up": "1x99 0x500"}, {104: "", 106: "Down", 170: "Down"}),
    "a scrape fails": ({"up": "1x99 0 1x500"}, {104: "", 106: ""}),
    "nothing is scraped": (ALL_GONE, {59: "", 80: "Down"}),
    "restarted twice": ({"process_start_time_seconds": "1x99 2x9 3x400"}, {115: ""}),
    "restarts often": ({"process_start_time_seconds": "1x99 2x9 3x9 4x400"}, {100: "", 130: "RestartsOften", 200: ""}),
    "the database is away for half an hour": (
        DATABASE_AWAY,
        {101: "", 103: "DatabaseDown", 129: "DatabaseDown", 131: "", 170: "", 195: ""},
    ),
    "the coordinator stopped": ({"evalsvc_coordinator_up": "1x99 0x500"}, {101: "", 103: "CoordinatorDown"}),
    "a worker is replaced": ({WORKERS: "4x99 0x5 4x400"}, {105: "", 120: ""}),
    "no workers, nothing waits": ({WORKERS: "4x99 0x500", QUEUED: "0x600"}, {105: "", 111: "NoWorkers"}),
    "a worker does not come back": ({WORKERS: "4x99 3x500"}, {150: "", 165: "WorkersMissing", 470: ""}),
    "a service that only reads": ({WORKERS: "_", "evalsvc_coordinator_up": "_"}, {130: ""}),
    "nothing evaluated for an hour": ({SUCCEEDED: "0+1x99 99x500"}, {100: "", 160: "", 166: "NothingEvaluated"}),
    "an idle hour ends": ({SUCCEEDED: "5x600", QUEUED: "0x300 3x299"}, {310: "", 360: "", 367: "NothingEvaluated"}),
    "the queue was empty in between": ({QUEUED: "3x100 0x39 3x460", SUCCEEDED: "5+1x90 95x509"}, {159: ""}),
    "one shard in an hour": (
        {SUCCEEDED: "5x59 6x58 7x480"},
        {59: "", 100: "", 119: "", 170: "", 200: "NothingEvaluated"},
    ),
    "the first shard ever succeeded": ({SUCCEEDED: "_x99 1x500"}, {70: "NothingEvaluated", 105: "", 155: ""}),
    "nothing ever evaluated": ({SUCCEEDED: "_"}, {60: "", 66: "NothingEvaluated"}),
    "the queue grows": ({WAIT: "0+60x600", WAITING: "1+1x600"}, {385: "", 395: "QueueGrows"}),
    "a long queue of short waits": ({WAIT: "20000x600", WAITING: "1+1x600"}, {420: ""}),
    "a long queue shrinks": ({WAIT: "0+60x600", WAITING: "900-1x600"}, {420: ""}),
    "evaluations of last week are retried": ({WAIT: "0x100 600000+60x499", WAITING: "_x100 1+1x499"}, {400: ""}),
    "four attempts fail": ({FAILED: "3x99 7x500"}, {100: "", 150: ""}),
    "attempts fail by a code that is new": ({FAILED: "_x99 6x500"}, {90: "", 101: "Failures", 165: ""}),
    "attempts fail by a known code": ({FAILED: "50x99 50+1x500"}, {100: "", 110: "Failures", 170: "Failures"}),
    "Prometheus is new, the failures are old": ({FAILED: "500x600"}, {10: "", 59: "", 70: ""}),
    "the disk fills up within a day": ({FREE: "299000000000-250000000x600"}, {50: "", 400: "DiskFillsUp"}),
    "the disk is written, and large": ({FREE: "900000000000-700000000x600"}, {400: ""}),
    "the disk is almost full": ({FREE: "60000000000x99 49000000000x500"}, {104: "", 107: "DiskAlmostFull"}),
    "connections are left open": ({"process_open_fds": "100x99 900x500"}, {108: "", 111: "FilesRunOut"}),
}
"""What differs from a healthy service, and the alert that fires at some minutes, without `Evalsvc` before its name."""


def promtool(*arguments: str | Path) -> None:
    output_of(find_program("promtool", "Debian's package prometheus"), *arguments)


def written(series: str) -> str:
    name, *labels = series.split()
    pairs = ['job="evalsvc"', 'instance="a:8321"', *(label.replace("=", '="') + '"' for label in labels)]
    return f"{name}{{{', '.join(pairs)}}}"


@pytest.mark.parametrize("name", SITUATIONS)
def test_exactly_the_alerts_of_a_situation_fire(child_process: None, name: str, tmp_path: Path) -> None:
    changes, firing = SITUATIONS[name]
    expected = [
        {
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": f'{{alertname="Evalsvc{alert}"}}', "value": 1}] if alert else [],
        }
        for minute, alert in firing.items()
    ]
    series = [{"series": written(series), "values": text} for series, text in {**HEALTHY, **changes}.items()]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": expected}
    file = tmp_path / "situation.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", file)


def test_every_alert_fires_in_a_situation_and_is_listed_on_the_page_with_what_to_do() -> None:
    fired = {f"Evalsvc{alert}" for _, firing in SITUATIONS.values() for alert in firing.values() if alert}
    assert fired == {rule["alert"] for rule in RULES}
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
    listed = re.findall(r"^\| `(Evalsvc\w+)` \| (\w+) \|", (DOCS / "how-to" / "operate.md").read_text(), re.MULTILINE)
    assert listed == [(rule["alert"], rule["labels"]["severity"]) for rule in RULES]


# Expressions

WORDS = {"and", "or", "unless", "on", "by", "offset", "bool", "ignoring", "without", "group_left", "group_right"}
SELECTOR = re.compile(r"([A-Za-z_:][\w:]*)\s*(?:\{([^}]*)\})?")
OF_THE_SCRAPE = {"job", "instance"}


PANELS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS = [rule["expr"] for rule in RULES] + PANELS


def labels_by_name() -> dict[str, set[str]]:
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
    for expression in EXPRESSIONS:
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


def test_the_expressions_of_the_dashboard_are_expressions(child_process: None, tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$(job|instance)", ".*", text.replace("$__rate_interval", "5m"))}
        for number, text in enumerate(EXPRESSIONS)
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", file)
    promtool("check", "rules", "--lint-fatal", ALERTS)
    assert "$" not in file.read_text()


def test_the_dashboard_shows_every_metric_of_the_service() -> None:
    """A metric that is added is shown, or named here as one that has nothing to show by itself."""
    shown = {name for panel in PANELS for name, _ in selectors(panel)}
    left_out = {"process_virtual_memory_bytes", "process_start_time_seconds", "evalsvc_request_seconds_sum"}
    assert labels_by_name().keys() - shown == left_out | {"evalsvc_request_seconds_count"}
