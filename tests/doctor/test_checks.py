"""What the doctor finds and says to do, and what `evalsvc --version --verbose` says."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from evalsvc import __version__, installation
from evalsvc.config import SECRETS, Settings
from evalsvc.doctor import bug_report
from evalsvc.doctor.bug_report import report_lines
from evalsvc.doctor.checks import Check, check_speed, check_verification, files_of, run_checks
from evalsvc.doctor.verification import FILE, keep_verification, present_versions
from evalsvc.errors import InvalidSuite, UnknownName
from evalsvc.installation import PACKAGE, Origin, find_commit, find_origin, pip_install
from evalsvc.spec.suite import TaskSpec
from evalsvc.store.session import Store, open_store
from evalsvc.store.tokens import create_token


def check(name: str, data_dir: Path, *suites: str, **settings: Any) -> Check:
    found = {item.name: item for item in run_checks(Settings(data_dir=str(data_dir), **settings), suites)}
    return found[name]


def state(found: Check) -> tuple[bool, bool]:
    return found.ok, found.needed


def test_fresh_machine_is_fine_and_stays_fresh(tmp_path: Path) -> None:
    checks = run_checks(Settings(data_dir=str(tmp_path / "data"), devices="cpu"))
    assert [item for item in checks if not item.ok and item.needed] == []
    assert not (tmp_path / "data").exists()


def test_a_folder_from_which_nothing_can_be_linked(tmp_path: Path) -> None:
    found = check("spool", tmp_path / "data", roots=f"/proc:{tmp_path}")
    assert (state(found), found.do) == ((False, False), "post checkpoints with spool=copy")
    assert found.found.startswith("spool=link cannot link from /proc: another file system than ")
    assert "spool" not in {item.name for item in run_checks(Settings(data_dir=str(tmp_path), roots=str(tmp_path)))}


def test_data_of_a_shipped_suite_are_needed_where_it_is_named(tmp_path: Path) -> None:
    found = check("suite loss", tmp_path)
    assert state(found) == (False, False)
    assert str(tmp_path / "datasets" / "heldout_text.jsonl") in found.found
    assert "EVALSVC_DATASETS" in found.do
    assert check("suite loss", tmp_path, "loss").needed
    (tmp_path / "datasets" / "text").mkdir(parents=True)
    for name in ("heldout_text.jsonl", "heldout_pairs.jsonl", "text/copa.jsonl"):
        (tmp_path / "datasets" / name).touch()
    assert check("suite loss", tmp_path, "loss").ok
    found = check("suite text-quick", tmp_path)
    assert state(found) == (False, False)
    assert str(tmp_path / "datasets" / "text" / "arc_easy.jsonl") in found.found
    assert "copa" not in found.found


def test_suites_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("tasks: [")
    (tmp_path / "mine.yaml").write_text(f"tasks: [{{kind: loss, data: {tmp_path}/nowhere.jsonl}}]")
    broken = check("suite broken", tmp_path / "data", suites=str(tmp_path))
    assert (state(broken), "not valid YAML" in broken.found) == ((False, True), True)
    mine = check("suite mine", tmp_path / "data", suites=str(tmp_path))
    assert state(mine) == (False, True)
    assert (mine.found, mine.do) == (f"{tmp_path}/nowhere.jsonl does not exist", "correct the path")
    (tmp_path / "mine.yaml").write_text("tasks: [{kind: loss, data: /data/pairs.jsonl}]")
    mine = check("suite mine", tmp_path, suites=str(tmp_path), roots="/runs")
    assert mine.found.startswith("'/data/pairs.jsonl' is, or links, outside the allowed folders")
    assert (mine.ok, mine.do) == (False, "move the file, or ask the operator to add its folder to EVALSVC_ROOTS")


def test_an_asset_is_needed_by_suites_or_where_it_is_damaged(tmp_path: Path, inception_path: Path) -> None:
    found = check("asset inception", tmp_path)
    assert (state(found), found.do.endswith("run: evalsvc assets pull inception")) == ((False, False), True)
    found = check("asset inception", tmp_path, assets=str(inception_path.parent))
    assert (found.ok, found.found) == (True, str(inception_path))
    shutil.copy(inception_path.with_name(inception_path.name + ".json"), tmp_path)
    (tmp_path / inception_path.name).write_bytes(b"cut off")
    found = check("asset inception", tmp_path, assets=str(tmp_path))
    assert (state(found), found.do) == ((False, True), "run: evalsvc assets pull inception")
    assert "has 7 bytes instead of" in found.found


def needed(tmp_path: Path, *benchmarks: dict[str, Any], **parameters: Any) -> list[str]:
    chosen = [{"data": None} | benchmark for benchmark in benchmarks]
    task = TaskSpec("any", "any", {"benchmarks": chosen, "include_path": [str(tmp_path)], **parameters})
    settings = Settings(datasets=str(tmp_path / "datasets"))
    found = dict.fromkeys(file for _, file in files_of(task, settings))
    return [str(file.relative_to(tmp_path)) for file in found if file != tmp_path]


def test_data_that_benchmarks_of_ones_own_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval is not imported for it: the doctor answers at once."""
    monkeypatch.delitem(sys.modules, "lm_eval", raising=False)
    definitions = {
        "_shared": "dataset_path: json\ntag: both\n",
        "first": "include: _shared.yaml\ntask: first\ndataset_kwargs: {data_files: {test: 'datasets:text/a.jsonl'}}\n",
        "second": "include: _shared.yaml\ntask: second\ndataset_kwargs: {data_files: [b.jsonl]}\n",
        "third": "include: first.yaml\ntask: third\n",
        "broken": "task: broken\nx: [",
        "circle": "include: circle.yaml\ntask: circle\n",
    }
    for name, content in definitions.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    assert needed(tmp_path, {"name": "first"}) == ["datasets/text/a.jsonl"]
    assert needed(tmp_path, {"name": "both"}) == ["datasets/text/a.jsonl", "b.jsonl"]
    assert needed(tmp_path, {"name": "third"}, {"name": "first"}) == ["datasets/text/a.jsonl"]
    assert needed(tmp_path, {"name": "first", "data": f"{tmp_path}/own.jsonl"}) == ["own.jsonl"]
    assert needed(tmp_path, {"name": "broken"}, {"name": "circle"}, {"name": "arc_easy"}) == []
    assert "lm_eval" not in sys.modules
    assert needed(tmp_path, prompts=["/* sum */", "datasets: "]) == [], "prompts are no paths"


def test_unknown_suite_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'loss'"):
        check("", tmp_path, "los")
    with pytest.raises(InvalidSuite, match="does not exist"):
        check("", tmp_path, suites=str(tmp_path / "nowhere"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:///{tmp_path}/evalsvc.db", migrate=False)
    yield store
    store.close()


def test_a_database_that_cannot_be_used(tmp_path: Path, store: Store) -> None:
    for url, words in (
        ("postgresql://user:secret@127.0.0.1:9/evalsvc", "cannot be used"),
        ("nonsense", "which is no database URL"),
    ):
        found = check("database", tmp_path, database_url=url)
        assert (found.ok, words in found.found, bool(found.do)) == (False, True, True)
        assert "secret" not in found.found + found.do
    assert check("database", tmp_path).found.startswith("answers; schema 0")
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    found = check("database", tmp_path)
    assert (found.ok, "schema version 9999" in found.found) == (False, True)
    assert "a newer evalsvc made the database" in found.do


def test_roots_that_are_open_to_every_token(tmp_path: Path, store: Store) -> None:
    """By default all files of the machine lie under the roots; without tokens nobody comes in from elsewhere."""
    assert check("roots", tmp_path / "new").ok
    assert check("roots", tmp_path).ok
    with store.transaction() as session:
        create_token(session, "trainer", "submit")
    found = check("roots", tmp_path)
    assert (found.ok, found.needed, found.found) == (False, True, "/ though there are tokens")
    assert "EVALSVC_ROOTS IS NOT SET: anyone with the submit scope" in found.do
    assert not check("roots", tmp_path, roots="/runs:/").ok
    assert check("roots", tmp_path, roots="/runs:/data").ok


def test_a_database_that_is_empty_or_damaged_has_no_tokens(tmp_path: Path) -> None:
    for content in (b"", b"no database" * 1000):
        (tmp_path / "evalsvc.db").write_bytes(content)
        assert check("roots", tmp_path).ok
    found = check("database", tmp_path)
    assert (found.ok, "is damaged: file is not a database" in found.found) == (False, True)


def test_folders_and_devices_that_cannot_be_used(tmp_path: Path) -> None:
    found = check("roots", tmp_path, roots=f"/runs:{tmp_path}/runs")
    do = f"{tmp_path}/runs is in the data folder, where nothing is read; change EVALSVC_ROOTS"
    assert (found.ok, found.do) == (False, do)
    (tmp_path / "file").touch()
    found = check("data folder", tmp_path / "file" / "data")
    assert (found.ok, "EVALSVC_DATA_DIR" in found.do) == (False, True)
    found = check("devices", tmp_path, devices="cuda:7,cpu")
    assert (found.ok, "torch does not see cuda:7" in found.do) == (False, True)
    assert check("devices", tmp_path, devices="cpu,cpu").ok


def test_what_a_gpu_wants_of_a_suite(tmp_path: Path) -> None:
    """The defaults are for CPUs, and part of the protocol: nothing else would say so."""
    task = {"kind": "text_to_image", "name": "images", "captions": "/c.jsonl", "decoder": "/d.ckpt"}
    slow, fast = {"weights": "int8"}, {"dtype": "bfloat16", "batch": 256}
    for name, parameters in (("slow", slow), ("fast", fast)):
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"tasks": [task | parameters]}))
    assert check_speed(tmp_path / "fast.yaml").ok
    found = check_speed(tmp_path / "slow.yaml")
    assert (state(found), found.found) == (
        (False, False),
        "images: dtype float32; images: batch 32; images: weights int8",
    )
    assert all(
        words in found.do for words in ("`dtype: bfloat16`", "`batch: 256`", "`weights: plain`", "another series")
    )


def test_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service runs without it; its workers do not, unless they are elsewhere."""
    monkeypatch.setitem(sys.modules, "torch", None)
    found = check("torch", tmp_path)
    assert (state(found), pip_install("worker") in found.do) == ((False, True), True)
    assert not check("torch", tmp_path, scheduler="tls://10.0.0.1:8786").needed


def absent(name: str) -> str:
    raise metadata.PackageNotFoundError(name)


def test_lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prompts change between versions; a scheduler's workers are on other machines."""
    assert check("lm-eval", tmp_path).ok
    for version in ("0.4.12", "0.5.0"):
        monkeypatch.setattr(metadata, "version", lambda _, version=version: version)
        found = check("lm-eval", tmp_path)
        assert (found.ok, found.found, found.needed) == (False, version, True)
        assert "pip install 'lm-eval>=0.4.13,<0.5'" in found.do
    monkeypatch.setattr(metadata, "version", absent)
    assert pip_install("worker") in check("lm-eval", tmp_path).do
    assert not check("lm-eval", tmp_path, scheduler="tls://10.0.0.1:8786").needed


def test_suites_are_looked_at_without_lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for module in ("evalsvc.language", "evalsvc.language.definitions"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    assert check("suite text-quick", tmp_path).ok


RESULT: dict[str, Any] = {
    "agrees": True,
    "versions": present_versions(),
    "device": "cuda (NVIDIA H100)",
    "at": "2026-01-01T00:00:00+00:00",
    "findings": [{"quantity": "logits", "verdict": "ok", "difference": 0.0}],
}


def verified(folder: Path, content: str | None = None, **settings: str) -> Check:
    if content is not None:
        (folder / FILE).write_text(content)
    return check_verification(Settings(data_dir=str(folder), **settings))


def test_a_machine_that_was_verified(tmp_path: Path) -> None:
    assert verified(tmp_path) == Check("verify", False, "not run", "run: evalsvc verify machine", False)
    keep_verification(tmp_path, RESULT)
    found = "1 rows agree on cuda (NVIDIA H100), 2026-01-01T00:00:00+00:00"
    assert verified(tmp_path) == Check("verify", True, found)
    untried = {"quantity": "features of Inception", "verdict": "not tried"}
    keep_verification(tmp_path, RESULT | {"findings": [*RESULT["findings"], untried]})
    assert verified(tmp_path).found.startswith("1 rows agree, 1 not tried, on cuda")


def test_a_machine_that_differed(tmp_path: Path) -> None:
    """Workers of this machine would store wrong numbers; a service whose workers are on other machines would not."""
    keep_verification(tmp_path, RESULT | {"agrees": False, "findings": [{"quantity": "fid", "verdict": "WRONG"}]})
    found = verified(tmp_path)
    assert (state(found), found.found.startswith("fid on cuda")) == ((False, True), True)
    assert not verified(tmp_path, scheduler="tcp://127.0.0.1:9").needed


def test_a_verification_of_other_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verified(tmp_path, json.dumps(RESULT | {"versions": {"evalsvc": "0.0.1", "torch": "2.10.0"}}))
    assert (state(found), found.found.partition(" (")[0]) == ((False, False), "of evalsvc 0.0.1, torch 2.10.0 on cuda")
    assert found.do == "the versions have changed; run: evalsvc verify machine"
    monkeypatch.setattr(metadata, "version", absent)
    assert not verified(tmp_path, json.dumps(RESULT)).ok, "torch is no longer installed"


@pytest.mark.parametrize("content", ["", "[]", '{"agrees": true}', json.dumps(RESULT | {"findings": 3}), "{" * 100_000])
def test_a_damaged_verification_is_told(tmp_path: Path, content: str) -> None:
    found = verified(tmp_path, content)
    assert (found.ok, found.needed, found.do) == (False, False, "run: evalsvc verify machine")
    assert str(tmp_path / FILE) in found.found


SECRET = "s3cret"


@pytest.fixture
def no_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder that is all of PATH, so that git is not found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))


def report(name: str = "") -> list[str]:
    lines = list(report_lines())
    return [line.removeprefix(f"{name}: ") for line in lines if line.startswith(f"{name}: ")] if name else lines


@pytest.mark.usefixtures("short_process")
def test_it_names_the_commit_of_the_checkout() -> None:
    lines = report()
    assert lines[0] == f"evalsvc {__version__}"
    assert lines[1] == f"installed from: checkout {PACKAGE.parent}"
    [commit] = report("commit")
    git = ["git", "-C", str(PACKAGE.parent), "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    assert commit.removesuffix("-dirty") == (head or "not known")


def test_the_commit_of_an_address_is_known_and_that_of_a_copy_is_not(
    no_programs: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The folder of a copy may have moved on since it was copied."""
    assert find_origin().folder is not None
    find_commit.cache_clear()
    assert report("commit") == ["not known"], "without git"
    origins = [Origin(url="git+https://git.example/evalsvc@0123abc", commit="0123abc"), Origin(PACKAGE.parent)]
    monkeypatch.setattr(bug_report, "find_origin", lambda: origins[0])
    monkeypatch.setattr(installation, "find_origin", lambda package: origins[0])
    find_commit.cache_clear()
    assert report("commit") == ["0123abc"]
    assert report("installed from") == ["git+https://git.example/evalsvc@0123abc"]
    monkeypatch.undo()
    monkeypatch.setattr(installation, "find_origin", lambda package: origins[1])
    find_commit.cache_clear()
    assert report("commit") == ["not known"]
    image = tmp_path / "COMMIT"
    image.write_text("4567def\n")
    assert find_commit(tmp_path) == "4567def", "an image records it"
    find_commit.cache_clear()


@pytest.mark.usefixtures("no_programs")
def test_settings_are_shown_and_secrets_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(f"EVALSVC_{name.upper()}", SECRET)
    monkeypatch.setenv("EVALSVC_DATABASE_URL", f"postgresql://evalsvc:{SECRET}@127.0.0.1:9/evalsvc?password={SECRET}")
    monkeypatch.setenv("EVALSVC_SCHEDULER", f"tls://me:{SECRET}@host:8786")
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(tmp_path))
    lines = report()
    settings = {line.partition("=")[0] for line in lines if line.startswith("setting: ")}
    given = {*SECRETS, "scheduler", "data_dir"}
    assert settings == {f"setting: EVALSVC_{name.upper()}" for name in given}
    shown = {"SCHEDULER=tls://host:8786", "TOKEN=set", "DATABASE_URL=set"}
    assert {f"setting: EVALSVC_{line}" for line in shown} <= set(lines)
    assert SECRET not in "\n".join(lines)


@pytest.mark.usefixtures("no_programs")
def test_packages_are_those_that_evalsvc_computes_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALSVC_GRACE", "soon")
    assert report("settings") == ["cannot be read: EVALSVC_GRACE is 'soon'; it must be a number"]
    packages = dict(line.split(" ", 1) for line in report("package"))
    assert packages["sqlalchemy"] == metadata.version("sqlalchemy")
    assert packages["torch"] == metadata.version("torch")
    assert not {"evalsvc", "pytest", "ruff", "zensical"} & set(packages)


@pytest.mark.usefixtures("short_process")
def test_it_imports_neither_torch_nor_the_service() -> None:
    code = (
        "import sys\nfrom evalsvc.doctor.bug_report import report_lines\nprint(*report_lines(), sep='\\n')\n"
        "print('heavy:', sorted({'torch', 'numpy', 'fastapi', 'sqlalchemy', 'distributed'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert "heavy: []" in done.stdout
