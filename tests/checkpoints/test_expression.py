"""What expressions over checkpoints mean: which tensors come from where, and what tells two of them apart."""

import random
from collections.abc import Mapping
from math import isclose

import pytest
from random_expressions import random_expression

from evalsvc.checkpoints.expression import (
    PARTS,
    Average,
    Base,
    Expression,
    Graft,
    Lerp,
    Part,
    Step,
    Steps,
    canonical,
    coefficients,
    default_variant,
    digest_of,
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
    return values[str(expression)]


def test_coefficients_say_what_the_functions_mean() -> None:
    chance = random.Random(1)
    for _ in range(300):
        expression = random_expression(chance)
        values = {str(leaf): chance.gauss(0, 1) for leaf in leaves(expression)}
        for part in PLACES:
            shares = coefficients(expression, part)
            assert isclose(sum(shares.values()), 1, rel_tol=1e-12)
            total = sum(share * values[leaf] for leaf, share in shares.items())
            assert total == pytest.approx(value_of(expression, part, values), abs=1e-12)


def test_order_matters_where_it_means_something() -> None:
    texts = ["lerp(a@1, b@1, 0.3)", "lerp(b@1, a@1, 0.3)", "graft(a@1, b@1, layers=0)", "graft(b@1, a@1, layers=0)"]
    texts += ["avg(a@1, b@1)", "avg(a@1, a@1, b@1)", "avg(avg(a@1, b@1), b@1)"]
    assert len({default_variant(parse_expression(text)) for text in texts}) == len(texts)


def test_a_digest_depends_on_contents_and_not_on_names() -> None:
    mine, other = parse_expression("avg(a@1, b@2)"), parse_expression("avg(c@7, d@9)")
    first = digest_of(mine, {"a@1": "1" * 64, "b@2": "2" * 64})
    assert first == digest_of(other, {"c@7": "2" * 64, "d@9": "1" * 64})
    assert first != digest_of(mine, {"a@1": "1" * 64, "b@2": "3" * 64})
    assert first != digest_of(parse_expression("lerp(a@1, b@2, 0.5)"), {"a@1": "1" * 64, "b@2": "2" * 64})


def test_leaves_and_ranges_are_replaced_in_their_places() -> None:
    expression = parse_expression("graft(avg(run@1..3, base), lerp(base, b@2, 0.5), layers=0)")
    assert leaves(expression) == [Base(), Step("b", 2)]
    found = replaced(
        expression,
        lambda leaf: Step("text", 0) if leaf == Base() else leaf,
        lambda steps: [Step(steps.run, step) for step in (steps.first, 2, steps.last)],
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


def test_a_graft_of_what_the_model_has() -> None:
    require_parts(parse_expression("graft(a@1, b@1, layers=0-3, parts=head)"), 4, weight_tying=False)
    require_parts(parse_expression("lerp(a@1, graft(a@1, b@1, parts=embeddings|head), 0)"), 4, weight_tying=True)
