"""What the command line shows: tables, bars, lines. Results on stdout, all else on stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from evalsvc.files.csv_cells import plain_cell
from evalsvc.spec.visible_text import visible, visible_line

if TYPE_CHECKING:
    from rich.progress import Progress

    from evalsvc.compare.gate import Look
    from evalsvc.config import Settings
    from evalsvc.worker.shard import TaskLook

ANSWER_WIDTH = 60
"""Characters of a completion that the demo shows."""


def print_demo(columns: Sequence[str], rows: Sequence[Any]) -> None:
    """A row per checkpoint of the demo."""
    print_table(
        ["run", "step", *columns, "image grid"],
        [[row.run, str(row.step), *(row.cells.get(name, "") for name in columns), row.grid or ""] for row in rows],
    )


def print_answers(answers: Sequence[Any]) -> None:
    """A line per run and step, as much of it as a terminal has room for."""
    from itertools import groupby

    for prompt, runs in groupby(answers, lambda found: found.prompt):
        say(_one_line(prompt))
        for found in runs:
            for step, text in found.by_step.items():
                say(f"  {found.run:>11} {step:>4} │ {_one_line(text)[:ANSWER_WIDTH]}")
        say()


def print_states() -> Callable[[Mapping[str, Any]], None]:
    """Says on stderr what is waited for, and again when its state changes: a log has no room for bars."""
    said: dict[int, str] = {}

    def report(evaluation: Mapping[str, Any]) -> None:
        number, state = evaluation["id"], evaluation["state"]
        if said.get(number) != state:
            said[number] = state
            say(f"evaluation {number} ({evaluation['suite']['name']}) is {state}", err=True)

    return report


def print_look(look: Look) -> None:
    """A metric of both sides while they are sampled, on stderr."""
    from evalsvc.compare.reports import look_row

    metric, n, change, interval, *_, verdict = look_row(look)
    say(f"{metric} after {n}: {change} ({interval}), {verdict}", err=True)


def print_interim(look: TaskLook) -> None:
    """What a task has found so far, on stderr."""
    _say_so_far(f"{look.task} after {look.units:,} of {look.total:,} {look.unit}", look.result.output)


def print_news() -> Callable[[Mapping[str, Any]], None]:
    """Says on stderr what the tasks of an evaluation have found so far, and why one waits to be tried again; once each
    time."""
    said: set[tuple[int, str, object]] = set()

    def report(evaluation: Mapping[str, Any]) -> None:
        for task in evaluation["tasks"]:
            retry, interim = task.get("retry"), task.get("interim")
            if retry and (wait := (evaluation["id"], task["name"], retry["at"])) not in said:
                said.add(wait)
                error = retry["error"]
                when = datetime.fromisoformat(retry["at"]).astimezone()
                again = f"{task['name']} is tried again at {when:%H:%M:%S}"
                say(f"{again}: {error['message']} [{error['code']}]", err=True)
            if interim and (look := (evaluation["id"], task["name"], interim["done"])) not in said:
                said.add(look)
                _say_so_far(f"{task['name']} after {interim['done']:,} {task['progress']['unit']}", interim)

    return report


def _say_so_far(when: str, output: Mapping[str, Any]) -> None:
    """Of metrics with an error, which says how far they may be from the end."""
    from evalsvc.spec.protocol import labels

    metrics = output["metrics"]
    found = [
        f"{label.partition('/')[2]} {_number(metric['value'])} {_error_bar(metric['stderr'])}"
        for label, metric in zip(labels(metrics, output["protocols"]), metrics, strict=True)
        if isinstance(metric["stderr"], float)
    ]
    if found:
        say(f"{when}: {', '.join(found)}", err=True)


def show_posted(posted: Mapping[str, Any]) -> None:
    checkpoint = posted["checkpoint"]
    made_of = f", {checkpoint['uri']}" if checkpoint["parents"] else ""
    place = f"{checkpoint['run']} step {checkpoint['step']} {checkpoint['variant']}"
    say(f"checkpoint {checkpoint['id']}: {place}{made_of}")
    for evaluation in posted["evaluations"]:
        say(f"evaluation {evaluation['id']}: {evaluation['suite']} {evaluation['state']}")
    if not posted["evaluations"]:
        say("no suite is due at this step by the run's plan; name one with --suite")


def show_finished(evaluation: Mapping[str, Any]) -> None:
    protocols = {identity: content for task in evaluation["tasks"] for identity, content in task["protocols"].items()}
    print_metrics([metric for task in evaluation["tasks"] for metric in task["metrics"] or []], protocols)
    for task in evaluation["tasks"]:
        # A service of an older version has none.
        print_warnings(task.get("warnings", ()))
    name = f"evaluation {evaluation['id']} ({evaluation['suite']['name']})"
    failed = [task for task in evaluation["tasks"] if task["error"]]
    for task in failed:
        complain(f"{name}, task {task['name']}: {task['error']['message']} [{task['error']['code']}]")
    if evaluation["error"] and not failed:
        complain(f"{name}: {evaluation['error']['message']} [{evaluation['error']['code']}]")


class Bars:
    """One progress bar per task, made when the task is first heard of."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._ids: dict[str, Any] = {}

    def show(self, task: str, done: int, total: int | None, unit: str) -> None:
        if task not in self._ids:
            self._ids[task] = self._progress.add_task(visible_line(task), total=None, unit=visible_line(unit))
        self._progress.update(self._ids[task], completed=done, total=total, unit=visible_line(unit))


@contextmanager
def show_bars() -> Iterator[Bars]:
    """Bars on stderr, so that stdout holds the result alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with progress:
        yield Bars(progress)


def print_metrics(metrics: Sequence[Mapping[str, Any]], protocols: Mapping[str, Mapping[str, Any]]) -> None:
    """A line per metric; where several protocols have one, with what tells them apart. `protocols` are by id."""
    from evalsvc.spec.protocol import labels

    if metrics:
        rows = [
            [label, _number(metric["value"]), _error_bar(metric["stderr"]), _items_of(metric), metric["unit"]]
            for label, metric in zip(labels(metrics, protocols), metrics, strict=True)
        ]
        print_table(["metric", "value", "± stderr", "n", "unit"], rows)
        _explain_groups(metrics)


def print_history(found: Mapping[str, Any]) -> None:
    """A run's values, with what tells several protocols of a metric apart, and where imported values are from."""
    history = _history_rows(found)
    rows = [
        [
            row["metric"],
            row["variant"],
            row["protocol"],
            row["differs"],
            str(row[found["x"]]),
            _number(row["value"]),
            _error_bar(row["stderr"]),
            _items_of(row),
            row["unit"],
            row["source"] or "",
        ]
        for row in history
    ]
    columns = [
        "metric",
        "variant",
        "protocol",
        "differs",
        found["x"],
        "value",
        "± stderr",
        "n",
        "unit",
        "imported from",
    ]
    needed = [place for place in range(len(columns)) if place not in (3, 9) or any(row[place] for row in rows)]
    if rows:
        print_table([columns[place] for place in needed], [[row[place] for place in needed] for row in rows])
        _explain_groups(history)
    else:
        say(f"run {found['run']} has no values yet")
    _print_omitted(found["series"])


def print_curves(joined: Mapping[str, Any]) -> None:
    """Several runs: a table per curve, with a line per step and a column per series."""
    for curve in joined["curves"]:
        protocol = "of several protocols, forced" if curve["protocol"] is None else f"protocol {curve['protocol']}"
        said = ", ".join(filter(None, [curve["unit"], protocol, _fields(curve["differs"])]))
        say(f"{curve['metric']} ({said})")
        several = curve["protocol"] is None
        columns = [_series_label(series, several) for series in curve["series"]]
        cells = [_cells(series) for series in curve["series"]]
        steps = sorted({at for series in cells for at in series})
        print_table([joined["x"], *columns], [[str(at), *(series.get(at, "") for series in cells)] for at in steps])
    _print_omitted([series for curve in joined["curves"] for series in curve["series"]])
    if not joined["curves"] and not joined["refused"]:
        say(f"runs {', '.join(joined['runs'])} have no values yet")


def print_tradeoff(found: Mapping[str, Any]) -> None:
    """A line per checkpoint: a metric, and others beside it."""
    metrics = [found["against"], *found["columns"]]
    rows = [
        [row["run"], row["variant"], str(row[found["x"]]), *(_point(row[metric]) for metric in metrics)]
        for row in found["rows"]
    ]
    print_table(["run", "variant", found["x"], *metrics], rows)


def write_tradeoff_csv(found: Mapping[str, Any]) -> None:
    """A line per checkpoint, with a column for each value and each standard error."""
    rows = []
    for row in found["rows"]:
        plain = {key: row[key] for key in ("run", "variant", found["x"])}
        for metric in (found["against"], *found["columns"]):
            point = row[metric] or {}
            plain |= {metric: point.get("value"), f"{metric} stderr": point.get("stderr")}
            plain |= {f"{metric} source": _source(found["imports"][row["run"]], point.get("import"))}
        rows.append(plain)
    _write_rows(rows)


def _point(point: Mapping[str, Any] | None) -> str:
    return "" if point is None else _cell(point["value"], point["stderr"], point["import"])


def _cell(value: float | str | None, stderr: float | None, origin: int | None) -> str:
    """A value with its error; one that was not measured here is marked."""
    return " ".join(filter(None, [_number(value), _error_bar(stderr), "" if origin is None else "(imported)"]))


def _source(imports: Mapping[str, Mapping[str, str]], origin: int | None) -> str | None:
    """Where an imported value is from; None where it was measured."""
    return None if origin is None else imports[str(origin)]["source"]


def _print_omitted(series: Sequence[Mapping[str, Any]]) -> None:
    if omitted := sum(one["omitted"] for one in series):
        say(f"{omitted} values of checkpoints that were posted without tokens_seen are not shown")


def _series_label(series: Mapping[str, Any], several: bool) -> str:
    variant = series["variant"] if series["variant"] != "raw" else ""
    return " ".join(filter(None, [series["run"], variant, _fields(series["differs"]) if several else ""]))


def _cells(series: Mapping[str, Any]) -> dict[int, str]:
    from evalsvc.compare.curves import origins

    columns = zip(series["x"], series["value"], series["stderr"], origins(series), strict=True)
    return {at: _cell(value, stderr, origin) for at, value, stderr, origin in columns}


def _fields(differs: Mapping[str, Any]) -> str:
    """What tells a protocol apart, e.g. `sampling.guidance_scale=3.0`."""
    from evalsvc.spec.protocol import describe_fields

    return describe_fields(differs)


CONTRAST_WORDS = {
    "no_error_known": "no error known",
    "other_protocol": "OTHER PROTOCOL",
    "only_a": "only in A",
    "only_b": "only in B",
}
"""What a table calls these verdicts; the others are words already."""


def print_contrasts(found: Mapping[str, Any]) -> None:
    """A comparison of two checkpoints, a line per metric; of the columns at the end, those that a line needs."""
    say(f"A: {found['a']}\nB: {found['b']}")
    interval = f"{100 * found['level']:.4g} % interval"
    columns = ["B is", "metric", "A", "B", "B − A", interval, "basis", "n"]
    together = found.get("family") == "holm"
    p_values = "p (Holm, all metrics)" if together else "p (Holm)"
    columns += ["left out", "only A / B right", p_values, "protocols differ in", "why there is no interval"]
    rows = [_contrast_row(contrast, together) for contrast in found["contrasts"]]
    used = [place for place in range(len(columns)) if place < 8 or any(row[place] for row in rows)]
    if rows:
        print_table([columns[place] for place in used], [[row[place] for place in used] for row in rows])
        _explain_groups(found["contrasts"])
        _explain_verdicts(found)
    else:
        say("neither has any metrics")
    for side in "ab":
        # A service of an older version has none.
        print_warnings(found.get("warnings", {}).get(side, ()), f"{side.upper()}, ")


def _explain_verdicts(found: Mapping[str, Any]) -> None:
    """Say how many of the verdicts chance alone would give; a service of an older version does not know."""
    judged, expected = found.get("judged", 0), found.get("expected_by_chance")
    if not judged:
        return
    metrics = "1 metric has a verdict" if judged == 1 else f"{judged:,} metrics have a verdict"
    level = f"{found['level']:.4g}"
    if expected is None:
        say(
            f"{metrics}, judged together by Holm's method: if nothing had changed, none would be better, worse or "
            f"different, with a probability of {level}; each interval holds by itself"
        )
        return
    say(
        f"{metrics} at level {level}, each by itself: if nothing had changed, about {expected:.2g} would be better, "
        "worse or different by chance alone; --family holm judges all of them together"
    )


def _contrast_row(contrast: Mapping[str, Any], together: bool) -> list[str]:
    from evalsvc.spec.protocol import describe_differences, differences_from_json, labelled

    forced = " (forced)" if contrast["differing"] and contrast["difference"] is not None else ""
    interval, answers = contrast["interval"], contrast["answers"]
    return [
        CONTRAST_WORDS.get(contrast["verdict"], contrast["verdict"]) + forced,
        labelled(contrast["metric"], contrast["differs"]),
        _side(contrast["a"]),
        _side(contrast["b"]),
        _change(contrast["difference"]),
        f"{_change(interval['low'])} … {_change(interval['high'])}" if interval else "",
        contrast["basis"],
        _items_of(contrast),
        _left_out(contrast),
        f"{answers['only_a']:,} / {answers['only_b']:,}" if answers else "",
        _p_values(contrast["p"], contrast["p_holm"]) if together else _p_values(**_exact(answers)),
        describe_differences(differences_from_json(contrast["differing"])),
        contrast["no_error"],
    ]


def _exact(answers: Mapping[str, Any] | None) -> dict[str, float | None]:
    """McNemar's p, and that corrected over the benchmarks of the metric."""
    return {"p": None, "holm": None} if answers is None else {"p": answers["p"], "holm": answers["holm"]}


def _p_values(p: float | None, holm: float | None) -> str:
    return "" if p is None else f"{p:.2g} ({holm:.2g})"


def _left_out(contrast: Mapping[str, Any]) -> str:
    """How many items of each side the other lacks, which the difference leaves out."""
    counts = {side.upper(): contrast.get(f"n_only_{side}", 0) for side in "ab"}
    return ", ".join(f"{count:,} only {side} has" for side, count in counts.items() if count)


def _side(side: Mapping[str, Any] | None) -> str:
    """The value with its interval; with its standard error where it has none."""
    if side is None:
        return ""
    value = _number(side["value"])
    # A service of an older version knows no interval of one side.
    if (low := side.get("low")) is None:
        return f"{value} {_error_bar(side['stderr'])}".rstrip()
    return f"{value} [{low:.4g}, {float(side['high']):.4g}]"


def _change(value: float | str | None) -> str:
    return f"{value:+.4g}" if isinstance(value, float) else "" if value is None else str(value)


def print_difference_curves(found: Mapping[str, Any]) -> None:
    """Two runs along their steps: a table per metric, and where the difference enters and leaves the noise."""
    say(f"A: {found['a']}\nB: {found['b']}")
    for curve in found["curves"]:
        protocol = "of several protocols, forced" if curve["protocol"] is None else f"protocol {curve['protocol']}"
        said = ", ".join(filter(None, [curve["unit"], protocol, _fields(curve["differs"])]))
        say(f"{curve['metric']} ({said})")
        band = f"{100 * found['level']:.4g} % interval, {found['band']}"
        columns = [found["x"], "A", "B", "B − A", band, "basis", "B is"]
        print_table(columns, [_step_row(row) for row in _curve_rows(curve)])
        for line in _crossing_lines(curve):
            say(line)
        say()
    for metric, reason in found["refused"].items():
        say(f"{metric} is left out where its protocols differ: {reason}")
    if not found["curves"] and not found["refused"]:
        say("they have no metric in common at any step")


def _step_row(row: Mapping[str, Any]) -> list[str]:
    sides = (f"{_number(row[side])} {_error_bar(row[side + '_stderr'])}".rstrip() for side in "ab")
    interval = "" if row["low"] is None else f"{_change(row['low'])} … {_change(row['high'])}"
    verdict = CONTRAST_WORDS.get(row["verdict"], row["verdict"])
    return [str(row["x"]), *sides, _change(row["difference"]), interval, row["basis"], verdict]


def _crossing_lines(curve: Mapping[str, Any]) -> Iterator[str]:
    for name, what in (("indistinguishable", "the interval covers zero"), ("apart", "the difference is beyond noise")):
        first, always = curve[f"first_{name}"], curve[f"{name}_from"]
        yield f"{what} at no step" if first is None else f"{what} first at step {first}"
        if always is not None:
            yield f"simultaneous band: {what} from step {always} on always"
    for before, after in curve["sign_changes"]:
        yield f"simultaneous band: the difference changes its sign between steps {before} and {after}"


def _curve_rows(curve: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per step, of the columns."""
    columns = {name: values for name, values in curve.items() if isinstance(values, list) and name != "sign_changes"}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


COMPLETION_COLUMNS = ("ids", "image", "seq-rep-4", "base loss", "of ids", "kept", "edits")


def print_completions(steps: Sequence[Mapping[str, Any]], everything: bool) -> None:
    """Prompt by prompt, a line each: its numbers, and the text whatever characters the model wrote.

    `kept` and `edits` compare with the step before: how many ids both begin with, and how many must change to make one
    of the other. What no line of a prompt has is no column.
    """
    lines: dict[tuple[str, str], dict[str, tuple[Mapping[str, str], str]]] = {}
    for row in steps:
        for item in row["completions"]:
            way = item["way"]
            if way != "greedy" and not everything:
                continue
            found = lines.setdefault((row["task"], item["prompt"]), {})
            if item["base"] is not None:
                found[_completion_label("base", "raw", way)] = _base_numbers(item), item["base"]
            found[_completion_label(f"step {row['step']}", row["variant"], way)] = _own_numbers(item), item["text"]
    for (_, prompt), found in lines.items():
        say(prompt)
        _print_answers_to(found)
        say()


def _print_answers_to(found: Mapping[str, tuple[Mapping[str, str], str]]) -> None:
    """The base's first."""
    columns = [name for name in COMPLETION_COLUMNS if any(numbers.get(name) for numbers, _ in found.values())]
    rows = [
        (label, [numbers.get(name, "") for name in columns], text)
        for label, (numbers, text) in sorted(found.items(), key=lambda entry: not entry[0].startswith("base"))
    ]
    if columns:
        rows.insert(0, ("", columns, ""))
    widths = [max(len(cells[place]) for _, cells, _ in rows) for place in range(len(columns))]
    first = max(map(len, found))
    for label, cells, text in rows:
        numbers = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        say(f"  {label:{first}}{numbers} │ {_one_line(text)}".rstrip())


def _own_numbers(item: Mapping[str, Any]) -> dict[str, str]:
    """The columns of a completion; empty where it has no such number."""
    repeated, previous = item.get("seq_rep_4"), item.get("previous")
    return {
        "ids": str(item.get("drawn", "")),
        "image": str(item.get("image_ids", "")),
        "seq-rep-4": "" if repeated is None else f"{repeated:.2f}",
        **_judged(item.get("base_nll"), item.get("base_scored")),
        "kept": "" if previous is None else str(previous["common_prefix"]),
        "edits": "" if previous is None else str(previous["edit_distance"]),
    }


def _base_numbers(item: Mapping[str, Any]) -> dict[str, str]:
    ids = item.get("base_ids")
    own = _judged(item.get("base_own_nll"), item.get("base_own_scored"))
    return {"ids": "" if ids is None else str(len(ids)), **own}


def _judged(nll: float | None, scored: int | None) -> dict[str, str]:
    """The base's loss in nats/token, and on how many ids."""
    loss = f"{nll / scored:.2f}" if nll is not None and scored else ""
    return {"base loss": loss, "of ids": "" if scored is None else str(scored)}


def _completion_label(what: str, variant: str, way: str) -> str:
    return " ".join([what, *([variant] if variant != "raw" else []), *([way] if way != "greedy" else [])])


def _one_line(text: str) -> str:
    return visible_line(text.replace("\n", "⏎"))


def _history_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per value."""
    from evalsvc.compare.curves import group_counts, origins

    return [
        {
            "metric": series["metric"],
            "variant": series["variant"],
            "protocol": series["protocol"],
            "differs": _fields(series["differs"]),
            found["x"]: at,
            "value": value,
            "stderr": stderr,
            "n": n,
            "groups": groups,
            "unit": series["unit"],
            "direction": series["direction"],
            "import": origin,
            "source": _source(found["imports"], origin),
        }
        for series in found["series"]
        for at, value, stderr, n, groups, origin in zip(
            *(series[name] for name in ("x", "value", "stderr", "n")),
            group_counts(series),
            origins(series),
            strict=True,
        )
    ]


def write_csv(found: Mapping[str, Any]) -> None:
    """A history, a line per value."""
    _write_rows(_history_rows(found))


def write_curves_csv(joined: Mapping[str, Any]) -> None:
    """Histories of several runs, a line per value."""
    rows = []
    for series in (series for curve in joined["curves"] for series in curve["series"]):
        history = {"x": joined["x"], "series": [series], "imports": joined["imports"][series["run"]]}
        rows += [{"run": series["run"], **row} for row in _history_rows(history)]
    _write_rows(rows)


def write_difference_curves_csv(found: Mapping[str, Any]) -> None:
    """Two runs along their steps, a line per metric and step."""
    said = ("metric", "task", "unit", "direction", "protocol", "step_level")
    _write_rows(
        [
            {
                **{name: curve[name] for name in said},
                "differs": _fields(curve["differs"]),
                found["x"]: row.pop("x"),
                **row,
            }
            for curve in found["curves"]
            for row in _curve_rows(curve)
        ]
    )


def write_contrasts_csv(found: Mapping[str, Any]) -> None:
    """A comparison, a line per metric."""
    from evalsvc.spec.protocol import describe_differences, differences_from_json

    rows = []
    for contrast in found["contrasts"]:
        plain = dict(contrast)
        for name in "ab":
            side = plain.pop(name) or {}
            plain |= {key: side.get(field) for key, field in ((name, "value"), (f"{name}_stderr", "stderr"))}
            plain |= {f"{name}_{field}": side.get(field) for field in ("low", "high", "n", "groups", "protocol")}
        interval = plain.pop("interval") or {}
        plain |= {"low": interval.get("low"), "high": interval.get("high")}
        answers = plain.pop("answers") or {}
        plain |= {name: answers.get(name) for name in ("only_a", "only_b", "holm")}
        differing = describe_differences(differences_from_json(contrast["differing"]))
        rows.append(plain | {"differing": differing, "differs": _fields(contrast["differs"])})
    _write_rows(rows)


def _write_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    import csv

    if rows:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(map(_csv_cell, rows[0]))
        writer.writerows([_csv_cell(row.get(name)) for name in rows[0]] for row in rows)


def _csv_cell(value: Any) -> Any:
    return plain_cell(visible(value) if isinstance(value, str) else value)


def print_settings(settings: Settings, given: set[str]) -> None:
    from evalsvc.config import PREFIX, setting_sources

    derived = {
        "data_dir": settings.data_path,
        "database_url": settings.database,
        "datasets": settings.datasets_path,
        "assets": settings.assets_path,
    }
    rows = [
        [
            PREFIX + name.upper(),
            _shown_setting(name, derived.get(name, getattr(settings, name))),
            "option" if name in given else source,
        ]
        for name, source in setting_sources().items()
    ]
    print_table(["setting", "value", "from"], rows)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    # As `Text`, brackets in names are no markup.
    for column in columns:
        table.add_column(Text(visible_line(column)))
    for row in rows:
        table.add_row(*(Text(visible_line(cell)) for cell in row))
    # A pipe has no width: what reads it wants whole lines.
    Console(width=None if sys.stdout.isatty() else 240).print(table)


def _number(value: float | str | None) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _items_of(row: Mapping[str, Any]) -> str:
    """The number of items, `300 in 60` where they are in fewer independent groups; a service of an older version knows
    of no groups."""
    n, groups = row["n"], row.get("groups")
    if n is None:
        return ""
    return f"{n:,}" if groups is None or groups >= n else f"{n:,} in {groups:,}"


def _explain_groups(rows: Iterable[Mapping[str, Any]]) -> None:
    """Say what `300 in 60` means, where a row has it."""
    grouped = next((items for row in rows if " in " in (items := _items_of(row))), None)
    if grouped is not None:
        n, _, groups = grouped.partition(" in ")
        say(f"n: {grouped} is {n} items in {groups} independent groups, over which the standard error is taken")


def _error_bar(stderr: float | None) -> str:
    return "" if stderr is None else f"± {stderr:.2g}"


def print_warnings(warnings: Iterable[Mapping[str, Any]], whose: str = "") -> None:
    """Print what is suspicious about a task's result, on stderr."""
    for warning in warnings:
        say(f"warning: {whose}{warning['metric']}: {_one_line(warning['message'])}", err=True)


def say(text: str = "", *, err: bool = False) -> None:
    """Print a text at once, with what others wrote in it shown and not obeyed: all output but tables and bars."""
    print(visible(text), file=sys.stderr if err else sys.stdout, flush=True)


def say_json(document: Any) -> None:
    """Print a document as JSON, which escapes all control characters but one."""
    print(json.dumps(document, indent=2).replace("\x7f", "\\u007f"), flush=True)


def complain(message: str) -> None:
    say(f"error: {message}", err=True)


def warn(message: str) -> None:
    say(f"warning: {message}", err=True)


def _shown_setting(name: str, value: object) -> str:
    """Of a secret, that it is set; of the database's address, all but what lets somebody in."""
    from evalsvc.config import SECRETS, shown_url

    if name == "database_url":
        return shown_url(str(value))
    if name in SECRETS and value:
        return "set"
    return re.sub(r"//[^/@]*@", "//", str(value))
