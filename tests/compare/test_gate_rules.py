"""Files of rules: what they may say, and what is said of those that say something else."""

from pathlib import Path

import pytest

from evalsvc.compare.gate_rules import EVERYTHING, Rule, Rules, read_rules
from evalsvc.errors import InvalidRequest


def read(folder: Path, text: str) -> Rules:
    path = folder / "rules.yaml"
    path.write_text(text)
    return read_rules(path)


def test_defaults(tmp_path: Path) -> None:
    (rule,) = read(tmp_path, "rules: [{metric: arc_*/acc}]").rules
    assert rule == Rule(
        metric="arc_*/acc",
        direction=None,
        absolute=0.0,
        relative=0.001,
        standard_errors=3.0,
        missing="fail",
        left_out=0.0,
        inconclusive="pass",
        max_noise=None,
    )
    assert read_rules(None) == Rules(EVERYTHING, "none")


def test_every_key(tmp_path: Path) -> None:
    """`1e-2` is a string in YAML 1.1."""
    numbers = "absolute: 1e-2, relative: 0, standard_errors: 2, max_noise: 0.5, left_out: 0.1"
    words = "direction: higher, missing: ignore, inconclusive: fail"
    found = read(tmp_path, f"{{rules: [{{metric: a/b, {numbers}, {words}}}], family: holm}}")
    fields = {"absolute": 0.01, "relative": 0, "standard_errors": 2, "max_noise": 0.5, "left_out": 0.1}
    rule = Rule(metric="a/b", direction="higher", missing="ignore", inconclusive="fail", **fields)
    assert found == Rules((rule,), "holm")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rule: []", "no key is named 'rule'; did you mean 'rules'"),
        ("rules: [{metrics: a/b}]", "rule 1: no key is named 'metrics'; did you mean 'metric'"),
        ("rules: [{metric: a/b}, {absolute: 1}]", "rule 2: metric: field required"),
        ("rules: [{metric: a/b, absolute: -1}]", "rule 1: absolute: .*greater than or equal to 0, found -1"),
        ("rules: [{metric: a/b, relative: .nan}]", "rule 1: relative: .*finite"),
        ("rules: [{metric: a/b, direction: up}]", "rule 1: direction: .*'lower' or 'higher', found 'up'"),
        ("rules: [{metric: a/b, max_noise: 0}]", "rule 1: max_noise: .*greater than 0, found 0"),
        ("rules: [{metric: a/b, left_out: 5}]", "rule 1: left_out: .*less than or equal to 1, found 5"),
        ("{rules: [{metric: a/b}], family: hol}", "no family is named 'hol'; did you mean 'holm'"),
        ("{rules: [{metric: a/b}], family: [1]}", r"no family is named '\[1\]'; available: holm, none"),
        ('rules: [{metric: "a\\n::error::b"}]', "'a\\\\x0a::error::b' has the control character"),
        ("a: &a [1]\nrules: [" + "*a, " * 30_000 + "]", "aliases counted each time"),
        ("rules: [a/b]", "rule 1 is 'a/b'; write a mapping with the key `metric`"),
        ("rules: []", "has no list `rules`; give at least one"),
        ("- metric: a/b", "does not map names to values; write lines such as `rules:"),
        ("rules: [", "is not valid YAML: "),
        ("\x00", "is not valid YAML: "),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        read(tmp_path, text)
    assert "rules.yaml" in caught.value.message
    assert "\n" not in caught.value.message


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(InvalidRequest, match="cannot be read"):
            read_rules(path)


def test_the_level_is_that_of_a_normal_distribution() -> None:
    assert Rule(metric="a/b").level == pytest.approx(1 / 740.8, rel=1e-4)
    assert Rule(metric="a/b", standard_errors=2).level == pytest.approx(1 / 43.96, rel=1e-4)
    assert Rule(metric="a/b", standard_errors=0).level == 0.5
    assert Rule(metric="a/b", standard_errors=50).level == 0
