"""What suites may read."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from evalsvc.config import Settings
from evalsvc.data.captions import read_captions
from evalsvc.data.tokenizer import read_tokenizer, tokenizer_digest
from evalsvc.data.tokens import read_tokens
from evalsvc.errors import InvalidData
from evalsvc.miniature import ROOT
from evalsvc.spec.paths import Readable, local_data


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "root").mkdir()
    return Settings(roots=str(tmp_path / "root"), data_dir=str(tmp_path / "data"), assets=str(tmp_path / "assets"))


@pytest.mark.parametrize("path", ["/proc/self/environ", "/proc/1/../self/mem", "/sys/dev", "datasets:../../../proc/1"])
def test_processes_are_no_data(tmp_path: Path, path: str) -> None:
    """Their environments hold passwords, and root `/` is the default."""
    assert local_data(Settings(), "/etc/hosts") == "/etc/hosts"
    with pytest.raises(InvalidData, match="outside the allowed folders"):
        local_data(Settings(datasets="/data/a/b"), path)


def test_under_the_roots_and_in_the_operators_folders(settings: Settings, tmp_path: Path) -> None:
    assert local_data(settings, "datasets:a.jsonl") == str(tmp_path / "data" / "datasets" / "a.jsonl")
    for path in (tmp_path / "root" / "new" / "a.jsonl", tmp_path / "root", tmp_path / "assets" / "b", ROOT / "runs"):
        assert local_data(settings, str(path)) == str(path)
    inside = Settings(data_dir=str(tmp_path), suites=str(tmp_path / "suites"))
    for name in ("datasets", "assets", "suites"):
        assert local_data(inside, f"{tmp_path}/{name}/a") == f"{tmp_path}/{name}/a"
    with pytest.raises(InvalidData):  # unless they are the data folder itself
        local_data(Settings(data_dir=str(tmp_path), datasets=str(tmp_path)), "datasets:evalsvc.db")


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/shadow", "datasets:../a", "datasets:/etc/shadow", "/proc/self/environ", "/dev/stdin", ""),
        *("{root}/../other", "{root}x/a", "{root}/link/shadow", "relative", "a\0b", "/etc/nothing-of-this-name"),
    ],
)
def test_what_leads_out(settings: Settings, tmp_path: Path, path: str) -> None:
    """Neither where a link leads nor whether something is there is told: a suite must not look through folders."""
    (tmp_path / "root" / "link").symlink_to("/etc")
    path = path.format(root=tmp_path / "root")
    with pytest.raises(InvalidData, match=r"outside the allowed folders .*EVALSVC_ROOTS") as error:
        local_data(settings, path)
    with pytest.raises(InvalidData) as other:
        local_data(settings, "/etc/hosts")
    assert error.value.message.replace(repr(path), "") == other.value.message.replace(repr("/etc/hosts"), "")


@pytest.mark.parametrize("roots", ["/", "{data}", "{data}/spool", "{data}/dask:/", "{data}/../link-to-data:/"])
@pytest.mark.parametrize(
    "path",
    [
        *("{data}/evalsvc.db", "{data}/tls/key.pem", "{data}/spool/7/a.pt", "{data}", "{data}/../data/evalsvc.db"),
        *("{data}/../link-to-data/evalsvc.db", "datasets:../evalsvc.db", "{keys}/https.pem", "{keys}/tls/key.pem"),
        *("{keys}/token", "{keys}/shared/statistics/coco.npz", "{keys}/a.db", "{keys}/a.db-wal"),
    ],
)
def test_what_is_private_to_the_service_is_no_data(tmp_path: Path, roots: str, path: str) -> None:
    """Whoever may submit read the service's TLS key in an error of its first line."""
    data, keys = tmp_path / "data", tmp_path / "keys"
    data.mkdir()
    (tmp_path / "link-to-data").symlink_to(data)
    folders = {"roots": roots.format(data=data), "data_dir": str(data), "shared": f"{keys}/shared"}
    secrets = {"database_url": f"sqlite:///{keys}/a.db", "https_cert": f"{keys}/https.pem", "tls": f"{keys}/tls"}
    settings = Settings(**folders, **secrets, secret_files=(f"{data}/../keys/token",))
    with pytest.raises(InvalidData, match=r"or into evalsvc's data folder or keys; move the file"):
        local_data(settings, path.format(data=data, keys=keys))


# what becomes of a path between the check and the reading

SECRET = {
    "a.jsonl": b'{"text_ids": [7, 7], "text": "hunter2"}\n',
    "a.csv": b"text\nhunter2\n",
    "a.json": b'{"images": [{"id": 1, "file_name": "hunter2"}], "annotations": []}',
    "tokenizer.json": (ROOT / "tokenizer.json").read_bytes(),
}
READERS: dict[str, Callable[[str, Readable], Any]] = {
    "a.csv": read_captions,
    "a.json": read_captions,
    "a.jsonl": lambda path, readable: read_tokens(path, allow=readable),
    "a.safetensors": lambda path, readable: read_tokens(path, allow=readable),
    "tokenizer.json": read_tokenizer,
    "digest/tokenizer.json": tokenizer_digest,
    "captions/a.jsonl": read_captions,
}


@pytest.mark.parametrize("name", READERS)
def test_a_link_that_is_swapped_in_after_the_check(settings: Settings, tmp_path: Path, name: str) -> None:
    """A path was checked and opened at two moments, and whoever was fast read what lies outside."""
    path, secret = tmp_path / "root" / name, tmp_path / "secret" / name
    for file in (path, secret):
        file.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({"text_ids": np.array([[7]])}, secret)
    else:
        secret.write_bytes(SECRET[path.name])
    path.touch()
    checked = local_data(settings, str(path))
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(InvalidData, match="is, or links, outside the allowed folders") as caught:
        READERS[name](checked, Readable(settings))
    assert "hunter2" not in caught.value.message
    assert str(secret) not in caught.value.message


def test_a_file_is_parsed_once_for_all_that_have_one_rule(settings: Settings, tmp_path: Path) -> None:
    """What was read before is not given to whoever may not read it: the rule counts beside path and state."""
    path, secret = tmp_path / "root" / "a.csv", tmp_path / "secret.jsonl"
    path.write_bytes(SECRET["a.csv"])
    assert read_captions(path, Readable(settings)) is read_captions(path, Readable(replace(settings)))
    secret.write_bytes(SECRET["a.jsonl"])
    (tmp_path / "root" / "a.jsonl").symlink_to(secret)
    assert len(read_captions(tmp_path / "root" / "a.jsonl").captions) == 1
    with pytest.raises(InvalidData, match="outside the allowed folders"):
        read_captions(tmp_path / "root" / "a.jsonl", Readable(settings))
