"""Benchmarks run as a person runs them, in small. They are held to what they compare, never to how fast it is."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("child_process")

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
TESTS = Path(__file__).parent
FILES = {
    str(path.relative_to(BENCHMARKS)): path
    for path in sorted(BENCHMARKS.rglob("*.py"))
    if not path.is_relative_to(TESTS)
}

QUICK = ("--quick",)
NO_PROGRAM = "/bin/true"
"""A program that does nothing, in the place of one that comes after the first measurement."""
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "calibration.py": (*QUICK, "--processes", "1"),
    "dashboard.py": (*QUICK, "--chromium", NO_PROGRAM),
    "history.py": (*QUICK, "--mlflow", NO_PROGRAM),
    "miniature/train.py": ("--work", "FOLDER", "--out", "FOLDER", "--stage", "images"),
    "trackers.py": (*QUICK, "--only", "--chromium", NO_PROGRAM),
}
"""Options that begin a benchmark; all others begin with `--quick`."""
BEGUN_ELSEWHERE = {
    "bench.py": "harness/test_bench.py",
    "gpu.py": "test_gpu_kit.py",
    "harness/side_process.py": "harness/test_bench.py",
    "paper/check.py": "paper/test_check.py",
    "paper/study/guarded.py": "paper/study/test_guarded.py",
    "paper/train.py": "paper/test_command.py",
    "prepare_data.py": "prepare/test_command.py",
    "soak/soak.py": "test_soak.py",
}
"""Programs that begin in a test of another file."""
PAPER = "paper/paper.py"
PROGRAMS = [
    name
    for name, path in FILES.items()
    if '__name__ == "__main__"' in (text := path.read_text())
    and name not in (*BEGUN_ELSEWHERE, PAPER)
    and "FINDING = Finding(" not in text  # those begin with the paper's
]


def begun(commands: list[list[str]], home: Path, **environment: str) -> dict[str, dict[str, Any]]:
    """Begin benchmarks on a machine without caches and settings, and return how each ended, by file."""
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS", "LANG") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "benchmarks/tests/support/first_measurement.py", json.dumps(commands)],
        cwd=ROOT,
        env=kept | {"HOME": str(home), "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    return {document["file"]: document for document in documents}


@pytest.fixture(scope="module")
def beginnings(child_process: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """How every program of `PROGRAMS` ended after the first thing that it measured."""
    folder = str(tmp_path_factory.mktemp("work"))
    commands = [
        [name, *(folder if each == "FOLDER" else each for each in OPTIONS.get(name, QUICK))] for name in PROGRAMS
    ]
    return begun(commands, tmp_path_factory.mktemp("home"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_benchmark_gets_to_its_first_measurement(name: str, beginnings: dict[str, dict[str, Any]]) -> None:
    """One of them asked for a download where the asset was in another folder."""
    assert beginnings[name]["code"] == 0, beginnings[name]["output"]


@pytest.mark.timeout(300)
def test_the_papers_computation_begins(inception_path: Path, tmp_path: Path) -> None:
    command = [PAPER, "--quick", "--work", str(tmp_path / "work")]
    [beginning] = begun([command], tmp_path, EVALSVC_ASSETS=str(inception_path.parent)).values()
    assert beginning["code"] == 0, beginning["output"]


def last_line(name: str, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", "--quick", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert document["benchmark"] == name
    assert all(ratio > 0 for ratio in document["ratios"].values())
    return document


@pytest.mark.long
def test_both_sides_of_the_loss_compute_the_same() -> None:
    """A change of the task's context once left the benchmark unable to start."""
    document = last_line("loss")
    assert document["ratios"]
    assert document["losses"]["ours"] == pytest.approx(document["losses"]["theirs"], rel=1e-5)


@pytest.mark.long
def test_all_sides_of_sampling_choose_the_same_codes() -> None:
    """CTranslate2 is a peer where it is installed."""
    document = last_line("sampling")
    cases = {ratio.partition(",")[0] for ratio in document["ratios"]}
    assert cases == {"fp32-32", "bf16-32", "fp32-1", "real-32", "grouped-32"}
    equal = {name: share for name, share in document["equal_greedy_codes"].items() if name != "bf16-32"}
    assert set(equal.values()) == {1.0}
    grouped, repeated = document["cases"]["grouped-32"]["cache_bytes"].values()
    assert repeated == 3 * grouped, "three heads of queries share one of keys and values"


@pytest.mark.long
def test_both_sides_of_text_score_the_same() -> None:
    document = last_line("text")
    assert set(document["ratios"]) == {"0 shots", "fixed shots", "texts"}
    work = {name: (case["token_ratio"], case["head_ratio"]) for name, case in document["cases"].items()}
    assert work["texts"][0] == 1, "what is plain is read once by both"
    assert 2 < work["0 shots"][0] < work["fixed shots"][0] < work["fixed shots"][1]
    assert document["difference"] < 1e-4


@pytest.mark.long
def test_both_sides_of_text_score_the_same_with_a_llama_in_a_folder(tmp_path: Path) -> None:
    from tiny_llama import write_tiny_llama

    write_tiny_llama(tmp_path)
    document = last_line("text", "--model", str(tmp_path))
    assert set(document["ratios"]) == {"0 shots", "fixed shots", "texts"}
    assert document["difference"] < 1e-4


def test_repeated_heads_compute_what_shared_ones_do(tmp_path: Path) -> None:
    from repeated_heads import repeat_heads
    from tiny_llama import write_tiny_llama
    from widened_llama import widen

    write_tiny_llama(tmp_path)
    shared = widen(tmp_path, 64, seed=0)
    repeated = repeat_heads(shared.model)
    ids = torch.arange(40).view(2, 20) * 14
    with torch.inference_mode():
        assert torch.allclose(repeated(ids).logits, shared.model(ids).logits, atol=1e-5)
    assert repeated.model.layers[0].self_attn.k_proj.weight.shape == (48, 48)


def test_a_widened_llama_keeps_its_text_rows(tmp_path: Path) -> None:
    from tiny_llama import TEXT_ROWS, write_tiny_llama
    from transformers import LlamaForCausalLM
    from widened_llama import widen

    write_tiny_llama(tmp_path)
    known = LlamaForCausalLM.from_pretrained(tmp_path).get_input_embeddings().weight.detach()
    widened = widen(tmp_path, 64, seed=0)
    table = widened.model.get_input_embeddings().weight.detach()
    assert widened.layout.rows == len(table) == TEXT_ROWS + 64 + 7
    assert widened.model.get_output_embeddings().weight.data_ptr() == table.data_ptr(), "the table is tied"
    assert torch.equal(table[:TEXT_ROWS], known)
    assert float(table[TEXT_ROWS:].std()) == pytest.approx(float(known.std()), rel=0.1)
    assert torch.equal(table, widen(tmp_path, 64, seed=0).model.get_input_embeddings().weight.detach())


def test_all_sides_of_the_frechet_distance_agree() -> None:
    document = last_line("frechet")
    assert set(document["ratios"]) == {"scipy sqrtm", "torch-fidelity", "jackknife of 20 groups"}
    assert document["difference"] < 1e-6
    ours, groups = document["stderr"].values()
    assert ours == pytest.approx(groups, rel=0.6), "twenty groups tell an error to a sixth"


@pytest.mark.long
def test_both_sides_of_decoding_compute_the_same() -> None:
    document = last_line("decoding")
    assert document["equality"]["small decode"] < 1e-4
    assert document["equality"]["small encode"] == 1.0
    assert document["bf16_error_in_grey_levels"]["small"]["mean"] < 3


@pytest.mark.long
def test_both_sides_of_image_tokenizers_compute_the_same() -> None:
    document = last_line("image_tokenizers")
    assert set(document["equality"]) == {"VQ-16 encode", "VQ-16 decode", "Chameleon encode"}
    assert document["equality"]["VQ-16 decode"] < 1e-4
    assert document["equality"]["VQ-16 encode"] == document["equality"]["Chameleon encode"] == 1.0


@pytest.mark.long
def test_preparing_gives_the_codes_of_the_encoder_alone() -> None:
    document = last_line("preparing")
    assert set(document["ratios"]) == {"first stage of prepare"}
    assert document["sequences_per_second"] > 0


@pytest.mark.long
def test_prompts_to_features_are_those_of_the_assembled_script(
    inception_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALSVC_ASSETS", str(inception_path.parent))
    document = last_line("images_end_to_end")
    assert set(document["ratios"]) == {"assembled script"}
    assert document["feature_error"] < 1e-3
    stages = {side: set(stages) for side, stages in document["stage_seconds"].items()}
    assert stages["assembled script"] - stages["evalsvc"] == {"PNG files"}


def test_every_cell_of_the_calibration_draws() -> None:
    """A name that had moved ended the table at one of its last cells, after minutes."""
    draw = "import numpy, simulated\nfor cell in simulated.ALL: cell.draw(numpy.random.default_rng(0))"
    done = subprocess.run([sys.executable, "-c", draw], cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_interval_test_and_gate_holds_what_it_says() -> None:
    """On simulated data of which the truth is known, in small; the benchmark itself fails where a cell is outside."""
    document = last_line("calibration")
    assert document["outside"] == []
    families = {cell["cell"].partition(" | ")[0] for cell in document["cells"]}
    assert len(families) > 25


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_gate_passes_another_seed_and_catches_damage() -> None:
    """The miniature's checkpoint under a few seeds."""
    document = last_line("calibration", "--seeds", "6")
    assert document["outside"] == []
    gates = document["seeds"]
    assert sum(group["failures"] for name, group in gates.items() if name.startswith("damaged")) >= 9


def test_the_roofline_is_that_of_the_facts() -> None:
    """Worked out by hand for open_lm_1b in bfloat16: at 600 live tokens, and over the positions of a whole image."""
    from roofline import CARDS, Work, widened

    work = Work(widened("open_lm_1b", 66_823), batch=256, context=600)
    h100, h200 = CARDS["H100 SXM"], CARDS["H200 SXM"]
    assert work.bytes_read(0) == pytest.approx(2.53e9, rel=2e-3)
    assert work.bytes_read(1) - work.bytes_read(0) == 256 * 196_608
    assert 1e3 * work.operations(600) / h100.half == pytest.approx(0.69, abs=0.01)
    rates = {batch: replace(work, batch=batch).images_per_second(h100) for batch in (1, 32, 128, 256, 320, 512)}
    expected = {1: 1.23, 32: 16.6, 128: 23.7, 256: 25.6, 320: 26.0, 512: 26.6}
    assert rates == {batch: pytest.approx(rate, rel=5e-3) for batch, rate in expected.items()}
    assert replace(work, batch=512).images_per_second(h200) == pytest.approx(38.1, rel=2e-3)
    assert replace(work, batch=128, guided=True).images_per_second(h100) == pytest.approx(12.8, rel=2e-3)
    assert replace(work, cache_dtype="float8").images_per_second(h100) == pytest.approx(47.5, rel=5e-3)
    assert replace(work, context=None).batch_seconds(h100) == pytest.approx(9.20, rel=2e-3)
    for batch, gigabytes in {1: 3.2, 128: 29.7, 256: 56.4, 320: 69.7, 512: 109.7}.items():
        # Weights, keys and values; evalsvc predicts what lies beside them, too.
        assert 1 < replace(work, batch=batch).memory_bytes() / gigabytes / 1e9 < 1.1


def test_the_roofline_measures_a_model_that_is_whole_on_its_device() -> None:
    """Rotary frequencies are made on the CPU whatever the default device: on a card the first step once failed."""
    from roofline import Work, random_model, widened

    model = random_model(Work(widened("open_lm_test_tiny", 128), batch=1), "meta")
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert model.tok_embeddings.weight.dtype == torch.bfloat16
    assert model.positions.inv_freq.dtype == torch.float32


def test_the_roofline_times_steps_apart_from_captures() -> None:
    from roofline import MARK_STEPS, Work, measured_rate, step_seconds, widened

    work = Work(widened("open_lm_test_tiny", 128), batch=2, prompt=5, length=80, codebook=64, dtype="float32")
    rate = measured_rate(work, "cpu")
    assert min(rate.whole, rate.steps) > 0

    capture, marks = 50.0, [0.0]
    for reading in range(16):
        marks.append(marks[-1] + MARK_STEPS * (2.0 if reading < 8 else 3.0) + capture * (reading in {0, 1, 5, 9, 13}))
    assert step_seconds(marks) == 2.5


def test_rates_of_a_card_are_measured_on_what_fills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum over a few rows, and products that end sooner than they are started, read less than a card can do."""
    import side_by_side

    assert 2 * 8_192**3 in [2 * rows * width * columns for rows, width, columns in side_by_side.CARD_SHAPES]
    monkeypatch.setattr(side_by_side, "TABLE_BYTES", 4 << 20)
    calls: list[str] = []
    monkeypatch.setattr(side_by_side, "seconds", lambda work: calls.append("turn") or work() or 0.5)
    assert side_by_side.copy_bandwidth("cpu") == 2 * (4 << 20) / 0.5
    assert len(calls) == side_by_side.TURNS


@pytest.mark.long
def test_the_service_compares_as_its_client_does() -> None:
    """The benchmark itself fails where the two give different numbers."""
    document = last_line("compare")
    assert set(document["ratios"]) == {"SQLite"}
    assert document["items"] > 1_000
    assert 4 * document["bytes"]["packed"] < document["bytes"]["json"]


@pytest.mark.long
def test_all_sides_of_the_features_agree(inception_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALSVC_ASSETS", str(inception_path.parent))
    document = last_line("features")
    assert set(document["ratios"]) == {"torch-fidelity", "clean-fid"}
    assert all(error < 1e-5 for error in document["errors"].values())


@pytest.mark.long
def test_the_service_is_measured_by_shards_that_all_ran() -> None:
    document = last_line("service")
    assert set(document["ratios"]) == {"2 workers"}
    assert document["one"]["overhead_ms"]["median"] > 0
    assert document["one"]["memory_mb"]["service"] > 30


@pytest.mark.long
def test_a_crowd_leaves_something_to_the_others() -> None:
    """All that is asked beside the crowd is answered, however long it takes here."""
    document = last_line("crowd")
    assert set(document["figures"]) == set(document["limits"]) == set(document["met"])
    assert max(document["figures"].values()) < 60
    assert document["failed_probes"] == {}


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("chromium")
def test_every_page_of_a_long_history_is_drawn_and_known_the_second_time() -> None:
    """The status page has ages, which are others the second time."""
    document = last_line("dashboard")
    assert set(document["figures"]) == set(document["limits"]) == set(document["met"])
    assert all(same for page, same in document["not_modified"].items() if page != "status")
    assert min(document["charts"][page] for page in ("a run", "eight runs over each other", "one chart")) > 0


@pytest.mark.long
def test_workers_send_features_once_and_read_them_from_the_shared_folder() -> None:
    document = last_line("looks")
    outputs = 512 * 2048 * 4
    for place in ("own kid", "elsewhere kid"):
        assert document[place]["received"] < outputs / 4, place
        assert document[place]["sent"] < 2 * outputs, place
    assert outputs < document["elsewhere kid"]["sent"]


@pytest.mark.long
def test_the_first_chart_of_a_history_is_waited_for(chromium: object) -> None:
    """Without the peers, which are other people's programs: whether pages are opened and charts are noticed."""
    document = last_line("trackers", "--only")
    assert document["ratios"] == {}
    assert 0 < document["first"]["evalsvc"] <= document["in_view"]["evalsvc"]
    assert document["other_hosts"] == {"evalsvc": []}
