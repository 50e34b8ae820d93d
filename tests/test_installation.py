"""The command that a message gives for a missing package fits how evalsvc was installed."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from evalsvc.installation import NAME, PACKAGE, Origin, find_origin, missing_package, recorded_origin

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VCS = {"vcs": "git", "commit_id": COMMIT}


def recorded(**content: Any) -> Origin:
    return recorded_origin(json.dumps(content))


@pytest.mark.parametrize(
    ("record", "requirement"),
    [
        ({"url": "file:///src/my%20project", "dir_info": {"editable": True}}, "-e '/src/my project[worker]'"),
        ({"url": "file:///src/evalsvc", "dir_info": {}}, "'/src/evalsvc[worker]'"),
        (
            {"url": "https://g.example/e.git", "vcs_info": VCS},
            f"'evalsvc[worker] @ git+https://g.example/e.git@{COMMIT}'",
        ),
        (
            {"url": "ssh://git@git.example/all.git", "vcs_info": VCS, "subdirectory": "evaluation"},
            f"'evalsvc[worker] @ git+ssh://git@git.example/all.git@{COMMIT}#subdirectory=evaluation'",
        ),
        (
            {"url": "file:///wheels/evalsvc-0.1.0-py3-none-any.whl", "archive_info": {"hash": "sha256=00"}},
            "'evalsvc[worker] @ file:///wheels/evalsvc-0.1.0-py3-none-any.whl'",
        ),
        ({}, "'evalsvc[worker]'"),
    ],
)
def test_the_command_for_each_kind_of_installation(record: dict[str, Any], requirement: str) -> None:
    origin = recorded(**record)
    assert origin.requirement("worker") == requirement
    words = shlex.split(requirement)
    assert [word.count("[worker]") for word in words] == [0] * (len(words) - 1) + [1], "one argument for the shell"


@pytest.mark.parametrize("record", [None, "", "{", "[]", "7", '{"url": 7}', '{"vcs_info": {}}', '{"dir_info": {}}'])
def test_a_record_that_cannot_be_read_counts_as_an_index(record: str | None) -> None:
    assert recorded_origin(record) == Origin()


@pytest.mark.parametrize(
    "url", ["https://me:s3cret@git.example/x.git", "https://s3cret@git.example/x.git", "https://git.example/x?t=s3cret"]
)
def test_secrets_of_an_address_are_not_shown(url: str) -> None:
    for kind in ({"vcs_info": VCS}, {"archive_info": {}}):
        assert "s3cret" not in recorded(url=url, **kind).requirement("worker")
    assert "git.example" in recorded(url=url, archive_info={}).requirement()


def test_a_quote_in_a_path_ends_no_argument() -> None:
    folder = Path("/tmp/it's; touch x")
    assert shlex.split(Origin(folder, is_editable=True).requirement("hf")) == ["-e", f"{folder}[hf]"]


def test_a_checkout_is_known_by_its_folder(tmp_path: Path) -> None:
    """Another evalsvc may be installed in the environment that runs the code of a checkout."""
    assert find_origin() == Origin(PACKAGE.parent, is_editable=True)
    (tmp_path / "pyproject.toml").touch()
    assert find_origin(tmp_path / NAME) == Origin(tmp_path, is_editable=True)


def test_code_without_a_checkout_asks_pips_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "evalsvc-0.1.0.dist-info" / "direct_url.json"
    record.parent.mkdir()
    record.with_name("METADATA").write_text("Metadata-Version: 2.1\nName: evalsvc\nVersion: 0.1.0\n")
    record.write_text(json.dumps({"url": "https://git.example/evalsvc", "vcs_info": VCS}))
    monkeypatch.syspath_prepend(tmp_path)
    assert find_origin(tmp_path / NAME).commit == COMMIT


def test_the_message_names_package_purpose_and_command() -> None:
    command = f"pip install -e {shlex.quote(f'{PACKAGE.parent}[worker]')}"
    assert missing_package("tokenizers", "text data").message == (
        f"text data needs the package 'tokenizers'; run: {command}"
    )


def test_no_message_spells_the_command_by_itself() -> None:
    """It would be wrong for an installation from a checkout or an address."""
    assert [path for path in PACKAGE.rglob("*.py") if f"{NAME}[" in path.read_text()] == []
