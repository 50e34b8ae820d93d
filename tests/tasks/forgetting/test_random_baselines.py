import json

import pytest

from evalsvc.tasks.forgetting.random_baselines import TABLE, Baseline, random_baseline


def test_the_more_frequent_answer_counts_where_the_table_says_so() -> None:
    assert random_baseline("boolq", 0.5) == Baseline(0.62, 1)
    assert random_baseline("arc_easy", 0.2512) == Baseline(0.25, 1), "some of ARC's questions have three options"


@pytest.mark.parametrize(("name", "options"), [("cloze", 0.25), ("boolq", 0.25), ("lambada_openai", 0.5)])
def test_what_is_not_in_the_table_has_chance(name: str, options: float) -> None:
    """Also a benchmark of somebody's own that only has the name of one in the table."""
    assert random_baseline(name, options) == Baseline(options, None)


def test_the_table_is_of_the_benchmarks_beside_it() -> None:
    """A row that was added without a version would give two meanings to one protocol; whoever adds one looks here."""
    table = json.loads(TABLE.read_text())
    names = {path.stem for path in TABLE.parent.glob("[!_]*.yaml")}
    assert table["rows"].keys() == names
    assert all(0 <= row["options"] <= row["baseline"] < 1 for row in table["rows"].values())
    assert table["version"] == 1
    assert random_baseline("piqa", 0.5) == Baseline(0.5, 1)
