"""The cluster as the coordinator sees it: outcomes, progress, cancellation, and who may connect."""

import fcntl
import gc
import os
import pickle
import re
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

from evalsvc.api.server import serve
from evalsvc.cluster import cluster as cluster_module
from evalsvc.cluster import devices
from evalsvc.cluster.certificates import write_certificates
from evalsvc.cluster.cluster import ROSTER_AGE, Deaths, Outcome, outcome_of
from evalsvc.cluster.devices import check_devices, device_list, worker_environment
from evalsvc.cluster.nanny import PROGRESS_TOPIC
from evalsvc.cluster.supervisor import run_scheduler
from evalsvc.config import THREAD_WAITS, Settings
from evalsvc.errors import DataDirectoryUnusable, InvalidRequest, MissingPackage
from evalsvc.installation import pip_install


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


@pytest.mark.parametrize("returned", ["text", [b"a"], b"\xc1"])
def test_a_result_that_cannot_be_read_counts_against_its_call(returned: object) -> None:
    """As `lost` it cost nothing and was tried for ever. test_private.py has what a hostile worker may send."""
    future = types.SimpleNamespace(status="finished", result=lambda timeout: returned)
    assert outcome_of("call", future) == Outcome("call", "worker_died")


def test_messages_of_another_form_spoil_no_progress(cluster: Watched) -> None:
    for message in ("text", {"key": "odd"}, {"key": "odd", "done": "many", "worker": "tls://x"}):
        cluster._client.log_event(PROGRESS_TOPIC, message)
    cluster.submit("heard", "cluster_jobs:count", {"steps": 12})
    assert cluster.outcome() == Outcome("heard", "result", b"")
    assert max(done for key, done in cluster.progress if key == "heard") >= 5
    assert cluster.connected()


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


def test_a_cancelled_call_stops_at_its_next_report(cluster: Watched) -> None:
    cluster.submit("long", "cluster_jobs:count", {"steps": 1000})
    cluster.wait_for_progress("long")
    begun = time.monotonic()
    cluster.cancel("long")
    assert cluster.outcome() == Outcome("long", "cancelled")
    assert time.monotonic() - begun < 2
    cluster.cancel("early")  # before it begins: its evaluation, retried meanwhile, failed with `internal_error`
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


def test_two_services_on_one_scheduler_have_calls_of_the_same_name(
    request: pytest.FixtureRequest, tmp_path: Path, child_process: None
) -> None:
    """The second had the result of the first, and one that the first had cancelled was cancelled in the second too."""
    machines = Machines(tmp_path)
    request.addfinalizer(machines.stop)
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
    tasks = cluster._cluster.scheduler.tasks
    # A worker that is killed before its call is sent to it loses the call.
    wait_for(lambda: any("early" in key and tasks[key].processing_on for key in list(tasks)), "the call is sent")
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


@pytest.mark.usefixtures("child_process")
def test_no_scheduler_shows_a_dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs no certificate, and tells every user of the machine what runs. Dask imports it where bokeh is."""
    shown: list[object] = []
    dashboard = types.ModuleType("distributed.dashboard.scheduler")
    dashboard.connect = lambda *arguments, **_: shown.append(arguments)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, dashboard.__name__, dashboard)
    monkeypatch.setattr(distributed.dashboard, "scheduler", dashboard, raising=False)
    cluster = Watched(Settings(data_dir=str(tmp_path), devices="cpu", threads=1))
    cluster.start()
    cluster.close()
    write_certificates(tmp_path / "tls")
    settings = Settings(tls=str(tmp_path / "tls"))
    run_scheduler(settings, "127.0.0.1", 0, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert shown == []


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
    with pytest.raises(InvalidRequest, match="cannot be written"):
        write_certificates(tmp_path / "ca.pem" / "tls")


# Devices: which a machine has, and what is said of those that it has not


def test_devices_are_listed_or_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_list("cuda:0, cpu") == ["cuda:0", "cpu"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert device_list("all") == ["cuda:0", "cuda:1"]
    assert worker_environment("cuda:1")["CUDA_VISIBLE_DEVICES"] == "5"
    with pytest.raises(InvalidRequest, match="there is no device 'cuda:2'; this machine has 2 CUDA cards"):
        worker_environment("cuda:2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_list("all") == ["cpu"]


FAKE_TORCH = "__version__ = '2.13.0'\nclass cuda: is_available, device_count = lambda: True, lambda: 2"


@pytest.mark.usefixtures("short_process")
def test_cards_that_the_driver_does_not_list_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`all` was the CPU on WSL2, which has a driver, here any library, and no folder of cards; `cuda:0` was refused."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "PROC_CARDS", tmp_path / "not there")
    monkeypatch.setattr(devices, "DRIVER", "libc.so.6")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    devices._unlisted_cards.cache_clear()
    assert device_list("all") == ["cuda:0", "cuda:1"]
    check_devices(["cuda:1"])
    assert worker_environment("cuda:1")["CUDA_VISIBLE_DEVICES"] == "1"
    (tmp_path / "torch.py").write_text("raise OSError('asked twice')")
    assert device_list("all") == ["cuda:0", "cuda:1"], "torch takes seconds, and is asked once"
    devices._unlisted_cards.cache_clear()
    monkeypatch.setattr(devices, "DRIVER", "libcuda_that_is_not_there.so.1")
    assert device_list("all") == ["cpu"], "without a driver torch is not asked"


@pytest.mark.usefixtures("short_process")
@pytest.mark.parametrize(
    ("names", "cards", "words"),
    [
        ("cuda:0", "", r"there is no device 'cuda:0'; this machine has 0 CUDA cards; use all, cpu, or cards such"),
        ("cuda", "", "there is no device 'cuda'"),
        ("cpu,cuda:2", "3,5", "there is no device 'cuda:2'; this machine has 2 CUDA cards"),
        ("gpu", "3", r"--devices \(EVALSVC_DEVICES\) names 'gpu', which is not a device; use all, cpu, or cards such"),
        ("cpu:0", "", "names 'cpu:0', which is not a device"),
        ("cuda:-1", "3", "names 'cuda:-1', which is not a device"),
        (",", "", r"--devices \(EVALSVC_DEVICES\) names no device; use all"),
    ],
)
def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch, names: str, cards: str, words: str) -> None:
    """`cuda:0` without a card never ended, and `gpu` was ready and failed every evaluation by an internal error."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", cards)
    with pytest.raises(InvalidRequest, match=words):
        check_devices(device_list(names))
    with pytest.raises(InvalidRequest, match=words):
        serve(Settings(devices=names, port=0), print)


@pytest.mark.usefixtures("short_process")
@pytest.mark.parametrize(
    ("torch", "words"),
    [
        (
            "__version__ = '2.13.0+cpu'\nclass cuda: is_available = lambda: False",
            r"torch 2\.13\.0\+cpu sees 0 CUDA cards",
        ),
        ("raise OSError('libcuda.so.1 is broken')", r"its CUDA cards \(OSError: libcuda.so.1 is broken\); run"),
        (
            "raise ModuleNotFoundError(\"No module named 'torch'\")",
            re.escape(f"a worker on this machine needs the package 'torch'; run: {pip_install('worker')}"),
        ),
    ],
)
def test_a_card_that_torch_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: str, words: str) -> None:
    """The machine shows it, and the workers' torch has no CUDA, or the driver is too old."""
    (tmp_path / "torch.py").write_text(torch)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises((InvalidRequest, MissingPackage), match=words):
        check_devices(["cpu", "cuda:0"])
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    check_devices(["cuda:0", "cuda", "cpu"])
