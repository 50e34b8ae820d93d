"""What is opened is what was checked: no link that is swapped in, and no name next to a checkpoint, leads out."""

import json
import os
import resource
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from evalsvc.checkpoints.opening import local_path, locate, opened, opened_weights
from evalsvc.checkpoints.reference import MAX_FILES, CheckpointRef, files_of, hash_files, named
from evalsvc.errors import (
    CheckpointChanged,
    CheckpointGone,
    CheckpointNotAllowed,
    CheckpointNotFound,
    InvalidData,
    NonFinite,
    NotACheckpoint,
)
from evalsvc.families.reading import find_model_config
from evalsvc.files import opened as files_opened
from evalsvc.files.opened import Allow, ReadRule, anywhere


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "allowed" / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "epoch_1.pt").write_bytes(b"weights")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "epoch_1.pt").write_bytes(b"secrets")
    (tmp_path / "secret" / "model.json").write_text(json.dumps({"hidden_dim": 7777}))
    return tmp_path / "allowed"


@pytest.fixture
def file(root: Path) -> Path:
    return root / "run" / "checkpoints" / "epoch_1.pt"


def below(*roots: Path) -> ReadRule:
    return ReadRule(roots, error=CheckpointNotAllowed)


def posted(path: Path, *roots: Path) -> CheckpointRef:
    return CheckpointRef(str(path), rule=below(*(roots or (Path("/"),))), label="run 'a' step 1")


def only(root: Path) -> Allow:
    def allow(real: Path, shown: str) -> None:
        if not real.is_relative_to(root):
            raise InvalidData(f"{shown} leads out")

    return allow


def refused(path: Path, root: Path, *words: str, error: type[Exception] = CheckpointNotAllowed) -> None:
    with pytest.raises(error) as caught, opened(posted(path, root)):
        pass
    for word in ("run 'a' step 1", *words):
        assert word in str(caught.value)


def test_a_file_and_a_folder(root: Path, file: Path) -> None:
    """A training loop may delete what is being read."""
    (root / "hf" / "sub").mkdir(parents=True)
    for name in ("model.safetensors", "sub/x.json"):
        (root / "hf" / name).write_text(name)
    for path in (file, root / "hf"):
        digest = hash_files(path)
        with opened(posted(path, root)) as pinned:
            assert Path(pinned.path) != path
            if path == file:
                path.unlink()
            else:
                shutil.rmtree(path)
            assert hash_files(Path(pinned.path)) == digest
        assert not Path(pinned.path).exists(), "nothing is left behind"
    refused(file, root, "epoch_1.pt was deleted while it was opened", error=CheckpointGone)


@pytest.mark.parametrize(
    ("label", "said"), [("{}", "{} has NaN"), ("epoch_1.pt", "{} has NaN"), ("a step 1", "a step 1: {} has NaN")]
)
def test_a_message_names_the_path_once(file: Path, monkeypatch: pytest.MonkeyPatch, label: str, said: str) -> None:
    """`evalsvc run` calls a checkpoint by its path, and every error had the path twice."""
    monkeypatch.chdir(file.parent)
    reference = CheckpointRef(str(file), label=label.format(file))
    with pytest.raises(NonFinite) as caught, opened(reference) as pinned, named(pinned):
        raise NonFinite(f"{pinned.path} has NaN")
    assert caught.value.message == said.format(file)


@pytest.mark.parametrize("is_network", [False, True])
def test_a_swap_between_two_reads_changes_nothing(root: Path, file: Path, tmp_path: Path, is_network: bool) -> None:
    """Hashing reads one file and loading another, if each goes by the name; so do a configuration and its weights."""
    before, folder = hash_files(file), file.parent
    with ExitStack() as stack:
        if is_network:
            pinned = stack.enter_context(opened_weights(folder, only(root)))
            held = pinned / file.name
        else:
            held = Path(stack.enter_context(opened(posted(file, root))).path)
        folder.rename(root / "kept")
        folder.symlink_to(tmp_path / "secret")
        assert hash_files(held) == before
        assert held.read_bytes() == b"weights"
        assert [path.name for path in held.parent.iterdir()] == ["epoch_1.pt"]
    with pytest.raises(InvalidData, match="leads out"), opened_weights(folder, only(root)):
        pass


@pytest.mark.parametrize("becomes", ["link", "folder"])
def test_what_takes_the_place_of_a_file_for_the_moment_of_opening(
    root: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, becomes: str
) -> None:
    """Whoever looks at the path before or after sees the allowed file. Links in a folder that nobody saw lead out."""
    folder, real_open = file.parent, os.open

    def swapping(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path).name != "epoch_1.pt":
            return real_open(path, *arguments, **options)
        if becomes == "folder":
            file.unlink()
            file.mkdir()
            (file / "model.safetensors").symlink_to(tmp_path / "secret" / "epoch_1.pt")
            return real_open(path, *arguments, **options)
        folder.rename(root / "kept")
        folder.symlink_to(tmp_path / "secret")
        descriptor = real_open(path, *arguments, **options)
        folder.unlink()
        (root / "kept").rename(folder)
        return descriptor

    monkeypatch.setattr(os, "open", swapping)
    words = {"link": "is, or links, outside the allowed folders", "folder": "is not a regular file or folder on a disk"}
    refused(file, root, words[becomes])


@pytest.mark.parametrize(
    ("posted_as", "name"),
    [
        *(("hf", name) for name in ("hf/model.safetensors", "hf/sub/config.json")),
        # the fields of a configuration, or the words of a parser's complaint, would show what lies outside
        *(("run/checkpoints/epoch_1.pt", name) for name in ("run/checkpoints/config.json", "run/params.txt")),
    ],
)
def test_a_link_that_leads_out(root: Path, tmp_path: Path, posted_as: str, name: str) -> None:
    (root / "hf" / "sub").mkdir(parents=True)
    (root / name).symlink_to(tmp_path / "secret" / "model.json")
    path, words = root / posted_as, f"'{root}/{name}' is, or links, outside the allowed folders"
    refused(path, root, words)
    with opened(posted(path, tmp_path)):
        pass
    if path.is_dir():
        with pytest.raises(CheckpointNotAllowed, match="outside the allowed folders"):
            locate(str(path), below(root))
        with pytest.raises(InvalidData, match=f"^{root}/{name} leads out$"), opened_weights(path, only(root)):
            pass
        with opened_weights(path, anywhere) as pinned:
            assert json.loads((pinned / Path(name).relative_to("hf")).read_text()) == {"hidden_dim": 7777}


@pytest.mark.parametrize("where", ["run/checkpoints/model.json", "run/model.json"])
def test_a_stray_json_that_leads_out_is_not_there(root: Path, file: Path, tmp_path: Path, where: str) -> None:
    """Not read, since its fields would show what lies outside; nor in the way of whoever posts from there."""
    (root / where).symlink_to(tmp_path / "secret" / "model.json")
    os.mkfifo(root / "run" / "checkpoints" / "params.txt")  # nor is a pipe
    with opened(posted(file, root)) as pinned:
        assert find_model_config(Path(pinned.path)) is None


def test_what_a_checkpoint_is_read_with_is_there(root: Path, open_lm_case: Path) -> None:
    """The files that an index names, and the configuration beside and above; the hub's cache is made of links."""
    for file in (*open_lm_case.glob("checkpoints/epoch_1.pt"), open_lm_case):
        with opened(posted(file)) as pinned:
            assert find_model_config(Path(pinned.path)) == find_model_config(file)
            assert find_model_config(file) is not None or file == open_lm_case
    (root / "blobs").mkdir()
    (root / "blobs" / "abc").write_bytes(b"part")
    (root / "run" / "any.json").write_text(' {"weight_map": {"a": "part.bin"}}')
    (root / "run" / "part.bin").symlink_to("../blobs/abc")
    locate(str(root / "run"), below(root))
    with opened(posted(root / "run" / "any.json", root)) as pinned:
        assert Path(pinned.path).with_name("part.bin").read_bytes() == b"part"


def test_without_the_kernels_word(root: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_opened, "OPEN_FILES", tmp_path / "none")
    with opened(posted(file, root)) as pinned:
        assert Path(pinned.path).resolve() == file
    refused(file, root / "other", "outside the allowed folders")


def test_messages_name_what_was_posted(root: Path, file: Path) -> None:
    def complain(path: Path) -> None:
        raise NotACheckpoint(f"{path} is empty, {path.parent.parent / 'x.json'} too")

    words = rf"^{file} is empty, {root}/run/x\.json too"
    with pytest.raises(NotACheckpoint, match=words), opened(posted(file)) as pinned:
        complain(Path(pinned.path))
    with pytest.raises(NotACheckpoint, match=words), opened_weights(file, anywhere) as path:
        complain(path)
    fetched = CheckpointRef(str(file), source="s3://bucket/epoch_1.pt")
    with pytest.raises(NotACheckpoint, match=r"^s3://bucket/epoch_1\.pt is empty"), opened(fetched) as pinned:
        complain(Path(pinned.path))


@pytest.mark.parametrize("name", ["checkpoints/epoch_1.pt", "params.txt"])
def test_a_file_that_is_written_to_while_it_is_read(root: Path, file: Path, name: str) -> None:
    changed = root / "run" / name
    changed.write_bytes(b"weights")
    with pytest.raises(CheckpointChanged, match=f": {changed} was changed while"), opened(posted(file, root)):
        changed.write_bytes(b"WEIGHTS")


SPECIAL: dict[str, Any] = {
    "pipe": os.mkfifo,
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "environment": lambda path: path.symlink_to("/proc/self/environ"),
    "kernel": lambda path: path.symlink_to("/sys/kernel/notes"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_on_a_disk(tmp_path: Path, kind: str) -> None:
    """Reading a pipe waits for ever, a device has no end, and /proc shows the service's own secrets."""
    path = tmp_path / "epoch_1.pt"
    SPECIAL[kind](path)
    kernel = kind in ("environment", "kernel")
    words = "outside the allowed folders" if kernel else "is not a regular file or folder on a disk"
    with pytest.raises(CheckpointNotAllowed, match=words):
        locate(str(path), below(Path("/")))
    refused(path, Path("/"), words)
    with pytest.raises(CheckpointNotAllowed, match=words), opened_weights(path, below(Path("/"))):
        pass


def test_a_folder_of_very_many_files(tmp_path: Path) -> None:
    """Found out at the first that is too many, however many follow."""
    for number in range(MAX_FILES + 50):
        (tmp_path / f"{number}.pt").touch()
    with pytest.raises(
        NotACheckpoint, match="holds more than 5,000 files, too many for a checkpoint; post one of the files"
    ):
        locate(str(tmp_path), below(Path("/")))
    refused(tmp_path, Path("/"), "holds more than 5,000 files", error=NotACheckpoint)
    assert len(files_of(tmp_path)) == MAX_FILES + 50, "data folders are another matter"


def test_more_files_than_a_process_may_have_open(tmp_path: Path) -> None:
    for number in range(900):
        (tmp_path / f"{number}.bin").touch()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        with opened(posted(tmp_path)) as pinned:
            assert len(files_of(Path(pinned.path))) == 900
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_lies_beside_a_networks_file(root: Path, file: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "other.yaml"):
        file.with_name(name).write_text(name)
    with opened_weights(file, only(root), ("config.yaml", "missing.yaml")) as pinned:
        assert sorted(found.name for found in pinned.parent.iterdir()) == ["config.yaml", "epoch_1.pt"]
    file.with_name("config.yaml").unlink()
    file.with_name("config.yaml").symlink_to(tmp_path / "secret" / "model.json")
    with (
        pytest.raises(InvalidData, match=r"config\.yaml leads out"),
        opened_weights(file, only(root), ("config.yaml",)),
    ):
        pass


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
    for same in ("/a/b c.pt", "file:///a/b%20c.pt", "file://localhost/a/b%20c.pt"):
        assert local_path(same) == Path("/a/b c.pt")


@pytest.mark.parametrize(
    "uri",
    [
        "{out}/{name}",
        "{out}/{name}/x.pt",
        "{out}/{name}/../../root/epoch_1.pt",
        "{root}/../root-out/{name}/../../root/epoch_1.pt",
        "{root}/to-{name}",
        "{root}/to-{name}/x.pt",
        "{root}/folder-{name}",
    ],
)
def test_whether_a_path_outside_the_roots_exists_is_not_told(tmp_path: Path, uri: str) -> None:
    """Else whoever may submit finds out, name by name, what lies on the machine.

    Links are followed before a path is compared with the roots, which may be links, and whose names others begin with.
    """
    root, out = tmp_path / "root", tmp_path / "root-out"
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
    (tmp_path / "link").symlink_to(root)
    assert locate(str(tmp_path / "link" / "epoch_1.pt"), below(tmp_path / "link")) == root / "epoch_1.pt"


@pytest.mark.parametrize("uri", ["/a\0b", "/a\ud800", "/" + "x" * 300, "/" + "x/" * 3000, "file:///%00", "file:///%ff"])
def test_names_that_no_file_can_have(uri: str) -> None:
    with pytest.raises((CheckpointNotFound, CheckpointNotAllowed)):
        locate(uri, below(Path("/")))


def test_what_cannot_be_found_or_looked_through(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answered, not failed on: the service may lack rights that whoever posts has."""

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    monkeypatch.setattr(os, "scandir", refuse)
    for path, words in (
        (tmp_path / "loop.pt", "too many levels of symbolic links"),
        (tmp_path / "none.pt", "no such file or directory; post the checkpoint when the file is complete"),
        (file.parent, "permission denied in it; change its permissions"),
    ):
        with pytest.raises(CheckpointNotFound, match=words):
            locate(str(path), below(Path("/")))
    monkeypatch.undo()
    with pytest.raises(InvalidData, match=r"none\.pt cannot be read: no such file or directory; check the path"):
        opened_weights(tmp_path / "none.pt", anywhere).__enter__()
