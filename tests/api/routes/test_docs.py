"""The page of the documentation runs what it names and nothing else."""

import base64
import hashlib
import re

from app_in_process import App


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


def test_files_of_elsewhere_are_of_one_version_and_have_their_digests(app: App) -> None:
    """People put their tokens into this page: a file that was exchanged on its way must not run."""
    page = app.http.get("/docs").text
    named = re.findall(r'(?:src|href)="(https://[^"]+)" integrity="(sha384-[A-Za-z0-9+/]{64})" crossorigin', page)
    assert len(named) == page.count("https://") == 2
    assert all(re.search(r"@\d+\.\d+\.\d+/", address) for address, _ in named)


def test_without_the_internet_the_page_says_where_the_document_is(app: App) -> None:
    page = app.http.get("/docs").text
    assert '<a href="/openapi.json">' in page
    assert app.http.get("/openapi.json").status_code == 200


def test_there_is_no_other_page(app: App) -> None:
    assert app.http.get("/redoc").status_code == app.http.get("/docs/oauth2-redirect").status_code == 404
