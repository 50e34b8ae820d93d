import hashlib
import os
import time
from pathlib import Path

import pytest

from evalsvc.checkpoints.opening import local_path, locate
from evalsvc.checkpoints.reference import (
    CheckpointRef,
    Identity,
    check_sha256,
    hash_files,
    identify,
    uploaded_sha256,
    verify,
)
from evalsvc.errors import CheckpointChanged, CheckpointGone, CheckpointNotAllowed, CheckpointNotFound
from evalsvc.files.opened import ReadRule


def below(*roots: Path) -> ReadRule:
    return ReadRule(roots, error=CheckpointNotAllowed)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "epoch_1.pt"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "hf"
    (path / "sub").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "sub" / "config.json").write_bytes(b"{}")
    return path


def test_local_path() -> None:
    assert local_path("/a/b c.pt") == Path("/a/b c.pt")
    assert local_path("file:///a/b%20c.pt") == Path("/a/b c.pt")
    assert local_path("file://localhost/a.pt") == Path("/a.pt")


@pytest.mark.parametrize(
    ("uri", "fragment"),
    [
        ("s3://bucket/epoch_1.pt", "the scheme is not allowed; use a path or a file:// uri"),
        ("simplecache::file:///a.pt", "the scheme is not allowed"),
        ("file://elsewhere/a.pt", "names the host 'elsewhere'"),
        ("runs/epoch_1.pt", "is a relative path; use an absolute path"),
        ("file:///a?b.pt", "holds '?' or '#', which a path in a uri writes as %3F and %23"),
        ("file:///a#b.pt", "holds '?' or '#'"),
        ("file://[x/a.pt", "is not a uri"),
        ("//[x/a.pt", "is not a uri"),
    ],
)
def test_addresses_that_are_not_allowed(uri: str, fragment: str) -> None:
    with pytest.raises(CheckpointNotAllowed) as caught:
        local_path(uri)
    assert caught.value.message.startswith(uri)
    assert fragment in caught.value.message


def test_locate_follows_links_before_it_compares_with_the_roots(file: Path, tmp_path: Path) -> None:
    """A link inside the allowed folder that leads out of it is the way around an allow-list."""
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    link = allowed / "link.pt"
    link.symlink_to(file)
    with pytest.raises(CheckpointNotAllowed, match="outside the allowed folders") as caught:
        locate(str(link), below(allowed))
    assert str(file) not in caught.value.message, "where a link leads is not told"
    assert str(allowed) in caught.value.message
    assert locate(str(link), below(tmp_path)) == file


@pytest.mark.parametrize(
    "uri",
    [
        "{out}/{name}",
        "{out}/{name}/x.pt",
        "{out}/{name}/../../root/epoch_1.pt",
        "{root}/../out/{name}/../../root/epoch_1.pt",
        "{root}/to-{name}",
        "{root}/to-{name}/x.pt",
        "{root}/folder-{name}",
    ],
)
def test_whether_a_path_outside_the_roots_exists_is_not_told(tmp_path: Path, uri: str) -> None:
    """Else whoever may submit finds out, name by name, what lies on the machine."""
    root, out = tmp_path / "root", tmp_path / "out"
    for folder in (root, out / "a-folder", out / "a-lock"):
        folder.mkdir(parents=True)
    (root / "epoch_1.pt").write_bytes(b"weights")
    (out / "a-file").write_bytes(b"secret")
    (out / "a-link").symlink_to(out / "a-file")
    names = ("a-file", "a-folder", "a-lock", "a-link", "a-gap")
    for name in names:
        (root / f"to-{name}").symlink_to(out / name)
        (root / f"folder-{name}").mkdir()
        (root / f"folder-{name}" / "part.pt").symlink_to(out / name)
    (out / "a-lock").chmod(0)
    answers = set()
    for name in names:
        with pytest.raises(CheckpointNotAllowed) as caught:
            locate(uri.format(root=root, out=out, name=name), below(root))
        answers.add(caught.value.message.replace(name, "NAME"))
    assert len(answers) == 1, answers


def test_a_path_of_many_steps_up_is_answered_soon(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    begun = time.monotonic()
    assert locate(f"{tmp_path}/" + "a/../" * 700, below(tmp_path)) == tmp_path
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("uri", ["{root}/../outside.pt", "{root}-more/epoch_1.pt"])
def test_locate_is_not_fooled_by_names(tmp_path: Path, uri: str) -> None:
    root = tmp_path / "run"
    (tmp_path / "run-more").mkdir()
    root.mkdir()
    for path in (tmp_path / "outside.pt", tmp_path / "run-more" / "epoch_1.pt"):
        path.write_bytes(b"x")
    with pytest.raises(CheckpointNotAllowed):
        locate(uri.format(root=root), below(root))


def test_locate_takes_a_root_that_is_a_link(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(file.parent)
    assert locate(str(tmp_path / "link" / "epoch_1.pt"), below(tmp_path / "link")) == file


def test_a_folder_that_cannot_be_looked_through(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answered, not failed on: the service may lack rights that whoever posts has."""

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CheckpointNotFound, match="permission denied in it; change its permissions"):
        locate(str(folder), below(Path("/")))


@pytest.mark.parametrize("uri", ["/a\0b", "/a\ud800", "/" + "x" * 300, "/" + "x/" * 3000, "file:///%00", "file:///%ff"])
def test_names_that_no_file_can_have(uri: str) -> None:
    with pytest.raises((CheckpointNotFound, CheckpointNotAllowed)):
        locate(uri, below(Path("/")))


def test_nothing_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointNotFound, match="no such file or directory; post the checkpoint when the file is complete"
    ):
        locate(str(tmp_path / "none.pt"), below(tmp_path))
    loop = tmp_path / "loop.pt"
    loop.symlink_to(loop)
    with pytest.raises(CheckpointNotFound):
        locate(str(loop), below(tmp_path))


def test_identity_of_file_and_folder(file: Path, folder: Path) -> None:
    os.utime(file, ns=(5, 5))
    assert identify(file) == Identity(7, 5)
    os.utime(folder / "model.safetensors", ns=(5, 5))
    os.utime(folder / "sub" / "config.json", ns=(9, 9))
    assert identify(folder) == Identity(9, 9)


def test_identity_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointGone, match="no such file"):
        identify(tmp_path / "none.pt")


def test_verify(file: Path) -> None:
    verify(CheckpointRef(str(file), identify(file)))
    verify(CheckpointRef(str(file)))
    reference = CheckpointRef(str(file), identify(file), label="run-a step 25")
    file.write_bytes(b"other weights")
    with pytest.raises(CheckpointChanged) as changed:
        verify(reference)
    for fragment in ("run-a step 25", str(file), "13 bytes", "7 bytes", "replace=true"):
        assert fragment in changed.value.message
    file.unlink()
    with pytest.raises(CheckpointGone) as gone:
        verify(reference)
    for fragment in ("run-a step 25", str(file), "was deleted before it was evaluated", "spool=link or spool=copy"):
        assert fragment in gone.value.message


def test_a_file_that_grew_in_a_folder_changes_it(folder: Path) -> None:
    reference = CheckpointRef(str(folder), identify(folder))
    (folder / "sub" / "more.json").write_bytes(b"{}")
    with pytest.raises(CheckpointChanged):
        verify(reference)


def test_uris_of_uploaded_files() -> None:
    assert uploaded_sha256(f"upload:{'A' * 64}") == "a" * 64
    assert uploaded_sha256("/uploads/a.pt") is None
    for uri in ("upload:", "upload:abc", f"upload:{'0' * 63}/", f"upload:{'0' * 64}/../a", "upload://a"):
        with pytest.raises(CheckpointNotAllowed, match="64 hexadecimal digits"):
            uploaded_sha256(uri)


def test_an_uploaded_file_that_was_deleted_is_looked_for_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its uri would be a relative path: a file of this name in the folder of a worker is none of ours."""
    monkeypatch.chdir(tmp_path)
    uri = f"upload:{'0' * 64}"
    (tmp_path / uri).write_bytes(b"weights")
    reference = CheckpointRef(path=uri, identity=identify(tmp_path / uri), label="run 'a' step 1")
    with pytest.raises(CheckpointGone, match=r"run 'a' step 1: .* submit RUN STEP FILE --upload"):
        verify(reference)


def test_hash_of_file_and_folder(file: Path, folder: Path) -> None:
    assert hash_files(file) == hashlib.sha256(b"weights").hexdigest()
    before = hash_files(folder)
    (folder / "sub" / "config.json").rename(folder / "sub" / "other.json")
    assert hash_files(folder) != before, "the names belong to a folder's content"


def test_check_sha256() -> None:
    check_sha256(CheckpointRef("/a.pt"), "f" * 64)
    check_sha256(CheckpointRef("/a.pt", sha256="f" * 64), "f" * 64)
    with pytest.raises(CheckpointChanged, match=r"has sha256 ff.*, expected 00.*; post it again"):
        check_sha256(CheckpointRef("/a.pt", sha256="0" * 64), "f" * 64)
