"""YAML of others: equal to PyYAML's where it is plain, refused where it is a bomb, and never quoted."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from evalsvc.errors import InvalidRequest
from evalsvc.spec import yaml_text
from evalsvc.spec.suite import SHIPPED_SUITES
from evalsvc.spec.yaml_text import MAX_BYTES, MAX_DEPTH, YamlError, read_yaml, read_yaml_mapping


@pytest.mark.parametrize(
    "text",
    [
        *(path.read_text() for path in sorted(SHIPPED_SUITES.glob("*.yaml"))),
        "",
        "a: 1",
        "- 1\n- 0x1f\n- 1:30\n- .nan\n- 2001-12-31\n- ~",
        "a: &a {b: [1, 2]}\nc: *a\nd: {<<: *a, e: 1}",
        "\ta".strip(),
        "'ü': \"\\u2028\"",
    ],
)
def test_what_is_plain_reads_as_ever(text: str) -> None:
    assert repr(read_yaml(text)) == repr(yaml.safe_load(text))
    assert repr(read_yaml(text.encode())) == repr(yaml.safe_load(text))


def test_the_limits_are_those_that_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Aliases count each time. As many values as are allowed take seconds, so the test allows fewer."""
    monkeypatch.setattr(yaml_text, "MAX_NODES", 500)
    assert len(read_yaml("[" + "1," * 499 + "]")) == 499
    with pytest.raises(YamlError, match="more than 500 values"):
        read_yaml("[" + "1," * 500 + "]")
    read_yaml("[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1))
    with pytest.raises(YamlError, match=f"nested deeper than {MAX_DEPTH}"):
        read_yaml("[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH)
    with pytest.raises(YamlError, match="aliases"):
        read_yaml("a: &a [" + "1," * 99 + "]\nb: [" + "*a," * 5 + "]")
    assert len(read_yaml("a: &a [" + "1," * 99 + "]\nb: [" + "*a," * 3 + "]")["b"]) == 3


def test_brackets_are_counted_while_they_are_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML scans a thousand of them ahead and compares each with all before it, for half a second."""
    scanned = 0
    plain = yaml.scanner.Scanner.fetch_more_tokens

    def fetch(scanner: Any) -> Any:
        nonlocal scanned
        scanned += 1
        return plain(scanner)

    monkeypatch.setattr(yaml.scanner.Scanner, "fetch_more_tokens", fetch)
    for text in ("[", "{", "[{", "[? "):
        with pytest.raises(YamlError, match=f"nested deeper than {MAX_DEPTH}"):
            read_yaml(text * 50_000)
    assert scanned < 1000


@pytest.mark.parametrize(
    "text",
    [
        *("a: b: hunter2", "\thunter2: a", '{"a": hunter2', "hunter2: [", "x: '\nhunter2", "\x01hunter2"),
        *("a: *hunter2", "a: !hunter2 b", "a: !<hunter2> b", "a: !x!hunter2 b", "a: &hunter2 1\nb: &hunter2 [*hunter2"),
        *(
            "a: !h\"un'ter2 b",
            "a: {[hunter2]: 1}",
            *(f"a: !!{tag} hunter2" for tag in ("int", "float", "bool", "timestamp")),
        ),
    ],
)
def test_errors_have_the_place_and_not_the_text(text: str) -> None:
    """Whoever names a file may not be who may read it."""
    with pytest.raises(YamlError) as error:
        read_yaml(text)
    assert "hunter2" not in str(error.value)
    assert "!!" in text or "line" in str(error.value) or "position" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: .*; check the path"),
        (b"a: " + b"x" * MAX_BYTES, "more than 1,000,000 bytes"),
        (b"a: [", "is not valid YAML: .* line 1"),
        (b"a: \xff", "is not valid YAML"),
        (b"a: !!python/object/apply:os.system [true]", "is not valid YAML"),
        (b"a: &x [1, 1]\nb: &y [*x, *x]\nc: [" + b"*y, " * 10_000 + b"]", "more than 50,000 values"),
        (b"- 1", "does not map names to values; write lines such as `a: 1`"),
        (b"1: 2", "does not map names to values"),
        (b"", "does not map names to values"),
    ],
    ids=["missing", "large", "broken", "no-text", "tag", "aliases", "list", "number", "empty"],
)
def test_a_file_without_a_mapping_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path, good = tmp_path / "recipe.yaml", tmp_path / "good.yaml"
    good.write_text("a: 1\nb: [2]\n")
    assert read_yaml_mapping(good, "recipe", "a: 1", InvalidRequest) == {"a": 1, "b": [2]}
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=rf"^the recipe .*recipe\.yaml .*{message}"):
        read_yaml_mapping(path, "recipe", "a: 1", InvalidRequest)
