"""What the tests of containers need: programs that a machine may lack, and images, which are built once."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from images import Builder, Image, cache_folder, torch_index
from programs import find_program, lacking


@pytest.fixture(scope="session")
def compose(short_process: None) -> str:
    """Debian's docker-compose, which reads files without an engine; required by the name `compose`."""
    return find_program("docker-compose", "Debian's package of this name, version 2", "compose")


@pytest.fixture(scope="session")
def buildah(child_process: None, compose: str) -> None:
    """What builds and runs images without an engine; required by the name `buildah`."""
    if os.geteuid() != 0:
        lacking("buildah", "needs root, to build images")
    for name in ("buildah", "crun", "mmdebstrap", "ip"):
        find_program(name, "Debian's packages buildah, netavark, crun, mmdebstrap and iproute2", "buildah")
    made = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        lacking("buildah", f"needs a root that may make namespaces: {made.stderr.strip()}")


@pytest.fixture(scope="session")
def builder(buildah: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    with closing(Builder(tmp_path_factory.mktemp("images"), cache_folder())) as builder:
        yield builder


@pytest.fixture(scope="session")
def api_image(builder: Builder) -> Image:
    return builder.build("api", REVISION="0123abc")


@pytest.fixture(scope="session")
def worker_image(builder: Builder, shared: Path) -> Image:
    """With torch for CPUs, and with open_lm from a wheel."""
    [wheel] = (shared / "wheels").glob("open_lm-*.whl")
    volumes = {str(wheel.parent): "/wheels"}
    return builder.build("worker", volumes, TORCH_INDEX=torch_index(), OPEN_LM=f"/wheels/{wheel.name}")
