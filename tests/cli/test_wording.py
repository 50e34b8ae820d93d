"""Messages of the service in the words of the command line."""

import ast
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import evalsvc
from evalsvc.cli.wording import counted, duration, in_options

OF_REST = re.compile(r"\b(GET|PUT|POST|DELETE|PATCH) /v1/|\b[a-z_]+=true\b")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("post it again with replace=true", "post it again with --replace"),
        ("Post with `replace: true` to", "Post with `--replace` to"),
        ("delete with cancel=true (--cancel)", "delete with --cancel"),
        ("all the same: --force (force=true)", "all the same: --force"),
        ("add ?replace_shipped=true", "add --replace-shipped"),
        ("spool=copy if its store", "--spool copy if its store"),
        ("from=300 is greater than to=10; swap them", "--from 300 is greater than --to 10; swap them"),
        ("read the history with x=step", "read the history with --x step"),
        ("name one by PUT /v1/runs/mine/base, or", "name one by evalsvc runs mine --base RUN@STEP, or"),
        ("GET /v1/runs/{run}/artifacts lists", "evalsvc artifacts list RUN lists"),
        ("(POST /v1/evaluations).", "(evalsvc retry RUN@STEP --suite SUITE)."),
        ("POST /v1/evaluations/{id}/retry", "evalsvc retry ID"),
        ("the file /data/replace=trueish.pt", "the file /data/replace=trueish.pt"),
    ],
)
def test_fields_and_routes_become_options_and_commands(message: str, shown: str) -> None:
    assert in_options(message) == shown


def raised_texts(naming: re.Pattern[str] = OF_REST, folder: str = "") -> Iterator[str]:
    """Yield the text of every error in files that match `naming`, with NAME for what is filled in.

    The command line itself is left out.
    """
    package = Path(evalsvc.__file__).parent
    for path in sorted((package / folder).rglob("*.py")):
        if "cli" in path.relative_to(package).parts:
            continue
        source = path.read_text()
        for node in ast.walk(ast.parse(source)) if naming.search(source) else ():
            if isinstance(node, ast.Raise):
                for part in ast.walk(node):
                    if isinstance(part, ast.JoinedStr):
                        yield "".join(str(v.value) if isinstance(v, ast.Constant) else "NAME" for v in part.values)


def test_no_error_sends_a_user_of_the_command_line_to_a_route() -> None:
    of_rest = [text for text in raised_texts() if OF_REST.search(text)]
    assert len(of_rest) >= 10, "the errors are found"
    assert [text for text in of_rest if OF_REST.search(in_options(text))] == []


@pytest.mark.parametrize("folder", ["api/routes", "store"])
def test_no_answer_of_rest_sends_its_client_to_a_command(folder: str) -> None:
    """A command in the answer to a request helps no one who has REST alone; the command line translates routes."""
    command = re.compile(r"\bevalsvc (runs|checkpoints|evaluations|plan|history|artifacts|items|protocol|suites) ")
    assert [text for text in raised_texts(command, folder) if command.search(text)] == []


def test_a_message_of_a_stranger_is_read_quickly() -> None:
    """The rules are tried on what any service answers; one that goes back and forth would hang the terminal."""
    begun = time.process_time()
    for text in ("evalsvc ", "GET /v1/runs/", "{a", "replace", "--a ("):
        in_options(text * 10_000)
    assert time.process_time() - begun < 1


def test_durations_and_counted_nouns() -> None:
    assert [counted(number, "task") for number in (0, 1, 1200)] == ["0 tasks", "1 task", "1,200 tasks"]
    texts = {0: "0 s", 89.4: "89 s", 90: "2 min", 5400: "1 h 30 min", 7200: "2 h", 187_200: "2 d 4 h"}
    assert {seconds: duration(seconds) for seconds in texts} == texts
