"""`evalsvc` itself: commands, help at 80 columns, options and completion that commands share, and how it ends."""

import io
import pkgutil
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Event, Thread
from typing import Any
from unittest import mock

import pytest
from console import Shell
from queue_steps import enter, evaluate_whole, metric, submission, suite
from typer.main import get_command, get_group
from typer.testing import CliRunner

from evalsvc import __version__, cli
from evalsvc.cli.options import DEADLINE, write_output
from evalsvc.cli.program import COMMANDS, app
from evalsvc.errors import InvalidRequest

ROOT: Any = get_command(app)


def words_of_commands() -> Iterator[tuple[str, ...]]:
    for name, announced in ROOT.commands.items():
        yield (name,)
        yield from ((name, member) for member in getattr(announced.load(), "commands", {}))


WORDS = list(words_of_commands())


@cache
def loaded(words: tuple[str, ...]) -> Any:
    command = ROOT.commands[words[0]].load()
    return command.commands[words[1]] if len(words) > 1 else command


def help_of(*words: str) -> str:
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as ended:
        ROOT.main([*words, "-h"], prog_name="evalsvc")
    assert ended.value.code == 0
    return printed.getvalue()


def options(words: tuple[str, ...]) -> dict[str, Any]:
    return {name: item for item in loaded(words).params if item.param_type_name == "option" for name in item.opts}


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("short_process")
def test_help_is_quick_and_imports_little() -> None:
    heavy = {"torch", "numpy", "fastapi", "starlette", "sqlalchemy", "distributed", "dask", "pydantic", "uvicorn"}
    code = (
        "import sys; sys.argv = ['evalsvc', '--help']\n"
        "from evalsvc.cli import main\n"
        "try: main()\n"
        f"except SystemExit: print('heavy:', sorted({heavy} & set(sys.modules)))"
    )
    seconds = 1.0
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Of the processor, which others may want at the same time.
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if seconds < 0.5:
            break
    assert "heavy: []" in found.stdout
    assert [name for name in COMMANDS if f" {name} " not in found.stdout] == []
    assert seconds < 0.5


@pytest.mark.usefixtures("short_process")
def test_version_in_short_and_in_full(evalsvc: Shell) -> None:
    assert evalsvc("--version").out == f"evalsvc {__version__}\n"
    for line in ("--version --verbose", "--verbose --version"):
        lines = evalsvc(line).out.splitlines()
        assert lines[0] == f"evalsvc {__version__}"
        assert {"commit", "python", "platform", "package"} <= {line.partition(":")[0] for line in lines}


def test_interrupt(evalsvc: Shell) -> None:
    with mock.patch("evalsvc.client.Client.headline", side_effect=KeyboardInterrupt):
        result = evalsvc("history run-a")
    assert (result.code, "Traceback" in result.err) == (130, False)


def test_unknown_setting(evalsvc: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALSVC_PROT", "80")
    monkeypatch.setenv("EVALSVC_SERVICE_HOST", "10.0.0.1")
    result = evalsvc("certificates certificates")
    assert (result.code, len(result.out.splitlines())) == (0, 3)
    unknown = "EVALSVC_PROT is not a setting of evalsvc and is ignored; did you mean EVALSVC_PORT?"
    assert result.err == f"warning: {unknown}\n"


def test_no_command_is_left_out() -> None:
    modules = [import_module(f"{cli.__name__}.{found.name}") for found in pkgutil.iter_modules(cli.__path__)]
    there = {
        (name, module.__name__)
        for module in modules
        if hasattr(module, "commands")
        for name in get_group(module.commands).commands
    }
    assert there == {(name, entry.module) for name, entry in COMMANDS.items()}


def test_names_are_completed_without_the_module_and_options_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "evalsvc.cli.artifacts", raising=False)
    for words, offered in (("art", "artifacts"), ("artifacts ke", "keep"), ("artifacts keep --dr", "--dry-run")):
        assert ("evalsvc.cli.artifacts" in sys.modules) == (offered == "--dry-run")
        line = {"COMP_WORDS": f"evalsvc {words}", "COMP_CWORD": str(words.count(" ") + 1)}
        environment = {"_EVALSVC_COMPLETE": "complete_bash", **line}
        assert CliRunner().invoke(app, prog_name="evalsvc", env=environment).output.split() == [offered]


def test_the_list_of_commands_is_one_screen(narrow: None) -> None:
    lines = help_of().splitlines()
    assert len(lines) <= 51, "\n".join(lines)
    assert max(map(len, lines)) <= 80
    shown = [line.split()[0] for line in lines if re.match(r"  [a-z]+  +[A-Z]", line)]
    assert shown == list(COMMANDS), "a name's line is whole, and begins a sentence"


SPELLINGS = {
    "--out": "--output",
    "--out-file": "--output",
    "--file": "--output",
    "--db": "--database-url",
    "--database": "--database-url",
    "--data": "--data-dir",
    "--data-folder": "--data-dir",
    "--service-url": "--url",
    "--address": "--url",
    "--as-json": "--format json",
    "--csv": "--format csv",
    "--force-yes": "--yes",
    "--json": "--format json or --output FILE",
}
"""Options by which other programs mean what is called otherwise here."""

SHOWING = {
    *("list", "show", "status", "tasks", "metrics", "completions", "history", "compare", "doctor", "runs", "plan"),
    *("checkpoints", "evaluations", "items", "protocol"),
}


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_help_is_whole_and_options_are_spelled_alike(words: tuple[str, ...], narrow: None) -> None:
    """JSON was `--json`, `--json FILE` and `--format json`, and not to be had of twelve commands."""
    text = help_of(*words)
    lines = text.splitlines()
    assert [line for line in lines if len(line) > 80 and not re.match(r"  --[a-z-]+ <", line)] == []
    assert re.findall(r"default: \(|<list\[|range>", text) == [], "a stranger need not know typer's words"
    assert "…" not in re.sub(r"s3://…|\{…\}", "", text)
    assert [line for line in lines if re.search(r"[a-z]\.\.\.$", line) and not line.startswith("Usage")] == []
    assert [item.name for item in loaded(words).params if not item.help] == []
    found = options(words)
    assert [name for name, item in found.items() if not item.hidden and name not in text] == []
    assert [f"{name} is called {SPELLINGS[name]}" for name in found if name in SPELLINGS] == []
    assert words[-1] not in SHOWING or "--format" in found
    if "--format" in found:
        assert list(found["--format"].type_descriptor.choices) == ["table", "csv", "json"]
        assert found["--format"].default == "table"
    if "--data-dir" in found and words[0] not in ("demo", "reference"):
        assert "--database-url" in found, "what opens the store takes both"


def test_an_option_of_several_commands_has_one_type() -> None:
    every = [entry for words in WORDS for entry in options(words).items()]
    for shared in ("--url", "--output", "--data-dir", "--database-url", "--suites", "--device", "--threads", "--yes"):
        assert len({str(item.type_descriptor.annotation) for name, item in every if name == shared}) == 1, shared


def test_h_is_help(evalsvc: Shell) -> None:
    shown = evalsvc("verify -h").out
    assert shown == evalsvc("verify --help").out
    assert shown.startswith("Usage: evalsvc verify [OPTIONS] [machine|RUN@STEP]")


def test_a_file_that_cannot_be_written_is_named_by_its_option(tmp_path: Path) -> None:
    """`doctor layout` and `verify` have computed for minutes by then."""
    write_output("--findings", tmp_path / "a.json", "{}\n")
    assert (tmp_path / "a.json").read_text() == "{}\n"
    with pytest.raises(InvalidRequest, match=rf"--findings {tmp_path} cannot be written: is a directory"):
        write_output("--findings", tmp_path, "{}\n")


@pytest.mark.parametrize(
    "line",
    [
        "run loss --checkpoint a.pt",
        "gate a.pt --baseline b.pt --until decided --suite miniature",
        "verify machine",
        "verify --checkpoint a.pt --suite loss",
        "layout a.pt --pairs p.jsonl --codebook-size 64",
    ],
)
def test_a_device_that_is_not_there_is_wrong_use_of_every_command(
    evalsvc: Shell, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """`cuda:0` without a card was a traceback of 90 lines with the exit code of a checkpoint that is bad."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("EVALSVC_DEVICES", "cuda:1")
    for option, words in (
        ("--device cuda:0", "--device: there is no device 'cuda:0'; this machine has 0 CUDA cards; use cpu"),
        ("--device cuda", "--device: there is no device 'cuda'"),
        ("--device gpu", "--device names 'gpu', which is not a device; use cpu, or a card such as cuda:0"),
        ("", "EVALSVC_DEVICES: there is no device 'cuda:1'"),
    ):
        result = evalsvc(f"{line} {option}")
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert result.err.startswith(f"error: {words}")


def complete(words: str, shell: str = "bash") -> str:
    environment = {"_EVALSVC_COMPLETE": f"complete_{shell}", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    environment |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    return CliRunner().invoke(app, prog_name="evalsvc", env=environment).output


@pytest.fixture
def measured(service: Any) -> None:
    enter(service.store, submission(5), suite())
    enter(service.store, submission(5, run="run-b"))
    evaluate_whole(service.store, metric(2.0), metric(2.5, "loss/image"), metric(1.0, "other/$(touch hacked)"))


@pytest.mark.usefixtures("measured")
def test_names_of_the_service_are_offered() -> None:
    offered = {
        "history ru": ["run-a", "run-b"],
        "runs run-b": ["run-b"],
        "history run-a --metric loss/i": ["loss/image"],
        "history run-a run-b --metric ": ["loss/image", "loss/text"],
        "compare run-a@5 run-b@5 --task l": ["loss"],
        "checkpoints run-a@": ["run-a@5", "run-a@base", "run-a@best", "run-a@newest"],
        "submit run-a 5 file --suite text-qu": ["text-quick"],
        "history x": [],
    }
    assert {words: sorted(complete(f"evalsvc {words}").split()) for words in offered} == offered


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_name_that_a_shell_would_run_is_not_offered(shell: str) -> None:
    """Whoever may post names the metrics, and a shell evaluates what it is offered."""
    assert "hacked" not in complete("evalsvc history run-a --metric ", shell)


def drip(server: socket.socket, ended: Event) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not ended.wait(0.05):
            connection.sendall(b" ")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9", "http://10.255.255.1:80", "no address", "https://127.0.0.1:9", "dripping"]
)
def test_where_nothing_answers_in_time_nothing_is_offered(
    command: Any, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """Where every byte comes in time, and the answer never, the shell would hang."""
    ended = Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        dripping = Thread(target=drip, args=(server, ended))
        if url == "dripping":
            dripping.start()
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("EVALSVC_URL", url)
        begun = time.monotonic()
        assert complete("evalsvc history ru") == "\n"
        assert time.monotonic() - begun < DEADLINE + 1
        ended.set()
        if dripping.ident is not None:
            dripping.join()
