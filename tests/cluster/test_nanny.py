"""`evalsvc worker` and `evalsvc scheduler` as processes, some on machines that are cut off: what ends them."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import psutil
import pytest
from laboratory import Laboratory, begun_on_two, just_begun
from machines import BUSY, GIVEN_UP_WITHIN, TTL, Machines, term, wait_for
from programs import lacking
from watched_cluster import Watched, serve_slowly

from evalsvc.cluster.cluster import Outcome
from evalsvc.cluster.nanny import cause_of_death
from evalsvc.cluster.supervisor import LONGEST_WAIT, STEADY, next_wait, run_scheduler, run_workers
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest, PortInUse
from evalsvc.installation import PACKAGE, code_digest

SILENT_SOON = {"EVALSVC_WORKER_TTL": str(TTL), "EVALSVC_GRACE": "20"}


@pytest.fixture
def machines(tmp_path: Path, child_process: None) -> Iterator[Machines]:
    machines = Machines(tmp_path / "machines", **SILENT_SOON)
    yield machines
    machines.stop()


@pytest.fixture
def cluster(machines: Machines) -> Iterator[Watched]:
    cluster = Watched(Settings(**machines.settings()))
    cluster.start()
    yield cluster
    cluster.close()


@pytest.mark.parametrize("group", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_worker_finishes_its_call_before_it_goes_and_gets_no_other(
    machines: Machines, cluster: Watched, group: bool
) -> None:
    """Dask itself starts the call again elsewhere while the old one goes on, and counts it as a death.

    systemd, Slurm and Ctrl-C signal the whole group: the worker process and its nanny as well.
    """
    leaving = machines.start_worker()
    [address] = wait_for(cluster.free, "a worker")
    cluster.submit("long", "cluster_jobs:count", {"steps": 40}, address)
    cluster.wait_for_progress("long")
    for process in [*(leaving.workers() if group else ()), leaving.process]:
        process.send_signal(signal.SIGTERM)
    leaving.wait_for_text("draining: running shards finish")
    wait_for(lambda: cluster.slots() == 0, "nothing more is dispatched")
    cluster.submit("late", "cluster_jobs:count", {"steps": 1}, address)
    assert leaving.process.poll() is None
    outcomes = [cluster.outcome(), cluster.outcome()]
    assert [(outcome.key, outcome.kind) for outcome in outcomes] == [("long", "result"), ("late", "lost")]
    assert leaving.process.wait(timeout=60) == 0
    assert leaving.workers() == [] if psutil.pid_exists(leaving.process.pid) else True


def test_a_second_signal_ends_a_worker_with_work(machines: Machines, cluster: Watched) -> None:
    idle, busy = machines.start_worker(), machines.start_worker()
    address = busy.wait_for_text(r"worker (tls://\S+) on")
    wait_for(lambda: cluster.slots() == 2, "two workers")
    cluster.submit("hang", "cluster_jobs:hang", {}, address)
    cluster.wait_for_progress("hang")
    below = busy.workers()
    for worker in (idle, busy):
        term(worker)
    assert idle.process.wait(timeout=60) == 0
    busy.wait_for_text("draining")
    assert busy.process.poll() is None
    term(busy)
    assert busy.process.wait(timeout=60) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(below, timeout=20)
    assert alive == []
    assert cluster.outcome().kind == "worker_died"


def test_what_is_killed_comes_back_and_the_cause_is_told(machines: Machines, cluster: Watched) -> None:
    worker = machines.start_worker("--devices", "cpu,cpu")
    wait_for(lambda: cluster.slots() == 2, "a worker per device")
    assert len(worker.workers()) == 2

    first, other = cluster.free()
    cluster.submit("hang", "cluster_jobs:hang", {}, first)
    cluster.submit("bystander", "cluster_jobs:count", {"steps": 60}, other)
    cluster.wait_for_progress("hang", "bystander")
    cluster.kill("hang")
    died, done = cluster.outcome(), cluster.outcome()
    assert (died.key, died.kind) == ("hang", "worker_died")
    assert died.cause == "it was killed by signal 9 (SIGKILL)"
    assert (done.key, done.kind) == ("bystander", "result")
    wait_for(lambda: cluster.slots() == 2, "another worker process")
    worker.wait_for_text(r"the worker process tls://\S+ was lost: it was killed by signal 9 \(SIGKILL\)")

    for name, address in zip(("left", "right"), cluster.free(), strict=True):
        cluster.submit(name, "cluster_jobs:count", {"steps": 60}, address)
    cluster.wait_for_progress("left", "right")
    left, right = worker.workers()
    worker.process.kill()
    assert [cluster.outcome().kind for _ in range(2)] == ["worker_died", "worker_died"]
    assert psutil.wait_procs([left, right], timeout=20)[1] == [], "no worker process outlives its command"


def test_a_scheduler_that_is_killed_is_replaced_under_everybody(machines: Machines, cluster: Watched) -> None:
    worker = machines.start_worker()
    [address] = wait_for(cluster.free, "a worker")
    cluster.submit("long", "cluster_jobs:count", {"steps": 200}, address)
    cluster.wait_for_progress("long")
    machines.scheduler.process.kill()
    machines.scheduler.process.wait(timeout=20)
    assert cluster.outcome().kind == "lost"
    wait_for(lambda: not cluster.connected(), "it is noticed")
    assert cluster.free() == []
    machines.start_scheduler()
    # Dask's client may have found the new scheduler by itself; without a new start it would miss all progress.
    assert not cluster.connected()
    cluster.close()
    cluster.start()
    [address] = wait_for(cluster.free, "the worker has come back")
    cluster.submit("again", "cluster_jobs:count", {"steps": 10}, address)
    assert cluster.outcome().kind == "result"
    assert "again" in {key for key, _ in cluster.progress}
    assert worker.process.poll() is None


def test_a_worker_that_is_stopped_gets_nothing_and_costs_a_call_nothing(machines: Machines, cluster: Watched) -> None:
    """Handed to a stopped worker, a call waited until that was given up, and was blamed for its death."""
    worker = machines.start_worker()
    [address] = wait_for(cluster.free, "a worker")
    [process] = worker.workers()
    process.suspend()
    try:
        cluster.submit("unlucky", "cluster_jobs:count", {"steps": 1}, address)
        stopped = time.monotonic()
        wait_for(lambda: cluster.slots() == 0, "its slot does not count")
        assert cluster.outcome(seconds=90).kind == "lost"
        assert time.monotonic() - stopped < GIVEN_UP_WITHIN + BUSY
    finally:
        if process.is_running():
            process.resume()
    wait_for(lambda: cluster.slots() == 1, "another worker process")


def test_a_call_for_a_worker_that_is_gone_is_lost(machines: Machines, cluster: Watched) -> None:
    """It waited for ever: no other worker may take it."""
    machines.start_worker()
    wait_for(cluster.free, "a worker")
    cluster.submit("nowhere", "cluster_jobs:count", {"steps": 1}, "tls://127.0.0.1:9")
    wait_for(lambda: cluster.free() and not cluster.outcomes.empty(), "it is given up")
    assert cluster.outcome() == Outcome("nowhere", "lost")


def test_a_worker_of_another_evalsvc_gets_no_calls(machines: Machines, cluster: Watched, tmp_path: Path) -> None:
    """Such a worker cannot read what the service sends, or worse, reads it otherwise."""
    copy = tmp_path / "other"
    shutil.copytree(PACKAGE, copy / "evalsvc", ignore=shutil.ignore_patterns("__pycache__", "miniature"))
    (copy / "evalsvc" / "metrics" / "__init__.py").write_text("# another version\n")
    machines.start_worker(prefix=("env", f"--chdir={copy}"))
    [member] = wait_for(cluster.members, "the worker's heartbeat")
    assert f"the service has {code_digest()}" in member.refuses
    assert (cluster.free(), cluster.slots()) == ([], 0)
    machines.start_worker()
    [address] = wait_for(cluster.free, "a worker of the same evalsvc")
    assert address != member.address


def test_a_worker_without_certificates_is_not_let_in(machines: Machines, cluster: Watched, tmp_path: Path) -> None:
    other = Machines(tmp_path / "other")
    try:
        other.address = machines.address
        stranger = other.start_worker(wait=False)
        stranger.wait_for_text(r"the scheduler \S+ does not answer \(.*\); reconnecting in 0.5 s")
        assert cluster.slots() == 0
        term(stranger)
        assert stranger.process.wait(timeout=60) == 0
    finally:
        other.stop()


def test_a_port_that_is_taken_and_an_address_that_is_not_here_are_named(machines: Machines) -> None:
    settings = Settings(tls=machines.tls)
    with pytest.raises(PortInUse, match=f"port {machines.port} of 127.0.0.1 is in use; choose another with --port"):
        run_scheduler(settings, "127.0.0.1", machines.port, print)
    with pytest.raises(InvalidRequest, match=r"--host 192\.0\.2\.1: this machine lacks the address"):
        run_scheduler(settings, "192.0.2.1", 0, print)
    with pytest.raises(InvalidRequest, match="set --tls FOLDER"):
        run_scheduler(Settings(), "127.0.0.1", 0, print)
    with pytest.raises(InvalidRequest, match="there is no device 'cuda:99'"):
        run_workers(replace(settings, devices="cuda:99"), "tls://x:1", print)
    with pytest.raises(InvalidRequest, match="must begin with tls://"):
        run_workers(Settings(), "tcp://127.0.0.1:1", print)


def test_the_cause_of_death_is_in_words() -> None:
    assert cause_of_death(-9) == "it was killed by signal 9 (SIGKILL)"
    assert cause_of_death(-9, oom_struck=True).endswith(", most likely by the kernel, for lack of memory")
    assert cause_of_death(-11, oom_struck=True) == "it was killed by signal 11 (SIGSEGV)"
    assert "SIGABRT), as a library ends it that gets no more memory" in cause_of_death(-6)
    assert cause_of_death(-1000) == "it was killed by signal 1000"
    assert cause_of_death(3) == "it exited with code 3"


def test_what_keeps_ending_is_started_less_often_and_what_was_steady_at_once() -> None:
    waits = list(accumulate([0.0] * 8, lambda last, _: next_wait(last, ran=1)))
    assert waits == [0, 0.5, 1, 2, 4, 8, LONGEST_WAIT, LONGEST_WAIT]
    assert next_wait(LONGEST_WAIT, ran=STEADY + 1) == 0.5


def test_a_worker_that_is_just_being_started_is_ended(tmp_path: Path, machines: Machines) -> None:
    """It ignores SIGTERM until it has started: the command waited for it for ever."""
    context = multiprocessing.get_context("spawn")
    settings = Settings(devices="cpu", threads=1, **machines.settings())
    command = context.Process(target=serve_slowly, args=(settings, machines.address, tmp_path / "started"))
    command.start()
    try:
        wait_for((tmp_path / "started").exists, "a worker process")
        below = psutil.Process(command.pid).children(recursive=True)
        command.terminate()
        command.join(30)
        assert command.exitcode == 0
        assert psutil.wait_procs(below, timeout=20)[1] == []
    finally:
        command.kill()
        command.join()


class Machine:
    """A namespace of the network with one card, `inside`, whose other end, `outside`, is here."""

    def __init__(self, index: int) -> None:
        self.name = f"evalsvc-{os.getpid()}-{index}"
        self.inside, self.outside = "eth0", f"ev{os.getpid() % 100_000}-{index}"
        subnet = f"10.231.{index}"
        self.here = f"{subnet}.1"
        self.prefix = ["ip", "netns", "exec", self.name]
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", self.outside, "type", "veth", "peer", "name", self.inside, "netns", self.name)
        run("ip", "address", "add", f"{self.here}/24", "dev", self.outside)
        run("ip", "link", "set", self.outside, "up")
        run(*self.prefix, "ip", "address", "add", f"{subnet}.2/24", "dev", self.inside)
        for device in ("lo", self.inside):
            self.turn("up", device)

    def turn(self, state: str, device: str = "eth0") -> None:
        """Cut the machine off by `down`: nothing is closed, and both sides only hear nothing any more."""
        run(*self.prefix, "ip", "link", "set", device, state)

    def remove(self) -> None:
        # The link goes with its namespace, but not before the last process in it has gone.
        subprocess.run(["ip", "link", "delete", self.outside], check=False, capture_output=True)
        run("ip", "netns", "delete", self.name)


def run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


@pytest.fixture
def far_machines(tmp_path: Path, child_process: None) -> Iterator[list[Machine]]:
    """Two machines. Where TESTS_REQUIRE names `netns`, a test that needs them fails without root and `ip`."""
    made: list[Machine] = []
    try:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise OSError("neither root nor ip" if os.geteuid() else "no ip")
        made.append(Machine(1))
        made.append(Machine(2))
    except OSError as error:
        lacking("netns", f"needs network namespaces: root, and ip of iproute2 ({error})")
    yield made
    for machine in made:
        machine.remove()


@pytest.mark.parametrize("way", ["stopped", "cut off"])
def test_a_silent_worker_is_given_up(
    request: pytest.FixtureRequest, tmp_path: Path, way: str, child_process: None
) -> None:
    """Stopped with its command, as a machine that hangs, it goes on later; no connection is closed by a cut either.

    The shard would be waited for, and its late result would be a second one.
    """
    far: list[Machine] = request.getfixturevalue("far_machines") if way == "cut off" else []
    laboratory, machines = Laboratory(tmp_path), Machines(tmp_path / "machines", "0.0.0.0", **SILENT_SOON)
    request.addfinalizer(laboratory.close)
    request.addfinalizer(machines.stop)
    scheduler = f"tls://127.0.0.1:{machines.port}"
    coordinator = laboratory.start(worker_ttl=TTL, **machines.settings() | {"scheduler": scheduler})
    for here, prefix in [(machine.here, machine.prefix) for machine in far] or [("127.0.0.1", ())] * 2:
        machines.address = f"tls://{here}:{machines.port}"
        worker = machines.start_worker(prefix=prefix)
    [process] = worker.workers()

    def turn(state: str) -> None:
        if far:
            far[1].turn(state)
        for each in () if far else (psutil.Process(worker.process.pid), process):
            if each.is_running():
                each.suspend() if state == "down" else each.resume()

    evaluation = laboratory.post(shards=8, steps=8, seconds=0.4, deaf=True)
    begun_on_two(laboratory, shards=3)
    shard = just_begun(laboratory, process.pid)
    # A step later its first report has been sent: without it, the shard would be lost instead of broken off.
    laboratory.wait_until(lambda _: (shard, 1, str(process.pid)) in laboratory.log())
    turn("down")
    silent_at = time.monotonic()
    try:
        laboratory.wait_until(lambda _: [index for index, *_ in laboratory.attempts()].count(shard) == 2)
        seconds = time.monotonic() - silent_at
        print(f"a worker that was {way} was given up after {seconds:.1f} s")
        assert seconds < GIVEN_UP_WITHIN + BUSY
        assert coordinator.workers() == 1, "its slot does not count"
        if far:
            laboratory.wait_until(lambda _: (shard, 7, str(process.pid)) in laboratory.log())  # it has gone on alone
    finally:
        turn("up")
    assert laboratory.succeeds(evaluation)
    assert laboratory.outcomes() == {"succeeded": 8, "worker_died": 1}
    assert laboratory.history()[0].value == [64]
    laboratory.wait_until(lambda _: coordinator.workers() == 2)
