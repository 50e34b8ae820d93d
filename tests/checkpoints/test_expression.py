"""Expressions over checkpoints: which tensors come from where, one spelling per meaning, and errors with a place."""

import random
import re
from collections.abc import Mapping
from math import isclose

import pytest

from evalsvc.checkpoints.expression import (
    MAX_DEPTH,
    PARTS,
    Average,
    Base,
    Expression,
    File,
    Graft,
    Lerp,
    Part,
    Step,
    Steps,
    Sum,
    canonical,
    coefficients,
    default_variant,
    digest_of,
    is_expression,
    leaves,
    parse_expression,
    part_of,
    replaced,
    require_parts,
)
from evalsvc.errors import InvalidRequest
from evalsvc.models import Transformer
from evalsvc.spec.model_config import ModelConfig

PLACES: tuple[Part, ...] = (0, 3, 11, *PARTS)


def random_expression(chance: random.Random, room: int = 4) -> Expression:
    kind = chance.choice(["leaf", "avg", "lerp", "graft", "sum"]) if room else "leaf"
    if kind == "leaf":
        name = chance.choice(["run", "text-1b", "a.b_c"])
        step = Step(name, chance.randrange(10_000), chance.choice(["raw", "raw", "ema_0.9999"]))
        return chance.choice([step, step, step, Base(), File("/runs/a b/epoch=3.pt"), File("runs/step|4.pt")])
    if kind == "avg":
        return Average(tuple(random_expression(chance, room - 1) for _ in range(chance.randint(1, 4))))
    if kind == "sum":
        adapter = File(chance.choice(["/runs/a/checkpoint-500", "/runs/a b/x+y", "base"]))
        return Sum(chance.choice([Step("run", 3), Base(), File("/runs/a b/epoch=3.pt")]), adapter)
    first, second = random_expression(chance, room - 1), random_expression(chance, room - 1)
    if kind == "lerp":
        return Lerp(first, second, chance.choice([0.0, 1.0, 0.3, chance.random(), 1e-7]))
    chosen = chance.sample([*range(12), *PARTS], k=chance.randint(1, 8))
    return Graft(first, second, frozenset(chosen))


def value_of(expression: Expression, part: Part, values: Mapping[str, float]) -> float:
    """What an expression over numbers gives, by what the functions mean."""
    if isinstance(expression, Average):
        members = [value_of(member, part, values) for member in expression.members]  # type: ignore[arg-type]
        return sum(members) / len(members)
    if isinstance(expression, Lerp):
        first, second = (value_of(side, part, values) for side in (expression.first, expression.second))
        return first + expression.weight * (second - first)
    if isinstance(expression, Graft):
        return value_of(expression.second if part in expression.chosen else expression.first, part, values)
    return values[canonical(expression)]


def test_coefficients_say_what_the_functions_mean() -> None:
    """Every expression is read as it is spelled."""
    chance = random.Random(1)
    for _ in range(300):
        expression = random_expression(chance)
        text = canonical(expression)
        read = parse_expression(text)
        assert canonical(read) == text
        assert set(leaves(read)) == set(leaves(expression))
        values = {canonical(leaf): chance.gauss(0, 1) for leaf in leaves(expression)}
        for part in PLACES:
            shares = coefficients(expression, part)
            assert isclose(sum(shares.values()), 1, rel_tol=1e-12)
            total = sum(share * values[leaf] for leaf, share in shares.items())
            assert total == pytest.approx(value_of(expression, part, values), abs=1e-12)
            assert coefficients(read, part) == pytest.approx(shares, rel=1e-12)


def test_what_tells_two_expressions_apart() -> None:
    texts = ["lerp(a@1, b@1, 0.3)", "lerp(b@1, a@1, 0.3)", "graft(a@1, b@1, layers=0)", "graft(b@1, a@1, layers=0)"]
    texts += ["avg(a@1, b@1)", "avg(a@1, a@1, b@1)", "avg(avg(a@1, b@1), b@1)"]
    texts += ["avg(a@1, b@1 + lora(x))", "avg(a@1 + lora(x), b@1)", "avg(a@1, b@1 + lora('x y'))"]
    assert len({default_variant(parse_expression(text)) for text in texts}) == len(texts)
    mine, other = parse_expression("avg(a@1, b@2)"), parse_expression("avg(c@7, d@9)")
    first = digest_of(mine, {"a@1": "1" * 64, "b@2": "2" * 64})
    assert first == digest_of(other, {"c@7": "2" * 64, "d@9": "1" * 64}), "not their names"
    assert first != digest_of(mine, {"a@1": "1" * 64, "b@2": "3" * 64})
    assert first != digest_of(parse_expression("lerp(a@1, b@2, 0.5)"), {"a@1": "1" * 64, "b@2": "2" * 64})
    adapters = {"a@1": "1" * 64, "b@2": "2" * 64, "x": "2" * 64, "y": "2" * 64, "z": "3" * 64}
    sums = [digest_of(parse_expression(f"a@1 + lora({name})"), adapters) for name in "xyz"]
    assert sums[0] == sums[1] != sums[2]


def test_leaves_and_ranges_are_replaced_in_their_places() -> None:
    expression = parse_expression("graft(avg(run@1..3, base), lerp(base, b@2, 0.5), layers=0)")
    assert leaves(expression) == [Base(), Step("b", 2)]
    base = {Base(): Step("text", 0)}
    found = replaced(
        expression, lambda leaf: base.get(leaf, leaf), lambda steps: [Step(steps.run, n) for n in (1, 2, 3)]
    )
    assert canonical(found) == "graft(avg(run@1, run@2, run@3, text@0), lerp(text@0, b@2, 0.5), layers=0)"
    assert parse_expression("avg(run@1..3/2:ema)") == Average((Steps("run", 1, 3, 2, "ema"),))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("post_embed_norm", [False, True])
def test_every_tensor_belongs_to_a_layer_or_a_part(tied: bool, post_embed_norm: bool) -> None:
    shape = {"hidden_dim": 8, "n_layers": 2, "n_heads": 2, "seq_len": 8, "vocab_size": 9, "qk_norm": True}
    config = ModelConfig.model_validate({**shape, "post_embed_norm": post_embed_norm, "weight_tying": tied})
    parts = {name: part_of(name) for name in Transformer(config).state_dict()}
    assert set(parts.values()) == {0, 1, *PARTS}
    assert {name for name, part in parts.items() if part == "head"} == {"output.weight"}
    assert {name.split(".")[0] for name, part in parts.items() if part == "norm"} == {"norm"}
    assert {int(name.split(".")[1]) for name, part in parts.items() if part == 1} == {1}


@pytest.mark.parametrize(
    ("text", "tied", "words"),
    [
        ("graft(a@1, b@1, layers=1-5|9)", False, "chooses layers=4-5|9, but the model has 4 layers; choose among 0-3"),
        ("avg(a@1, graft(a@1, b@1, layers=4))", False, "chooses layers=4"),
        ("graft(a@1, b@1, parts=head)", True, "one table for both; write parts=embeddings|head"),
    ],
)
def test_a_graft_of_what_the_model_does_not_have(text: str, tied: bool, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        require_parts(parse_expression(text), 4, tied)
    assert words in caught.value.message
    require_parts(parse_expression("graft(a@1, b@1, layers=0-3, parts=head)"), 4, weight_tying=False)
    require_parts(parse_expression("lerp(a@1, graft(a@1, b@1, parts=embeddings|head), 0)"), 4, weight_tying=True)


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
        (["graft(a@1,b@1,parts=norm|head)", "graft(a@1,b@1,parts = head | norm)"], "graft(a@1, b@1, parts=head|norm)"),
        (["avg('a b.pt', c.pt)", 'avg("a b.pt","c.pt")'], 'avg("a b.pt", c.pt)'),
        (["avg('run@5', 'base')"], 'avg("base", "run@5")'),
        (["run@0 + lora(/r/c-5)", " run@0:raw\n+ lora ( '/r/c-5' )"], "run@0 + lora(/r/c-5)"),
        (["avg(base + lora(a),base)"], "avg(base, base + lora(a))"),
        (["'/models/x + y' + lora('/r/c 5')"], '"/models/x + y" + lora("/r/c 5")'),
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
        ("a@1 + b@2", "at character 7: expected lora(FOLDER), the folder of an adapter; found 'b@2'"),
        ("a@1 + lora", "expected lora(FOLDER), the folder of an adapter; found the end"),
        ("a@1 + lora()", "at character 12: expected a checkpoint (RUN@STEP"),
        ("a@1 + lora(run@5)", "at character 12: expected the folder of an adapter; found 'run@5'"),
        ("a@1 + lora(/a, /b)", "at character 14: expected a closing bracket; found ','"),
        ("avg(a@1..3 + lora(/a))", "at character 5: expected a single checkpoint before +; found 'a@1..3'"),
        ("a@1 + lora(x) + lora(y)", "at character 15: expected the end, since the expression is complete"),
        ("avg(a@1, b@1) + lora(x)", "at character 1: expected a single checkpoint before +"),
        ("lora(/a)", "expected one of avg, lerp, graft; found 'lora'"),
    ],
)
def test_errors_say_where_and_what_is_allowed(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_expression(text)
    assert words in caught.value.message


def test_what_is_meant_as_an_expression_and_what_is_a_path() -> None:
    """A browser calls its second download `epoch(1).pt`."""
    assert all(map(is_expression, ("avg(run@1)", " lerp (", "avg(", "mean(run@1)", "graft(a, b, layers=0)")))
    assert all(map(is_expression, ("run@0 + lora(/a)", "base + lora(", "/models/x y + lora ('a b')")))
    paths = ("/runs/avg(1).pt", "epoch(1).pt", "file:///a", "run@5", "base", "average.pt", "", "/x+lora(8)/a.pt")
    assert not any(map(is_expression, paths))
