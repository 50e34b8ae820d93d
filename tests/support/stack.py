"""The services of a compose file as an engine starts them, without an engine: crun runs each, as the file and its image
say. Entry points, commands, variables, users, volumes with the owners that their folders have in the image, secrets,
read-only roots, dropped capabilities, health checks and the order of starts are the file's. Networks are not: all
services share one namespace of the network without a way out, as the containers of a pod do."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from images import Image, output_of
from machines import wait_for

PATIENCE = 240.0

OWN_CGROUPS = "umount --recursive /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup"
"""crun refuses machines that mount both versions of cgroups, also if it is to make no group."""


def resolved(file: Path, *profiles: str, **variables: str) -> dict[str, Any]:
    options = [f"--profile={profile}" for profile in profiles]
    text = output_of(
        "docker-compose", f"--file={file}", *options, "config", "--format=json", environment=os.environ | variables
    )
    # What it prints is a compose file again, in which $ is written twice.
    document: dict[str, Any] = json.loads(text.replace("$$", "$"))
    return document


EMPTY: Mapping[str, str] = MappingProxyType({})


class Stack:
    """Services of a compose file. Those without an image here count as there and healthy: somebody else runs them."""

    def __init__(self, folder: Path, document: Any, images: Mapping[str, Image], mounts: Any = EMPTY) -> None:
        """`images` by the names in the file; `mounts` are files of the host at paths of every container, by path."""
        self._folder, self._images, self._mounts = folder, images, mounts
        self._services: dict[str, Any] = document["services"]
        self._secrets: dict[str, Any] = document.get("secrets", {})
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._hosts = folder / "hosts"
        self._hosts.write_text(f"127.0.0.1 localhost {' '.join(self._services)}\n")
        lo = "ip link set lo up && exec sleep infinity"
        self._network = subprocess.Popen(["unshare", "--net", "sh", "-c", lo], stdout=subprocess.DEVNULL)

    def up(self, name: str) -> None:
        for other, asked in self._services[name].get("depends_on", {}).items():
            if other not in self._processes and self._is_ours(other):
                self.up(other)
            self._wait_for(other, asked["condition"])
        if name not in self._processes and self._is_ours(name):
            self._start(name)

    def run(self, name: str, *command: str, seconds: float = PATIENCE) -> str:
        container = f"{name}-{time.monotonic_ns()}"
        bundle = self._bundle(name, container, list(command) or None)
        done = self._crun("run", "--bundle", str(bundle), container, seconds=seconds)
        assert done.returncode == 0, f"{command}: {done.stdout.decode()}\n{done.stderr.decode()}"
        return done.stdout.decode()

    def shell(self, name: str, script: str) -> str:
        done = self._crun("exec", name, "sh", "-c", script)
        return (done.stdout + done.stderr).decode()

    def python(self, name: str, program: str) -> str:
        done = self._crun("exec", name, "python", "-c", program)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def end(self, name: str, seconds: float = PATIENCE) -> int:
        """The exit code of a service that ends by itself; it runs again the next time that something depends on it."""
        return self._processes.pop(name).wait(timeout=seconds)

    @property
    def in_network(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._network.pid}/ns/net"]

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def volume(self, name: str) -> Path:
        return self._folder / "volumes" / name

    def wait_until_healthy(self, name: str) -> None:
        test = (
            self._services[name].get("healthcheck", {}).get("test") or self._image(name).config["Healthcheck"]["Test"]
        )
        command = {"CMD": test[1:], "CMD-SHELL": ["sh", "-c", *test[1:]]}[test[0]]

        def healthy() -> bool:
            assert self._processes[name].poll() is None, self.log(name)
            return self._crun("exec", name, *command).returncode == 0

        wait_for(healthy, f"{name} is healthy", PATIENCE)

    def stop(self, name: str) -> int:
        """As `docker compose stop`, with the service's own time; the exit code, -9 if it was killed."""
        process = self._processes.pop(name)
        self._crun("kill", name, "TERM")
        try:
            process.wait(timeout=seconds_of(self._services[name].get("stop_grace_period", "10s")))
        except subprocess.TimeoutExpired:
            self._crun("kill", name, "KILL")
            process.wait(timeout=60)
            return -signal.SIGKILL
        return process.returncode

    def close(self) -> None:
        for name, process in self._processes.items():

            def ended(name: str = name, process: subprocess.Popen[bytes] = process) -> bool:
                # One that begins just now cannot be killed yet.
                self._crun("kill", name, "KILL")
                return process.poll() is not None

            wait_for(ended, f"{name} has ended", PATIENCE)
        self._network.kill()
        self._network.wait()

    def _is_ours(self, name: str) -> bool:
        return self._services[name]["image"] in self._images

    def _image(self, name: str) -> Image:
        return self._images[self._services[name]["image"]]

    def _wait_for(self, name: str, condition: str) -> None:
        if not self._is_ours(name):
            return
        process = self._processes[name]
        if condition == "service_completed_successfully":
            assert process.wait(timeout=PATIENCE) == 0, self.log(name)
        elif condition == "service_healthy":
            self.wait_until_healthy(name)

    def _start(self, name: str) -> None:
        bundle = self._bundle(name, name, self._services[name].get("command"))
        with (self._folder / f"{name}.log").open("wb") as log:
            command = self._command("run", "--bundle", str(bundle), name)
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
            assert process.stdin is not None
            process.stdin.close()
            self._processes[name] = process

    def _crun(self, *arguments: str, seconds: float = PATIENCE) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(self._command(*arguments), input=b"", capture_output=True, timeout=seconds, check=False)

    def _command(self, *arguments: str) -> list[str]:
        """crun with these arguments. It gives its standard streams to the user of the container: none may be
        /dev/null, which everybody has."""
        command = ["crun", f"--root={self._folder / 'crun'}", "--cgroup-manager=disabled", *arguments]
        return ["unshare", "--mount", "sh", "-c", f'{OWN_CGROUPS} && exec "$@"', "sh", *command]

    def _bundle(self, name: str, container: str, command: Sequence[str] | None) -> Path:
        service, image = self._services[name], self._image(name)
        own_entry = service.get("entrypoint")
        arguments = [*(own_entry or image.config["Entrypoint"])]
        arguments += command or (service.get("command") if own_entry else None) or image.config["Cmd"]
        variables = [f"{key}={value}" for key, value in service.get("environment", {}).items()]
        user, _, group = (service.get("user") or image.config["User"]).partition(":")
        # Some of those that Docker leaves to a container that drops none.
        some = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID"]
        kept = [] if service.get("cap_drop") == ["ALL"] else some
        process = {
            "user": {"uid": int(user), "gid": int(group)},
            "args": arguments,
            "env": [*image.config["Env"], *variables],
            "cwd": image.config["WorkingDir"],
            "noNewPrivileges": "no-new-privileges:true" in service.get("security_opt", []),
            "capabilities": dict.fromkeys(("bounding", "effective", "inheritable", "permitted"), kept),
        }
        namespaces: list[dict[str, str]] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
        shared = {"path": f"/proc/{self._network.pid}/ns/net"} if service.get("network_mode") != "none" else {}
        document = {
            "ociVersion": "1.0.0",
            "process": process,
            "root": {"path": str(image.root), "readonly": service.get("read_only", False)},
            "hostname": name,
            "mounts": [*SYSTEM, *self._mounts_of(service, image)],
            "linux": {"namespaces": [*namespaces, {"type": "network"} | shared], "readonlyPaths": ["/proc/sys"]},
        }
        bundle = self._folder / "bundles" / container
        bundle.mkdir(parents=True, exist_ok=True)
        (bundle / "config.json").write_text(json.dumps(document))
        return bundle

    def _mounts_of(self, service: Mapping[str, Any], image: Image) -> Iterator[dict[str, Any]]:
        yield _bind(self._hosts, "/etc/hosts", read_only=True)
        for target in service.get("tmpfs", []):
            # Docker's own options.
            yield _temporary(target, "noexec", "mode=1777")
        for volume in sorted(service.get("volumes", []), key=lambda volume: len(volume["target"])):
            named = volume["type"] == "volume"
            source = self._made(volume["source"], volume["target"], image) if named else Path(volume["source"])
            yield _bind(source, volume["target"], read_only=volume.get("read_only", False))
        for secret in service.get("secrets", []):
            yield _bind(Path(self._secrets[secret["source"]]["file"]), secret["target"], read_only=True)
        for target, source in self._mounts.items():
            yield _bind(Path(source), target, read_only=True)

    def _made(self, name: str, target: str, image: Image) -> Path:
        folder, original = self.volume(name), image.root / target.lstrip("/")
        if not folder.exists():
            if original.is_dir():
                shutil.copytree(original, folder)
                for path in (original, *original.rglob("*")):
                    found = path.stat()
                    os.chown(folder / path.relative_to(original), found.st_uid, found.st_gid)
            else:
                folder.mkdir(parents=True)
        return folder


def _bind(source: Path, target: str, *, read_only: bool) -> dict[str, Any]:
    options = ["rbind", "ro" if read_only else "rw"]
    return {"destination": target, "type": "bind", "source": str(source), "options": options}


def _temporary(target: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", *options]}


SYSTEM = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    _temporary("/dev/shm", "noexec", "mode=1777", "size=64m"),
]


def seconds_of(duration: str) -> float:
    """Of a duration as docker-compose writes it, such as 1h2m3.5s."""
    parts = re.findall(r"([\d.]+)(h|ms|m|s)", duration)
    return sum(float(number) * {"h": 3600, "m": 60, "s": 1, "ms": 0.001}[unit] for number, unit in parts)
