"""`evalsvc suites`, and what suites are made of: `tasks`, `metrics`, `assets`, `reference`, `benchmarks`."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy
import pytest
import yaml
from benchmark_files import questions, write_benchmark, write_rows
from console import Shell
from doc_blocks import DOCS
from typer.main import get_command

from evalsvc.assets import ASSETS, Asset, Source
from evalsvc.cli import app
from evalsvc.cli.tasks import describe_task, task_summaries
from evalsvc.files.kept import KeptFolder
from evalsvc.metrics.definitions import DEFINITIONS
from evalsvc.miniature import ROOT
from evalsvc.spec import catalog
from evalsvc.spec.parameters import new_suite
from evalsvc.spec.suite import load_suite
from evalsvc.tasks.reference_statistics import load_reference

SUITE = "description: mine\ntasks:\n  - {kind: loss, name: pairs, data: /data.jsonl}\n"


def test_a_new_suite_is_printed_or_written(evalsvc: Shell) -> None:
    assert evalsvc("suites new --task loss").out == new_suite(["loss"])
    assert evalsvc("suites new --task loss --brief").out == new_suite(["loss"], brief=True)
    written = evalsvc("suites new --task loss --task completions --output mine.yaml")
    assert "evalsvc suites check mine.yaml" in written.out, written.err
    assert [task.kind for task in load_suite(Path("mine.yaml")).tasks] == ["loss", "completions"]
    before = Path("mine.yaml").read_bytes()
    assert evalsvc("suites new --task loss --output mine.yaml").code == 2, "a file is not written over"
    assert Path("mine.yaml").read_bytes() == before


def test_values_are_set_on_the_command_line(evalsvc: Shell, tmp_path: Path) -> None:
    """A first suite took an editor, although its author knew the one path that mattered."""
    (tmp_path / "pairs.jsonl").write_bytes((ROOT / "heldout_pairs.jsonl").read_bytes())
    (tmp_path / "4").mkdir()
    written = evalsvc("suites new --task loss --set data=pairs.jsonl --set limit=4 --output suites/mine.yaml")
    assert written.out == "wrote suites/mine.yaml; run: evalsvc suites check suites/mine.yaml\n"
    [task] = load_suite(tmp_path / "suites" / "mine.yaml").tasks
    assert (task.parameters["data"], task.parameters["limit"]) == (str(tmp_path / "pairs.jsonl"), 4)
    assert evalsvc("suites check suites/mine.yaml").code == 0


@pytest.mark.usefixtures("wide_pipe")
def test_a_suite_is_checked_by_its_file_or_name_and_listed(evalsvc: Shell) -> None:
    Path("mine.yaml").write_text(new_suite(["loss"]))
    wrong = evalsvc("suites check mine.yaml")
    problem = "- task 'loss': data: /path/to/sequences.jsonl is a placeholder; replace it with your own path"
    assert (wrong.code, problem in wrong.out, "suite mine: 1 problem\n" in wrong.out) == (1, True, True)
    text = Path("mine.yaml").read_text().replace("/path/to/sequences.jsonl", str(ROOT / "heldout_pairs.jsonl"))
    Path("mine.yaml").write_text(text)
    right = evalsvc("suites check mine.yaml")
    assert (right.code, right.out) == (0, "suite mine: nothing is wrong or missing in its 1 task\n")
    assert evalsvc("suites check mine --suites .").code == 0
    Path("broken.yaml").write_text("tasks: [")
    shown = evalsvc("suites list --suites .").out
    for words in ("What this suite measures, in a line.", "not valid YAML", "text-quick"):
        assert words in shown


@pytest.mark.usefixtures("wide_pipe")
def test_several_files_and_rules_of_the_gate_are_checked(evalsvc: Shell) -> None:
    Path("rules.yaml").write_text(
        "rules: [{metric: pairs/*}, {metric: gsm8k/f1}, {metric: a/text_unigram, direction: lower}]"
    )
    Path("mine.yaml").write_text(SUITE.replace("/data.jsonl", str(ROOT / "heldout_pairs.jsonl")))
    right = evalsvc("suites check rules.yaml mine.yaml")
    assert (right.code, right.out.splitlines()) == (
        0,
        [
            "rule 2 (gsm8k/f1): the metric is one of lm-eval or of a plug-in, or the name is wrong",
            "rules rules: nothing is wrong or missing in its 3 rules",
            "suite mine: nothing is wrong or missing in its 1 task",
        ],
    )
    Path("family.yaml").write_text("family: hol")
    Path("rules.yaml").write_text("rules: [{metric: pairs/imaeg}, {metric: '*_unigram'}]")
    wrong = evalsvc("suites check family.yaml rules.yaml mine.yaml")
    first, *lines, last = wrong.out.splitlines()
    assert (wrong.code, last) == (1, "suite mine: nothing is wrong or missing in its 1 task")
    assert first == "- family.yaml has no list `rules`; give at least one, e.g. `- metric: pairs/*`"
    assert [line.partition("; available")[0] for line in lines] == [
        "rules family: 1 problem",
        "- rule 1 (pairs/imaeg): no metric is named 'imaeg'; did you mean 'image'?",
        "- rule 2 (*_unigram): no side of the metric is better; give the rule a `direction`",
        "rules rules: 2 problems",
    ]


def test_the_hooks_of_pre_commit_are_commands_that_take_files() -> None:
    hooks = {hook["id"]: hook for hook in yaml.safe_load((DOCS.parent / ".pre-commit-hooks.yaml").read_text())}
    for hook, given, other in (
        ("evalsvc-suites", ("suites/a.yaml", "x/suites/a.json"), ("a.yaml", "suites/a/b.yaml")),
        ("evalsvc-rules", ("rules.yaml", "ci/gate_rules.yml"), ("schedules.yaml", "rules/a.yaml")),
    ):
        assert [bool(re.search(hooks[hook]["files"], name)) for name in (*given, *other)] == [True, True, False, False]
        program, name, *arguments = shlex.split(hooks[hook]["entry"])
        assert (program, hooks[hook]["language"]) == ("evalsvc", "system")
        get_command(app).commands[name].make_context(name, [*arguments, *given])  # type: ignore[attr-defined]


def test_a_suite_is_kept_in_the_service_shown_and_deleted(evalsvc: Shell, service: Any) -> None:
    for name in ("captions", "loss"):
        Path(f"{name}.yaml").write_text(SUITE)
    assert evalsvc("suites put captions.yaml").out.startswith("suite captions is uploaded: 1 task, digest ")
    assert evalsvc("suites put captions.yaml --name other").code == 0
    shown = evalsvc("suites show captions").out
    assert shown.startswith("suite captions (put), digest ")
    assert "mine\ntask pairs, kind loss:" in shown
    assert '  data: "/data.jsonl"' in shown
    listed = evalsvc("suites list --service --format json").json["suites"]
    assert {"captions", "other", "loss"} <= {suite["suite"] for suite in listed}
    assert evalsvc("suites delete other --yes").out == "suite other is deleted\n"
    refused = evalsvc("suites put loss.yaml")
    assert (refused.code, "--replace-shipped" in refused.err) == (2, True)
    assert evalsvc("suites put loss.yaml --replace-shipped").code == 0
    deleted = evalsvc("suites delete loss --yes").out
    assert deleted == "suite loss is deleted; the name now stands for the suite of the shipped\n"


def test_what_is_no_suite_is_not_sent(evalsvc: Shell, service: Any) -> None:
    for content, words in (
        (b"x" * 1_000_001, "a.yaml has 1,000,001 bytes, more than the 1,000,000 of a suite"),
        (b"\xff\xfe", "a.yaml cannot be read as text"),
        (b"tasks: [", "not valid YAML"),
    ):
        Path("a.yaml").write_bytes(content)
        refused = evalsvc("suites put a.yaml")
        assert (refused.code, words in refused.err, "Traceback" in refused.err) == (2, True, False), refused.err


def test_all_kinds_and_metrics_are_a_row_of_a_table_each(evalsvc: Shell) -> None:
    shown = evalsvc("tasks").out
    for kind in catalog.COMPONENTS["tasks"]:
        task = describe_task(kind)
        assert f"\n{kind} " in shown
        assert all((task.measures.endswith("."), task.needs, task.metrics))
    assert "evalsvc suites new --task KIND" in shown
    assert [item["kind"] for item in evalsvc("tasks --format json").json] == catalog.names("tasks")
    assert [row["kind"] for row in evalsvc("tasks --format csv").rows] == catalog.names("tasks")
    shown = evalsvc("metrics").out
    assert [definition for definition in DEFINITIONS if definition.names[0] not in shown] == []


def test_one_kind_and_one_metric_are_shown(evalsvc: Shell) -> None:
    shown = evalsvc("tasks text_to_image").out
    for words in ("needs: captions, the image decoder", "until.stderr", "number, above 0", "fid_infinity"):
        assert words in shown
    assert evalsvc("tasks text_to_image --format json").json == describe_task("text_to_image").to_json()
    assert "until.stderr" in {row["parameter"] for row in evalsvc("tasks text_to_image --format csv").rows}
    shown = " ".join(evalsvc("metrics captions/text_within").out.split())
    assert shown.startswith("text_within, image_within (task loss) Σ −ln p(token | an id of its type) / Σ tokens")
    for words in ("unit: nats/token; lower is better", "Cochran", "two checkpoints: compared item by item"):
        assert words in shown


def test_a_plug_ins_task_is_described_and_one_that_cannot_be_imported_disturbs_no_other(
    evalsvc: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "support" / "plug_ins")
    monkeypatch.setitem(catalog.COMPONENTS["tasks"], "broken", "evalsvc_no_such_package:Task")
    found = {kind: (measures, needs) for kind, measures, needs in task_summaries()}
    assert found["letters"] == ("Counts letters.", "")
    assert "needs the package 'evalsvc_no_such_package'" in found["broken"][1]
    shown = evalsvc("tasks letters").out
    for words in ("letters: Counts letters.", "times", "By how much the number is multiplied."):
        assert words in shown
    assert "needs:" not in shown


@pytest.mark.usefixtures("wide_pipe")
def test_assets_are_listed_and_pulled_from_a_file(
    evalsvc: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = evalsvc("assets list")
    assert {row[0]: row[1] for row in result.cells if "MB" in row} == dict.fromkeys(ASSETS, "-"), result.err
    monkeypatch.setitem(ASSETS, "decoder", Asset("decoder", "kept.ckpt", 5, "decoding", (Source("https://a/b", None),)))
    (tmp_path / "mine.ckpt").write_bytes(b"weights")
    pulled = tmp_path / "home" / "evalsvc" / "assets" / "kept.ckpt"
    assert evalsvc("assets pull decoder --from mine.ckpt").out == f"decoder: {pulled}\n"
    assert pulled.read_bytes() == b"weights"
    [row] = [row for row in evalsvc("assets list").cells if row[:1] == ["decoder"]]
    assert (row[1], str(tmp_path / "mine.ckpt") in row) == ("installed", True)


def test_statistics_are_imported(evalsvc: Shell, tmp_path: Path) -> None:
    numpy.savez(tmp_path / "x.npz", mu=numpy.zeros(64), sigma=numpy.eye(64))
    saved = tmp_path / "home" / "evalsvc" / "shared" / "statistics" / "theirs.npz"
    assert evalsvc("reference import x.npz --name theirs --n 30000").out == f"theirs: {saved}\n"
    assert load_reference("theirs", KeptFolder(saved.parent)).foreign


def test_benchmarks_are_listed_with_their_origin_and_prepared(evalsvc: Shell, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.yaml").write_text("task: arc_of_ones_own\n")
    rows = {row[0]: row[1:] for row in evalsvc("benchmarks list arc_ --include-path own").cells if row}
    assert rows["arc_easy"] == ["benchmark", "arc/arc_easy.yaml"]
    assert rows["arc_of_ones_own"] == ["benchmark", "own/a.yaml"]
    write_benchmark(tmp_path, "mine", dataset_kwargs={"data_files": {"test": "datasets:rows.jsonl"}})
    write_rows(tmp_path / "home" / "evalsvc" / "datasets" / "rows.jsonl", questions(2))
    result = evalsvc("benchmarks prepare mine --include-path .")
    assert (result.code, result.out, result.err) == (0, "mine: needs no data set of the hub\n", "")
