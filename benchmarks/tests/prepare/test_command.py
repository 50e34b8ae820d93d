"""The program `prepare_data.py`: what it prints, and its errors. What it writes is tested in the files next to this."""

import json
import subprocess
import sys
from pathlib import Path

import prepare_data
import pytest
from console import Command
from programs import environment_without
from training_pairs import DECODER, TOKENIZER, write_folder

from evalsvc.miniature import ROOT

PROGRAM = Path(prepare_data.__file__)
LAYOUT = str(ROOT / "runs" / "layout.yaml")
OPTIONS = ("--decoder", str(DECODER), "--layout", LAYOUT, "--device", "cpu", "--threads", "1")


@pytest.fixture
def images(tmp_path: Path) -> str:
    folder = write_folder(tmp_path / "images", 6)
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "broken.txt").write_text("a caption")
    return str(folder)


def test_what_was_written_and_left_out(command: Command, images: str, tmp_path: Path) -> None:
    result = command(images, "--output", "out", "--held-out", "2", "--shard-size", "3", *OPTIONS)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == "4 sequences of 132 ids in 2 shards, of 4 images"
    assert lines[1] == "2 pairs of 2 images are held out"
    assert lines[2].startswith("6 images were encoded now, ")
    assert lines[3] == "0 captions were cut to 62 ids"
    assert lines[4] == "1 captions or images were left out, see out/refused.jsonl:"
    assert lines[5] == "  1: it is not a JPEG, PNG, WebP or BMP image"
    assert "seq_len 131 and vocab_size 583" in lines[6]
    assert lines[7].split() == [
        *("--dataset-manifest", "out/manifest.jsonl", "--data-key", "json.gz", "--target-mask-individual", "582")
    ]
    assert "encode 7 of 7 images, " in result.err
    assert json.loads((tmp_path / "out" / "prepare.json").read_text())["pairs"]["held_out"] == 2
    again = command(images, "--output", "out", "--held-out", "2", "--shard-size", "3", *OPTIONS)
    assert again.out.splitlines()[2] == "0 images were encoded now, 0 a second"


def test_a_damaged_file_of_codes_is_told(command: Command, images: str, tmp_path: Path) -> None:
    command(images, "--output", "out", *OPTIONS)
    [codes] = (tmp_path / "out" / "codes").glob("*/*.codes")
    codes.write_bytes(b"")
    result = command(images, "--output", "out", *OPTIONS)
    assert result.code == 0
    assert f"warning: the file of codes {codes.name} is damaged; its images were encoded again" in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--output", "out", *OPTIONS], "the source nowhere does not exist"),
        (["images", "--output", "no/out", *OPTIONS], "--output no/out: the folder"),
        (["images", "--output", "out", *OPTIONS, "--held-out", "6"], "--held-out is 6, but the source has 6 different"),
        (["images", "--output", "out", *OPTIONS, "--decoder", "movqgan-67m"], "did you mean 'movqgan-67M'"),
        (["images", "--output", "out", *OPTIONS, "--decoder", "movqgan-67M"], "evalsvc assets pull movqgan-67M"),
        (["images", "--output", "out", *OPTIONS, "--decoder", "./none.ckpt"], "none.ckpt"),
        (["images", "--output", "out", *OPTIONS, "--tokenizer", "none.json"], "none.json does not exist"),
        (["images", "--output", "out", *OPTIONS, "--layout", "image-first"], "has 512 ids, but the layout has 50432"),
        (
            ["images", "--output", "out", *OPTIONS, "--layout", '{"preset": "image-first", "text_size": 512}'],
            "the layout names no tokenizer; give --tokenizer, the file tokenizer.json",
        ),
        (
            [
                *("images", "--output", "out", *OPTIONS, "--tokenizer", str(TOKENIZER)),
                *("--layout", '{"preset": "image-first", "text_size": 512}'),
            ],
            "--layout has 16,384 image ids, but the decoder has 64 codes",
        ),
    ],
)
def test_errors_say_what_to_do(command: Command, images: str, arguments: list[str], words: str, tmp_path: Path) -> None:
    if arguments[-2:] == ["--layout", "image-first"]:
        arguments = [*arguments, "--tokenizer", str(TOKENIZER)]
    result = command(*arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "out" / "prepare.json").exists()


@pytest.mark.parametrize(
    ("setting", "options", "words"),
    [
        ("", ["--device", "cuda:0"], "--device: there is no device 'cuda:0'; this machine has 0 CUDA cards; use cpu"),
        ("", ["--device", "gpu"], "--device names 'gpu', which is not a device; use cpu, or a card such as cuda:0"),
        ("cuda:1", [], "EVALSVC_DEVICES: there is no device 'cuda:1'"),
    ],
)
def test_a_device_that_is_not_there_is_wrong_use(
    command: Command, monkeypatch: pytest.MonkeyPatch, setting: str, options: list[str], words: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("EVALSVC_DEVICES", setting)
    result = command("images", "--layout", LAYOUT, "--output", "out", "--decoder", "d.pt", *options)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {words}")
    assert result.err.count("\n") == 1


@pytest.mark.usefixtures("short_process")
def test_help_needs_no_torch_and_no_installation_of_the_package(tmp_path: Path) -> None:
    """The program begins in a checkout as it stands; importing PyTorch would take seconds."""
    environment = environment_without("torch", tmp_path / "hidden", PROGRAM.parents[1])
    command = [sys.executable, str(PROGRAM), "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: prepare_data.py [OPTIONS] SOURCE\n")
    assert "[default: that of the\n" in done.stdout


def test_an_option_with_a_wrong_value_is_told_with_the_value(command: Command) -> None:
    result = command("images", "--output", "out", *OPTIONS, "--held-out", "-1")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Usage: prepare_data.py [OPTIONS] SOURCE\n")
    assert "Invalid value for '--held-out': Input should be greater than or equal to 0, found '-1'" in result.err
