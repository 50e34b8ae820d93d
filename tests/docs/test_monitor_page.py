"""The page about monitoring is held to the code: which errors are retried."""

import re

from doc_blocks import DOCS

from evalsvc.errors import leaves


def test_the_errors_that_are_retried_are_the_transient_ones() -> None:
    page = (DOCS / "how-to" / "monitor.md").read_text()
    [named] = re.findall(r"^- A transient error \(([^)]*)\) is retried", page, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", named)) == {error.code for error in leaves() if error.transient}


def test_the_metrics_to_watch_are_metrics_of_the_service() -> None:
    names, listed = (
        set(re.findall(r"`(evalsvc_\w+)", page.read_text()))
        for page in (DOCS / "how-to" / "monitor.md", DOCS / "reference" / "rest.md")
    )
    assert names <= listed, names - listed
