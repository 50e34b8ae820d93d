"""The page about monitoring is held to the code: which errors are retried."""

import re

from doc_blocks import DOCS

from evalsvc.errors import leaves


def test_the_errors_that_are_retried_are_the_transient_ones() -> None:
    page = (DOCS / "how-to" / "monitor.md").read_text()
    [named] = re.findall(r"^- A transient error \(([^)]*)\) is retried", page, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", named)) == {error.code for error in leaves() if error.transient}
