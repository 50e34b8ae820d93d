"""`evalsvc run`: what it prints and writes, and its exit codes."""

import json
from pathlib import Path

import pytest
from console import Command

GOLDEN = Path(__file__).parents[1] / "golden" / "open_lm" / "01_rotary_default_ln_swiglu" / "checkpoints" / "epoch_1.pt"

SCATTERED = [[59, 56, 36, 15], [7, 32, 2, 58], [38, 38, 26, 42], [20, 46, 55, 40], [42, 35, 1, 57], [15, 49, 30, 19]]
"""Ids that the untrained checkpoint of the golden data expects less than a uniform guess would."""


@pytest.fixture
def suite(tmp_path: Path) -> str:
    (tmp_path / "ids.jsonl").write_text('{"text_ids": [1, 2, 3, 4, 5]}\n{"text_ids": [5, 4, 3]}\n')
    (tmp_path / "mine.yaml").write_text("tasks: [{kind: loss, data: ids.jsonl}]")
    return "mine.yaml"


def test_result_and_table(command: Command, suite: str, tmp_path: Path) -> None:
    result = command("run", suite, "--checkpoint", str(GOLDEN), "--output", "result.json", "--device", "cpu")
    assert result.code == 0, result.err
    assert "loss/text" in result.out
    assert "sequences" in result.err
    document = json.loads((tmp_path / "result.json").read_text())
    assert {"checkpoint", "suite", "metrics", "protocols", "provenance", "items"} <= set(document)
    assert {metric["protocol"] for metric in document["metrics"]} == set(document["protocols"])


def test_an_engine_is_chosen_for_a_stage(command: Command, suite: str, tmp_path: Path) -> None:
    """Its series is apart, and the provenance has its version."""
    options = ["--checkpoint", str(GOLDEN), "--output", "result.json", "--device", "cpu"]
    assert command("run", suite, *options, "--engine", "model=float64").code == 0
    document = json.loads((tmp_path / "result.json").read_text())
    assert all(protocol["engine"] == {"model": "float64"} for protocol in document["protocols"].values())
    assert document["provenance"]["loss"]["shards"][0]["model_engine"].startswith("float64 ")
    assert command("run", suite, *options, "--engine", "scoring=hflm").code == 2
    result = command("run", suite, *options, "--engine", "model=transformers")
    assert (result.code, "choose the engine open_lm" in result.err.replace("\n", " ")) == (1, True)


def test_what_is_suspicious_is_told_beside_the_result(command: Command, tmp_path: Path) -> None:
    """Of a checkpoint that is its own base, a text loss above that of a guess is no forgetting."""
    (tmp_path / "ids.jsonl").write_text("".join(f'{{"text_ids": {ids}}}\n' for ids in SCATTERED))
    (tmp_path / "mine.yaml").write_text("tasks: [{kind: loss, data: ids.jsonl}]")
    options = ["--checkpoint", str(GOLDEN), "--output", "result.json", "--device", "cpu"]
    assert "warning" not in command("run", "mine.yaml", *options).err
    assert json.loads((tmp_path / "result.json").read_text())["warnings"] == {}
    result = command("run", "mine.yaml", *options, "--base", str(GOLDEN))
    assert result.code == 0
    assert "warning: loss/text_within: " in result.err
    [warning] = json.loads((tmp_path / "result.json").read_text())["warnings"]["loss"]
    assert (warning["code"], warning["metric"]) == ("worse_than_guessing", "loss/text_within")


def test_task_that_fails(command: Command, suite: str, tmp_path: Path) -> None:
    """Of one cause there is one error: each task had the same one, with the path twice."""
    (tmp_path / "empty.pt").touch()
    Path("two.yaml").write_text("tasks: [{kind: loss, data: ids.jsonl}, {kind: loss, name: again, data: ids.jsonl}]")
    result = command("run", "two.yaml", "--checkpoint", "empty.pt", "--device", "cpu")
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        f"error: loss, again: {tmp_path.resolve()}/empty.pt is empty; wait until it is written, or check for a full "
        "disk [not_a_checkpoint]\n"
    )


@pytest.mark.parametrize(
    ("task", "code"),
    [("data: nowhere.jsonl", "invalid_data"), ("data: ids.jsonl, general_text: nowhere.jsonl", "invalid_data")],
)
def test_a_wrong_suite_is_no_failure_of_the_weights(command: Command, suite: str, task: str, code: str) -> None:
    """A CI takes 1 for a checkpoint that is worse."""
    Path("wrong.yaml").write_text(f"tasks: [{{kind: loss, {task}}}]")
    result = command("run", "wrong.yaml", "--checkpoint", str(GOLDEN), "--device", "cpu")
    assert (result.code, f"[{code}]" in result.err) == (2, True)


def test_a_wrong_layout_is_no_failure_of_the_weights(command: Command, suite: str) -> None:
    layout = ["--layout", '{"text": {"size": 9999}}', "--device", "cpu"]
    result = command("run", suite, "--checkpoint", str(GOLDEN), *layout)
    assert (result.code, "[invalid_layout]" in result.err) == (2, True)


def test_base_beside_the_checkpoint(command: Command, tmp_path: Path) -> None:
    """The checkpoint's layout holds for the base too: both have the same widened table, as a rule."""
    (tmp_path / "steps.yaml").write_text(f"tasks: [{{kind: steps, log: {tmp_path}/log, shards: 1, steps: 1}}]")
    options = ["--base", str(GOLDEN), "--layout", '{"text": {"size": 80}}', "--output", "result.json"]
    result = command("run", "steps.yaml", "--checkpoint", str(GOLDEN), *options)
    assert result.code == 0, result.err
    document = json.loads((tmp_path / "result.json").read_text())
    base = document["provenance"]["steps"]["notes"]["base"]
    assert (base["label"], base["layout"]["text"]["size"]) == (str(GOLDEN), 80)


def test_expression_over_files(command: Command, suite: str, tmp_path: Path) -> None:
    """The average of a file with itself is that file; a file that is called like an expression is a file."""
    layout = ["--layout", '{"text": {"size": 80}}', "--device", "cpu", "--threads", "1"]
    expression = f"avg({GOLDEN}, lerp(base, '{GOLDEN}', 0.5))"
    for name, arguments in {"file": [str(GOLDEN)], "virtual": [expression, "--base", str(GOLDEN)]}.items():
        result = command("run", suite, "--checkpoint", *arguments, *layout, "--output", f"{name}.json")
        assert result.code == 0, result.err
    file, virtual = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("file", "virtual"))
    assert [metric["value"] for metric in virtual["metrics"]] == [metric["value"] for metric in file["metrics"]]
    assert virtual["checkpoint"]["label"] == f"avg({GOLDEN}, lerp(base, {GOLDEN}, 0.5))"
    [shard, *_] = virtual["provenance"]["loss"]["shards"]
    assert shard["parents_sha256"] == dict.fromkeys(("base", str(GOLDEN)), file["checkpoint"]["sha256"])
    assert virtual["checkpoint"]["sha256"] not in (None, file["checkpoint"]["sha256"])
    (tmp_path / "avg(1)").write_bytes(GOLDEN.read_bytes())
    model = ["--model", str(GOLDEN.parents[1] / f"golden_{GOLDEN.parents[1].name}.json")]
    assert command("run", suite, "--checkpoint", "avg(1)", *layout, *model).code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([f"avg({'a' * 300}.pt)"], "file name too long"),
        (["avg(run@5, a.pt)"], "run@5 names a checkpoint of the service, and this command reads files"),
        (["avg(base)"], "base, which is not given; name its weights by --base"),
        (["avg(base)", "--base", f"avg({GOLDEN})"], "base, which is an expression; write the expression out"),
        ([str(GOLDEN), "--output", "no/r.json"], "the folder no does not exist; create the folder first"),
        ([str(GOLDEN), "--base", "nowhere.pt"], "nowhere.pt: no such file"),
        ([str(GOLDEN), "--base-model", "a"], "--base-model is given without --base"),
    ],
)
def test_bad_argument(command: Command, suite: str, arguments: list[str], words: str) -> None:
    result = command("run", suite, "--checkpoint", *arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
