"""`make test` stays quick only while nothing slow gets into it unseen."""

import multiprocessing
import subprocess
import sys

import pytest


def test_a_process_that_is_not_announced_is_refused() -> None:
    with pytest.raises(AssertionError, match="must say so, by the fixture `child_process`"):
        subprocess.run([sys.executable, "-c", "pass"], check=True)
    with pytest.raises(AssertionError, match="must say so, by the fixture `child_process`"):
        multiprocessing.get_context("spawn").Process(target=print).start()


@pytest.mark.usefixtures("short_process")
def test_one_that_is_announced_is_started() -> None:
    subprocess.run([sys.executable, "-S", "-c", "pass"], check=True)


@pytest.mark.parametrize("kind", ["sqlite", "migrated_postgresql"])
def test_a_parameter_that_names_a_fixture_of_the_second_tier_moves_a_test_there(
    request: pytest.FixtureRequest, kind: str
) -> None:
    assert (request.node.get_closest_marker("full") is not None) is (kind == "migrated_postgresql")
