"""What suites may read."""

from pathlib import Path

import pytest

from evalsvc.config import Settings
from evalsvc.data_path import check_data, local_data
from evalsvc.errors import InvalidData
from evalsvc.miniature import ROOT


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "root").mkdir()
    return Settings(roots=str(tmp_path / "root"), data_dir=str(tmp_path / "data"), assets=str(tmp_path / "assets"))


def test_by_default_all_that_the_service_may() -> None:
    assert local_data(Settings(), "/etc/hosts") == "/etc/hosts"


@pytest.mark.parametrize(
    "path", ["/proc/self/environ", "/proc/1/../self/mem", "/sys/kernel", "datasets:../../../proc/1"]
)
def test_processes_are_no_data(tmp_path: Path, path: str) -> None:
    """Their environments hold passwords, and root `/` is the default."""
    with pytest.raises(InvalidData, match="outside the folders that suites may read"):
        local_data(Settings(datasets="/data/a/b"), path)


def test_under_the_roots_and_in_the_operators_folders(settings: Settings, tmp_path: Path) -> None:
    assert local_data(settings, "datasets:a.jsonl") == str(tmp_path / "data" / "datasets" / "a.jsonl")
    for path in (tmp_path / "root" / "new" / "a.jsonl", tmp_path / "root", tmp_path / "assets" / "b", ROOT / "runs"):
        assert local_data(settings, str(path)) == str(path)


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/shadow", "datasets:../a", "datasets:/etc/shadow", "/proc/self/environ", "/dev/stdin", ""),
        *("{root}/../other", "{root}x/a", "{root}/link/shadow", "relative", "a\0b"),
    ],
)
def test_what_leads_out(settings: Settings, tmp_path: Path, path: str) -> None:
    (tmp_path / "root" / "link").symlink_to("/etc")
    path = path.format(root=tmp_path / "root")
    with pytest.raises(InvalidData, match=r"outside the folders that suites may read .*EVALSVC_ROOTS") as error:
        check_data(settings, path)
    assert "/etc" not in error.value.message.replace(repr(path), ""), "where a link leads is not told"


def test_whether_something_is_there_is_not_told(settings: Settings) -> None:
    """Else a suite would be a way to look through the folders of others."""

    def message(path: str) -> str:
        with pytest.raises(InvalidData) as error:
            check_data(settings, path)
        return error.value.message.replace(path, "")

    assert message("/etc/hosts") == message("/etc/nothing-of-this-name")
