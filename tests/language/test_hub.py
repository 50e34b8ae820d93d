import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest
from benchmark_files import questions, write_benchmark
from fake_hub import fake_hub

from evalsvc.errors import AssetMissing, InvalidData
from evalsvc.language.hub import Source, cached, fetch, offline, quiet

PREPARE = ["from evalsvc.cli import main; main()", "benchmarks", "prepare", "whole", "by_file", "--include-path"]
EVALUATE = """
import sys
from pathlib import Path
from evalsvc.spec.benchmark import BenchmarkSpec
from evalsvc.errors import AssetMissing
from evalsvc.language.benchmarks import LoadOptions, load_benchmarks
for name in ("whole", "by_file", "other"):
    try:
        (benchmark,) = load_benchmarks([BenchmarkSpec(name=name)], LoadOptions((Path(sys.argv[1]),))).benchmarks
        print(name, benchmark.instances[0].arguments)
    except AssetMissing as error:
        print(name, error.message)
"""


@pytest.mark.usefixtures("child_process")
def test_what_was_prepared_is_evaluated_without_the_hub(tmp_path: Path) -> None:
    """The cache of `datasets` does not find again what was asked for by file, and the hub must not be asked meanwhile.

    Real processes, and a hub: the packages read their settings when they are imported.
    """
    own = tmp_path / "own"
    hub: dict[str, Any] = {"dataset_path": "someone/questions", "dataset_kwargs": None}
    write_benchmark(own, "whole", **hub)
    write_benchmark(own, "by_file", **{**hub, "dataset_kwargs": {"data_files": {"test": "test.jsonl"}}})
    write_benchmark(own, "other", **{**hub, "dataset_path": "someone/other"})

    def run(program: list[str], offline: str) -> str:
        settings = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": url, "HF_HUB_OFFLINE": offline}
        done = subprocess.run(
            [sys.executable, "-c", *program, str(own)],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stderr, done.returncode) == ("", 0)
        return done.stdout

    rows = "".join(json.dumps(row) + "\n" for row in questions(3)).encode()
    with fake_hub("datasets/someone/questions", {"test.jsonl": rows}) as (url, asked):
        prepared = run(PREPARE, offline="1")
        assert prepared == (
            "whole: the dataset 'someone/questions' (splits 'test'), 3 rows of 'test'\n"
            "by_file: the dataset 'someone/questions' (files {'test': 'test.jsonl'}, splits 'test'), "
            "3 rows of 'test'\n"
        )
        assert asked
        asked.clear()
        evaluated = run([EVALUATE], offline="0").splitlines()
        assert asked == []
    assert evaluated[:2] == [f"{name} ('Question: what is 0?\\nAnswer:', ' 0')" for name in ("whole", "by_file")]
    assert evaluated[2].startswith("other benchmark 'other': the dataset 'someone/other' (splits 'test') is not in the")


@pytest.fixture
def closed_port() -> Iterator[int]:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_hub_that_cannot_be_reached_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    """Its own client tries for half a minute, and then names neither the address nor a way out."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    message = (
        rf"hub http://127.0.0.1:{closed_port} cannot be reached \(.*refused\); try again on a machine with a network"
    )
    with pytest.raises(AssetMissing, match=message):
        fetch(Source("someone/questions", None, {}, ("test",)))


def test_local_data_that_are_broken_are_no_matter_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "a.json").write_text("{")
    for name in ("a.json", "gone.json"):
        options = {"data_files": {"test": str(tmp_path / name)}, "field": "rows"}
        with quiet(), pytest.raises(InvalidData, match="cannot be read"):
            cached(Source("json", None, options, ("test",)))


def test_offline_holds_for_all_code_of_this_thread_and_no_other() -> None:
    """Benchmarks bring code along that downloads by other ways than the hub's client; a worker talks to its cluster."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = server.getsockname()
        reached: list[bool] = []

        def connect() -> None:
            with closing(socket.create_connection(address, timeout=5)):
                reached.append(True)

        with offline():
            with pytest.raises(ConnectionRefusedError, match="the network is not used in an evaluation"):
                connect()
            with pytest.raises(ConnectionRefusedError):
                socket.getaddrinfo("localhost", 80)
            other = threading.Thread(target=connect)
            other.start()
            other.join()
        connect()
    assert reached == [True, True]
