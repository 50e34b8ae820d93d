"""`evalsvc suites`."""

from pathlib import Path
from typing import Any

import pytest
from console import Shell

from evalsvc.miniature import ROOT
from evalsvc.spec.parameters import new_suite
from evalsvc.spec.suite import load_suite

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


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"x" * 1_000_001, "a.yaml has 1,000,001 bytes, more than the 1,000,000 of a suite"),
        (b"\xff\xfe", "a.yaml cannot be read as text"),
        (b"tasks: [", "not valid YAML"),
    ],
)
def test_what_is_no_suite_is_not_sent(evalsvc: Shell, service: Any, content: bytes, words: str) -> None:
    Path("a.yaml").write_bytes(content)
    refused = evalsvc("suites put a.yaml")
    assert (refused.code, words in refused.err, "Traceback" in refused.err) == (2, True, False), refused.err
