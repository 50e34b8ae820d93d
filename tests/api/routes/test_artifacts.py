"""Artifacts by REST: what there is, by evaluation and by run, and the content."""

import ast
from pathlib import Path

import pytest
from app_in_process import App, refused

import evalsvc
from evalsvc.files.artifacts import artifact_path, keep_content
from evalsvc.store.artifacts import KINDS
from evalsvc.store.tables import Artifact


@pytest.fixture
def left(app: App, weights: Path) -> int:
    """The id of an artifact of a finished evaluation."""
    app.post(weights, suites=["loss"])
    app.coordinator.work()
    content = {"media_type": "image/png", "sha256": keep_content(app.settings.artifacts_path, b"pixels"), "size": 6}
    with app.store.transaction() as session:
        artifact = Artifact(task_id=1, kind="sample", name="0.png", details={"prompt": "a seven"}, **content)
        session.add(artifact)
        session.flush()
        return artifact.id


def test_an_evaluation_and_a_run_list_them_by_kind_and_step(app: App, left: int) -> None:
    [artifact] = app.http.get("/v1/evaluations/1/artifacts").json()["artifacts"]
    assert {"id": left, "name": "0.png", "details": {"prompt": "a seven"}}.items() <= artifact.items()
    path = "/v1/runs/run-a/artifacts"
    assert [item["id"] for item in app.http.get(path).json()["artifacts"]] == [left]
    assert [item["step"] for item in app.http.get(path, params={"kind": "sample"}).json()["artifacts"]] == [25]
    assert app.http.get(path, params={"step": 26}).json()["artifacts"] == []


def test_a_kind_that_no_artifact_has_is_named_with_what_is_near(app: App, left: int, weights: Path) -> None:
    """`kind=image_grid` gave an empty list, as if the evaluation had left no grid."""
    for path in ("/v1/runs/run-a/artifacts", "/v1/evaluations/1/artifacts"):
        words = "no kind of artifact is named 'samples'; did you mean 'sample'?"
        refused(app.http.get(path, params={"kind": "samples"}), 404, "unknown_name", words)
    app.post(weights, run="run-b")
    for kind in ("sample", "grid"):
        answer = app.http.get("/v1/runs/run-b/artifacts", params={"kind": kind})
        assert answer.json() == {"artifacts": [], "next_cursor": None}, "a run that waits has none of any kind"
        if kind == "grid":
            assert app.http.get("/v1/runs/run-a/artifacts", params={"kind": kind}).json() == answer.json()


def test_every_kind_that_a_task_leaves_is_known() -> None:
    """A run without images answered a request for its grids with 404, as if the word were wrong."""
    tasks = (Path(evalsvc.__file__).parent / "tasks").rglob("*.py")
    calls = [node for file in tasks for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    first = [node.args[0] for node in calls if isinstance(node.func, ast.Name) and node.func.id == "Artifact"]
    assert {node.value for node in first if isinstance(node, ast.Constant)} == KINDS


def test_the_content_comes_with_its_type_and_never_changes(app: App, left: int) -> None:
    answer = app.http.get(f"/v1/artifacts/{left}")
    assert (answer.content, answer.headers["content-type"]) == (b"pixels", "image/png")
    assert "immutable" in answer.headers["cache-control"]
    words = "an artifact of kind 'sample' has no form 'text'; it has no other form than its content"
    refused(app.http.get(f"/v1/artifacts/{left}?form=text"), 422, "invalid_request", words)


def test_a_content_that_was_overwritten_is_not_shown(app: App, left: int, tmp_path: Path) -> None:
    """It went out under the digest of what had been there, and caches kept it for a year."""
    path = artifact_path(app.settings.artifacts_path, keep_content(app.settings.artifacts_path, b"pixels"))
    for content in (b"PIXELS", b"", b"pixels and more"):
        path.write_bytes(content)
        answer = app.http.get(f"/v1/artifacts/{left}")
        refused(answer, 404, "unknown_name", "is damaged", "; restore the file", "evaluate")
        assert not {"etag", "cache-control"} & set(answer.headers)
    (tmp_path / "secret").write_bytes(b"pixels")
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    refused(app.http.get(f"/v1/artifacts/{left}"), 404, "unknown_name", "cannot be read")
    path.unlink()
    refused(app.http.get(f"/v1/artifacts/{left}"), 404, "unknown_name", "cannot be read", "; restore the file")
    keep_content(app.settings.artifacts_path, b"pixels")
    assert app.http.get(f"/v1/artifacts/{left}").content == b"pixels", "another evaluation puts it right"


def change(app: App, left: int, **fields: str | int) -> None:
    with app.store.transaction() as session:
        for name, value in fields.items():
            setattr(session.get_one(Artifact, left), name, value)


def test_pages_that_an_evaluation_left_run_nothing(app: App, left: int) -> None:
    """In this service's origin a script could do whatever its reader may."""
    content = b"<script>fetch('/v1/runs')</script>"
    sha256 = keep_content(app.settings.artifacts_path, content)
    for media_type in ("text/html", "image/svg+xml", "application/xhtml+xml"):
        change(app, left, media_type=media_type, size=len(content), sha256=sha256)
        answer = app.http.get(f"/v1/artifacts/{left}")
        policy = answer.headers["content-security-policy"]
        assert "; sandbox" in policy
        assert policy.startswith("default-src 'none'")
        assert "allow-scripts" not in policy
        assert "script-src" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-type"].startswith(media_type)
    # A plug-in's task says what it is; that must not become a header of its own.
    for media_type in ["text/html\r\nSet-Cookie: a=b", "*/*", "text/html; charset=x; y", "", "ÿ/ÿ"]:
        change(app, left, media_type=media_type)
        answer = app.http.get(f"/v1/artifacts/{left}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
        assert "set-cookie" not in answer.headers


def test_names_and_digests_cannot_leave_their_header_or_the_folder(app: App, left: int) -> None:
    broken = ('a"; filename="b.exe', "a\r\nSet-Cookie: a=b", "../../etc/passwd", "a\\b", "ü∂.png", "a;b", "", "\x7f")
    for name in broken:
        change(app, left, name=name)
        answer = app.http.get(f"/v1/artifacts/{left}")
        assert (answer.status_code, answer.content) == (200, b"pixels")
        assert "set-cookie" not in answer.headers
        disposition = answer.headers["content-disposition"]
        assert disposition.startswith("inline")
        assert disposition.isascii()
        assert disposition.count('"') in (0, 2)
        assert not {"/", "\\", "\r", "\n"} & set(disposition)
    for digest in ["../../../../etc/passwd", "/etc/passwd", "..", "", "a" * 64]:
        change(app, left, sha256=digest)
        refused(app.http.get(f"/v1/artifacts/{left}"), 404, "unknown_name")
