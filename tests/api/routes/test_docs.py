"""The page of the documentation runs what it names and nothing else, and loads nothing from another address."""

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from app_in_process import App, needs_by_route

from evalsvc.api.middleware.access import Needs
from evalsvc.api.routes import docs
from evalsvc.store.tokens import create_token


def test_the_page_runs_only_what_its_policy_names(app: App) -> None:
    answer = app.http.get("/docs")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    scripts = re.findall(r"<script>(.+?)</script>", answer.text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert all(f"'sha256-{digest}'" in policy for digest in digests)
    assert len(digests) == 1


def test_everything_is_loaded_from_the_service(app: App) -> None:
    """A machine without the internet showed an empty page, and people put their tokens into this one."""
    answer = app.http.get("/docs")
    assert "//" not in answer.text.replace("<!DOCTYPE", "").replace("/openapi.json", "")
    assert "http" not in answer.headers["content-security-policy"]
    named = re.findall(r'(?:src|href)="(/docs/[^"]+)"', answer.text)
    assert set(named) == set(docs.FILES)
    for path, media_type in docs.FILES.items():
        file = app.http.get(path)
        assert needs_by_route(app.app)["GET", path] == Needs(None)
        assert (file.status_code, file.headers["content-type"].partition(";")[0]) == (200, media_type)
        assert len(file.content) > 100_000
    assert b"SwaggerUIBundle" in app.http.get("/docs/swagger-ui-bundle.js").content


def test_the_page_needs_no_token_and_no_other_file_is_served(app: App) -> None:
    with app.store.transaction() as session:
        create_token(session, "admin", "admin")
    assert {app.http.get(path).status_code for path in ("/docs", *docs.FILES)} == {200}
    for path in ("favicon-32x32.png", "__init__.py", "../main.py", "..%2fmain.py", "%2e%2e/main.py", "oauth2-redirect"):
        assert app.http.get(f"/docs/{path}").status_code in (307, 401, 404), path


def test_without_the_package_the_page_says_what_to_install(
    start_app: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docs, "PACKAGE", "no_such_package")
    app = start_app()
    page = app.http.get("/docs").text
    assert "pip install fastapi-swagger" in page
    assert '<a href="/openapi.json">' in page
    assert "<script" not in page
    assert app.http.get("/docs/swagger-ui.css").status_code == 404
    assert app.http.get("/openapi.json").status_code == 200


def test_a_package_without_the_files_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another release may have them elsewhere."""
    (tmp_path / "package_of_swagger").mkdir()
    (tmp_path / "package_of_swagger" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(docs, "PACKAGE", "package_of_swagger")
    assert docs.swagger_folder() is None
