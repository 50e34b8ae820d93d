"""Machines that are cut off, come and go: each is a network namespace, joined to this one by two virtual cards."""

import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from laboratory import BUSY, GIVEN_UP_WITHIN, TTL, Laboratory, begun_on_two, just_begun
from machines import Command, Machines, term, wait_for

pytestmark = pytest.mark.usefixtures("child_process")


class Machine:
    """A namespace with one card, `inside`, whose other end, `outside`, is here."""

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
            run(*self.prefix, "ip", "link", "set", device, "up")

    def cut(self) -> None:
        """Nothing is closed: both sides only hear nothing any more."""
        run(*self.prefix, "ip", "link", "set", self.inside, "down")

    def heal(self) -> None:
        run(*self.prefix, "ip", "link", "set", self.inside, "up")

    def worker(self, machines: Machines) -> Command:
        """Start one on it, for the scheduler that listens here on all addresses."""
        machines.address = f"tls://{self.here}:{machines.port}"
        return machines.start_worker(prefix=self.prefix)

    def remove(self) -> None:
        # The link goes with its namespace, but not before the last process in it has gone.
        subprocess.run(["ip", "link", "delete", self.outside], check=False, capture_output=True)
        run("ip", "netns", "delete", self.name)


def run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


@pytest.fixture
def machine() -> Iterator[Callable[[], Machine]]:
    """Makes machines. Where TESTS_REQUIRE names `netns`, a test that needs them fails without root and `ip`."""
    made: list[Machine] = []

    def make() -> Machine:
        try:
            if os.geteuid() != 0 or shutil.which("ip") is None:
                raise OSError("neither root nor ip" if os.geteuid() else "no ip")
            made.append(Machine(len(made) + 1))
        except OSError as error:
            reason = f"needs network namespaces: root, and ip of iproute2 ({error})"
            if "netns" in os.environ.get("TESTS_REQUIRE", "").split(","):
                pytest.fail(reason)
            pytest.skip(reason)
        return made[-1]

    yield make
    for machine in made:
        machine.remove()


@pytest.fixture
def machines(machine: Callable[[], Machine], tmp_path: Path) -> Iterator[Machines]:
    machines = Machines(tmp_path / "machines", "0.0.0.0", EVALSVC_WORKER_TTL=str(TTL), EVALSVC_GRACE="20")
    yield machines
    machines.stop()


@pytest.fixture
def world(tmp_path: Path, machine: Callable[[], Machine], machines: Machines) -> Iterator[Laboratory]:
    machines.address = f"tls://127.0.0.1:{machines.port}"
    world = Laboratory(tmp_path, machines)
    yield world
    world.close()


def test_a_machine_that_is_cut_off_is_given_up_and_serves_again(
    world: Laboratory, machines: Machines, machine: Callable[[], Machine]
) -> None:
    """No connection is closed by a cut: the shard would be waited for, and its late result would be a second one."""
    near, far = machine(), machine()
    near.worker(machines)
    worker = far.worker(machines)
    evaluation = world.post("cut", shards=8, steps=8, seconds=0.4, deaf=True)
    begun_on_two(world, "cut", shards=3)
    [process] = worker.workers()
    shard = just_begun(world, "cut", process.pid)
    far.cut()
    cut_at = time.monotonic()
    wait_for(lambda: [index for index, _, _ in world.attempts("cut")].count(shard) == 2, "given up", 120)
    seconds = time.monotonic() - cut_at
    print(f"a machine that was cut off was given up after {seconds:.1f} s")
    assert seconds < GIVEN_UP_WITHIN + BUSY
    assert world.coordinator.workers() == 1
    wait_for(lambda: (shard, 7, process.pid) in world.log("cut"), "it has gone on alone", 60)
    far.heal()
    assert world.wait(evaluation).state == "succeeded"
    assert Counter(outcome for _, outcome, _ in world.attempts("cut")) == {"succeeded": 8, "worker_died": 1}
    assert world.value("cut") == [64]
    wait_for(lambda: world.coordinator.workers() == 2, "it serves again", 120)


@pytest.mark.long
def test_machines_come_and_go_in_mid_evaluation(
    world: Laboratory, machines: Machines, machine: Callable[[], Machine]
) -> None:
    first, second, third = machine(), machine(), machine()
    leaving = first.worker(machines)
    evaluation = world.post("moving", shards=40, steps=4, seconds=0.25)
    wait_for(lambda: world.log("moving"), "the first works", 120)
    dying = second.worker(machines)
    begun_on_two(world, "moving", shards=3)
    term(leaving)
    assert leaving.process.wait(timeout=120) == 0
    third.worker(machines)
    wait_for(lambda: len({process for _, _, process in world.log("moving")}) == 3, "the third works", 120)
    dying.stop()
    assert world.wait(evaluation, 180).state == "succeeded"
    attempts = Counter(outcome for _, outcome, _ in world.attempts("moving"))
    assert attempts["succeeded"] == 40
    assert attempts["worker_died"] <= 1
    assert world.value("moving") == [160]
