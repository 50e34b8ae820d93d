"""A process that is killed at any moment leaves nothing that changes the result."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from training_pairs import bytes_of, prepared, write_folder

KILLS = 10

SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path

from prepare import code_store
from training_pairs import prepared

code_store.FILE_IMAGES = 6  # codes are written after six images, so that every attempt comes further
source, output, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
rng, told = random.Random(seed), []
prepared(source, output.with_name("whole"), shard_size=4, held_out=3)  # and import what every attempt needs

def run(news, leave):
    # The child reports every file and waits for leave to go on: it comes no further than the parent wants.
    replace = os.replace
    def paced(*paths):
        replace(*paths)
        os.write(news, b".")
        os.read(leave, 1)
    os.replace = paced
    prepared(source, output, shard_size=4, held_out=3)
    os._exit(0)

while len(told) < kills:
    news, news_of_child = os.pipe()
    leave_of_child, leave = os.pipe()
    child = os.fork()
    if child == 0:
        run(news_of_child, leave_of_child)
    os.close(news_of_child)
    for _ in range(rng.randint(1, 6)):
        if not os.read(news, 1):
            raise SystemExit("the run ended before it was killed")
        os.write(leave, b".")
    time.sleep(rng.random() / 100)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for end in (news, leave_of_child, leave):
        os.close(end)
    counts = [len(list(output.rglob("*" + suffix))) for suffix in (".codes", ".tar", "prepare.json")]
    told.append(counts)
print(json.dumps(told))
"""


@pytest.mark.usefixtures("child_process")
def test_ten_kills_leave_the_same_bytes(tmp_path: Path) -> None:
    """Killed with SIGKILL as soon as a few files are new: between codes, in the middle of a shard, before the end."""
    source = write_folder(tmp_path / "images", 120)
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    arguments = [str(source), str(tmp_path / "killed"), str(KILLS), "2"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    states = json.loads(done.stdout)
    assert len(states) == KILLS
    assert states[0][1] == 0 < states[-1][1], "the first run is killed between codes, and the last between shards"
    assert not any(complete for *_, complete in states), "every run was killed before its end"
    result = prepared(source, tmp_path / "killed", shard_size=4, held_out=3)
    assert result.encoded.encoded < 120, "what was encoded before a kill is kept"
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob("*.partial"))
