"""A machine that systemd has booted, without one: an overlay of this machine's root in namespaces, which takes root.

Its network is a loopback of its own, so that ports are free and nothing is reached. The kernel is this machine's: its
settings and modules stay as they are. All that is written lies in a folder, and is gone with the machine.
"""

import os
import shutil
import subprocess
from pathlib import Path

import psutil
from machines import wait_for
from programs import find_program, lacking

SYSTEMD = "/lib/systemd/systemd"

BOOT = r"""
mkdir upper work root groups
mount -t overlay -o "lowerdir=/,upperdir=$PWD/upper,workdir=$PWD/work" overlay root
mount -t cgroup2 cgroup2 groups
mkdir "groups/$0"
echo 0 > "groups/$0/cgroup.procs"
exec unshare --cgroup sh -euc '
    ip link set lo up
    cd root
    ln -sf /dev/null etc/systemd/system/tmp.mount
    mount -t proc proc proc
    mount --bind proc/sys proc/sys
    mount -o remount,bind,ro proc/sys
    mount -t sysfs -o ro sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs dev
    mount -t tmpfs -o mode=755 tmpfs run
    cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty dev/
    mkdir dev/pts dev/shm
    mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    mount -t tmpfs -o mode=1777 tmpfs dev/shm
    pivot_root . mnt
    umount --lazy mnt
    mount --make-rshared /
    exec setpriv --bounding-set -sys_module,-sys_time "$0" --unit=basic.target' "$1"
"""
"""All its processes are in a control group of its own. No tmpfs hides what lies in /tmp, such as a checkout."""

GROUPS = """mount -t cgroup2 cgroup2 groups; find "groups/$0" -depth -type d -exec rmdir {} +"""


class Booted:
    """Where TESTS_REQUIRE names `systemd`, a test fails where this is not possible."""

    def __init__(self, folder: Path, checkout: Path) -> None:
        self._folder, self._checkout = folder, checkout
        for name in ("unshare", "nsenter", "setpriv", "ip", SYSTEMD):
            find_program(name, "Debian's packages systemd, util-linux and iproute2", "systemd")
        kept = {name: text for name, text in os.environ.items() if name.startswith("PIP_") or name.endswith("_proxy")}
        paths = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self._environment = kept | {"PATH": paths, "HOME": "/root", "LANG": "C.UTF-8"}
        namespaces = ["--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child"]
        self._group = f"evalsvc-{os.getpid()}"
        folder.mkdir()
        self._log = folder / "boot.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", *namespaces, "sh", "-euc", BOOT, self._group, SYSTEMD],
                cwd=folder,
                env=self._environment | {"container": "other"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            wait_for(self._is_up, "systemd has booted")
        except BaseException:
            self.close()
            raise

    def type(self, text: str, *, online: bool = True) -> str:
        """What the commands of a block print, typed by root in the checkout; AssertionError with all of it if one
        fails. Online they have this machine's network in place of their own machine's."""
        done = self._enter("bash", "-exc", text, net=not online)
        assert done.returncode == 0, f"{done.stdout}\n{self._enter('journalctl', '--lines=60', '--no-hostname').stdout}"
        return done.stdout

    def close(self) -> None:
        # The end of the first process is that of all: `unshare` waits for it.
        for process in psutil.Process(self._process.pid).children() if self._process.poll() is None else ():
            process.kill()
        self._process.wait(timeout=60)
        subprocess.run(["unshare", "--mount", "sh", "-c", GROUPS, self._group], cwd=self._folder, check=False)
        shutil.rmtree(self._folder)

    def _is_up(self) -> bool:
        if self._process.poll() is not None:
            lacking("systemd", f"needs a root that may make namespaces and mounts: {self._log.read_text().strip()}")
        return bool(self._init()) and self._enter("systemctl", "is-active", "basic.target").returncode == 0

    def _init(self) -> list[psutil.Process]:
        found = psutil.Process(self._process.pid).children()
        return [process for process in found if process.cmdline()[:1] == [SYSTEMD]]

    def _enter(self, *command: str, net: bool = False) -> subprocess.CompletedProcess[str]:
        namespaces = ["--mount", "--pid", "--ipc", "--uts", "--cgroup", *["--net"][:net]]
        enter = ["nsenter", f"--target={self._init()[0].pid}", *namespaces, f"--wdns={self._checkout}", *command]
        return subprocess.run(
            enter, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
