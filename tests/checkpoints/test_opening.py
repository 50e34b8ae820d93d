"""What is opened is what was checked: no link that is swapped in, and no name beside a checkpoint, leads out."""

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from evalsvc.checkpoints.opening import locate, opened, opened_weights
from evalsvc.checkpoints.reference import MAX_FILES, CheckpointRef, files_of, hash_files, named
from evalsvc.errors import (
    CheckpointChanged,
    CheckpointGone,
    CheckpointNotAllowed,
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


def below(*roots: Path) -> ReadRule:
    return ReadRule(roots, error=CheckpointNotAllowed)


def posted(path: Path, *roots: Path) -> CheckpointRef:
    return CheckpointRef(str(path), rule=below(*(roots or (Path("/"),))), label="run 'a' step 1")


def refused(path: Path, root: Path, *words: str, error: type[Exception] = CheckpointNotAllowed) -> None:
    with pytest.raises(error) as caught, opened(posted(path, root)):
        pass
    for word in ("run 'a' step 1", *words):
        assert word in str(caught.value)


def test_a_file_and_a_folder(root: Path) -> None:
    file = root / "run" / "checkpoints" / "epoch_1.pt"
    (root / "hf" / "sub").mkdir(parents=True)
    for name in ("model.safetensors", "sub/x.json"):
        (root / "hf" / name).write_text(name)
    for path in (file, root / "hf"):
        with opened(posted(path, root)) as pinned:
            assert hash_files(Path(pinned.path)) == hash_files(path)
            assert Path(pinned.path) != path
        assert not Path(pinned.path).exists(), "nothing is left behind"


@pytest.mark.parametrize(
    ("label", "said"), [("{}", "{} has NaN"), ("epoch_1.pt", "{} has NaN"), ("a step 1", "a step 1: {} has NaN")]
)
def test_a_message_names_the_path_once(root: Path, monkeypatch: pytest.MonkeyPatch, label: str, said: str) -> None:
    """`evalsvc run` calls a checkpoint by its path, and every error had the path twice."""
    file = root / "run" / "checkpoints" / "epoch_1.pt"
    monkeypatch.chdir(file.parent)
    reference = CheckpointRef(str(file), label=label.format(file))
    with pytest.raises(NonFinite) as caught, opened(reference) as pinned, named(pinned):
        raise NonFinite(f"{pinned.path} has NaN")
    assert caught.value.message == said.format(file)


def test_a_swap_between_two_reads_changes_nothing(root: Path, tmp_path: Path) -> None:
    """Hashing reads one file and loading another, if each goes by the name."""
    file = root / "run" / "checkpoints" / "epoch_1.pt"
    before = hash_files(file)
    with opened(posted(file, root)) as pinned:
        file.parent.rename(root / "kept")
        file.parent.symlink_to(tmp_path / "secret")
        assert hash_files(Path(pinned.path)) == before
        assert Path(pinned.path).read_bytes() == b"weights"


def test_a_link_that_is_there_for_the_moment_of_opening(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks at the path before or after sees the allowed file."""
    folder, real_open = root / "run" / "checkpoints", os.open

    def swapping(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path).name != "epoch_1.pt":
            return real_open(path, *arguments, **options)
        folder.rename(root / "kept")
        folder.symlink_to(tmp_path / "secret")
        descriptor = real_open(path, *arguments, **options)
        folder.unlink()
        (root / "kept").rename(folder)
        return descriptor

    monkeypatch.setattr(os, "open", swapping)
    refused(folder / "epoch_1.pt", root, "is, or links, outside the allowed folders")


def test_a_folder_that_takes_the_place_of_a_file(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its links would lead out, since nobody has looked into it."""
    file, real_open = root / "run" / "checkpoints" / "epoch_1.pt", os.open

    def swapping(path: Any, *arguments: Any, **options: Any) -> int:
        if path == file:
            file.unlink()
            file.mkdir()
            (file / "model.safetensors").symlink_to(tmp_path / "secret" / "epoch_1.pt")
        return real_open(path, *arguments, **options)

    monkeypatch.setattr(os, "open", swapping)
    refused(file, root, "is not a regular file or folder on a disk")


@pytest.mark.parametrize("name", ["model.safetensors", "sub/config.json"])
def test_a_link_inside_a_folder_that_leads_out(root: Path, tmp_path: Path, name: str) -> None:
    (root / "hf" / "sub").mkdir(parents=True)
    (root / "hf" / "config.json").write_text("{}")
    (root / "hf" / name).symlink_to(tmp_path / "secret" / "epoch_1.pt")
    refused(root / "hf", root, f"'{root}/hf/{name}' is, or links, outside the allowed folders")
    with pytest.raises(CheckpointNotAllowed, match="outside the allowed folders"):
        locate(str(root / "hf"), below(root))


def test_links_inside_a_folder_that_stay(root: Path) -> None:
    """The hub's own cache is made of them."""
    (root / "blobs").mkdir()
    (root / "blobs" / "abc").write_text("{}")
    (root / "hf").mkdir()
    (root / "hf" / "model.safetensors").symlink_to("../blobs/abc")
    locate(str(root / "hf"), below(root))
    with opened(posted(root / "hf", root)) as pinned:
        assert (Path(pinned.path) / "model.safetensors").read_text() == "{}"


@pytest.mark.parametrize("where", ["run/checkpoints/model.json", "run/model.json"])
def test_a_stray_json_that_leads_out_is_not_there(root: Path, tmp_path: Path, where: str) -> None:
    """Not read, since its fields would show what lies outside; nor in the way of whoever posts from there."""
    (root / where).symlink_to(tmp_path / "secret" / "model.json")
    with opened(posted(root / "run" / "checkpoints" / "epoch_1.pt", root)) as pinned:
        assert find_model_config(Path(pinned.path)) is None


@pytest.mark.parametrize("where", ["run/checkpoints/config.json", "run/params.txt"])
def test_a_configuration_beside_the_checkpoint_that_leads_out(root: Path, tmp_path: Path, where: str) -> None:
    """Its fields, or the words of a parser's complaint, would show what lies outside."""
    (root / where).symlink_to(tmp_path / "secret" / "model.json")
    file = root / "run" / "checkpoints" / "epoch_1.pt"
    refused(file, root, f"'{root}/{where}' is, or links, outside the allowed folders")
    with opened(posted(file, tmp_path)):
        pass


def test_a_configuration_beside_and_above_is_found(root: Path, open_lm_case: Path) -> None:
    for file in (*open_lm_case.glob("checkpoints/epoch_1.pt"), open_lm_case):
        with opened(posted(file)) as pinned:
            assert find_model_config(Path(pinned.path)) == find_model_config(file)
            assert find_model_config(file) is not None or file == open_lm_case


def test_an_index_and_what_it_names(root: Path) -> None:
    """Posted by its index, a checkpoint is read from the files beside it."""
    folder = root / "run"
    (folder / "any.json").write_text(' {"weight_map": {"a": "part.bin"}}')
    (folder / "part.bin").write_bytes(b"part")
    with opened(posted(folder / "any.json", root)) as pinned:
        assert Path(pinned.path).with_name("part.bin").read_bytes() == b"part"


def test_without_the_kernels_word_the_path_is_asked(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_opened, "OPEN_FILES", tmp_path / "none")
    file = root / "run" / "checkpoints" / "epoch_1.pt"
    with opened(posted(file, root)) as pinned:
        assert Path(pinned.path).resolve() == file
    with pytest.raises(CheckpointNotAllowed, match="outside the allowed folders"), opened(posted(file, root / "other")):
        pass


def test_messages_name_what_was_posted(root: Path) -> None:
    file = root / "run" / "checkpoints" / "epoch_1.pt"
    words = rf"^{file} is empty, {root}/run/x\.json too"
    with pytest.raises(NotACheckpoint, match=words), opened(posted(file)) as pinned:
        complain(Path(pinned.path))
    fetched = CheckpointRef(str(file), source="s3://bucket/epoch_1.pt")
    with pytest.raises(NotACheckpoint, match=r"^s3://bucket/epoch_1\.pt is empty"), opened(fetched) as pinned:
        complain(Path(pinned.path))


def complain(path: Path) -> None:
    raise NotACheckpoint(f"{path} is empty, {path.parent.parent / 'x.json'} too")


def test_a_file_that_is_written_to_while_it_is_read(root: Path) -> None:
    file = root / "run" / "checkpoints" / "epoch_1.pt"
    with pytest.raises(CheckpointChanged, match=f": {file} was changed while"), opened(posted(file, root)):
        file.write_bytes(b"WEIGHTS")


def test_a_changed_file_next_to_the_weights_is_named(root: Path) -> None:
    parameters = root / "run" / "params.txt"
    parameters.write_text("model: small\n")
    file = root / "run" / "checkpoints" / "epoch_1.pt"
    with pytest.raises(CheckpointChanged, match=f": {parameters} was changed while"), opened(posted(file, root)):
        parameters.write_text("model: large\n")


def test_a_training_loop_may_delete_what_is_being_read(root: Path) -> None:
    file = root / "run" / "checkpoints" / "epoch_1.pt"
    with opened(posted(file, root)) as pinned:
        file.unlink()
        assert Path(pinned.path).read_bytes() == b"weights"


def test_gone_before_it_was_opened(root: Path) -> None:
    refused(root / "none.pt", root, "none.pt was deleted while it was opened", error=CheckpointGone)


# what only looks like a file


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


def test_a_pipe_beside_a_checkpoint_is_passed_over(root: Path) -> None:
    os.mkfifo(root / "run" / "checkpoints" / "params.txt")
    with opened(posted(root / "run" / "checkpoints" / "epoch_1.pt", root)):
        pass


def test_a_folder_of_very_many_files(tmp_path: Path) -> None:
    """Found out at the first that is too many, however many follow."""
    for number in range(MAX_FILES + 50):
        (tmp_path / f"{number}.pt").touch()
    with pytest.raises(
        NotACheckpoint, match="holds more than 1,000 files, too many for a checkpoint; post one of the files"
    ):
        locate(str(tmp_path), below(Path("/")))
    refused(tmp_path, Path("/"), "holds more than 1,000 files", error=NotACheckpoint)
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


# other networks' weights


def only(root: Path) -> Allow:
    def allow(real: Path, shown: str) -> None:
        if not real.is_relative_to(root):
            raise InvalidData(f"{shown} leads out")

    return allow


def test_a_link_inside_a_networks_folder_that_leads_out(root: Path, tmp_path: Path) -> None:
    (root / "clip" / "sub").mkdir(parents=True)
    (root / "clip" / "sub" / "config.json").symlink_to(tmp_path / "secret" / "model.json")
    words = f"^{root}/clip/sub/config.json leads out$"
    with pytest.raises(InvalidData, match=words), opened_weights(root / "clip", only(root)):
        pass
    with opened_weights(root / "clip", anywhere) as pinned:
        assert json.loads((pinned / "sub" / "config.json").read_text()) == {"hidden_dim": 7777}


def test_a_networks_folder_that_is_swapped_between_two_reads(root: Path, tmp_path: Path) -> None:
    """Its configuration and its weights are read one after the other."""
    folder = root / "run" / "checkpoints"
    with opened_weights(folder, only(root)) as pinned:
        folder.rename(root / "kept")
        folder.symlink_to(tmp_path / "secret")
        assert [file.name for file in pinned.iterdir()] == ["epoch_1.pt"]
        assert (pinned / "epoch_1.pt").read_bytes() == b"weights"
    with pytest.raises(InvalidData, match="leads out"), opened_weights(folder, only(root)):
        pass


def test_what_lies_beside_a_networks_file(root: Path, tmp_path: Path) -> None:
    file = root / "run" / "checkpoints" / "epoch_1.pt"
    for name in ("config.yaml", "other.yaml"):
        file.with_name(name).write_text(name)
    with opened_weights(file, only(root), ("config.yaml", "missing.yaml")) as pinned:
        assert sorted(found.name for found in pinned.parent.iterdir()) == ["config.yaml", "epoch_1.pt"]
    file.with_name("config.yaml").unlink()
    file.with_name("config.yaml").symlink_to(tmp_path / "secret" / "model.json")
    words = r"config\.yaml leads out"
    with pytest.raises(InvalidData, match=words), opened_weights(file, only(root), ("config.yaml",)):
        pass


def test_messages_name_the_networks_file(root: Path) -> None:
    file = root / "run" / "checkpoints" / "epoch_1.pt"
    with pytest.raises(NotACheckpoint, match=rf"^{file} is empty"), opened_weights(file, anywhere) as pinned:
        complain(pinned)


def test_a_networks_file_that_is_missing_or_none(root: Path) -> None:
    words = r"none\.pt cannot be read: no such file or directory; check the path"
    with pytest.raises(InvalidData, match=words), opened_weights(root / "none.pt", anywhere):
        pass
    os.mkfifo(root / "pipe.pt")  # nothing waits for a process that writes
    words = "is not a regular file or folder on a disk"
    with pytest.raises(CheckpointNotAllowed, match=words), opened_weights(root / "pipe.pt", anywhere):
        pass
