"""What several commands share."""

from pathlib import Path

import pytest

from evalsvc.cli.options import form_of, output_of, write_output
from evalsvc.errors import InvalidRequest


def test_a_file_that_cannot_be_written_is_named_by_its_option(tmp_path: Path) -> None:
    """`doctor layout` and `verify` have computed for minutes by then."""
    write_output("--findings", tmp_path / "a.json", "{}\n")
    assert (tmp_path / "a.json").read_text() == "{}\n"
    with pytest.raises(InvalidRequest, match=rf"--findings {tmp_path} cannot be written: is a directory"):
        write_output("--findings", tmp_path, "{}\n")


def test_former_spellings_work_and_say_the_present_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert (form_of("csv", False), form_of("table", True)) == ("csv", "json")
    assert "the next version removes; give --format json" in capsys.readouterr().err
    assert output_of(Path("a"), None) == Path("a")
    assert output_of(None, Path("b"), "--findings") == Path("b")
    assert "the next version removes; give --findings" in capsys.readouterr().err
    with pytest.raises(InvalidRequest, match="--output a and --json b are both given; leave --json out"):
        output_of(Path("a"), Path("b"))
