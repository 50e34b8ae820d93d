"""What several commands share."""

from pathlib import Path

import pytest

from evalsvc.cli.options import write_output
from evalsvc.errors import InvalidRequest


def test_a_file_that_cannot_be_written_is_named_by_its_option(tmp_path: Path) -> None:
    """`doctor layout` and `verify` have computed for minutes by then."""
    write_output("--findings", tmp_path / "a.json", "{}\n")
    assert (tmp_path / "a.json").read_text() == "{}\n"
    with pytest.raises(InvalidRequest, match=rf"--findings {tmp_path} cannot be written: is a directory"):
        write_output("--findings", tmp_path, "{}\n")
