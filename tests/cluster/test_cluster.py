"""The cluster as the coordinator sees it: outcomes, progress, cancellation, and who may connect."""

import fcntl
import gc
import os
import pickle
import signal
import ssl
import stat
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import distributed.dashboard
import pytest
from cryptography import x509
from distributed import Client, Future
from machines import Machines, wait_for
from watched_cluster import Watched

from evalsvc.cluster import cluster as cluster_module
from evalsvc.cluster.certificates import write_certificates
from evalsvc.cluster.cluster import ROSTER_AGE, Deaths, Outcome
from evalsvc.cluster.supervisor import run_scheduler, run_workers
from evalsvc.config import THREAD_WAITS, Settings
from evalsvc.errors import DataDirectoryUnusable, InvalidRequest


@pytest.fixture(scope="module")
def cluster(child_process: None) -> Iterator[Watched]:
    cluster = Watched(Settings(devices="cpu,cpu", threads=1, token="evalsvc_secret", batch_tokens=7))
    cluster.start()
    yield cluster
    cluster.close()


def test_a_result_comes_back_with_progress_on_the_way(cluster: Watched) -> None:
    assert cluster.slots() == 2
    cluster.submit("count", "cluster_jobs:count", {"steps": 12})
    assert cluster.outcome() == Outcome("count", "result", b"")
    done = [units for key, units in cluster.progress if key == "count"]
    assert done[0] == 0
    assert done == sorted(done)
    assert done[-1] >= 5


def test_a_worker_has_the_settings_of_the_service_and_none_of_its_secrets(cluster: Watched) -> None:
    """By way of its nanny: its environment can be read by whoever reads its core dump or its /proc."""
    cluster.submit("settings", "cluster_jobs:own_settings", {})
    settings, environment = pickle.loads(cluster.outcome().value)
    assert settings == Settings(devices="cpu", threads=1, batch_tokens=7)
    assert [name for name in environment if name.startswith("EVALSVC_")] == []
    assert THREAD_WAITS.items() <= environment.items()


def test_the_scheduler_is_not_asked_for_every_call(cluster: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand workers it has a long answer."""
    asked: list[object] = []
    known = cluster._known_workers
    monkeypatch.setattr(cluster, "_known_workers", lambda: (asked.append(None), known())[1])
    begun = time.monotonic()
    for number in range(30):
        free = cluster.free()
        assert len(free) == 2
        cluster.submit(f"quick-{number}", "cluster_jobs:count", {"steps": 0}, free[0])
        assert cluster.free() == free[1:], "what is dispatched is known here"
        assert cluster.outcome().kind == "result"
    assert len(asked) <= (time.monotonic() - begun) / ROSTER_AGE + 1
    cluster.submit("last", "cluster_jobs:fail", {})
    cluster.outcome()
    before = len(asked)
    cluster.free()
    assert len(asked) == before + 1, "at once where something went wrong"


@pytest.mark.parametrize("size", [0, 5, 100_000, 150_000_000])
def test_a_result_comes_back_as_it_was_returned(cluster: Watched, size: int) -> None:
    """Dask cuts what is above 64 MB into frames."""
    cluster.submit(f"echo-{size}", "cluster_jobs:echo", size)
    assert cluster.outcome() == Outcome(f"echo-{size}", "result", b"x" * size)


@pytest.fixture(scope="module")
def outside(child_process: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A cluster whose scheduler and worker are processes of others."""
    machines = Machines(tmp_path_factory.mktemp("machines"))
    machines.start_worker()
    cluster = Watched(Settings(**machines.settings()))
    cluster.start()
    yield cluster
    cluster.close()
    machines.stop()


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        ("result", "worker_died"),
        ("list", "worker_died"),
        ("text", "worker_died"),
        ("bytes of another form", "worker_died"),
        ("exception", "error"),
        ("warning", "result"),
        ("event", "result"),
        ("repickled event", "result"),
    ],
)
def test_a_hostile_worker_runs_no_code_in_the_service(outside: Watched, tmp_path: Path, way: str, kind: str) -> None:
    """It may spoil its own calls, and the connection for the calls of others goes on."""
    ran = tmp_path / "ran"
    connection = outside._connection
    outside.submit(f"hostile-{way}", "cluster_jobs:hostile", (way, str(ran)))
    assert outside.outcome().kind == kind
    outside.submit(f"after-{way}", "cluster_jobs:count", {"steps": 12})
    assert outside.outcome() == Outcome(f"after-{way}", "result", b"")
    assert max(done for key, done in outside.progress if key == f"after-{way}") >= 5
    assert outside._connection is connection
    assert outside.connected()
    assert str(os.getpid()) not in (ran.read_text().split() if ran.exists() else [])


def test_an_exception_is_an_outcome(cluster: Watched) -> None:
    for target, message in (
        ("cluster_jobs:fail", "ValueError: broken"),
        ("no_such_module:run", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("cluster_jobs:no_bytes", "TypeError: "),
        ("cluster_jobs:fail_badly", r"ValueError: no text: \udcff"),
    ):
        cluster.submit(target, target, {})
        outcome = cluster.outcome()
        assert (outcome.key, outcome.kind) == (target, "error")
        assert outcome.value.startswith(message)


def test_a_result_that_cannot_be_read_counts_against_its_call(cluster: Watched, tmp_path: Path) -> None:
    """As `lost` it cost nothing and was tried for ever."""
    cluster.submit("unreadable", "cluster_jobs:hostile", ("text", str(tmp_path / "ran")))
    assert cluster.outcome() == Outcome("unreadable", "worker_died")


def test_causes_of_death_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was taken over filled the service's memory with them."""
    monkeypatch.setattr(cluster_module, "CAUSES", 10)
    told: list[Outcome] = []
    deaths = Deaths(told.append)
    for number in range(100):
        deaths.explain(f"tls://{number}", "x" * 10**6)
    assert len(deaths._causes) == 10
    deaths.report("tls://99", Outcome("shard", "worker_died"), begun=True)
    assert [len(outcome.cause) for outcome in told] == [500]


def test_a_worker_that_dies_takes_nobody_with_it_and_comes_back(cluster: Watched) -> None:
    cluster.submit("die", "cluster_jobs:die", {})
    cluster.submit("bystander", "cluster_jobs:count", {"steps": 10})
    outcomes = {outcome.key: outcome.kind for outcome in (cluster.outcome(), cluster.outcome())}
    assert outcomes == {"die": "worker_died", "bystander": "result"}
    wait_for(lambda: cluster.slots() == 2, "another worker process")


def test_a_cancelled_call_stops_at_its_next_report(cluster: Watched) -> None:
    cluster.submit("long", "cluster_jobs:count", {"steps": 1000})
    cluster.wait_for_progress("long")
    begun = time.monotonic()
    cluster.cancel("long")
    assert cluster.outcome() == Outcome("long", "cancelled")
    assert time.monotonic() - begun < 2


def test_a_call_that_is_cancelled_before_it_begins_is_no_error(cluster: Watched) -> None:
    """Its evaluation, retried meanwhile, failed with `internal_error: Cancelled`."""
    cluster.cancel("early")
    cluster.submit("early", "cluster_jobs:count", {"steps": 1000})
    assert cluster.outcome() == Outcome("early", "cancelled")


def test_a_call_always_has_an_outcome(cluster: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its scheduler could not be asked how it ended, its shard was in flight for ever."""

    def unreachable(future: Future) -> Outcome:
        raise OSError("the connection broke")

    monkeypatch.setattr("evalsvc.cluster.cluster.outcome_of", unreachable)
    cluster.submit("unasked", "cluster_jobs:count", {"steps": 1})
    assert cluster.outcome() == Outcome("unasked", "lost")


def test_a_call_goes_on_when_it_cannot_ask_whether_it_is_cancelled(cluster: Watched) -> None:
    """A busy machine took more than the 5 s that a connection may take, and the whole task failed."""
    cluster.submit("unheard", "cluster_jobs:count_unheard", {"steps": 12})
    assert cluster.outcome().kind == "result"


def test_two_services_on_one_scheduler_have_calls_of_the_same_name(machines: Machines) -> None:
    """The second had the result of the first, and one that the first had cancelled was cancelled in the second too."""
    machines.start_worker()
    first, second = (Watched(Settings(**machines.settings())) for _ in range(2))
    with closing(first), closing(second):
        for size, cluster in enumerate((first, second)):
            cluster.start()
            cluster.submit("same", "cluster_jobs:echo", size)
        for size, cluster in enumerate((first, second)):
            assert cluster.outcome() == Outcome("same", "result", b"x" * size)
        first.submit("again", "cluster_jobs:count", {"steps": 1000})
        first.wait_for_progress("again")
        assert not any(key.startswith("again") for key, _ in second.progress)
        first.cancel("again")
        assert first.outcome() == Outcome("again", "cancelled")
        second.submit("again", "cluster_jobs:count", {"steps": 12})
        assert second.outcome().kind == "result"


@pytest.mark.usefixtures("child_process")
def test_a_connection_that_breaks_for_a_moment_is_not_taken_for_the_old_one() -> None:
    """Dask's client comes back by itself, without its calls and deaf to progress: their process could not be killed."""
    with closing(Watched(Settings(devices="cpu", threads=1))) as cluster:
        cluster.start()
        cluster.submit("broken-off", "cluster_jobs:count", {"steps": 1000})
        cluster.wait_for_progress("broken-off")
        client = cluster._client
        client.loop.add_callback(client.scheduler_comm.abort)
        assert cluster.outcome() == Outcome("broken-off", "lost")
        wait_for(lambda: client.status == "running", "Dask's client has come back")
        assert not cluster.connected()
        assert cluster.slots() == 0
        cluster.close()
        cluster.start()
        assert cluster.connected()
        cluster.submit("hang-again", "cluster_jobs:hang", {})
        cluster.wait_for_progress("hang-again")
        cluster.kill("hang-again")
        assert cluster.outcome() == Outcome("hang-again", "worker_died")


def test_a_call_is_killed_before_it_has_reported(cluster: Watched) -> None:
    """While its modules were imported, one that overran its deadline could not be stopped."""
    [address, *_] = wait_for(cluster.free, "a worker")
    cluster.submit("early", "cluster_jobs:hang", {}, address)
    cluster.kill("early")
    assert cluster.outcome() == Outcome("early", "worker_died")


def test_nobody_without_the_certificate_is_let_in(cluster: Watched) -> None:
    """The port takes pickles: whoever may connect may run code as the service."""
    address = cluster._cluster.scheduler_address
    assert address.startswith("tls://127.0.0.1:")
    with pytest.raises((OSError, ValueError, RuntimeError)):
        Client(address.replace("tls://", "tcp://"), timeout=2)
    # The client that did not connect stops its loop when it is collected, and hangs where another is just starting.
    gc.collect()


def test_a_scheduler_that_does_not_answer_is_named(tmp_path: object) -> None:
    with pytest.raises(InvalidRequest, match="needs TLS; set --tls FOLDER"):
        Watched(Settings(scheduler="tls://127.0.0.1:1")).start()
    with pytest.raises(InvalidRequest, match="must begin with tls://"):
        run_workers(Settings(), "tcp://127.0.0.1:1", print)


@pytest.mark.usefixtures("child_process")
def test_no_other_user_can_keep_workers_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask's own folder is shared by all users: one who held its lock stopped every worker, and a module that lay there
    was imported in the place of another."""
    shared = tmp_path / "tmp" / "dask-scratch-space"
    shared.mkdir(parents=True, mode=0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(shared.parent))
    monkeypatch.setenv("TMPDIR", str(shared.parent))
    cluster = Watched(Settings(data_dir=str(tmp_path / "data"), devices="cpu", threads=1))
    with (shared / "global.lock").open("w") as lock, closing(cluster):
        fcntl.flock(lock, fcntl.LOCK_EX)
        cluster.start()
        assert cluster.slots() == 1
        assert str(shared) not in sys.path
        assert stat.S_IMODE((tmp_path / "data" / "dask").stat().st_mode) == 0o700
        assert list((tmp_path / "data" / "dask").rglob("worker-*.dirlock"))
    assert [path.name for path in shared.iterdir()] == ["global.lock"]


@pytest.fixture
def with_bokeh(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Where bokeh is installed, Dask can import its dashboard; which schedulers have one."""
    shown: list[object] = []
    dashboard = types.ModuleType("distributed.dashboard.scheduler")
    dashboard.connect = lambda *arguments, **_: shown.append(arguments)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, dashboard.__name__, dashboard)
    monkeypatch.setattr(distributed.dashboard, "scheduler", dashboard, raising=False)
    return shown


@pytest.mark.usefixtures("child_process")
def test_no_scheduler_shows_a_dashboard(tmp_path: Path, with_bokeh: list[object]) -> None:
    """It needs no certificate, and tells every user of the machine what runs."""
    cluster = Watched(Settings(data_dir=str(tmp_path), devices="cpu", threads=1))
    cluster.start()
    cluster.close()
    write_certificates(tmp_path / "tls")
    settings = Settings(tls=str(tmp_path / "tls"))
    run_scheduler(settings, "127.0.0.1", 0, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert with_bokeh == []


def test_a_link_in_the_place_of_the_folder_of_dask_is_refused(tmp_path: Path) -> None:
    """Whoever may write the data folder would have the service use another one."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "dask").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataDirectoryUnusable, match=r"dask cannot be used: it is a link.*; remove it, or choose"):
        Watched(Settings(data_dir=str(tmp_path), devices="cpu")).start()


def test_the_pair_is_the_authority_s_and_its_owner_s_only(tmp_path: Path) -> None:
    paths = write_certificates(tmp_path / "new" / "tls")
    assert [path.name for path in paths.values()] == ["ca.pem", "cert.pem", "key.pem"]
    assert {path.stat().st_mode & 0o777 for path in paths.values()} == {0o600}
    authority, certificate = (
        x509.load_pem_x509_certificate(paths[name].read_bytes()) for name in ("ca.pem", "cert.pem")
    )
    certificate.verify_directly_issued_by(authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paths["cert.pem"], paths["key.pem"])


def test_what_workers_may_use_is_not_overwritten(tmp_path: Path) -> None:
    before = {name: path.read_bytes() for name, path in write_certificates(tmp_path).items()}
    with pytest.raises(InvalidRequest, match="exists already and workers may use it; choose another folder"):
        write_certificates(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "key.pem").unlink()
    (tmp_path / "cert.pem").unlink()
    with pytest.raises(InvalidRequest, match=r"ca\.pem: exists already"):
        write_certificates(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ca.pem"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InvalidRequest, match="cannot be written"):
        write_certificates(tmp_path / "file" / "tls")
