"""`evalsvc run`: what it prints and writes, and its exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import write_by_hand
from console import Shell

from evalsvc.errors import INSPECT

GOLDEN = Path(__file__).parents[1] / "golden" / "open_lm" / "01_rotary_default_ln_swiglu" / "checkpoints" / "epoch_1.pt"
RUN = f"run mine.yaml --checkpoint {GOLDEN} --device cpu"

SCATTERED = [[59, 56, 36, 15], [7, 32, 2, 58], [38, 38, 26, 42], [20, 46, 55, 40], [42, 35, 1, 57], [15, 49, 30, 19]]
"""Ids that the untrained checkpoint of the golden data expects less than a uniform guess would."""


@pytest.fixture(autouse=True)
def suite(tmp_path: Path) -> None:
    (tmp_path / "ids.jsonl").write_text('{"text_ids": [1, 2, 3, 4, 5]}\n{"text_ids": [5, 4, 3]}\n')
    (tmp_path / "mine.yaml").write_text("tasks: [{kind: loss, data: ids.jsonl}]")


def document(name: str = "result.json") -> Any:
    return json.loads(Path(name).read_text())


def test_result_and_table_by_the_engine_that_is_chosen_for_a_stage(evalsvc: Shell) -> None:
    result = evalsvc(f"{RUN} --output result.json --engine model=float64")
    assert (result.code, "loss/text" in result.out, "sequences" in result.err) == (0, True, True)
    assert {"checkpoint", "suite", "metrics", "protocols", "provenance", "items"} <= set(document())
    assert {metric["protocol"] for metric in document()["metrics"]} == set(document()["protocols"])
    assert all(protocol["engine"] == {"model": "float64"} for protocol in document()["protocols"].values())
    assert document()["provenance"]["loss"]["shards"][0]["model_engine"].startswith("float64 ")
    assert evalsvc(f"{RUN} --engine scoring=hflm").code == 2
    result = evalsvc(f"{RUN} --engine model=transformers")
    assert (result.code, "choose the engine open_lm" in result.err.replace("\n", " ")) == (1, True)


def test_what_is_suspicious_is_told_beside_the_result(evalsvc: Shell, tmp_path: Path) -> None:
    """Of a checkpoint that is its own base, a text loss above that of a guess is no forgetting."""
    (tmp_path / "ids.jsonl").write_text("".join(f'{{"text_ids": {ids}}}\n' for ids in SCATTERED))
    assert "warning" not in evalsvc(f"{RUN} --output result.json").err
    assert document()["warnings"] == {}
    result = evalsvc(f"{RUN} --output result.json --base {GOLDEN}")
    assert (result.code, "warning: loss/text_within: " in result.err) == (0, True)
    [warning] = document()["warnings"]["loss"]
    assert (warning["code"], warning["metric"]) == ("worse_than_guessing", "loss/text_within")


def test_tasks_that_fail_of_one_cause_have_one_error(evalsvc: Shell, tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    Path("two.yaml").write_text("tasks: [{kind: loss, data: ids.jsonl}, {kind: loss, name: again, data: ids.jsonl}]")
    result = evalsvc("run two.yaml --checkpoint empty.pt --device cpu")
    do = f"wait until it is written, or check for a full disk; {INSPECT} [not_a_checkpoint]"
    said = f"error: loss, again: {tmp_path.resolve()}/empty.pt is empty; {do}\n"
    assert (result.code, result.out, result.err) == (1, "", said)


def test_wrong_use_is_no_failure_of_the_weights(evalsvc: Shell) -> None:
    """A CI takes 1 for a checkpoint that is worse."""
    for task, options, code in (
        ("data: nowhere.jsonl", "", "invalid_data"),
        ("data: ids.jsonl, general_text: nowhere.jsonl", "", "invalid_data"),
        ("data: ids.jsonl", """--layout '{"text": {"size": 9999}}'""", "invalid_layout"),
    ):
        Path("mine.yaml").write_text(f"tasks: [{{kind: loss, {task}}}]")
        result = evalsvc(f"{RUN} {options}")
        assert (result.code, f"[{code}]" in result.err) == (2, True)


def test_base_beside_the_checkpoint(evalsvc: Shell, tmp_path: Path) -> None:
    """The checkpoint's layout holds for the base too: both have the same widened table, as a rule."""
    Path("mine.yaml").write_text(f"tasks: [{{kind: steps, log: {tmp_path}/log, shards: 1, steps: 1}}]")
    options = f"""--base {GOLDEN} --layout '{{"text": {{"size": 80}}}}' --output result.json"""
    result = evalsvc(f"{RUN} {options}")
    assert result.code == 0, result.err
    base = document()["provenance"]["steps"]["notes"]["base"]
    assert (base["label"], base["layout"]["text"]["size"]) == (str(GOLDEN), 80)


def test_the_folder_of_an_adapter_is_run_on_its_base(evalsvc: Shell, tmp_path: Path) -> None:
    """On the folder that it names if that is there, or else on that of --base, or on the one of an expression."""
    product = {side: torch.ones(shape) for side, shape in {"A": (2, 24), "B": (72, 2)}.items()}
    name = "base_model.model.layers.0.attention.in_proj.lora_{}.weight"
    tensors = {name.format(side): factor for side, factor in product.items()}
    options = """--layout '{"text": {"size": 80}}' --device cpu --threads 1"""

    def losses(checkpoint: str) -> list[float]:
        result = evalsvc(f"run mine.yaml --checkpoint {checkpoint} {options} --output result.json")
        assert result.code == 0, result.err
        return [metric["value"] for metric in document()["metrics"]]

    folder = write_by_hand(tmp_path / "adapter", tensors, base_model_name_or_path="org/model")
    given = losses(f"{folder} --base {GOLDEN}")
    assert document()["checkpoint"]["label"] == f"base + lora({folder.resolve()})"
    assert given == losses(f"'{GOLDEN} + lora({folder})'") != losses(str(GOLDEN))
    result = evalsvc(f"run mine.yaml --checkpoint {folder} {options}")
    words = "uses base, which is not given; name its weights by --base [invalid_request]"
    assert (result.code, words in result.err) == (2, True)
    assert losses(str(write_by_hand(folder, tensors, base_model_name_or_path=str(GOLDEN)))) == given
    assert document()["checkpoint"]["label"] == f"{GOLDEN} + lora({folder.resolve()})"
    result = evalsvc(f"run mine.yaml --checkpoint 'avg({folder}, {GOLDEN})' {options}")
    assert (result.code, f"{folder} is of a LoRA adapter" in result.err) == (1, True)
    result = evalsvc(f"run mine.yaml --checkpoint '{GOLDEN} + lora({GOLDEN})' {options}")
    assert (result.code, "is no folder of a LoRA adapter" in result.err) == (1, True)


def test_expression_over_files(evalsvc: Shell, tmp_path: Path) -> None:
    """The average of a file with itself is that file; a file that is called like an expression is a file."""
    options = """--layout '{"text": {"size": 80}}' --device cpu --threads 1"""
    expression = f"'avg({GOLDEN}, lerp(base, \"{GOLDEN}\", 0.5))' --base {GOLDEN}"
    for name, checkpoint in {"file": GOLDEN, "virtual": expression}.items():
        result = evalsvc(f"run mine.yaml --checkpoint {checkpoint} {options} --output {name}.json")
        assert result.code == 0, result.err
    file, virtual = document("file.json"), document("virtual.json")
    assert [metric["value"] for metric in virtual["metrics"]] == [metric["value"] for metric in file["metrics"]]
    assert virtual["checkpoint"]["label"] == f"avg({GOLDEN}, lerp(base, {GOLDEN}, 0.5))"
    [shard, *_] = virtual["provenance"]["loss"]["shards"]
    assert shard["parents_sha256"] == dict.fromkeys(("base", str(GOLDEN)), file["checkpoint"]["sha256"])
    assert virtual["checkpoint"]["sha256"] not in (None, file["checkpoint"]["sha256"])
    (tmp_path / "avg(1)").write_bytes(GOLDEN.read_bytes())
    model = GOLDEN.parents[1] / f"golden_{GOLDEN.parents[1].name}.json"
    assert evalsvc(f"run mine.yaml --checkpoint 'avg(1)' {options} --model {model}").code == 0
