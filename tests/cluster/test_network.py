"""Machines that are cut off: each is a network namespace, joined to this one by two virtual cards."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from laboratory import Laboratory, begun_on_two, just_begun
from machines import BUSY, GIVEN_UP_WITHIN, TTL, Command, Machines

from evalsvc.service.coordinator import Coordinator

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


def start(laboratory: Laboratory, machines: Machines) -> Coordinator:
    """A coordinator on the scheduler of the machines, which is here."""
    return laboratory.start(worker_ttl=TTL, **machines.settings() | {"scheduler": f"tls://127.0.0.1:{machines.port}"})


def test_a_machine_that_is_cut_off(laboratory: Laboratory, machines: Machines, machine: Callable[[], Machine]) -> None:
    """No connection is closed by a cut: the shard would be waited for, and its late result would be a second one."""
    near, far = machine(), machine()
    coordinator = start(laboratory, machines)
    near.worker(machines)
    worker = far.worker(machines)
    [process] = worker.workers()
    evaluation = laboratory.post(shards=8, steps=8, seconds=0.4, deaf=True)
    begun_on_two(laboratory, shards=3)
    shard = just_begun(laboratory, process.pid)
    far.cut()
    cut_at = time.monotonic()
    laboratory.wait_until(lambda _: [index for index, *_ in laboratory.attempts()].count(shard) == 2)
    seconds = time.monotonic() - cut_at
    print(f"a machine that was cut off was given up after {seconds:.1f} s")
    assert seconds < GIVEN_UP_WITHIN + BUSY
    assert coordinator.workers() == 1
    laboratory.wait_until(lambda _: (shard, 7, str(process.pid)) in laboratory.log())  # it has gone on alone
    far.heal()
    assert laboratory.succeeds(evaluation)
    assert laboratory.outcomes() == {"succeeded": 8, "worker_died": 1}
    assert laboratory.history()[0].value == [64]
    laboratory.wait_until(lambda _: coordinator.workers() == 2)
