"""Container images that are really built: by buildah, from a base made of Debian's packages and the tests' own Python.
No registry of images is asked. It needs root that may make namespaces. What is built lies in a folder of the
session."""

import ast
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

REPOSITORY = Path(__file__).parents[2]
BASE = "localhost/python-of-the-tests"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

PACKAGES = ("ca-certificates", "passwd")
LEFT_OUT = ("site-packages", "__pycache__", "test", "idlelib", "config-*")

MB = 1_000_000
LIMITS = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}


@dataclass(frozen=True)
class Image:
    name: str
    root: Path
    config: Mapping[str, Any]

    @property
    def megabytes(self) -> float:
        found = [path.lstat() for path in self.root.rglob("*")]
        return sum({(each.st_dev, each.st_ino): each.st_blocks * 512 for each in found}.values()) / MB

    @property
    def packages(self) -> Path:
        [folder] = (self.root / "opt" / "evalsvc" / "lib").glob("python3*/site-packages")
        return folder


class Builder:
    def __init__(self, folder: Path, cache: Path) -> None:
        self._folder = folder
        self._cache = cache
        limits = {name: resource.getrlimit(kind)[1] for name, kind in LIMITS.items()}
        settings = folder / "containers.conf"
        shown = ", ".join(f'"{name}={limit}:{limit}"' for name, limit in limits.items() if limit > 0)
        settings.write_text(f"[containers]\ndefault_ulimits = [{shown}]\n")
        # buildah's own limits are higher than a root without CAP_SYS_RESOURCE may set.
        self._environment = os.environ | {"CONTAINERS_CONF": str(settings), "BUILDAH_ISOLATION": "chroot"}
        self._has_base = False

    def build(self, name: str, volumes: Mapping[str, str] = MappingProxyType({}), **arguments: str) -> Image:
        """Build `docker/NAME.Dockerfile`, unchanged. `volumes` are paths for its steps, by folder of this machine."""
        self._need_base()
        tag = f"localhost/evalsvc-{name}"
        mounts = {**pip_files(self._folder), **volumes}
        options = [f"--build-arg={key}={value}" for key, value in {"BASE_IMAGE": BASE, **arguments}.items()]
        options += [f"--volume={source}:{target}:ro" for source, target in mounts.items()]
        file = REPOSITORY / "docker" / f"{name}.Dockerfile"
        build = ["build", "--quiet", "--pull=never", "--network=host", "--format=docker", *options]
        self._buildah(*build, f"--file={file}", f"--tag={tag}", str(REPOSITORY))
        config = json.loads(self._buildah("inspect", "--type=image", tag))["Docker"]["config"]
        container = self._buildah("from", "--pull=never", tag)
        return Image(f"evalsvc-{name}", Path(self._buildah("mount", container)), config)

    def close(self) -> None:
        self._buildah("rm", "--all")
        self._buildah("rmi", "--all", "--force")
        shutil.rmtree(self._folder)

    def _need_base(self) -> None:
        if self._has_base:
            return
        container = self._buildah("from", "scratch")
        for archive in (debian(self._cache), python(self._folder)):
            self._buildah("add", "--quiet", container, str(archive), "/")
        self._buildah("run", container, "ldconfig")
        self._buildah("config", "--env=PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
        self._buildah("commit", "--quiet", "--rm", container, BASE)
        self._has_base = True

    def _buildah(self, *arguments: str) -> str:
        places = [f"--root={self._folder / 'store'}", f"--runroot={self._folder / 'run'}", "--storage-driver=overlay"]
        return output_of("buildah", *places, *arguments, environment=self._environment)


def output_of(*command: str, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"{' '.join(command)[:300]}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout.strip()


def cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "evalsvc" / "containers"


def debian(cache: Path) -> Path:
    """A small system with the libraries that the tests' Python needs, of this machine's own release; made once."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release["VERSION_CODENAME"]
    packages = sorted({*PACKAGES, *packages_of_python()})
    archive = cache / f"{codename}-{len(packages)}.tar"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = cache / f"{codename}.partial.tar"
        include = f"--include={','.join(packages)}"
        mirror = "http://deb.debian.org/debian"
        output_of("mmdebstrap", "--quiet", "--variant=apt", include, codename, str(partial), mirror)
        partial.rename(archive)
    return archive


def packages_of_python() -> set[str]:
    base = Path(sys.base_prefix)
    folder = base / "lib" / f"python3.{sys.version_info.minor}" / "lib-dynload"
    linked = [str(file) for file in folder.glob("*.so") if "tkinter" not in file.name]
    lines = output_of("ldd", sys.executable, *linked).splitlines()
    libraries = {Path(line.split()[2]).resolve() for line in lines if "=> /" in line}
    outside = sorted(str(library) for library in libraries if not library.is_relative_to(base))
    # /lib is a link to /usr/lib, and dpkg knows a file by one of the names.
    found = subprocess.run(["dpkg", "--search", *outside], capture_output=True, text=True, check=False).stdout
    return {line.partition(":")[0] for line in found.splitlines()}


def python(folder: Path) -> Path:
    base, version = Path(sys.base_prefix), f"python3.{sys.version_info.minor}"
    root = folder / "python"
    local = root / "usr" / "local"
    shutil.copytree(base / "lib" / version, local / "lib" / version, ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.copytree(base / "include" / version, local / "include" / version)
    (local / "lib" / version / "site-packages").mkdir()
    (local / "bin").mkdir()
    shutil.copy2(base / "bin" / version, local / "bin" / version)
    for library in (base / "lib").glob("libpython3*"):
        shutil.copy2(library, local / "lib" / library.name, follow_symlinks=False)
    for name in ("python3", "python"):
        (local / "bin" / name).symlink_to(version)
    archive = folder / "python.tar"
    output_of("tar", "--create", f"--file={archive}", f"--directory={root}", "--owner=0", "--group=0", ".")
    return archive


def pip_files(folder: Path) -> dict[str, str]:
    """What pip needs within a build to find packages as it does here: its settings, and files that those name."""
    settings = pip_settings()
    file = folder / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    named = {word for value in settings.values() for word in value.split() if word.startswith("/")}
    return {str(file): "/etc/pip.conf", "/etc/ssl/certs": "/etc/ssl/certs"} | {
        word: word for word in sorted(named) if Path(word).exists() and not word.startswith("/etc/ssl/certs")
    }


def pip_settings() -> dict[str, str]:
    """This machine's, the environment's over those of files."""
    lines = [line for line in output_of(sys.executable, "-m", "pip", "config", "list").splitlines() if "=" in line]
    lines.sort(key=lambda line: line.startswith(":env:"))
    pairs = (line.partition("=") for line in lines)
    return {key.rpartition(".")[2]: " ".join(str(ast.literal_eval(text)).split()) for key, _, text in pairs}


def torch_index() -> str:
    """Where a build finds torch for CPUs: nowhere else, where pip has it on this machine's disk."""
    folders = pip_settings().get("find-links", "").split()
    return "" if any(any(Path(folder).glob("torch-*.whl")) for folder in folders) else CPU_INDEX
