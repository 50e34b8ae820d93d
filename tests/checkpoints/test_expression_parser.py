"""Expressions as text: one spelling per meaning, and an error with a place for everything else."""

import random
import re

import pytest
from random_expressions import random_expression

from evalsvc.checkpoints.expression import (
    MAX_DEPTH,
    PARTS,
    Part,
    canonical,
    coefficients,
    default_variant,
    is_expression,
    leaves,
    parse_expression,
)
from evalsvc.errors import InvalidRequest

PLACES: tuple[Part, ...] = (0, 3, 11, *PARTS)


def test_every_expression_is_read_as_it_is_spelled() -> None:
    chance = random.Random(0)
    for _ in range(300):
        expression = random_expression(chance)
        text = canonical(expression)
        read = parse_expression(text)
        assert canonical(read) == text
        assert set(leaves(read)) == set(leaves(expression))
        for part in PLACES:
            assert coefficients(read, part) == pytest.approx(coefficients(expression, part), rel=1e-12)


def test_whatever_is_typed_is_an_expression_or_an_error_with_a_place() -> None:
    """A traceback at the service's door would be a 500, and a loop a service that hangs."""
    chance = random.Random(2)
    pieces = ["avg", "lerp", "graft", "(", ")", ",", " ", "run@5", "run@1..9/2", "base", "0.3", "layers=0-3", "parts="]
    pieces += ["head|norm", '"', "'", "=", "|", "@", "..", "/", "-", "é", "\n", "²", "9" * 30, "run@٣"]
    for _ in range(3000):
        if chance.random() < 0.5:
            text = "".join(chance.choices(pieces, k=chance.randint(0, 14)))
        else:
            symbols = list(canonical(random_expression(chance)))
            for _ in range(chance.randint(1, 3)):
                symbols[chance.randrange(len(symbols))] = chance.choice(pieces)
            text = "".join(symbols)
        is_expression(text)
        problem = ""
        try:
            expression = parse_expression(text)
        except InvalidRequest as error:
            problem = error.message
        if problem:
            assert re.search(r"at character \d+: expected .+; found .+", problem, re.DOTALL)
        else:
            assert canonical(parse_expression(canonical(expression))) == canonical(expression)


@pytest.mark.parametrize(
    ("texts", "spelled"),
    [
        (["avg(b@2,a@1000 , a@200)", " avg ( a@200, a@1000, b@2 )"], "avg(a@200, a@1000, b@2)"),
        (["lerp(run@0,run@5,0.30)", "lerp(run@0, run@5:raw, 3e-1)"], "lerp(run@0, run@5, 0.3)"),
        (["lerp(a@0,a@5,0)", "lerp(a@0,a@5,-0.0)"], "lerp(a@0, a@5, 0)"),
        (["graft(a@1,base,layers=3|0-1|2)", "graft(a@1, base, layers = 0-3)"], "graft(a@1, base, layers=0-3)"),
        (
            ["graft(a@1,b@1,parts=norm|head,layers=7)", "graft(a@1,b@1,layers=7,parts = head | norm,parts=norm)"],
            "graft(a@1, b@1, layers=7, parts=head|norm)",
        ),
        (["avg('a b.pt', c.pt)", 'avg("a b.pt","c.pt")'], 'avg("a b.pt", c.pt)'),
        (["avg('run@5', 'base')"], 'avg("base", "run@5")'),
    ],
)
def test_spacing_and_order_make_no_other_checkpoint(texts: list[str], spelled: str) -> None:
    assert {canonical(parse_expression(text)) for text in texts} == {spelled}
    assert len({default_variant(parse_expression(text)) for text in texts}) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "at character 1: expected a checkpoint"),
        ("lerp(a@1, b@2, 30)", "at character 16: expected a weight from 0 (the first) to 1 (the second); found '30'"),
        ("lerp(a@1, b@2, nan)", "expected a weight from 0"),
        ("lerp(a@1, b@2", "at character 14: expected a comma; found the end"),
        ("lerp(a@1..3, b@2, .3)", "at character 6: expected one checkpoint (a range is for avg(…) only)"),
        ("mean(a@1)", "at character 1: expected one of avg, lerp, graft; found 'mean'"),
        ("avg(a@1,)", "at character 9: expected a checkpoint (RUN@STEP[:VARIANT], base, a path) or avg(…)"),
        ("avg(a@1 b@2)", "at character 9: expected a comma or a closing bracket; found 'b@2'"),
        ("avg(a@1) b@2", "at character 10: expected the end, since the expression is complete; found 'b@2'"),
        ("avg(a@9..3)", "expected the lower step before the higher step"),
        ("avg(a@1..3/0)", "expected a stride of at least 1"),
        (f"avg(a@{2**53})", f"expected a step of at most {2**53 - 1}"),
        ("graft(a@1, b@2)", "at character 15: expected a comma"),
        ("graft(a@1, b@2, layer=3)", "at character 17: expected layers=0-11|14 or parts=embeddings|head|norm"),
        ("graft(a@1, b@2, layers=)", "expected layers=0-11|14 or"),
        ("graft(a@1, b@2, layers=5-3)", "expected the lower layer before the higher layer"),
        ("graft(a@1, b@2, layers=0-99999)", "up to 9999"),
        ("graft(a@1, b@2, layers=first)", "expected layers counted from 0"),
        ("graft(a@1, b@2, parts=tail)", "expected any of embeddings, head, norm, separated by |"),
        ("avg(" * (MAX_DEPTH + 1), f"expected at most {MAX_DEPTH} levels of nested functions"),
        ("avg('a.pt)", "expected a checkpoint"),
    ],
)
def test_errors_say_where_and_what_is_allowed(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_expression(text)
    assert words in caught.value.message


@pytest.mark.parametrize("text", ["avg(run@1)", " lerp (", "avg(", "mean(run@1)", "graft(a, b, layers=0)"])
def test_what_is_meant_as_an_expression(text: str) -> None:
    assert is_expression(text)


@pytest.mark.parametrize("uri", ["/runs/avg(1).pt", "epoch(1).pt", "file:///a", "run@5", "base", "average.pt", ""])
def test_what_is_a_path(uri: str) -> None:
    """A browser calls its second download `epoch(1).pt`."""
    assert not is_expression(uri)
