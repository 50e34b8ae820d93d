"""What the wheel carries for `evalsvc verify machine`."""

import json

from safetensors import safe_open

from evalsvc.checkpoints.weights import read_weights
from evalsvc.verify.golden_files import GOLDEN, Golden

FILES = sorted(path for path in GOLDEN.rglob("*") if path.is_file())


def test_the_wheel_stays_small() -> None:
    assert sum(path.stat().st_size for path in FILES) <= 2_000_000


def test_every_file_is_read_without_executing_anything() -> None:
    """Checkpoints of open_lm are pickles, which evalsvc reads by its own rules."""
    for path in FILES:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                assert file.keys()
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".pt":
            assert read_weights(path).format == "open_lm epoch"
        else:
            assert path.name == "params.txt", path


def test_a_program_is_named_with_its_version() -> None:
    assert Golden("cpu").program("open_lm") == "golden, open_lm 9bb92ef"
