"""Files that clients send: from the first byte to a checkpoint in the spool, and what strangers try on the way."""

import base64
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from app_in_process import App, app_in_process, refused
from migrated import empty
from signed_in import bearer, sent_by

from evalsvc.api.middleware import bodies
from evalsvc.checkpoints.reference import Identity, identify
from evalsvc.files.manifest import write_manifest
from evalsvc.files.uploads import Part
from evalsvc.store.runs.posting import uploaded_bytes
from evalsvc.store.tables import Checkpoint

CONTENT = bytes(range(256)) * 20
SHA256 = hashlib.sha256(CONTENT).hexdigest()
LIMIT = 10_000_000
PART = {"Content-Type": "application/offset+octet-stream"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with app_in_process(tmp_path_factory.mktemp("service") / "data", upload_bytes=LIMIT) as app:
        yield app


@pytest.fixture
def app(running: App) -> App:
    """The application that takes uploads, with nothing in it."""
    empty(running.store)
    shutil.rmtree(running.settings.data_path / "spool", ignore_errors=True)
    running.coordinator.woken = 0
    return running


def b64(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def announced(content: bytes = CONTENT) -> dict[str, str]:
    digest = hashlib.sha256(content).hexdigest()
    return {"Upload-Length": str(len(content)), "Upload-Metadata": f"sha256 {b64(digest)}"}


def create(app: App, content: bytes = CONTENT, **options: Any) -> str:
    """Create an upload; return its address."""
    response = app.http.post("/v1/uploads", headers=announced(content) | options.pop("headers", {}), **options)
    assert response.status_code == 201, response.text
    return response.headers["location"]


def send(app: App, address: str, part: bytes, offset: int = 0, **headers: str) -> httpx2.Response:
    return app.http.patch(address, content=part, headers=PART | {"Upload-Offset": str(offset)} | headers)


def upload(app: App, content: bytes = CONTENT) -> str:
    """Send a whole file; return the uri of its checkpoint."""
    assert send(app, create(app, content), content).status_code == 204
    return f"upload:{hashlib.sha256(content).hexdigest()}"


def post(app: App, uri: str = f"upload:{SHA256}", **fields: Any) -> httpx2.Response:
    return app.post(uri, **{"model": "open_lm_160m", **fields})


def spooled(app: App) -> Path:
    """The file that is kept of checkpoint 1."""
    [file] = (app.settings.data_path / "spool" / "1").iterdir()
    return file


def test_from_the_first_byte_to_a_checkpoint(app: App) -> None:
    supported = app.http.options("/v1/uploads").headers
    names = ("tus-version", "tus-extension", "tus-max-size")
    assert [supported[name] for name in names] == ["1.0.0", "creation,checksum,expiration", str(LIMIT)]
    address = create(app)
    assert address == f"/v1/uploads/{SHA256}"
    first = send(app, address, CONTENT[:1000])
    assert (first.status_code, first.headers["upload-offset"]) == (204, "1000")
    head = app.http.head(address)
    assert (head.headers["upload-offset"], head.headers["upload-length"]) == ("1000", str(len(CONTENT)))
    assert head.headers["cache-control"] == "no-store"
    assert head.headers["upload-expires"].endswith("GMT")
    again = app.http.post("/v1/uploads", headers=announced())
    assert (again.status_code, again.headers["location"], again.headers["upload-offset"]) == (201, address, "1000")
    assert send(app, address, CONTENT[1000:], 1000).status_code == 204
    posted = post(app, suites=["loss"])
    assert posted.status_code == 201, posted.text
    checkpoint = posted.json()["checkpoint"]
    assert (checkpoint["uri"], checkpoint["sha256"]) == (f"upload:{SHA256}", SHA256)
    assert (checkpoint["spool_state"], checkpoint["in_use"]) == ("ready", False)
    file = spooled(app)
    assert (file.read_bytes(), file.stat().st_mode & 0o777, file.stat().st_nlink) == (CONTENT, 0o640, 1)
    assert file.stat().st_mtime_ns == 0, "the same content sent again has the same identity"
    assert os.listdir(app.settings.uploads_path) == [], "the upload has become the checkpoint"
    assert app.coordinator.woken == 1
    refused(send(app, address, b"", len(CONTENT)), 404, "upload_not_found", "became a checkpoint")


def test_the_last_part_is_verified_or_the_post_if_the_service_was_killed_before(app: App) -> None:
    address = create(app)
    response = send(app, address, CONTENT[::-1])
    refused(response, 409, "checkpoint_changed", f"{SHA256} was announced", "send the file again")
    assert (app.http.head(address).status_code, os.listdir(app.settings.uploads_path)) == (404, [])
    create(app)
    part = Part(app.app.state.state.uploads, None, SHA256, 0, None, 0)
    part.write(CONTENT)
    part.close()
    assert post(app).status_code == 201
    assert spooled(app).read_bytes() == CONTENT


def test_a_wrong_post_is_refused_before_the_file_is_sent(app: App) -> None:
    """Else a client would learn of a typing error after hours."""
    refused(post(app, suites=["los"]), 404, "unknown_name", "did you mean 'loss'")
    refused(post(app, model=None), 422, "invalid_request", "model is missing", "an uploaded file has no model")
    refused(post(app, spool="copy"), 422, "invalid_request", "leave spool out")
    refused(post(app, sha256="0" * 64), 422, "invalid_request", "leave sha256 out")
    refused(post(app, f"upload:../{SHA256}"), 403, "checkpoint_not_allowed", "64 hexadecimal digits")
    refused(post(app, suites=["loss"]), 404, "upload_not_found", "send the file first")
    assert app.http.get("/v1/runs").json()["runs"] == [], "nothing of it is stored"


def test_the_same_again_changes_nothing_and_another_place_needs_the_file_again(app: App) -> None:
    uri = upload(app)
    first = post(app, uri, suites=["loss"])
    again = post(app, uri, suites=["loss"])
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["checkpoint"]["id"] == again.json()["checkpoint"]["id"]
    refused(post(app, uri, step=50), 404, "upload_not_found", "another post used the upload")
    upload(app)
    assert post(app, uri, suites=["loss"]).status_code == 200, "sent again, and not needed"
    assert os.listdir(app.settings.uploads_path) == []
    refused(post(app, upload(app, CONTENT + b"other")), 409, "conflict", f"the uri upload:{SHA256}")
    app.coordinator.work()
    with app.store.transaction() as session:
        session.get_one(Checkpoint, 1).spool_state = "released"
    spooled(app).unlink()
    assert post(app, uri, suites=["loss"]).status_code == 200, "nothing needs the file"
    refused(post(app, uri, suites=["loss", "text-quick"]), 404, "upload_not_found")
    upload(app)
    assert post(app, uri, suites=["loss", "text-quick"]).status_code == 200
    assert spooled(app).read_bytes() == CONTENT
    assert app.http.get("/v1/checkpoints/1").json()["spool_state"] == "ready"


def test_other_metadata_is_ignored_and_a_name_is_never_a_path(app: App) -> None:
    around = app.settings.data_path.parent
    for name in (b"../../../etc/passwd", b"/etc/shadow", b"..", b"a" + bytes([27]) + b"[2J", b"\xff", b"a" * 2000):
        metadata = f"filename {b64(name)}, sha256 {b64(SHA256.upper())},is_confidential,relativePath {b64('../x')}"
        assert create(app, headers={"Upload-Metadata": metadata}) == f"/v1/uploads/{SHA256}"
    assert os.listdir(around) == ["data"]
    [file] = os.listdir(app.settings.uploads_path)
    assert file.endswith(f"-{SHA256}-{len(CONTENT)}")


def test_services_that_take_no_uploads(start_app: Callable[..., App]) -> None:
    off, reader = start_app(), start_app(upload_bytes=LIMIT, read_only=1)
    headers = announced() | PART | {"Upload-Offset": "0"}
    for method, path in (("OPTIONS", ""), ("POST", ""), ("PATCH", f"/{SHA256}")):
        answers = [app.http.request(method, f"/v1/uploads{path}", headers=headers) for app in (off, reader)]
        refused(answers[0], 403, "forbidden", "EVALSVC_UPLOAD_BYTES is 0", "shared disk")
        refused(answers[1], 503, "read_only", "send writes to the other service")
    assert [app.http.head(f"/v1/uploads/{SHA256}").status_code for app in (off, reader)] == [403, 404]


def test_the_bytes_of_kept_checkpoints_and_the_disk_count(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(app)
    post(app)
    other = os.urandom(5_000)
    address = create(app, other)
    with app.store.transaction() as session:
        session.get_one(Checkpoint, 1).size = LIMIT - 100
    refused(app.http.post("/v1/uploads", headers=announced()), 507, "storage_full", f"{LIMIT - 100:,}", "still needed")
    refused(send(app, address, other), 507, "storage_full", f"{LIMIT - 100:,}", "resume")
    with app.store.transaction() as session:
        session.get_one(Checkpoint, 1).spool_state = "released"
    pwrite, rest = os.pwrite, [500]

    def fill(file: int, data: memoryview, offset: int) -> int:
        if not rest:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(file, data[: rest.pop()], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fill)
        refused(send(app, address, other), 507, "storage_full", "make room", "are kept")
    assert app.http.head(address).headers["upload-offset"] == "500"
    assert send(app, address, other[500:], 500).status_code == 204


def test_what_cannot_be_created(app: App) -> None:
    metadata = {
        "": "SHA-256 of the whole file",
        "sha256 ..%2f..": "encoded in base64",
        f"filename {b64('a.pt')}": "sha256 is ''",
        f"sha256 {SHA256}": "encoded in base64",
        f"sha256 {b64(bytes(32))}": "64 hexadecimal digits",
        f"sha256 {b64('../' + SHA256)}": "64 hexadecimal digits",
        f"sha256 {b64(SHA256)},sha256 {b64(SHA256)}": "once",
        f"sha256 {b64(SHA256)},{'x' * 5000}": "4096 characters",
    }
    numbers = ("-1", "+1", "1e9", "1.0", "0x10", "1_000", "٣", "", "9" * 400)
    for header, value, status, words in [
        *(("Upload-Length", number, 422, "give a whole number") for number in numbers),
        ("Upload-Length", "0", 422, "an empty file is no checkpoint"),
        *(("Upload-Length", str(size), 413, "EVALSVC_UPLOAD_BYTES") for size in (LIMIT + 1, 2**53 - 1)),
        *(("Upload-Metadata", text, 422, words) for text, words in metadata.items()),
        ("Upload-Concat", "final;/v1/uploads/a /v1/uploads/b", 422, "Upload-Concat"),
        ("Upload-Defer-Length", "1", 422, "Upload-Defer-Length"),
        ("Tus-Resumable", "2.0.0", 412, "send 1.0.0"),
        ("Content-Length", "5", 422, "takes no body"),
    ]:
        headers = {name: text.encode() for name, text in (announced() | {header: value}).items()}
        refused(app.http.post("/v1/uploads", headers=headers), status, "invalid_request", words)
    headers = {"Upload-Metadata": announced()["Upload-Metadata"].encode()}
    refused(app.http.post("/v1/uploads", headers=headers), 422, "invalid_request", "Upload-Length is missing")
    assert not app.settings.uploads_path.exists()


def test_a_part_that_is_refused(app: App) -> None:
    address = create(app)
    send(app, address, CONTENT[:1000])
    rest = CONTENT[1000:]
    refused(app.http.patch(address, headers=PART), 422, "invalid_request", "Upload-Offset is missing")
    refused(send(app, address, rest + b"!", 1000), 413, "invalid_request", "5,120 bytes", "at most 4,120 bytes more")
    for offset in (0, 1, 999, 1001, 5120, 2**53 - 1):
        refused(send(app, address, rest, offset), 409, "upload_conflict", "has 1,000 bytes")
    digests = ("", "sha256", "sha256 AAAA", f"sha256 {b64(bytes(20))}", "md5 AAAA", "crc32 AAAA", "sha256 ???")
    for header, value, status, words in [
        *(("Upload-Offset", number, 422, "give a whole number") for number in ("-1", "0x0")),
        *(("Upload-Checksum", digest, 422, "Upload-Checksum") for digest in digests),
        ("Content-Type", "application/json", 415, "application/offset+octet-stream"),
        ("Tus-Resumable", "0.2.2", 412, "1.0.0"),
        ("Upload-Concat", "partial", 422, "not supported"),
    ]:
        refused(send(app, address, rest, 1000, **{header: value}), status, "invalid_request", words)
    answer = send(app, address, rest, 1000, **{"Upload-Checksum": f"sha256 {b64(bytes(32))}"})
    refused(answer, 460, "checksum_mismatch", "again")
    assert app.http.head(address).headers["upload-offset"] == "1000"
    assert send(app, address, rest, 1000).status_code == 204
    refused(send(app, address, b"!", 5120), 413, "invalid_request", "at most 0 bytes more")
    assert send(app, address, b"", 5120).status_code == 204
    assert post(app).status_code == 201


def test_another_token_sees_and_does_nothing(start_app: Callable[..., App]) -> None:
    app = start_app(upload_bytes=LIMIT)
    mine, theirs = (bearer(app, "submit", name) for name in ("mine", "theirs"))
    address = create(app, headers=mine)
    refused(send(app, address, CONTENT, **theirs), 404, "upload_not_found", SHA256)
    assert app.http.head(address, headers=theirs).status_code == 404
    assert send(app, address, CONTENT, **mine).status_code == 204
    body = {"run": "run-a", "step": 25, "uri": f"upload:{SHA256}", "model": "open_lm_160m"}
    refused(app.http.post("/v1/checkpoints", json=body, headers=theirs), 404, "upload_not_found")
    assert app.http.post("/v1/checkpoints", json=body, headers=mine).status_code == 201


FILES = {
    "config.json": b'{"model_type": "llama", "vocab_size": 64, "max_position_embeddings": 8, "hidden_size": 8, '
    b'"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}',
    "model.safetensors": CONTENT,
    "sub/copy.safetensors": CONTENT,
    "sub/folder/tokenizer.json": b"{}",
}


def manifest_of(files: dict[str, bytes]) -> bytes:
    return write_manifest({name: hashlib.sha256(content).hexdigest() for name, content in files.items()})


class TestFolders:
    """A folder is sent file by file, and named by the digest of its manifest."""

    def test_from_its_files_to_a_checkpoint(self, app: App) -> None:
        uri = upload(app, manifest_of(FILES))
        refused(
            post(app, uri, model=None), 404, "upload_not_found", "config.json, model.safetensors, sub/copy.safetensors"
        )
        upload(app, FILES["config.json"])
        refused(post(app, uri, model=None, suites=["los"]), 404, "unknown_name", "did you mean 'loss'")
        refused(post(app, uri, model=None), 404, "upload_not_found", "model.safetensors", "send these")
        for content in (CONTENT, b"{}"):
            upload(app, content)
        posted = post(app, uri, model=None, suites=["loss"], sha256="a" * 64)
        assert posted.status_code == 201, posted.text
        checkpoint = posted.json()["checkpoint"]
        assert (checkpoint["uri"], checkpoint["sha256"], checkpoint["spool_state"]) == (uri, "a" * 64, "ready")
        folder = spooled(app)
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert (folder.name, files) == (uri, FILES)
        assert {path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))} == {0o750, 0o640}
        size = sum(map(len, FILES.values()))
        assert identify(folder) == Identity(size, 0), "the same content sent again has the same identity"
        with app.store.transaction() as session:
            stored = session.get_one(Checkpoint, 1)
            assert (stored.size, uploaded_bytes(session), (stored.model or {})["vocab_size"]) == (size, size, 64)
        assert os.listdir(app.settings.uploads_path) == [], "the uploads have become the checkpoint"
        assert post(app, uri, suites=["loss"], model=None).status_code == 200
        refused(post(app, uri, step=50, model="open_lm_160m"), 404, "upload_not_found")

    def test_the_spool_drops_all_of_it(self, app: App) -> None:
        uri = upload(app, manifest_of(FILES))
        for content in {*FILES.values()}:
            upload(app, content)
        assert post(app, uri, model=None).status_code == 201
        deleted = app.http.delete("/v1/checkpoints/1", params={"confirm": "run-a@25", "cancel": True})
        assert deleted.status_code == 200, deleted.text
        assert list((app.settings.data_path / "spool").rglob("*.safetensors")) == []

    def test_what_is_wrong_with_a_folder(self, app: App) -> None:
        for content, words in (
            (b'{"files": {"../../secret": "' + SHA256.encode() + b'"}}', "is no name of a file in the folder"),
            (b'{"files": {"a": "' + SHA256.encode() + b'", "a/b": "' + SHA256.encode() + b'"}}', "'a' is a file and"),
            (b'{"files": 5}', "is not of the form"),
        ):
            refused(post(app, upload(app, content)), 422, "invalid_request", words)
        run = upload(app, manifest_of({"checkpoints/epoch_1.pt": CONTENT, "params.txt": b"a: b"}))
        refused(post(app, run), 422, "not_a_checkpoint", "it holds checkpoints/epoch_1.pt: post one")
        uri = upload(app, manifest_of({"model.safetensors": CONTENT, "sub/config.json": b"{}"}))
        refused(post(app, uri, model=None), 404, "upload_not_found", "model.safetensors, sub/config.json")
        for content in (CONTENT, b"{}"):
            upload(app, content)
        refused(post(app, uri, model=None), 422, "invalid_request", "model is missing")
        refused(post(app, uri, spool="link"), 422, "invalid_request", "leave spool out")
        broken = upload(app, manifest_of({"config.json": b'{"hidden_dim": "many"}', "model.safetensors": CONTENT}))
        upload(app, b'{"hidden_dim": "many"}')
        answer = post(app, broken, model=None)
        refused(answer, 422, "invalid_model_config", "the uploaded folder/config.json")
        assert "/tmp" not in answer.text
        assert not list((app.settings.data_path / "spool").glob("[0-9]*"))

    def test_a_file_that_is_named_often_counts_as_often(self, app: App) -> None:
        """A thousand names of one file of 10 GB would have taken the whole disk where there are no links."""
        content = os.urandom(LIMIT // 10)
        uri = upload(
            app, manifest_of({"model.safetensors": content, **{f"{number}.bin": content for number in range(12)}})
        )
        upload(app, content)
        refused(post(app, uri), 507, "storage_full", "do not fit")
        assert not list((app.settings.data_path / "spool").glob("[0-9]*"))

    def test_files_of_another_token_are_none_of_it(self, start_app: Callable[..., App]) -> None:
        app = start_app(upload_bytes=LIMIT)
        mine, theirs = (bearer(app, "submit", name) for name in ("mine", "theirs"))
        manifest = manifest_of({"model.safetensors": CONTENT})
        for content, owner in ((manifest, mine), (CONTENT, theirs)):
            send(app, create(app, content, headers=owner), content, **owner)
        body = {"run": "run-a", "step": 25, "uri": f"upload:{hashlib.sha256(manifest).hexdigest()}"}
        answer = app.http.post("/v1/checkpoints", json=body | {"model": "open_lm_160m"}, headers=mine)
        refused(answer, 404, "upload_not_found", "model.safetensors")

    def test_a_part_of_the_files_may_be_sent_before_a_crash(self, app: App) -> None:
        """All bytes of a file were written, and the service died before it compared the digest."""
        uri = upload(app, manifest_of({"model.safetensors": CONTENT}))
        create(app)
        part = Part(app.app.state.state.uploads, None, SHA256, 0, None, 0)
        part.write(CONTENT)
        part.close()
        assert post(app, uri).status_code == 201
        assert (spooled(app) / "model.safetensors").read_bytes() == CONTENT


def send_pieces(app: App, address: str, *pieces: bytes, **headers: str) -> int:
    """Send a part piece by piece, without its end; return the status."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    return int(sent_by(app, address, messages, PART | {"Upload-Offset": "0"} | headers, method="PATCH")[0]["status"])


def test_a_body_is_cut_where_the_upload_ends_however_large_it_may_be(app: App) -> None:
    """Sent in chunks, a body has no length that could be looked at before."""
    content = os.urandom(3 * bodies.MAX_BODY)
    assert post(app, upload(app, content)).status_code == 201
    assert spooled(app).read_bytes() == content
    address = create(app)
    chunks = [b"x" * 1_000] * 300
    assert send_pieces(app, address, *chunks, **{"Transfer-Encoding": "chunked"}) == 413
    [file] = app.settings.uploads_path.iterdir()
    assert file.stat().st_size <= len(CONTENT)


@pytest.mark.parametrize("checksum", [False, True])
def test_a_connection_that_breaks_keeps_what_came_of_the_last_piece(app: App, checksum: bool) -> None:
    """The last piece was dropped: a client whose connection breaks within each megabyte never came further."""
    address = create(app)
    headers = {"Upload-Checksum": f"sha256 {b64(hashlib.sha256(CONTENT).digest())}"} if checksum else {}
    assert send_pieces(app, address, CONTENT[:1000], **{"Content-Length": str(len(CONTENT))}, **headers) == 408
    rest = 0 if checksum else 1000
    assert app.http.head(address).headers["upload-offset"] == str(rest)
    assert send(app, address, CONTENT[rest:], rest).status_code == 204
    assert post(app).status_code == 201
