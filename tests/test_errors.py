"""What errors say of names, which come from requests, and of a missing package: the command that installs it."""

import difflib
import json
import random
import re
import shlex
import string
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from evalsvc import errors
from evalsvc.errors import MAX_CLOSELY, MAX_COMPARED, DataChanged, UnknownName, near_misses, os_reason
from evalsvc.installation import NAME, PACKAGE, Origin, find_origin, missing_package, recorded_origin


def test_the_drawn_tree_has_every_error_with_its_code() -> None:
    """A code follows from the name of the class, and programs compare codes: a class of another name is noticed."""
    drawn = re.findall(r"── (\w+) +(\w+)$", str(errors.__doc__), re.MULTILINE)
    assert drawn == [(leaf.__name__, leaf.code) for leaf in errors.leaves()]


def test_every_refusal_of_a_content_names_the_command_that_explains_it_once() -> None:
    """Where a file is missing or forbidden there is nothing to look into. The error of a service has the command."""
    leaves = errors.leaves(errors.CheckpointError)
    refusals = {leaf.code: leaf("it is text").told for leaf in leaves if leaf("it is text").told != "it is text"}
    of_content = {"not_a_checkpoint", "unsafe_checkpoint", "sharded_checkpoint", "checkpoint_mismatch"}
    assert refusals == dict.fromkeys(of_content | {"unsupported_model"}, f"it is text; {errors.INSPECT}")
    assert errors.NotACheckpoint(f"it is text; {errors.INSPECT}").told.count(errors.INSPECT) == 1
    assert errors.InvalidRequest("it is text").told == "it is text"


def drawn_names(number: int, length: int) -> list[str]:
    own = random.Random(length)
    return ["".join(own.choices(string.ascii_lowercase, k=length)) for _ in range(number)]


@pytest.mark.parametrize("length", [4, 12, 40, 100])
def test_a_misspelt_name_is_found_among_many(length: int) -> None:
    names = drawn_names(400, length)
    for name in (names[7], names[399]):
        misspelt = name[: length // 2] + name[length // 2 + 1 :]
        assert near_misses(misspelt, names)[0] == name


def test_a_search_for_near_misses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """45 requests for a metric that was not there, beside 200 long names, held up the service for seconds."""
    compared: list[str] = []
    close = difflib.get_close_matches

    def note(name: str, known: Sequence[str], **options: Any) -> list[str]:
        compared.extend((name, *known))
        return close(name, known, **options)

    monkeypatch.setattr(difflib, "get_close_matches", note)
    names = [f"{'ab' * 40}{number}" for number in range(50_000)] + drawn_names(10, 256)
    begun = time.monotonic()
    UnknownName.among("metric", "ab" * 40, names)
    assert len(compared) == 1 + MAX_CLOSELY
    assert max(map(len, compared)) <= MAX_COMPARED
    compared.clear()
    UnknownName.among("metric", "x" * 60_000, names)
    assert compared == []
    assert time.monotonic() - begun < 5


def test_words_of_single_errors() -> None:
    assert os_reason(FileNotFoundError(2, "No such file or directory", "/runs/a.pt")) == "no such file or directory"
    assert os_reason(OSError("Timed out")) == "timed out"
    end = "has changed since this evaluation was planned"
    assert DataChanged.since_planned("a.jsonl").message == f"a.jsonl {end}; evaluate again"
    assert DataChanged.since_planned("it", "YAML or data").message == f"it {end} (YAML or data); evaluate again"


def test_a_long_name_or_list_leaves_room_for_similar_names_and_what_to_do() -> None:
    message = UnknownName.among("metric", "x" * 60_000, ["y" * 250] * 30, "measure it first").message
    assert len(message) < 4000
    assert message.startswith("no metric is named 'xxx")
    assert message.endswith("and 10 more; measure it first")
    names = [f"pairs/metric_{number}" for number in range(30)]
    message = UnknownName.among("metric", "pairs/metrik_7", names, "measure it").message
    assert message.startswith("no metric is named 'pairs/metrik_7'; did you mean 'pairs/metric_7' or ")
    assert message.endswith("'? measure it")
    assert len(message) < 160
    assert UnknownName.among("metric", "x", []).message == "no metric is named 'x'; there is no metric yet"
    assert UnknownName.among("run", "pretraned", ["pretrained"]).message.endswith("'pretrained'? available: pretrained")


COMMIT = "0123456789abcdef0123456789abcdef01234567"
VCS = {"vcs": "git", "commit_id": COMMIT}


@pytest.mark.parametrize(
    ("record", "requirement"),
    [
        ({"url": "file:///src/my%20project", "dir_info": {"editable": True}}, "-e '/src/my project[worker]'"),
        ({"url": "file:///src/evalsvc", "dir_info": {}}, "'/src/evalsvc[worker]'"),
        ({"url": "https://g.ex/e.git", "vcs_info": VCS}, f"'evalsvc[worker] @ git+https://g.ex/e.git@{COMMIT}'"),
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
    assert recorded_origin(json.dumps(record)).requirement("worker") == requirement
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
        told = recorded_origin(json.dumps({"url": url, **kind})).requirement("worker")
        assert "s3cret" not in told
        assert "git.example" in told


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
    """No message spells the command by itself, which is wrong for an installation from a checkout or an address."""
    command = f"pip install -e {shlex.quote(f'{PACKAGE.parent}[worker]')}"
    assert (
        missing_package("tokenizers", "text data").message
        == f"text data needs the package 'tokenizers'; run: {command}"
    )
    assert [path for path in PACKAGE.rglob("*.py") if f"{NAME}[" in path.read_text()] == []
