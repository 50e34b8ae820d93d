"""The command line: what it prints, where, and its exit codes."""

import csv
import io
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import typer.main
from app_in_process import app_on_port
from benchmark_files import questions, write_benchmark, write_rows
from compared_runs import put
from gate_documents import document, read_junit
from gate_documents import value as metric_value
from queue_steps import enter, evaluate_whole, metric, submission, suite
from sqlalchemy import delete

from evalsvc.api.server import listen
from evalsvc.assets import ASSETS
from evalsvc.cli import app, main
from evalsvc.config import setting_help
from evalsvc.messages import ShardError
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.protocol import Protocol
from evalsvc.store.session import open_store
from evalsvc.store.tables import Base
from evalsvc.tasks.reference_statistics import load_reference

GOLDEN = Path(__file__).parent / "golden" / "open_lm" / "01_rotary_default_ln_swiglu" / "checkpoints" / "epoch_1.pt"

SCATTERED = [[59, 56, 36, 15], [7, 32, 2, 58], [38, 38, 26, 42], [20, 46, 55, 40], [42, 35, 1, 57], [15, 49, 30, 19]]
"""Ids that the untrained checkpoint of the golden data expects less than a uniform guess would."""


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs the console script in this process, in an environment and folder of the test's own."""
    for variable, _, _ in setting_help():
        monkeypatch.setenv(variable, "")  # as good as not set, and `run` cannot leave its own behind
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["evalsvc", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capfd.readouterr()
        code = exited.value.code
        return Result(0 if code is None else int(code), captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    with app_on_port(tmp_path_factory.mktemp("service")) as (url, state):
        yield url, state


@pytest.fixture
def service(running: tuple[str, Any], command: Command, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The state of a running service that does its work at once; empty, and the one that the client finds."""
    url, state = running
    with state.store.transaction() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))
    state.coordinator.working, state.coordinator.error = False, None
    monkeypatch.setenv("EVALSVC_URL", url)
    return state


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "epoch_1.pt"
    path.write_bytes(b"weights")
    return path


class TestStart:
    def test_help_is_quick_and_imports_little(self) -> None:
        """Whoever asks for help does not wait for torch."""
        heavy = {"torch", "numpy", "fastapi", "starlette", "sqlalchemy", "distributed", "dask", "pydantic", "uvicorn"}
        code = (
            "import sys; sys.argv = ['evalsvc', '--help']\n"
            "from evalsvc.cli import main\n"
            "try: main()\n"
            f"except SystemExit: print('heavy:', sorted({heavy} & set(sys.modules)))"
        )
        seconds = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            # Of the processor, which others may want at the same time.
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert "heavy: []" in found.stdout
        assert all(name in found.stdout for name in ("serve", "worker", "submit", "history", "run", "doctor"))
        assert min(seconds) < 0.5

    def test_version(self, command: Command) -> None:
        from evalsvc import __version__

        assert command("--version").out == f"evalsvc {__version__}\n"

    @pytest.mark.parametrize(
        "name",
        ["serve", "worker", "submit", "history", "base", "completions", "run", "gate", "compare", "metrics", "doctor"],
    )
    def test_every_option_has_its_help(self, command: Command, name: str) -> None:
        result = command(name, "--help")
        assert result.code == 0
        assert f"Usage: evalsvc {name}" in result.out
        parameters = typer.main.get_command(app).commands[name].params  # type: ignore[attr-defined]
        assert [item.name for item in parameters if not getattr(item, "help", None)] == []

    def test_interrupt(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("evalsvc.client.Client.history", interrupted)
        result = command("history", "run-a")
        assert (result.code, "Traceback" in result.err) == (130, False)

    def test_unknown_setting(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EVALSVC_PROT", "80")
        monkeypatch.setenv("EVALSVC_SERVICE_HOST", "10.0.0.1")
        result = command("certificates", "certificates")
        assert (result.code, len(result.out.splitlines())) == (0, 3)
        assert result.err == (
            "warning: EVALSVC_PROT is no setting of evalsvc and is ignored; did you mean EVALSVC_PORT?\n"
        )


class TestServe:
    def test_port_in_use(self, command: Command) -> None:
        with listen("127.0.0.1", 0) as taken:
            port = taken.getsockname()[1]
            result = command("serve", "--port", str(port))
        assert result.code == 2
        assert result.err.startswith(f"error: port {port} of 127.0.0.1 is in use")
        assert "--port (EVALSVC_PORT)" in result.err

    def test_unwritable_data_dir(self, command: Command, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        result = command("serve", "--port", "0", "--data-dir", str(tmp_path / "file" / "data"))
        assert result.code == 2
        assert "cannot be written: not a directory; change its permissions or choose another" in result.err
        assert "[data_directory_unusable]" in result.err

    def test_database_of_another_version(self, command: Command, tmp_path: Path) -> None:
        store = open_store(f"sqlite:///{tmp_path}/evalsvc.db", migrate=False)
        with store.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        store.close()
        for options in ([], ["--migrate"]):
            result = command("serve", "--port", "0", "--data-dir", str(tmp_path), *options)
            assert result.code == 2
            assert "has schema version 9999, this evalsvc needs" in result.err
            assert "[schema_version_mismatch]" in result.err

    def test_database_that_is_none(self, command: Command) -> None:
        result = command("serve", "--port", "0", "--database-url", "nonsense")
        assert (result.code, "is no database URL" in result.err) == (2, True)

    def test_address_that_others_reach(self, command: Command) -> None:
        result = command("serve", "--host", "0.0.0.0", "--port", "0")
        assert (result.code, "which has no token yet; make one first" in result.err) == (2, True)

    def test_missing_suites_folder(self, command: Command, tmp_path: Path) -> None:
        result = command("serve", "--port", "0", "--suites", str(tmp_path / "nowhere"))
        assert (result.code, "does not exist; create it or change --suites" in result.err) == (2, True)

    def test_port_that_is_no_number(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EVALSVC_PORT", "http")
        result = command("serve")
        assert (result.code, "EVALSVC_PORT is 'http'; it must be a whole number" in result.err) == (2, True)


class TestWorker:
    def test_address_without_tls(self, command: Command) -> None:
        result = command("worker", "tcp://127.0.0.1:8786")
        assert (result.code, "must begin with tls://" in result.err) == (2, True)

    def test_missing_certificate(self, command: Command) -> None:
        result = command("worker", "tls://127.0.0.1:8786")
        assert (result.code, "give --tls-ca FILE" in result.err) == (2, True)


class TestSubmit:
    def test_posts_and_says_what_was_entered(self, command: Command, service: Any, weights: Path) -> None:
        result = command(
            "submit", "run-a", "25", "epoch_1.pt", "--suite", "loss", "--tag", "lr=3e-4", "--spool", "link"
        )
        assert (result.code, result.err) == (0, "")
        assert result.out == "checkpoint 1: run-a step 25 raw\nevaluation 1: loss queued\n"

    def test_says_when_nothing_is_due(self, command: Command, service: Any, weights: Path) -> None:
        assert "name one with --suite" in command("submit", "run-a", "25", str(weights)).out

    def test_model_and_layout_from_files_of_this_machine(
        self, command: Command, service: Any, weights: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "layout.yaml").write_text("text: {size: 50432}")
        arguments = ["--suite", "loss", "--model", "open_lm_160m", "--layout", "layout.yaml"]
        assert command("submit", "run-a", "25", str(weights), *arguments).code == 0
        assert command("submit", "run-a", "50", str(weights), "--layout", '{"text": {"size": 9}}').code == 0

    def test_wait_shows_progress_and_metrics(self, command: Command, service: Any, weights: Path) -> None:
        service.coordinator.working = True
        result = command("submit", "run-a", "25", str(weights), "--suite", "loss", "--wait")
        assert result.code == 0
        assert "loss/text" in result.out
        assert "± 0.1" in result.out
        assert "loss: pairs" in result.err
        assert "8/8" in result.err

    def test_wait_fails_with_the_evaluation(self, command: Command, service: Any, weights: Path) -> None:
        service.coordinator.working, service.coordinator.error = True, ShardError("non_finite", "layer 3 gives NaN")
        result = command("submit", "run-a", "25", str(weights), "--suite", "loss", "--wait")
        assert result.code == 1
        assert "error: evaluation 1 (loss), task text: layer 3 gives NaN [non_finite]" in result.err

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["run-a", "-5", "epoch_1.pt"], "error: step -5: a step is a whole number of at least 0 [invalid_request]"),
            (["run-a", "late", "epoch_1.pt"], "Invalid value for 'step'"),
            (["run-a", str(2**63), "epoch_1.pt"], "step: input should be less than or equal to 9007199254740991"),
            (["run a", "25", "epoch_1.pt"], "error: run: 'run a' is not a name"),
            (["run-a", "25", "missing.pt"], "/missing.pt: no such file or directory"),
            (["run-a", "25", "s3://bucket/a.pt"], "the scheme 's3' is not allowed"),
            (["run-a", "25", "epoch_1.pt", "--suite", "los"], "no suite is named 'los'; did you mean 'loss'?"),
            (["run-a", "25", "epoch_1.pt", "--tag", "lr"], "--tag lr: write it as KEY=VALUE"),
            (["run-a", "25", "epoch_1.pt", "--model", "open_lm_1bb"], "did you mean 'open_lm_1b'"),
            (["run-a", "25", "epoch_1.pt", "--model", "{"], "--model is not JSON"),
            (
                ["run-a", "25", "epoch_1.pt", "--layout", "nowhere.yaml"],
                "nowhere.yaml does not exist or cannot be read",
            ),
            (["run-a", "25", "epoch_1.pt", "--priority", "-5000000"], "priority: input should be greater"),
        ],
    )
    def test_bad_argument(
        self, command: Command, service: Any, weights: Path, arguments: list[str], words: str
    ) -> None:
        result = command("submit", *arguments)
        assert (result.code, result.out) == (2, "")
        assert words in result.err
        assert "Traceback" not in result.err

    def test_conflict(self, command: Command, service: Any, weights: Path) -> None:
        weights.with_name("other.pt").write_bytes(b"other")
        command("submit", "run-a", "25", str(weights))
        result = command("submit", "run-a", "25", "other.pt")
        assert (result.code, "[conflict]" in result.err) == (2, True)
        assert command("submit", "run-a", "25", "other.pt", "--replace").code == 0

    def test_service_that_is_not_there(self, command: Command, weights: Path) -> None:
        result = command("submit", "run-a", "25", str(weights), "--url", "http://127.0.0.1:9")
        assert result.code == 2
        assert "no evaluation service answers at http://127.0.0.1:9" in result.err
        assert "`evalsvc serve`" in result.err


class TestVirtual:
    @pytest.fixture
    def parents(self, service: Any, command: Command, weights: Path) -> None:
        for step in (0, 20):
            command("submit", "run-a", str(step), str(weights))

    def test_submit_posts_an_expression_as_it_is(self, command: Command, parents: None) -> None:
        result = command("submit", "mix", "30", "lerp(run-a@0, run-a@20, 0.3)", "--suite", "loss")
        assert result.out == "checkpoint 3: mix step 30 raw, lerp(run-a@0, run-a@20, 0.3)\nevaluation 1: loss queued\n"
        result = command("submit", "run-a", "5", "avg(run-a@20,run-a@0)")
        assert re.match(r"checkpoint 4: run-a step 5 avg-\w{10}, avg\(run-a@0, run-a@20\)\n", result.out)
        result = command("submit", "mix", "30", "lerp(run-a@0, run-a@25, 0.3)")
        assert (result.code, "the nearest are 0, 20 [unknown_name]" in result.err) == (2, True)

    def test_sweep_is_one_curve_against_a_metric(self, command: Command, service: Any, parents: None) -> None:
        assert command("sweep", "mix", "run-a@0", "run-a@20", "--points", "3", "--suite", "loss").code == 0
        evaluate_whole(service.store, metric(2.0), metric(1.25, "loss/image", stderr=None))
        again = command("sweep", "mix", "run-a@0", "run-a@20", "--points", "3", "--suite", "loss", "--wait")
        assert again.out.splitlines()[2:4] == [
            "checkpoint 4: mix step 50 raw, lerp(run-a@0, run-a@20, 0.5)",
            "evaluation 2: loss succeeded",
        ]
        arguments = ["history", "mix", "--metric", "loss/image", "--against", "loss/text"]
        rows = [line.split() for line in command(*arguments).out.splitlines() if "raw" in line]
        assert rows == [["mix", "raw", step, "2", "±", "0.1", "1.25"] for step in ("0", "50", "100")]
        rows = list(csv.reader(io.StringIO(command(*arguments, "--format", "csv").out)))
        columns = [f"{name}{end}" for name in ("loss/text", "loss/image") for end in ("", " stderr", " source")]
        assert rows[0] == ["run", "variant", "step", *columns]
        assert rows[2] == ["mix", "raw", "50", "2.0", "0.1", "", "1.25", "", ""]
        found = json.loads(command("history", "mix", "--against", "loss/text", "--format", "json").out)
        assert [row["loss/image"]["value"] for row in found["rows"]] == [1.25] * 3
        assert "did you mean 'loss/text'" in command("history", "mix", "--against", "loss/txt").err

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["mix", "run-a@0", "run-a@20", "--points", "4"], "--points 4: steps are whole percents, so give 2, 3, 5"),
            (["mix", "run-a@0", "run-a@20", "--points", "1"], "--points 1: steps are whole percents"),
            (["mix", "run-a@0", "run-a@2"], "run 'run-a' has no checkpoint at step 2"),
            (["run-a", "run-a@0", "run-a@20"], "run 'run-a' has checkpoints of variant 'raw' that are no virtual ones"),
        ],
    )
    def test_bad_sweep(self, command: Command, parents: None, arguments: list[str], words: str) -> None:
        result = command("sweep", *arguments)
        assert (result.code, result.out) == (2, "")
        assert words in result.err


class TestHistory:
    @pytest.fixture
    def measured(self, service: Any, command: Command, weights: Path) -> None:
        for step, value in ((0, 2.5), (25, float("nan"))):
            command("submit", "run-a", str(step), str(weights), "--suite", "loss", "--tokens-seen", str(step * 4))
            evaluate_whole(service.store, metric(value), metric(1.25, "loss/image", stderr=None))

    def test_table(self, command: Command, measured: None) -> None:
        lines = command("history", "run-a", "--metric", "loss/text").out.splitlines()
        cells = [line.split() for line in lines if "loss/text" in line]
        assert [row[3:] for row in cells] == [
            ["0", "2.5", "±", "0.1", "8", "nats/token"],
            ["25", "NaN", "±", "0.1", "8", "nats/token"],
        ]

    def test_csv(self, command: Command, measured: None) -> None:
        rows = list(csv.DictReader(io.StringIO(command("history", "run-a", "--format", "csv", "--x", "tokens").out)))
        assert [(row["metric"], row["tokens"], row["value"], row["stderr"]) for row in rows] == [
            ("loss/image", "0", "1.25", ""),
            ("loss/image", "100", "1.25", ""),
            ("loss/text", "0", "2.5", "0.1"),
            ("loss/text", "100", "NaN", "0.1"),
        ]

    def test_json(self, command: Command, measured: None) -> None:
        found = json.loads(command("history", "run-a", "--format", "json").out)
        assert [series["metric"] for series in found["series"]] == ["loss/image", "loss/text"]

    def test_unknown_run_and_metric(self, command: Command, measured: None) -> None:
        assert "did you mean 'run-a'" in command("history", "run-b").err
        result = command("history", "run-a", "--metric", "loss/txt")
        assert (result.code, "did you mean 'loss/text'" in result.err) == (2, True)

    def test_import_of_a_file(self, command: Command, service: Any, tmp_path: Path) -> None:
        """An import that was cut off is begun again from the start; what was entered before stays as it is."""
        (tmp_path / "old.csv").write_text("step,metric,value\n10,coco/fid,31.5\n0,coco/fid,NaN\n")
        arguments = ("import", "run-a", "old.csv", "--direction", "lower", "--protocol", "30,000 captions")
        assert command(*arguments).out == "2 values of 1 metrics: 2 entered, 0 replaced, 0 there already\n"
        assert command(*arguments).out == "2 values of 1 metrics: 0 entered, 0 replaced, 2 there already\n"
        rows = [line.split()[3:] for line in command("history", "run-a").out.splitlines() if "coco/fid" in line]
        assert rows == [["0", "NaN", "old.csv"], ["10", "31.5", "old.csv"]]
        (tmp_path / "old.csv").write_text("step,metric,value\n10,coco/fid,30\n")
        refused = command(*arguments)
        assert (refused.code, "coco/fid at step 10 is 31.5, imported, and not 30.0" in refused.err) == (2, True)
        assert "0 entered, 1 replaced" in command(*arguments, "--replace", "--source", "jane").out
        found = json.loads(command("history", "run-a", "--format", "json").out)
        assert [item["source"] for item in found["imports"].values()] == ["old.csv", "jane"]

    def test_imported_values_are_marked_wherever_they_are_shown(
        self, command: Command, service: Any, measured: None, tmp_path: Path
    ) -> None:
        """In one series with measured ones, or beside another run's, nothing else tells them apart."""
        (tmp_path / "old.csv").write_text("step,metric,value\n0,coco/fid,31.5\n50,coco/fid,30\n")
        arguments = ("old.csv", "--direction", "lower")
        assert "2 entered" in command("import", "run-a", *arguments, "--source", "wandb").out
        assert "2 entered" in command("import", "run-b", *arguments, "--source", "jane").out

        def values(*options: str) -> list[dict[str, Any]]:
            return list(csv.DictReader(io.StringIO(command("history", *options, "--format", "csv").out)))

        shown = command("history", "run-a").out
        assert "imported from" in shown
        assert [line.split()[-1] for line in shown.splitlines() if "coco/fid" in line] == ["wandb"] * 2
        assert "wandb" not in "".join(line for line in shown.splitlines() if "loss/" in line)
        assert {(row["metric"], row["source"]) for row in values("run-a")} == {
            ("coco/fid", "wandb"),
            ("loss/image", ""),
            ("loss/text", ""),
        }
        both = command("history", "run-a", "run-b", "--metric", "coco/fid").out
        assert both.count("31.5 (imported)") == both.count("30 (imported)") == 2
        assert {(row["run"], row["source"]) for row in values("run-a", "run-b", "--metric", "coco/fid")} == {
            ("run-a", "wandb"),
            ("run-b", "jane"),
        }
        along = ("run-a", "--metric", "coco/fid", "--against", "loss/text")
        assert "31.5 (imported)" in command("history", *along).out
        points = {row["step"]: (row["coco/fid source"], row["loss/text source"]) for row in values(*along)}
        assert points["0"] == ("wandb", "")
        found = json.loads(command("history", *along, "--format", "json").out)
        assert [row["coco/fid"] and row["coco/fid"]["import"] for row in found["rows"]] == [1, None]
        assert found["imports"]["run-a"]["1"]["source"] == "wandb"

    def test_run_without_values(self, command: Command, service: Any, weights: Path) -> None:
        command("submit", "run-a", "25", str(weights))
        assert command("history", "run-a").out == "run run-a has no values yet\n"
        assert command("history", "run-a", "--format", "csv").out == ""
        command("submit", "run-b", "25", str(weights))
        assert command("history", "run-a", "run-b").out == "runs run-a, run-b have no values yet\n"

    def test_another_protocol_is_told_apart_by_its_fields(
        self, command: Command, service: Any, measured: None, weights: Path
    ) -> None:
        assert "differs" not in command("history", "run-a").out
        command("submit", "run-a", "50", str(weights), "--suite", "loss")
        evaluate_whole(service.store, metric(7.5, limit=2))
        rows = list(csv.DictReader(io.StringIO(command("history", "run-a", "--format", "csv").out)))
        assert [(row["metric"], row["differs"], row["step"], row["value"]) for row in rows[2:]] == [
            ("loss/text", "limit=1", "0", "2.5"),
            ("loss/text", "limit=1", "25", "NaN"),
            ("loss/text", "limit=2", "50", "7.5"),
        ]
        assert "limit=2" in command("history", "run-a").out

    @pytest.fixture
    def another(self, service: Any, command: Command, measured: None, weights: Path) -> None:
        """A second run, of which one metric was measured by another protocol."""
        for step in (25, 50):
            command("submit", "run-b", str(step), str(weights), "--suite", "loss")
            evaluate_whole(service.store, metric(3.5, limit=2), metric(1.5, "loss/image"))

    def test_several_runs_side_by_side(self, command: Command, another: None) -> None:
        result = command("history", "run-a", "run-b", "--metric", "loss/image")
        assert (result.code, result.err) == (0, "")
        assert [line.split() for line in result.out.splitlines() if line.strip() and "─" not in line][1:] == [
            ["step", "run-a", "run-b"],
            ["0", "1.25"],
            ["25", "1.25", "1.5", "±", "0.1"],
            ["50", "1.5", "±", "0.1"],
        ]

    def test_several_runs_of_different_protocols(self, command: Command, another: None) -> None:
        refused = command("history", "run-a", "run-b")
        assert refused.code == 2
        assert "loss/text: run-a and run-b differ in limit 1 → 2; evaluate one of them again" in refused.err
        assert "[not_comparable]" in refused.err
        assert "loss/image" in refused.out
        assert "3.5" not in refused.out
        forced = command("history", "run-a", "run-b", "--metric", "loss/text", "--force")
        assert (forced.code, forced.err) == (0, "")
        assert "of several protocols, forced" in forced.out
        assert "run-b limit=2" in forced.out
        rows = list(csv.DictReader(io.StringIO(command("history", "run-a", "run-b", "--format", "csv", "--force").out)))
        assert {(row["run"], row["differs"]) for row in rows if row["metric"] == "loss/text"} == {
            ("run-a", "limit=1"),
            ("run-b", "limit=2"),
        }


class TestCompare:
    @pytest.fixture
    def results(self, tmp_path: Path) -> None:
        for name, fid, limit in (("before", 12.21, 1), ("after", 12.27, 2)):
            metrics = [
                metric_value("coco/fid", fid, 0.1, n=30_000),
                metric_value("coco/kid", fid, protocol=Protocol({"limit": limit})),
            ]
            (tmp_path / f"{name}.json").write_text(json.dumps(document(*metrics)))

    def test_table_and_refusal(self, command: Command, results: None) -> None:
        result = command("compare", "before.json", "after.json")
        (fid,) = (line for line in result.out.splitlines() if "coco/fid" in line)
        assert " ".join(fid.split()) == (
            "indistinguishable coco/fid 12.21 [12.01, 12.41] 12.27 [12.07, 12.47] "
            "+0.06 -0.2172 … +0.3372 unpaired 30,000"
        )
        assert (
            "1 metric has a verdict at level 0.95, each by itself: if nothing had changed, about 0.05 would"
            in result.out
        )
        (kid,) = (line for line in result.out.splitlines() if "coco/kid" in line)
        assert "OTHER PROTOCOL" in kid
        assert " none " in kid
        assert " basis " in result.out
        assert result.code == 2
        assert "measured by different protocols: coco/kid: limit 1 → 2; evaluate one" in result.err
        forced = command("compare", "before.json", "after.json", "--force")
        assert (forced.code, forced.err) == (0, "")
        assert "worse (forced)" in forced.out

    def test_guidance_scales_are_told_apart(self, command: Command, tmp_path: Path) -> None:
        metrics = [metric_value("coco/fid", scale, protocol=Protocol({"scale": scale})) for scale in (1.0, 3.0)]
        (tmp_path / "both.json").write_text(json.dumps(document(*metrics)))
        table = command("compare", "both.json", "both.json").out
        assert [line.split()[1:3] for line in table.splitlines() if "coco/fid" in line] == [
            ["coco/fid", "(scale=1.0)"],
            ["coco/fid", "(scale=3.0)"],
        ]
        rows = csv.DictReader(io.StringIO(command("compare", "both.json", "both.json", "--format", "csv").out))
        assert [row["differs"] for row in rows] == ["scale=1.0", "scale=3.0"]

    def test_one_metric_as_csv_and_json(self, command: Command, results: None) -> None:
        arguments = ["compare", "before.json", "after.json", "--metric", "*/fid", "--level", "0.5"]
        (row,) = csv.DictReader(io.StringIO(command(*arguments, "--format", "csv").out))
        assert (row["metric"], row["verdict"], row["a"], row["b_stderr"]) == (
            "coco/fid",
            "indistinguishable",
            "12.21",
            "0.1",
        )
        assert float(row["high"]) == pytest.approx(0.06 + 0.6745 * 0.1414, abs=1e-4)
        found = json.loads(command(*arguments, "--format", "json").out)
        assert (found["level"], found["contrasts"][0]["interval"]["low"]) == (0.5, pytest.approx(float(row["low"])))

    def test_checkpoints_of_the_service(self, command: Command, service: Any, weights: Path) -> None:
        for step, value in ((0, 2.5), (25, 1.5)):
            command("submit", "run-a", str(step), str(weights), "--suite", "loss")
            evaluate_whole(service.store, metric(value))
        result = command("compare", "run-a@0", "run-a@25")
        assert (result.code, "better" in result.out) == (0, True)

    def test_right_answers(self, command: Command, service: Any) -> None:
        put(service.store, "run-a", 0, 1, 0.8)
        put(service.store, "run-a", 10, 2, 0.4)
        arguments = ["compare", "run-a@0", "run-a@10", "--metric", "*/acc", "--flipped", "2"]
        table = command(*arguments).out
        assert "only A / B right" in table
        found = json.loads(command(*arguments, "--format", "json").out)["contrasts"]
        rows = list(csv.DictReader(io.StringIO(command(*arguments, "--format", "csv").out)))
        for one, row in zip(found, rows, strict=True):
            answers = one["answers"]
            assert f"{answers['only_a']} / {answers['only_b']}" in table
            assert len(answers["flipped"]["only_a"]) == 2
            assert (row["only_a"], float(row["holm"])) == (str(answers["only_a"]), answers["holm"])

    def test_verdicts_on_all_metrics_together(self, command: Command, service: Any) -> None:
        put(service.store, "run-a", 0, 1, 0.8)
        put(service.store, "run-a", 10, 2, 0.4)
        alone, together = (command("compare", "run-a@0", "run-a@10", "--family", family) for family in ("none", "holm"))
        assert "4 metrics have a verdict at level 0.95, each by itself: if nothing had changed, about 0.2" in alone.out
        assert "4 metrics have a verdict, judged together by Holm's method: if nothing had" in together.out
        assert "p (Holm, all metrics)" in together.out
        found = json.loads(command("compare", "run-a@0", "run-a@10", "--family", "holm", "--format", "json").out)
        assert (found["family"], found["judged"], found["expected_by_chance"]) == ("holm", 4, None)
        for one in found["contrasts"]:
            assert (one["p_holm"] <= 0.05) == (one["verdict"] in ("better", "worse"))

    def test_runs_step_by_step(self, command: Command, service: Any) -> None:
        for step, right in ((0, 0.2), (10, 0.5)):
            put(service.store, "run-a", step, 1, 0.5)
            put(service.store, "run-b", step, 2, right)
        result = command("compare", "run-a", "run-b", "--metric", "arc/acc")
        assert (result.code, result.err) == (0, "")
        assert "arc/acc (fraction, protocol" in result.out
        assert result.out.count(" paired ") == 2
        assert "the interval covers zero first at step 10\n" in result.out
        assert "the difference is beyond noise first at step 0\n" in result.out
        assert "always" not in result.out, "two steps apart from each other say nothing of what follows"
        simultaneous = [*("compare", "run-a", "run-b", "--metric", "arc/acc", "--band", "simultaneous"), "--format"]
        rows = list(csv.DictReader(io.StringIO(command(*simultaneous, "csv").out)))
        assert [(row["step"], row["verdict"]) for row in rows] == [("0", "worse"), ("10", "indistinguishable")]
        assert float(rows[0]["step_level"]) == pytest.approx(0.975)
        assert json.loads(command(*simultaneous, "json").out)["curves"][0]["first_indistinguishable"] == 10
        assert "A: run-b@0\nB: run-b\n" in command("compare", "run-b").out
        put(service.store, "run-b", 20, 2, 0.9)
        put(service.store, "run-a", 20, 1, 0.5)
        found = command("compare", "run-a", "run-b", "--metric", "arc/acc").out
        assert "simultaneous band: the difference changes its sign between steps 0 and 20" in found
        for step in (30, 40):
            put(service.store, "run-b", step, 2, 0.9)
            put(service.store, "run-a", step, 1, 0.5)
        found = command("compare", "run-a", "run-b", "--metric", "arc/acc").out
        assert "simultaneous band: the difference is beyond noise from step 20 on always" in found
        refused = command("compare", "run-a", "run-b", "--family", "holm")
        assert refused.code == 2
        assert "--family is for two checkpoints; along runs, use --band simultaneous" in refused.err

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["before.json"], "before.json is compared with nothing; give a second checkpoint or file, or a run alone"),
            (["run-a@0"], "run-a@0 is compared with nothing"),
            (["nowhere.json", "after.json"], "there is no file nowhere.json; write one by `evalsvc run"),
            (["before.json", "after.json", "--metric", "coco/fud"], "did you mean 'coco/fid'"),
            (["before.json", "after.json", "--level", "95"], "the level of an interval is 95"),
        ],
    )
    def test_bad_argument(self, command: Command, results: None, arguments: list[str], words: str) -> None:
        result = command("compare", *arguments)
        assert (result.code, result.out) == (2, "")
        assert words in result.err


class TestBase:
    def test_says_and_shows_what_a_run_is_compared_with(self, command: Command, service: Any, weights: Path) -> None:
        command("submit", "run-a", "25", str(weights))
        assert command("base", "run-a").out == "base of run-a: run-a step 0 raw (not posted yet)\n"
        said = "base of run-b: run-a step 25 raw (checkpoint 1)\n"
        assert command("base", "run-b", "25", "--of", "run-a").out == said
        assert command("base", "run-b").out == said

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["run-a", "24"], "run 'run-a' has no checkpoint at step 24, variant 'raw'; the nearest are 25"),
            (["run-a", "25", "--of", "run-b"], "no run is named 'run-b'; did you mean 'run-a'?"),
            (["run-a", "--of", "run-b"], "--of run-b is given without a step; say which: evalsvc base run-a STEP"),
            (["run-a", "-1"], "step -1: a step is a whole number of at least 0"),
        ],
    )
    def test_bad_argument(
        self, command: Command, service: Any, weights: Path, arguments: list[str], words: str
    ) -> None:
        command("submit", "run-a", "25", str(weights))
        result = command("base", *arguments)
        assert (result.code, result.out) == (2, "")
        assert words in result.err


class TestCompletions:
    @pytest.fixture
    def completed(self, service: Any) -> None:
        for step, text in ((0, " fromage"), (400, " I love\ncheese\x1b[2J")):
            enter(service.store, submission(step), suite(kind="completions"))
            items = [
                {"prompt": prompt, "way": way, "text": text + mark, "base": " fromage" + mark}
                for prompt in ("one\ntwo", "cheese =>")
                for way, mark in (("greedy", ""), ("seed 0", "!"))
            ]
            evaluate_whole(service.store, items=items)

    def test_prompt_by_prompt_with_the_base_first(self, command: Command, completed: None) -> None:
        result = command("completions", "run-a", "--prompt", "cheese")
        assert (result.code, result.err) == (0, "")
        assert result.out.splitlines() == [
            "cheese =>",
            "  base     │  fromage",
            "  step 0   │  fromage",
            "  step 400 │  I love⏎cheese\\x1b[2J",
            "",
        ]
        assert command("completions", "run-a").out.startswith("one\ntwo\n  base     │")

    def test_the_seeded_ones_too(self, command: Command, completed: None) -> None:
        lines = command("completions", "run-a", "--prompt", "cheese", "--all").out.splitlines()
        assert [line.split("│")[0].strip() for line in lines[1:-1]] == [
            "base",
            "base seed 0",
            "step 0",
            "step 0 seed 0",
            "step 400",
            "step 400 seed 0",
        ]

    def test_the_numbers_of_each_line(self, command: Command, service: Any) -> None:
        """A base has no repetition of its own, a first step no step before it, and an image no loss of the base."""
        judged = {"base_own_nll": 1.5, "base_own_scored": 2}
        for step, ids, more in (
            (0, [1, 2], {"image_ids": 0, "seq_rep_4": None, "base_nll": 1.5, "base_scored": 2}),
            (400, [1, 900, 900, 900, 900], {"image_ids": 4, "seq_rep_4": 0.5, "base_nll": 0.0, "base_scored": 0}),
        ):
            enter(service.store, submission(step), suite(kind="completions"))
            item = {"prompt": "one", "way": "greedy", "text": f"at {step}", "base": "two", "base_ids": [1, 2]}
            evaluate_whole(service.store, items=[item | judged | more | {"ids": ids, "drawn": len(ids)}])
        assert command("completions", "run-a").out.splitlines() == [
            "one",
            "            ids  image  seq-rep-4  base loss  of ids  kept  edits │",
            "  base        2                         0.75       2              │ two",
            "  step 0      2      0                  0.75       2              │ at 0",
            "  step 400    5      4       0.50                  0     1      4 │ at 400",
            "",
        ]

    def test_none_yet_and_none_such(self, command: Command, completed: None, weights: Path) -> None:
        command("submit", "run-b", "0", str(weights))
        assert "run run-b has no completions yet; evaluate a suite" in command("completions", "run-b").out
        result = command("completions", "run-a", "--prompt", "cheese>")
        assert (result.code, "did you mean 'cheese =>'" in result.err) == (2, True)


class TestRun:
    @pytest.fixture
    def suite(self, tmp_path: Path) -> str:
        (tmp_path / "ids.jsonl").write_text('{"text_ids": [1, 2, 3, 4, 5]}\n{"text_ids": [5, 4, 3]}\n')
        (tmp_path / "mine.yaml").write_text("tasks: [{kind: loss, data: ids.jsonl}]")
        return "mine.yaml"

    def test_result_and_table(self, command: Command, suite: str, tmp_path: Path) -> None:
        result = command("run", suite, "--checkpoint", str(GOLDEN), "--output", "result.json", "--device", "cpu")
        assert result.code == 0, result.err
        assert "loss/text" in result.out
        assert "sequences" in result.err
        document = json.loads((tmp_path / "result.json").read_text())
        assert {"checkpoint", "suite", "metrics", "protocols", "provenance", "items"} <= set(document)
        assert {metric["protocol"] for metric in document["metrics"]} == set(document["protocols"])

    def test_what_is_suspicious_is_told_beside_the_result(self, command: Command, tmp_path: Path) -> None:
        """Of a checkpoint that is its own base, a text loss above that of a guess is no forgetting."""
        (tmp_path / "ids.jsonl").write_text("".join(f'{{"text_ids": {ids}}}\n' for ids in SCATTERED))
        (tmp_path / "mine.yaml").write_text("tasks: [{kind: loss, data: ids.jsonl}]")
        options = ["--checkpoint", str(GOLDEN), "--output", "result.json", "--device", "cpu"]
        assert "warning" not in command("run", "mine.yaml", *options).err
        assert json.loads((tmp_path / "result.json").read_text())["warnings"] == {}
        result = command("run", "mine.yaml", *options, "--base", str(GOLDEN))
        assert result.code == 0
        assert "warning: loss/text_within: " in result.err
        [warning] = json.loads((tmp_path / "result.json").read_text())["warnings"]["loss"]
        assert (warning["code"], warning["metric"]) == ("worse_than_guessing", "loss/text_within")

    def test_task_that_fails(self, command: Command, suite: str, tmp_path: Path) -> None:
        (tmp_path / "empty.pt").touch()
        result = command("run", suite, "--checkpoint", "empty.pt", "--device", "cpu")
        assert (result.code, result.out) == (1, "")
        assert "error: loss: " in result.err
        assert "[not_a_checkpoint]" in result.err

    def test_base_beside_the_checkpoint(self, command: Command, tmp_path: Path) -> None:
        """The checkpoint's layout holds for the base too: both have the same widened table, as a rule."""
        (tmp_path / "steps.yaml").write_text(f"tasks: [{{kind: steps, log: {tmp_path}/log, shards: 1, steps: 1}}]")
        options = ["--base", str(GOLDEN), "--layout", '{"text": {"size": 80}}', "--output", "result.json"]
        result = command("run", "steps.yaml", "--checkpoint", str(GOLDEN), *options)
        assert result.code == 0, result.err
        document = json.loads((tmp_path / "result.json").read_text())
        base = document["provenance"]["steps"]["notes"]["base"]
        assert (base["label"], base["layout"]["text"]["size"]) == (str(GOLDEN), 80)

    def test_expression_over_files(self, command: Command, suite: str, tmp_path: Path) -> None:
        """The average of a file with itself is that file; a file that is called like an expression is a file."""
        layout = ["--layout", '{"text": {"size": 80}}', "--device", "cpu", "--threads", "1"]
        expression = f"avg({GOLDEN}, lerp(base, '{GOLDEN}', 0.5))"
        for name, arguments in {"file": [str(GOLDEN)], "virtual": [expression, "--base", str(GOLDEN)]}.items():
            result = command("run", suite, "--checkpoint", *arguments, *layout, "--output", f"{name}.json")
            assert result.code == 0, result.err
        file, virtual = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("file", "virtual"))
        assert [metric["value"] for metric in virtual["metrics"]] == [metric["value"] for metric in file["metrics"]]
        assert virtual["checkpoint"]["label"] == f"avg({GOLDEN}, lerp(base, {GOLDEN}, 0.5))"
        [shard, *_] = virtual["provenance"]["loss"]["shards"]
        assert shard["parents_sha256"] == {
            "base": file["checkpoint"]["sha256"],
            str(GOLDEN): file["checkpoint"]["sha256"],
        }
        assert virtual["checkpoint"]["sha256"] not in (None, file["checkpoint"]["sha256"])
        (tmp_path / "avg(1)").write_bytes(GOLDEN.read_bytes())
        model = ["--model", str(GOLDEN.parents[1] / f"golden_{GOLDEN.parents[1].name}.json")]
        assert command("run", suite, "--checkpoint", "avg(1)", *layout, *model).code == 0

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (
                ["mine.yaml", "--checkpoint", "lerp(a.pt, b.pt"],
                "in 'lerp(a.pt, b.pt' at character 16: expected a comma",
            ),
            (["mine.yaml", "--checkpoint", "avg(nowhere.pt)"], "nowhere.pt: no such file or directory"),
            (["mine.yaml", "--checkpoint", f"avg({'a' * 300}.pt)"], "file name too long"),
            (
                ["mine.yaml", "--checkpoint", "avg(run@5, a.pt)"],
                "run@5 is a checkpoint of a service, and none is asked",
            ),
            (["mine.yaml", "--checkpoint", "avg(run@5..9)"], "run@5..9 is a checkpoint of a service"),
            (["mine.yaml", "--checkpoint", "avg(base)"], "base, which is not given: name its weights by --base"),
            (
                ["mine.yaml", "--checkpoint", "avg(base)", "--base", f"avg({GOLDEN})"],
                "base, which is an expression itself: write it out",
            ),
            (["los", "--checkpoint", str(GOLDEN)], "no suite is named 'los'; did you mean 'loss'?"),
            (["nowhere.yaml", "--checkpoint", str(GOLDEN)], "nowhere.yaml cannot be read: no such file"),
            (["mine.yaml", "--checkpoint", "nowhere.pt"], "nowhere.pt: no such file or directory"),
            (
                ["mine.yaml", "--checkpoint", str(GOLDEN), "--output", "no/r.json"],
                "there is no folder no; make it first",
            ),
            (["mine.yaml", "--checkpoint", str(GOLDEN), "--layout", '{"txt": 1}'], "did you mean 'text'?"),
            (["mine.yaml", "--checkpoint", str(GOLDEN), "--base", "nowhere.pt"], "nowhere.pt: no such file"),
            (["mine.yaml", "--checkpoint", str(GOLDEN), "--base-model", "a"], "--base-model is given without --base"),
        ],
    )
    def test_bad_argument(self, command: Command, suite: str, arguments: list[str], words: str) -> None:
        result = command("run", *arguments)
        assert (result.code, result.out) == (2, "")
        assert words in result.err


PAIRS = [{"index": index, "nll": 1.0 + index % 7} for index in range(100)]


def measured(rise: float, spread: float = 0.0, **fields: Any) -> dict[str, Any]:
    """A result whose items have risen by `rise` in the mean, each by up to `spread` more or less."""
    items = [item | {"nll": item["nll"] + rise + (spread if item["index"] % 2 else -spread)} for item in PAIRS]
    mean = sum(item["nll"] for item in items) / len(items)
    return document(metric_value("pairs/image", mean, 0.2, items=("nll",), **fields), items={"pairs": items})


class TestGate:
    """Six situations, and what each is in every form that there is."""

    OUTPUTS = ("--json", "report.json", "--junit", "report.xml", "--markdown", "summary.md", "--annotations")

    def gate(self, command: Command, candidate: Any, baseline: Any, *options: str) -> Result:
        for name, content in (("candidate", candidate), ("baseline", baseline)):
            if content is not None:
                Path(f"{name}.json").write_text(json.dumps(content))
        return command("gate", "candidate.json", "--baseline", "baseline.json", *options)

    @pytest.mark.parametrize(
        ("candidate", "baseline", "code", "headline", "annotation", "cases"),
        [
            (measured(-0.5), measured(0), 0, "passed: 1 better", "::notice title=pairs/image::better by", "1 0 0 0"),
            (measured(0.1, 0.2), measured(0), 1, "regression: 1 worse", "::error title=pairs/image::worse", "1 1 0 0"),
            (measured(0.1, 0.9), measured(0), 0, "passed: 1 within noise", None, "1 0 0 0"),
            (
                document(errors={"pairs": "layer 3 has NaN"}),
                measured(0),
                2,
                "not judged: 1 missing",
                "::error title=pairs/image::the candidate's task pairs failed: layer 3 has NaN",
                "1 0 1 0",
            ),
            (
                measured(0, protocol=Protocol({"limit": 8})),
                measured(0, protocol=Protocol({"limit": 9})),
                2,
                "not judged: 1 other protocol",
                "::error title=pairs/image::measured by another protocol and not comparable: limit 9 → 8;",
                "1 0 1 0",
            ),
            (
                measured(0),
                None,
                3,
                "no baseline: there is no file baseline.json; write one by",
                "::error title=gate::there is no file baseline.json",
                "1 0 1 0",
            ),
        ],
        ids=["better", "worse", "within-noise", "missing", "other-protocol", "no-baseline"],
    )
    def test_situation(
        self,
        command: Command,
        candidate: Any,
        baseline: Any,
        code: int,
        headline: str,
        annotation: str | None,
        cases: str,
    ) -> None:
        Path("summary.md").write_text("# Build 7\n\n")
        result = self.gate(command, candidate, baseline, *self.OUTPUTS)
        assert (result.code, result.err) == (code, "")
        lines = result.out.splitlines()
        assert lines[-1].startswith(headline)
        assert [line for line in lines if line.startswith("::")] == [
            line for line in lines if annotation and line.startswith(annotation)
        ]
        assert ("pairs/image" in result.out) == (code != 3)
        report = json.loads(Path("report.json").read_text())
        assert (report["exit_code"], report["outcome"].replace("_", " ")) == (code, headline.partition(":")[0])
        suite = read_junit(Path("report.xml").read_bytes())[0]
        assert " ".join(suite.get(name) for name in ("tests", "failures", "errors", "skipped")) == cases
        summary = Path("summary.md").read_text()
        assert summary.startswith(f"# Build 7\n\n### Gate: {headline}")

    def test_the_noise_is_that_of_pairs(self, command: Command) -> None:
        """The same values without their items: the errors of the two would hide it."""
        candidate, baseline = measured(0.1, 0.2), measured(0)
        assert " paired 100 " in " ".join(self.gate(command, candidate, baseline).out.split())
        candidate["items"] = {}
        result = self.gate(command, candidate, baseline)
        assert (result.code, " unpaired 100 " in " ".join(result.out.split())) == (0, True)

    def test_rules(self, command: Command) -> None:
        Path("rules.yaml").write_text("rules: [{metric: pairs/*, absolute: 0.15}]")
        rules = ("--rules", "rules.yaml")
        assert self.gate(command, measured(0.1, 0.2), measured(0), *rules).code == 0
        assert self.gate(command, measured(0.2, 0.2), measured(0), *rules).code == 1

    @pytest.mark.parametrize(
        ("asked", "option", "family"), [("", (), "none"), ("holm", (), "holm"), ("holm", ("--family", "none"), "none")]
    )
    def test_the_level_may_be_that_of_all_metrics(
        self, command: Command, asked: str, option: tuple[str, ...], family: str
    ) -> None:
        """The option counts before the file of rules."""
        Path("rules.yaml").write_text(f"{{rules: [{{metric: '*'}}]{asked and f', family: {asked}'}}}")
        report = ("--rules", "rules.yaml", "--json", "report.json")
        result = self.gate(command, measured(0.0, 0.2), measured(0), *report, *option)
        assert json.loads(Path("report.json").read_text())["alarms"]["family"] == family
        assert "false alarms: 1 metric, at a level of 0.00135" in result.out

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--rules", "nowhere.yaml"], "the rules nowhere.yaml cannot be read: no such file"),
            (["--junit", "no/report.xml"], "--junit no/report.xml: there is no folder no; make it first"),
            (["--json", "."], "--json . cannot be written: is a directory [invalid_request]"),
        ],
    )
    def test_bad_argument(self, command: Command, options: list[str], words: str) -> None:
        result = self.gate(command, measured(0), measured(0), *options)
        assert result.code == 2
        assert words in result.err

    def test_bad_candidate(self, command: Command) -> None:
        result = self.gate(command, None, measured(0))
        assert (result.code, result.out) == (2, "")
        assert "there is no file candidate.json" in result.err
        assert self.gate(command, {"metrics": {}}, measured(0)).err.endswith("[invalid_data]\n")

    def test_service(self, command: Command, service: Any, weights: Path) -> None:
        """Values of the service, which is asked as long as it takes, and no longer."""
        for step in (0, 400):
            command("submit", "run-a", str(step), str(weights), "--suite", "loss")
        arguments = ("gate", "run-a@400", "--baseline", "run-a@0", "--suite", "loss", "--junit", "report.xml")
        late = command(*arguments, "--timeout", "0")
        assert (late.code, late.out.splitlines()[-1][:10]) == (4, "time out: ")
        assert late.err == "evaluation 1 (loss) is queued\n"
        assert read_junit(Path("report.xml").read_bytes())[0].get("errors") == "1"
        service.coordinator.work()
        assert command(*arguments).code == 0
        assert command("gate", "run-a@400", "--baseline", "run-a@7").code == 3
        assert command("gate", "run-a@7", "--baseline", "run-a@0").code == 2

    def test_no_service(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EVALSVC_URL", "http://127.0.0.1:9")
        result = command("gate", "run-a@400", "--baseline", "run-a@0")
        assert (result.code, result.out) == (2, "")
        assert result.err.endswith("[service_unreachable]\n")


class TestDoctor:
    def test_shows_settings_with_their_source(
        self, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("EVALSVC_DEVICES", "cpu")
        monkeypatch.setenv("EVALSVC_DATABASE_URL", "postgresql://evalsvc:secret@127.0.0.1:9/evalsvc")
        result = command("doctor", "--data-dir", str(tmp_path / "data"))
        rows = {line.split()[0]: line.split()[1:] for line in result.out.splitlines() if "EVALSVC_" in line[:12]}
        assert rows["EVALSVC_PORT"] == ["8321", "default"]
        assert rows["EVALSVC_DEVICES"] == ["cpu", "environment"]
        assert rows["EVALSVC_DATA_DIR"] == [str(tmp_path / "data"), "option"]
        assert "secret" not in result.out
        assert result.code == 1  # no database answers there

    def test_exit_code(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        """A fresh machine is fine; the data of a suite are missing once somebody wants that suite."""
        monkeypatch.setenv("EVALSVC_DEVICES", "cpu")
        assert command("doctor").code == 0
        result = command("doctor", "loss")
        assert result.code == 1
        assert "heldout_text.jsonl" in result.out

    def test_unknown_suite(self, command: Command) -> None:
        result = command("doctor", "los")
        assert (result.code, "did you mean 'loss'" in result.err) == (2, True)

    @pytest.mark.parametrize("name", ["setup", "layout"])
    def test_every_option_of_its_commands_has_its_help(self, command: Command, name: str) -> None:
        result = command("doctor", name, "--help")
        assert (result.code, f"Usage: evalsvc doctor {name}" in result.out) == (0, True)
        parameters = typer.main.get_command(app).commands["doctor"].commands[name].params  # type: ignore[attr-defined]
        assert [item.name for item in parameters if not getattr(item, "help", None)] == []


class TestDoctorLayout:
    """What it finds is tested in tests/layout_doctor; here is what the command does with it."""

    CHECKPOINT = str(ROOT / "runs/random-init/checkpoints/epoch_5.pt")
    PAIRS = ("--pairs", str(ROOT / "heldout_pairs.jsonl"))
    SIZES = ("--text-size", "512", "--codebook-size", "64", "--device", "cpu", "--threads", "1")

    def test_decided(self, command: Command, tmp_path: Path) -> None:
        """The file that it writes is the layout for `run --layout`, and its own for the next question."""
        outputs = ("--output", "layout.yaml", "--json", "all.json")
        result = command("doctor", "layout", self.CHECKPOINT, *self.PAIRS, *self.SIZES, *outputs)
        assert result.code == 0, result.err
        assert "the layout is image-then-special 512 (text, image)" in result.out
        assert "special tokens: doc 576, /doc 577, text 578, /text 579, image 580, /image 581, pad 582" in result.out
        assert "split-tables 512" in result.out
        layout = parse_layout(str(tmp_path / "layout.yaml"))
        assert (layout.image_ids, layout.special["/image"]) == (range(512, 576), 581)
        assert json.loads((tmp_path / "all.json").read_text())["decided"] is True

    def test_refused(self, command: Command, tmp_path: Path) -> None:
        """Two pairs are not enough for anything: no file, exit code 1, and what to do."""
        outputs = ("--limit", "2", "--output", "layout.yaml", "--json", "all.json")
        result = command("doctor", "layout", self.CHECKPOINT, *self.PAIRS, *self.SIZES, *outputs)
        assert result.code == 1
        assert "not decided" in result.out
        assert "give more pairs (--limit)" in result.out
        assert not (tmp_path / "layout.yaml").exists()
        assert json.loads((tmp_path / "all.json").read_text())["decided"] is False

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([CHECKPOINT, "--pairs", "nowhere.jsonl"], "nowhere.jsonl"),
            ([CHECKPOINT, *PAIRS, "--output", "no/where.yaml"], "--output no/where.yaml: there is no folder no"),
            ([CHECKPOINT, *PAIRS, "--layout", "image-then-specail"], "did you mean 'image-then-special' or"),
            (["nowhere.pt", *PAIRS], "nowhere.pt"),
            (
                [CHECKPOINT, "--pairs", str(ROOT / "heldout_text.jsonl")],
                "has no `image_codes`; the layout doctor needs",
            ),
        ],
    )
    def test_bad_argument(self, command: Command, arguments: list[str], words: str) -> None:
        result = command("doctor", "layout", *arguments)
        assert (result.code, result.out) == (2, "")
        assert words in result.err
        assert "Traceback" not in result.err


class TestAssets:
    def test_list_shows_what_is_missing(self, command: Command) -> None:
        result = command("assets", "list")
        assert (result.code, result.err) == (0, "")
        rows = {line.split()[0]: line.split()[1] for line in result.out.splitlines() if " MB " in line}
        assert rows == dict.fromkeys(ASSETS, "-")
        assert {"inception", "movqgan-270M", "clip-vit-b-32", "dinov2-vit-l-14"} <= set(rows)

    def test_pull_from_a_file(self, command: Command, inception_path: Path, tmp_path: Path) -> None:
        result = command("assets", "pull", "inception", "--from", str(inception_path))
        assert result.code == 0, result.err
        pulled = tmp_path / "home" / "evalsvc" / "assets" / inception_path.name
        assert result.out == f"inception: {pulled}\n"
        assert pulled.is_file()
        line = next(line for line in command("assets", "list").out.splitlines() if "inception" in line)
        assert "there" in line
        assert str(inception_path) in line

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["inceptoin"], "no asset is named 'inceptoin'; did you mean 'inception'?"),
            (["inception", "--from", "nowhere.pt"], "--from nowhere.pt: there is no such file"),
            (["inception", "movqgan-67M", "--from", "a.pt"], "is one file and 2 assets are named; name one"),
        ],
    )
    def test_bad_argument(self, command: Command, arguments: list[str], words: str) -> None:
        result = command("assets", "pull", *arguments)
        assert (result.code, result.out) == (2, "")
        assert words in result.err


class TestBenchmarks:
    def test_list_shows_where_a_name_comes_from(self, command: Command, tmp_path: Path) -> None:
        (tmp_path / "own").mkdir()
        (tmp_path / "own" / "a.yaml").write_text("task: arc_of_ones_own\n")
        result = command("benchmarks", "list", "arc_", "--include-path", "own")
        assert (result.code, result.err) == (0, "")
        rows = {line.split()[0]: line.split()[1:] for line in result.out.splitlines() if "arc_" in line}
        assert rows["arc_easy"] == ["benchmark", "arc/arc_easy.yaml"]
        assert rows["arc_of_ones_own"] == ["benchmark", "own/a.yaml"]

    def test_prepare_of_an_unknown_name(self, command: Command) -> None:
        result = command("benchmarks", "prepare", "arc_esy")
        assert (result.code, "did you mean 'arc_easy'" in result.err) == (2, True)

    def test_prepare_of_what_is_local(self, command: Command, tmp_path: Path) -> None:
        rows = tmp_path / "home" / "evalsvc" / "datasets" / "rows.jsonl"
        write_benchmark(tmp_path, "mine", dataset_kwargs={"data_files": {"test": "datasets:rows.jsonl"}})
        write_rows(rows, questions(2))
        result = command("benchmarks", "prepare", "mine", "--include-path", ".")
        assert (result.code, result.out, result.err) == (0, "mine: asks for no dataset of the hub\n", "")


class TestReference:
    def test_import(self, command: Command, tmp_path: Path) -> None:
        numpy.savez(tmp_path / "x.npz", mu=numpy.zeros(64), sigma=numpy.eye(64))
        result = command("reference", "import", "x.npz", "--name", "theirs", "--n", "30000")
        assert result.code == 0, result.err
        saved = tmp_path / "home" / "evalsvc" / "statistics" / "theirs.npz"
        assert result.out == f"theirs: {saved}\n"
        assert load_reference("theirs", saved.parent).foreign

    def test_file_that_is_none(self, command: Command) -> None:
        result = command("reference", "import", "nowhere.npz", "--name", "theirs")
        assert (result.code, "nowhere.npz cannot be read as an npz file" in result.err) == (2, True)
