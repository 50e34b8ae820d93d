"""What several commands share."""

from pathlib import Path

import pytest
from console import Command

from evalsvc.cli.options import write_output
from evalsvc.errors import InvalidRequest


def test_a_file_that_cannot_be_written_is_named_by_its_option(tmp_path: Path) -> None:
    """`doctor layout` and `verify` have computed for minutes by then."""
    write_output("--findings", tmp_path / "a.json", "{}\n")
    assert (tmp_path / "a.json").read_text() == "{}\n"
    with pytest.raises(InvalidRequest, match=rf"--findings {tmp_path} cannot be written: is a directory"):
        write_output("--findings", tmp_path, "{}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "loss", "--checkpoint", "a.pt"),
        ("gate", "a.pt", "--baseline", "b.pt", "--until", "decided", "--suite", "miniature"),
        ("verify", "machine"),
        ("verify", "--checkpoint", "a.pt", "--suite", "loss"),
        ("layout", "a.pt", "--pairs", "p.jsonl", "--codebook-size", "64"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_device_that_is_not_there_is_wrong_use_of_every_command(
    command: Command, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """`cuda:0` without a card was a traceback of 90 lines with the exit code of a checkpoint that is bad."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for device, words in (
        ("cuda:0", "--device: there is no device 'cuda:0'; this machine has 0 CUDA cards; use cpu"),
        ("cuda", "--device: there is no device 'cuda'"),
        ("gpu", "--device names 'gpu', which is not a device; use cpu, or a card such as cuda:0"),
    ):
        result = command(*arguments, "--device", device)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith(f"error: {words}")
        assert result.err.count("\n") == 1
    monkeypatch.setenv("EVALSVC_DEVICES", "cuda:1")
    result = command(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: EVALSVC_DEVICES: there is no device 'cuda:1'")
