"""From a posted address to a file here: complete and the posted one, or an error that says which of the many."""

import hashlib
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from botocore.exceptions import NoCredentialsError
from http_pages import fake_hub
from object_store import ObjectStore, forget_connections, object_store
from small_models import SHAPE

from evalsvc.checkpoints import posted
from evalsvc.checkpoints.expression import parse_expression
from evalsvc.checkpoints.posted import MAX_MODEL_FILES, remote_model
from evalsvc.checkpoints.reference import CheckpointRef, Virtual, hash_files, identify
from evalsvc.checkpoints.remote import fetch as fetch_module
from evalsvc.checkpoints.remote import objects, source
from evalsvc.checkpoints.remote.fetch import fetch_posted, fetched, locate_checkpoint, name_of
from evalsvc.checkpoints.remote.source import Listing, RemoteFile
from evalsvc.checkpoints.remote.uri import RemoteUri, is_remote, parse_remote, without_secrets
from evalsvc.config import Settings
from evalsvc.errors import (
    CacheFull,
    Cancelled,
    CheckpointChanged,
    CheckpointGone,
    CheckpointNotAllowed,
    CheckpointNotFound,
    InvalidModelConfig,
    MissingPackage,
    NotACheckpoint,
    SourceUnreachable,
)
from evalsvc.families.reading import find_model_config
from evalsvc.installation import pip_install

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as found:
        yield found


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=str(tmp_path), schemes="file,s3,hf,memory", cache_bytes=10 << 20)


def reference(uri: str, settings: Settings, **fields: object) -> CheckpointRef:
    return CheckpointRef(uri, locate_checkpoint(uri, settings)[1], label="run 'a' step 1", **fields)  # type: ignore[arg-type]


def in_memory(path: str, content: bytes, settings: Settings) -> CheckpointRef:
    fsspec.filesystem("memory").pipe(f"/{path}", content)
    return reference(f"memory://{path}", settings)


def refused(references: list[CheckpointRef], settings: Settings, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words), fetched(references, settings, int):
        pass


def test_an_object_comes_here_once(store: ObjectStore, settings: Settings) -> None:
    uri = store.put("run/epoch_1.pt", CONTENT)
    posted = reference(uri, settings, sha256=hashlib.sha256(CONTENT).hexdigest())
    with fetched([posted], settings, int) as (here,):
        assert Path(here.path).read_bytes() == CONTENT
        assert Path(here.path).name == "epoch_1.pt"
        assert here.identity == identify(Path(here.path))
        assert here.source == uri
    assert posted.identity is not None
    assert (posted.identity.size, posted.identity.mtime_ns, bool(posted.identity.etag)) == (len(CONTENT), 0, True)
    assert locate_checkpoint(uri, settings)[1] == posted.identity
    store.put("run/epoch_1.pt", CONTENT[::-1])
    assert locate_checkpoint(uri, settings)[1] != posted.identity, "it is that of the content"
    store.delete("run/epoch_1.pt")
    with fetched([posted], settings, int) as (again,):
        assert again == here, "what is here is what was posted, whatever became of it there"
    for missing in (uri, "s3://no-such-bucket/x.pt", "memory://none/x.pt"):
        with pytest.raises(CheckpointNotFound, match=f"{missing} does not exist; post the checkpoint when it is"):
            locate_checkpoint(missing, settings)


def test_a_folder_brings_its_weights(store: ObjectStore, settings: Settings, tmp_path: Path) -> None:
    names = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in (*names, "model.safetensors.index.json", "pytorch_model.bin", "README.md", "sub/other.bin"):
        uri = store.put(f"hf/{name}", name.encode()).removesuffix(f"/{name}")
    with fetched([reference(uri, settings)], settings, int) as (here,):
        found = {path.name: path.read_text() for path in Path(here.path).iterdir()}
        assert here.identity == identify(Path(here.path))
        digest = hash_files(Path(here.path))
    assert found == {name: name for name in (*names, "model.safetensors.index.json")}
    for name in found:
        (tmp_path / "copy" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "copy" / name).write_text(name)
    assert hash_files(tmp_path / "copy") == digest, "it is that of a copy made by hand"
    before = locate_checkpoint(uri, settings)[1]
    store.put("hf/model-00002-of-00002.safetensors", b"x" * len(names[2]))
    assert locate_checkpoint(uri, settings)[1] != before, "of the same size, and another"


def test_a_copy_here_that_is_not_what_it_was_is_fetched_anew(store: ObjectStore, settings: Settings) -> None:
    posted = reference(store.put("rotten.pt", b"one"), settings)
    wrong = replace(posted, sha256="0" * 64)
    refused([wrong], settings, CheckpointChanged, "has sha256 .*, expected 000")
    assert not list(settings.cache_path.glob("*/rotten.pt"))

    def find_out(path: Path) -> None:
        path.write_bytes(b"bad")
        raise CheckpointChanged("as the runner finds by its digest")

    with pytest.raises(CheckpointChanged), fetched([posted], settings, int) as (here,):
        find_out(Path(here.path))
    with fetched([posted], settings, int) as (here,):
        assert Path(here.path).read_bytes() == b"one"


@pytest.mark.parametrize("error", [PermissionError("AccessDenied for AKIASECRET"), NoCredentialsError()])
def test_a_wrong_key_or_none_is_no_way_in(
    store: ObjectStore, settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def refuse(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("s3fs.S3FileSystem._info", refuse)
    forget_connections()
    with pytest.raises(CheckpointNotAllowed, match=r"its store refuses access; give .*AWS_ACCESS_KEY") as caught:
        locate_checkpoint(f"s3://{store.bucket}/private.pt", settings)
    assert "AKIASECRET" not in caught.value.message
    forget_connections()


def test_a_store_that_is_down(settings: Settings, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request waits for the answer, so it must not wait for ever."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    forget_connections()
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    with pytest.raises(SourceUnreachable, match=r"its store cannot be read \(EndpointConnectionError\)"):
        locate_checkpoint("s3://bucket-x/x.pt", settings)
    forget_connections()
    monkeypatch.setattr(objects, "METADATA_SECONDS", 0.1)
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.info", lambda *_: time.sleep(1))
    with pytest.raises(SourceUnreachable, match=r"did not answer within 0\.1 s"):
        locate_checkpoint("memory://x/y.pt", settings)


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("hf", "huggingface_hub")])
def test_a_package_that_is_not_installed(scheme: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError(package)

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(MissingPackage, match=re.escape(f"needs the package {package!r}; run: {pip_install(scheme)}")):
        locate_checkpoint(f"{scheme}://place/a/x.pt", Settings(schemes=scheme))


class Flaky:
    """A file that comes in small blocks, and may break off or change meanwhile."""

    def __init__(self, content: bytes) -> None:
        self.content = self.sent = content
        """The file as it is listed and as it is read."""
        self.break_at: int | None = None
        self.etag = "1"
        self.is_gone = False
        self.offsets: list[int] = []

    def list(self) -> Listing:
        if self.is_gone:
            raise FileNotFoundError
        return Listing([RemoteFile("x.pt", len(self.content), "x.pt", self.etag)], is_folder=False)

    def read(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
        self.offsets.append(offset)
        for begin in range(offset, len(self.sent), 100):
            if self.break_at is not None and begin >= self.break_at:
                raise SourceUnreachable("it broke off")
            yield self.sent[begin : begin + 100]


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Flaky:
    found = Flaky(CONTENT[:1000])
    monkeypatch.setattr(fetch_module, "source_of", lambda *_: found)
    return found


POSTED = "memory://place/x.pt"


def test_a_fetch_goes_on_where_it_broke_off(flaky: Flaky, settings: Settings) -> None:
    posted = reference(POSTED, settings)
    flaky.break_at = 500
    refused([posted], settings, SourceUnreachable, "broke off")
    assert not list(settings.cache_path.glob("*/x.pt.*")), "half a checkpoint is not shown"
    flaky.break_at = None
    with fetched([posted], settings, int) as (here,):
        assert Path(here.path).read_bytes() == flaky.content
    assert flaky.offsets == [0, 500]


@pytest.mark.parametrize(
    ("field", "value", "error", "words"),
    [
        ("etag", "2", CheckpointChanged, "^run 'a' step 1: .* bytes and etag 2, but was posted with 1"),
        ("is_gone", True, CheckpointGone, "^run 'a' step 1: .* was deleted before it .*spool=copy"),
        ("sent", bytes(1300), CheckpointChanged, r"is longer than .* \(1,000 bytes\)"),
        ("sent", bytes(400), SourceUnreachable, "ended after 400 of 1,000 bytes"),
    ],
)
def test_what_is_not_there_as_posted(
    flaky: Flaky, settings: Settings, field: str, value: object, error: type[Exception], words: str
) -> None:
    posted = reference(POSTED, settings)
    setattr(flaky, field, value)
    refused([posted], settings, error, words)


def test_what_happens_meanwhile(flaky: Flaky, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    posted, reports = reference(POSTED, settings), list[int]()

    def cancel(done: int) -> None:
        reports.append(done)
        if len(reports) == 3:
            raise Cancelled("the evaluation was cancelled")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(Cancelled), fetched([posted], settings, cancel):
        pass
    assert len(reports) == 3
    with pytest.raises(CheckpointChanged, match="replaced while it was fetched"):
        fetched([posted], settings, lambda _: setattr(flaky, "etag", "2")).__enter__()
    assert list(settings.cache_path.glob("*.partial")) == []
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CacheFull, match=r"cannot be written to .* \(no space left on device\)"):
        fetch_posted(reference(POSTED, settings), settings.cache_path / "x.pt", settings, int)


def test_what_is_needed_together_must_fit_together(settings: Settings) -> None:
    both = [in_memory(f"fit/{name}.pt", b"x" * 600, settings) for name in "ab"]
    small, tiny = replace(settings, cache_bytes=1000), replace(settings, cache_bytes=100)
    refused(both, small, CacheFull, "2 checkpoints that are needed together: 1,200 bytes")
    refused(both[:1], tiny, CacheFull, "run 'a' step 1: 600 bytes exceed EVALSVC_CACHE_BYTES, which is 100")
    for one in both:
        with fetched([one], small, int) as (here,):
            assert Path(here.path).stat().st_size == 600
    assert len(list(small.cache_path.glob("*/*.pt"))) == 1, "the second took the first one's place"


def test_two_that_hold_what_the_other_waits_for(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shard needs a checkpoint and its base: to take one and wait for room for the other would be for ever."""
    monkeypatch.setattr(fetch_module, "ROOM_POLL", 0.01)
    refs = [in_memory(f"pairs/{name}.pt", b"x" * 400, settings) for name in "abcd"]
    small, done = replace(settings, cache_bytes=1000), list[bool]()

    def use(pair: list[CheckpointRef]) -> None:
        for _ in range(5):
            with fetched(pair, small, int) as here:
                done.append(all(Path(one.path).stat().st_size == 400 for one in here))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(use, (refs[:2], refs[2:])))
    assert done == [True] * 10


def test_what_lies_here_is_left_alone(settings: Settings, tmp_path: Path) -> None:
    """Also as a parent of a virtual checkpoint, whose other parents come here."""
    (tmp_path / "b.pt").write_bytes(b"b")
    local = CheckpointRef(str(tmp_path / "b.pt"))
    with fetched([local], settings, int) as here:
        assert here == [local]
    assert not settings.cache_path.exists()
    parents = {"r@1": in_memory("virtual/a.pt", b"a", settings), "r@2": local}
    virtual = CheckpointRef("avg(r@1, r@2)", virtual=Virtual(parse_expression("avg(r@1, r@2)"), parents))
    with fetched([virtual], settings, int) as (found,):
        assert found.virtual is not None
        assert [Path(parent.path).read_bytes() for parent in found.virtual.parents.values()] == [b"a", b"b"]
        assert found.path == virtual.path
    large, seen = replace(settings, cache_bytes=1 << 30), list[int]()
    with fetched([in_memory("blocks/x.pt", bytes(2 * source.BLOCK + 1), large)], large, seen.append):
        pass
    assert len(seen) >= 3, "blocks are small enough to stop between"


def test_locate(settings: Settings, store: ObjectStore, tmp_path: Path) -> None:
    settings = replace(settings, data_dir=str(tmp_path / "data"))
    file = tmp_path / "x.pt"
    file.write_bytes(b"abc")
    assert locate_checkpoint(str(file), settings)[0] == str(file)
    with pytest.raises(CheckpointNotAllowed, match="a local file, which EVALSVC_SCHEMES does not allow"):
        locate_checkpoint(str(file), replace(settings, schemes="s3"))
    for name in ("epoch_1.pt", "epoch_2.pt"):
        folder = store.put(f"several/{name}", b"x").rpartition("/")[0]
    for uri, held in ((str(tmp_path), r"x\.pt"), (folder, r"epoch_1\.pt, epoch_2\.pt")):
        with pytest.raises(NotACheckpoint, match=f"it holds {held}: post one of these files"):
            locate_checkpoint(uri, settings)
    in_memory("locate/x.pt", b"abc", settings)
    path, identity = locate_checkpoint("MEMORY://locate/x.pt", settings)
    assert (path, identity.size) == ("memory://locate/x.pt", 3)
    assert name_of("hf://owner/repo/sub/x.pt@main") == "x.pt"
    assert name_of("s3://bucket/run/") == "run"


def test_files_and_folders_of_the_hub(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = {"run/epoch_1.pt": b"weights" * 1000, "hf/model.safetensors": b"weights", "hf/config.json": b"{}"}
    with fake_hub("models/owner/repo", hub) as (address, _asked):
        monkeypatch.setitem(objects.OPTIONS, "hf", {**objects.OPTIONS["hf"], "endpoint": address, "token": False})
        file, folder = (reference(f"hf://owner/repo/{path}", settings) for path in ("run/epoch_1.pt@v1", "hf"))
        assert file.identity is not None
        assert file.identity.size == 7000
        assert file.identity.etag == hashlib.sha256(hub["run/epoch_1.pt"]).hexdigest(), (
            "the hub knows the digest itself"
        )
        with fetched([file, folder], settings, int) as here:
            paths = [Path(each.path) for each in here]
            assert paths[0].name == "epoch_1.pt"
            assert paths[0].read_bytes() == hub["run/epoch_1.pt"]
            found = {path.name: path.read_bytes() for path in paths[1].iterdir()}
            assert found == {"model.safetensors": b"weights", "config.json": b"{}"}
        for uri in ("hf://owner/repo/none.pt", "hf://owner/other/x.pt"):
            with pytest.raises(CheckpointNotFound, match="does not exist"):
                locate_checkpoint(uri, settings)


ALL = Settings(schemes="file, S3,gs,hf,https,http")


@pytest.mark.parametrize(
    ("uri", "parsed"),
    [
        ("s3://bucket/run/epoch_1.pt", RemoteUri("s3", "bucket", "run/epoch_1.pt")),
        ("S3://bucket/run/", RemoteUri("s3", "bucket", "run")),
        ("gs://bucket/a b.pt", RemoteUri("gs", "bucket", "a b.pt")),
        ("hf://owner/repo/sub/epoch_1.pt@v1.0", RemoteUri("hf", "owner", "repo/sub/epoch_1.pt", "v1.0")),
        ("hf://owner/repo@refs/pr/sub/x.pt", RemoteUri("hf", "owner", "repo/pr/sub/x.pt", "refs")),
        ("hf://owner/repo@main/sub/x.pt", RemoteUri("hf", "owner", "repo/sub/x.pt", "main")),
        ("hf://owner/repo/x.pt", RemoteUri("hf", "owner", "repo/x.pt")),
        ("https://host.example:8443/a/x.pt", RemoteUri("https", "host.example:8443", "a/x.pt")),
    ],
)
def test_addresses_are_taken_apart(uri: str, parsed: RemoteUri) -> None:
    assert parse_remote(uri, ALL) == parsed
    assert parse_remote(str(parsed), ALL) == parsed, "what is stored must mean the same again"
    assert all(map(is_remote, (uri, "nonsense://x")))
    assert not any(map(is_remote, ("/a/b.pt", "file:///a.pt", "FILE:///a.pt", "/a/s3://b/x", "a.pt")))
    assert without_secrets("https://u:p@host/x?X-Amz-Signature=abc#z") == "https://…@host/x"
    assert without_secrets("s3://bucket/x\x1b[31m") == "s3://bucket/x�[31m"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("ftp://host/x.pt", "the scheme 'ftp' is not allowed, and not supported; allowed here: file, gs, hf"),
        ("zip://x.pt::s3://bucket/a.zip", "chained addresses"),
        ("s3://bucket/../other/x.pt", "has an empty part, '.' or '..'"),
        ("s3://bucket/./x", "has an empty part"),
        ("https://host/%2e%2e/x", "has an empty part"),
        ("s3://bucket", "has an empty part"),
        ("s3:///x.pt", "is not of the form s3://PLACE/PATH"),
        ("hf://owner/repo", "is not of the form hf://OWNER/REPOSITORY/PATH@REVISION"),
        ("s3://bucket/x#y", "holds '#'"),
        ("https://host/x?y", "holds '?'"),
        ("s3://bucket/x;y", "holds ';'"),
        ("s3://bucket\\x/y", r"holds '\\'"),
        ("s3://bucket/x\ny", "cannot be printed"),
        ("https://host:port/x", "has no valid host and port"),
        ("https://user:hunter2@host/x", "holds a user or password"),
    ],
)
def test_addresses_that_are_refused(uri: str, words: str) -> None:
    with pytest.raises(CheckpointNotAllowed) as caught:
        parse_remote(uri, ALL)
    assert words in caught.value.message
    assert "hunter2" not in caught.value.message, "a password is no part of a message"
    with pytest.raises(CheckpointNotAllowed, match="to add it to EVALSVC_SCHEMES; allowed here: file"):
        parse_remote("s3://bucket/x.pt", Settings())
    with pytest.raises(CheckpointNotAllowed, match="not supported"):
        parse_remote("local:///etc/passwd", Settings(schemes="file,local"))


def test_roots_of_a_scheme_bind_once_there_is_one() -> None:
    settings = Settings(roots="/data:s3://bucket/runs/:/more:s3://other", schemes="s3,gs")
    assert [str(path) for path in settings.root_paths] == ["/data", "/more"]
    for uri in ("s3://bucket/runs/a.pt", "s3://other/x", "gs://any/x"):
        assert str(parse_remote(uri, settings)) == uri
    for uri in ("s3://bucket/runs-too/a.pt", "s3://bucket/x", "s3://another/x"):
        with pytest.raises(CheckpointNotAllowed, match=r"the allowed locations \(s3://bucket/runs, s3://other\)"):
            parse_remote(uri, settings)


FileSystem = fsspec.AbstractFileSystem
SETTINGS = Settings(schemes="memory")


@pytest.fixture
def memory() -> FileSystem:
    found = fsspec.filesystem("memory")
    if found.exists("/beside"):
        found.rm("/beside", recursive=True)
    found.pipe("/beside/run/checkpoints/epoch_1.pt", b"weights")
    return found


URI = "memory://beside/run/checkpoints/epoch_1.pt"


def test_a_run_of_open_lm(memory: FileSystem, open_lm_case: Path) -> None:
    """The same answer as for the same files here."""
    for path in open_lm_case.rglob("*"):
        if path.is_file():
            memory.pipe(f"/beside/golden/{path.relative_to(open_lm_case)}", path.read_bytes())
    found = remote_model("memory://beside/golden/checkpoints/epoch_1.pt", SETTINGS)
    assert found == find_model_config(open_lm_case / "checkpoints" / "epoch_1.pt")
    assert found is not None


def test_a_json_in_a_folder(memory: FileSystem) -> None:
    memory.pipe("/beside/hf/model.safetensors", b"weights")
    memory.pipe("/beside/hf/config.json", json.dumps(SHAPE).encode())
    found = remote_model("memory://beside/hf", SETTINGS)
    assert found is not None
    assert found["vocab_size"] == SHAPE["vocab_size"]


def test_what_is_not_looked_into(memory: FileSystem) -> None:
    def is_found(settings: Settings = SETTINGS) -> bool:
        return remote_model(URI, settings) is not None

    model = json.dumps(SHAPE).encode()
    assert not is_found()
    memory.pipe("/beside/model.json", model)
    assert not is_found(), "two above is another run's"
    memory.pipe("/beside/run/model.json", model)
    assert is_found()
    assert not is_found(Settings(schemes="memory", roots="memory://beside/run/checkpoints"))
    memory.rm("/beside/run/model.json")
    memory.pipe("/beside/run/checkpoints/model.json", model + b" " * 1_000_000)
    assert not is_found(), "a large file"
    memory.pipe("/beside/run/checkpoints/model.json", model)
    assert is_found(), "beside the weights"
    for number in range(MAX_MODEL_FILES):
        memory.pipe(f"/beside/run/checkpoints/{number}.json", b"{}")
    assert not is_found(), "very many files"
    assert remote_model("https://host.example/run/x.pt", Settings(schemes="https")) is None, "http has no folders"


def test_messages_name_the_place(memory: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/beside/run/checkpoints/config.json", b"{bad")
    with pytest.raises(InvalidModelConfig, match=r"^memory://beside/run/checkpoints/config\.json is not JSON"):
        remote_model(URI, SETTINGS)
    monkeypatch.setattr(posted, "METADATA_SECONDS", 0.05)
    monkeypatch.setattr(posted, "_copy_small_files", lambda *_: time.sleep(0.5))
    with pytest.raises(SourceUnreachable, match=r"did not answer within 0\.05 s"):
        remote_model(URI, SETTINGS)
