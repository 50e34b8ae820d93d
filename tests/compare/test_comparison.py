"""Comparisons of two checkpoints, metric by metric; and the results that they read from files, with their items."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from gate_documents import document, read_document, result, value

from evalsvc.compare import source
from evalsvc.compare.comparison import Options, compare_results, other_protocols, require_comparable
from evalsvc.compare.contrast import Contrast, contrast_results, paired_numbers
from evalsvc.compare.result import Measured, Result
from evalsvc.compare.source import Service, read_result
from evalsvc.errors import InvalidData, InvalidRequest, NotComparable, UnknownName
from evalsvc.files.items import ItemTable, pack_items
from evalsvc.metrics.intervals import MIN_ITEMS
from evalsvc.metrics.item_numbers import Numbers, item_numbers
from evalsvc.spec.documents import MetricDifference, TaskWarning
from evalsvc.spec.protocol import MetricValue, Protocol


def contrast(before: MetricValue, after: MetricValue, **options: Any) -> MetricDifference:
    (found,) = compare_results(result(before, name="a"), result(after, name="b"), Options(**options)).contrasts
    return found


class TestVerdict:
    def test_coupled_samples_tell_apart_what_two_errors_cannot(self) -> None:
        """FID 12.21 and 12.27, each with the error 0.1: a share of the images' deviation is their own."""
        sides = []
        for name, mean in (("a", 12.21), ("b", 12.27)):
            own = random.Random(name)
            rows = [{"index": at, "fid": mean + math.sin(at) + own.gauss(0, 0.1)} for at in range(3_000)]
            sides.append(result(value("coco/fid", mean, 0.1, n=3_000, items=("fid",)), items={"coco": rows}))
        (paired,) = compare_results(*sides).contrasts
        assert (paired.verdict, paired.basis, paired.n) == ("worse", "paired", 3_000)
        assert paired.difference == pytest.approx(0.06)
        assert paired.stderr == pytest.approx(0.1 * math.sqrt(2 / 3_000), rel=0.05)
        apart = [Result(side.name, side.document.model_copy(update={"items": {}})) for side in sides]
        (unpaired,) = compare_results(*apart).contrasts
        assert (unpaired.verdict, unpaired.basis) == ("indistinguishable", "unpaired")
        assert unpaired.stderr == pytest.approx(0.1 * math.sqrt(2))

    def test_level(self) -> None:
        sides = value("a/b", 1.0, 0.03), value("a/b", 1.105, 0.04)
        assert [contrast(*sides, level=level).verdict for level in (0.95, 0.99)] == ["worse", "indistinguishable"]
        with pytest.raises(InvalidRequest, match="the level of an interval is 95; give a number between 0 and 1"):
            contrast(*sides, level=95.0)

    def test_without_the_error_of_both_nothing_is_claimed(self) -> None:
        found = contrast(value("a/b", 1.0, 0.1), value("a/b", 9.0, None))
        assert (found.verdict, found.difference, found.interval) == ("no_error_known", 8.0, None)
        assert found.no_error.startswith("only A has")
        assert contrast(value("a/b", 1.0), value("a/b", 9.0)).no_error == ""

    def test_groups_count_and_not_the_items_in_them(self) -> None:
        few = value("t/x", 1.0, n=300, groups=MIN_ITEMS - 1)
        found = contrast(few, replace(few, value=9.0))
        assert (found.verdict, found.groups, found.n) == ("no_error_known", MIN_ITEMS - 1, 300)
        assert (found.a.low, found.b.high) == (None, None)

    def test_not_finite(self) -> None:
        """A checkpoint that diverged is not hidden behind a comparison that NaN always loses."""
        for before, after, verdict, worse in (
            (1.0, 1.5, "worse", 0.5),
            (1.0, math.nan, "worse", math.inf),
            (math.inf, 1.0, "better", -math.inf),
            (1.0, -math.inf, "better", -math.inf),
            (-math.inf, 1.0, "worse", math.inf),
            (math.nan, math.nan, "indistinguishable", 0.0),
            (math.nan, math.inf, "no_error_known", 0.0),
        ):
            sides = value("a/b", before), value("a/b", after)
            assert contrast(*sides).verdict == verdict
            for turned in (False, True):
                before, after = (replace(side, value=-side.value if turned else side.value) for side in sides)
                [found] = contrast_results(result(before), result(after))
                assert found.worse(higher_is_better=turned) == worse


def test_flipped_items_are_among_those_that_both_have() -> None:
    sides = []
    for name, rights in (("a", {0: 1.0, 1: 0.0, 2: 1.0, 3: 0.0}), ("b", {1: 1.0, 2: 0.0, 3: 0.0, 9: 1.0})):
        metric = value("t/x", sum(rights.values()) / 4, 0.3, n=4, items=("x",))
        sides.append(result(metric, name=name, items={"t": [{"index": index, "x": x} for index, x in rights.items()]}))
    (found,) = compare_results(*sides, Options(flipped=9)).contrasts
    answers = found.answers
    assert (answers.flipped.only_a, answers.flipped.only_b) == ([2], [1])
    assert answers.both + answers.only_a + answers.only_b + answers.neither == 3
    assert (found.n_only_a, found.n_only_b) == (1, 1)


def test_each_side_has_the_interval_that_is_stored_with_the_value() -> None:
    """Computed from value and error, the interval of a ratio near 0 reached from .00003 to .58; at any level."""
    ratio = value("forgetting/text_retained", 0.0061, 0.046, n=300, unit="fraction", ends=(-0.0855, 0.0973))
    sides = result(ratio, name="a"), result(replace(ratio, ends=None), name="b")
    (found,) = compare_results(*sides, Options(level=0.9)).contrasts
    assert [(side.low, side.high) for side in (found.a, found.b)] == [(-0.0855, 0.0973), (None, None)]


class TestFamilies:
    def many(self, shifts: Sequence[float]) -> tuple[Result, Result]:
        """Metrics whose difference is so many of its standard errors."""
        sides = []
        for name, scale in (("a", 0.0), ("b", math.sqrt(2))):
            metrics = [value(f"t/{k}", scale * shift, 1.0, n=10_000) for k, shift in enumerate(shifts)]
            sides.append(result(*metrics, value("t/nan", math.nan, None), name=name))
        return sides[0], sides[1]

    def test_it_is_said_how_many_verdicts_are_chance(self) -> None:
        """Forty metrics of an unchanged checkpoint have a better or worse one among them in 87 of 100 comparisons."""
        a, b = self.many([0.0] * 40)
        found = compare_results(a, b)
        assert (found.family, found.judged) == ("none", 40)
        assert found.expected_by_chance == pytest.approx(2.0)
        assert compare_results(a, b, Options(level=0.9)).expected_by_chance == pytest.approx(4.0)
        assert compare_results(a, b, Options(family="holm")).expected_by_chance is None

    def test_holm_judges_all_metrics_together(self) -> None:
        """2.2, 2.6 and 4 standard errors: beyond an interval of 95 % each by itself, and one of them among 40."""
        a, b = self.many([2.2, 2.6, 4.0] + [0.1] * 37)
        alone = compare_results(a, b).contrasts
        together = compare_results(a, b, Options(family="holm")).contrasts
        assert [one.metric for one in alone if one.verdict == "worse"] == ["t/0", "t/1", "t/2"]
        assert [one.metric for one in together if one.verdict == "worse"] == ["t/2"]
        assert [one.p for one in together] == [one.p for one in alone]
        assert [alone[place].p_holm for place in (1, 2)] == pytest.approx([39 * alone[1].p, 40 * alone[2].p])
        assert (alone[-1].metric, alone[-1].p, alone[-1].p_holm) == ("t/nan", None, None)

    def test_companions_are_neither_counted_nor_part_of_the_family(self) -> None:
        """A perplexity counted its loss twice: in the number of verdicts, and in the correction of all p-values."""
        sides = []
        for name, shift in (("a", 0.0), ("b", 2.6 * math.sqrt(2))):
            losses = [value("t/text", 5.0 + shift, 1.0, n=10_000), value("t/image", 5.0 + shift / 2, 1.0, n=10_000)]
            companion = value("t/text_perplexity", math.exp(5.0 + shift), math.exp(5.0 + shift), n=10_000)
            sides.append(result(*losses, replace(companion, unit="perplexity"), name=name))
        for family in ("none", "holm"):
            found = compare_results(*sides, Options(family=family))
            assert found.judged == 2
            text, image, perplexity = found.contrasts
            assert (text.p_holm, image.p_holm) == (pytest.approx(2 * (text.p or 0)), image.p)
            assert perplexity.p == pytest.approx(text.p, rel=0.01)
            assert perplexity.p_holm == text.p_holm
            assert perplexity.verdict == text.verdict
        named = compare_results(*sides, Options(("t/text", "t/text_perplexity"), family="holm"))
        assert named.judged == 2, "a metric that the user names is judged"
        assert named.contrasts[1].p_holm == pytest.approx(2 * (named.contrasts[1].p or 0))
        alone = compare_results(*sides, Options(("*_perplexity",)))
        assert alone.judged == 1, "without its loss a perplexity stands alone"


def guided(scale: float, number: float = 1.0, **more: Any) -> MetricValue:
    content = {"sampling": {"guidance_scale": scale, "seed": 0}, "data": "ab" * 32, **more}
    return value("coco/fid", number, items=("fid",), protocol=Protocol(content))


class TestProtocol:
    def test_metrics_with_one_reason_share_it(self) -> None:
        reasons = [*((f"forgetting/m{number}", "base a → b") for number in range(5)), ("coco/fid", "seed 0 → 1")]
        assert (
            "protocols: forgetting/m0, forgetting/m1, forgetting/m2 and 2 more: base a → b; coco/fid: seed 0 → 1;"
        ) in other_protocols("a", "b", reasons).message

    def test_forced_it_is_unpaired_and_marked(self) -> None:
        items = {"coco": [{"index": index, "fid": 1.0} for index in range(100)]}
        sides = [result(guided(scale, scale), items=items) for scale in (1.5, 3.0)]
        found = compare_results(*sides, Options(force=True))
        require_comparable(found)
        (one,) = found.contrasts
        assert (one.verdict, one.basis) == ("worse", "unpaired")
        assert one.differing == {"sampling.guidance_scale": {"a": 1.5, "b": 3.0}}

    def test_rows_of_one_metric_say_which_they_are(self) -> None:
        a = result(guided(1.0), guided(3.0), value("coco/kid", 1.0))
        b = result(guided(3.0), guided(5.0, limit=8), guided(7.0), value("coco/kid", 1.0))
        found = compare_results(a, b)
        assert [(one.verdict, one.differs) for one in found.contrasts] == [
            ("other_protocol", {"sampling.guidance_scale": 1.0}),
            ("indistinguishable", {"sampling.guidance_scale": 3.0}),
            ("only_b", {"sampling.guidance_scale": 5.0, "limit": 8}),
            ("indistinguishable", {}),
        ]
        assert found.contrasts[0].differing == {"sampling.guidance_scale": {"a": 1.0, "b": 7.0}}

    def test_files_without_contents(self) -> None:
        sides = [read_document("x", document(guided(scale)) | {"protocols": {}}) for scale in (1.0, 2.0)]
        with pytest.raises(NotComparable, match=f'coco/fid: protocol "{guided(1.0).protocol.id}" → "'):
            require_comparable(compare_results(*sides))


def test_names_patterns_and_tasks_choose_metrics() -> None:
    a = result(value("coco/fid", 1.0), value("coco/kid", 1.0), value("loss/text", 1.0), name="a")
    for options in (Options(("coco/*",)), Options(tasks=("coco",))):
        assert [one.metric for one in compare_results(a, a, options).contrasts] == ["coco/fid", "coco/kid"]
    for options, words in (
        (Options(("loss/text", "coco/fud")), "no metric of a or a is named 'coco/fud'; did you mean"),
        (Options(tasks=("coc",)), "no task of a or a is named 'coc'; did you mean 'coco'"),
    ):
        with pytest.raises(UnknownName, match=words):
            compare_results(a, a, options)


def test_a_thousand_patterns_choose_what_each_of_them_does() -> None:
    """Two runs of 2,000 steps took 24 seconds: all patterns were compiled anew for each metric of each step."""
    patterns = ("arc_[0-4]*/acc", "*/loss", "a.b/c", *(f"probe/[x{at}]*" for at in range(1_000)))
    wants = Options(patterns).wants
    names = ["arc_3/acc", "arc_9/acc", "a/loss", "a.b/c", "axb/c", "probe/xy", "probe/9", "probe/z", "PROBE/x"]
    assert [wants(name) for name in names] == [any(fnmatchcase(name, each) for each in patterns) for name in names]
    assert sum(wants(f"task_{at % 50}/acc") for at in range(100_000)) == 0


def test_json_has_no_number_that_is_none() -> None:
    a, b = result(value("a/b", math.nan)), result(value("a/b", 1.0, protocol=Protocol({"limit": math.pi})))
    text = json.dumps(compare_results(a, b).model_dump())
    (one,) = json.loads(text, parse_constant=lambda word: pytest.fail(word))["contrasts"]
    assert (one["a"]["value"], one["b"]["value"], one["interval"]) == ("NaN", 1.0, None)
    assert one["differing"]["limit"] == {"b": math.pi}


class TestAnswers:
    """Of metrics that are right or wrong on each item: McNemar's counts, p over several benchmarks, what flipped."""

    def both(self, pairs: dict[str, tuple[Sequence[float], Sequence[float]]], **options: Any) -> list[MetricDifference]:
        sides = []
        for place, name in enumerate("ab"):
            metrics, items = [], []
            for benchmark, answers in ((benchmark, pair[place]) for benchmark, pair in pairs.items()):
                fields: dict[str, Any] = {"n": len(answers), "direction": "higher", "items": ("acc",)}
                metrics.append(value(f"{benchmark}/acc", sum(answers) / len(answers), **fields))
                items += [{"benchmark": benchmark, "index": 10 * at, "acc": x} for at, x in enumerate(answers)]
            sides.append(result(*metrics, name=name, items={"text": items}, task="text"))
        return list(compare_results(*sides, Options(**options)).contrasts)

    def test_counts_p_and_the_items(self) -> None:
        """Eight of ten questions on which the two differ went to b: p = 2 · (1 + 10 + 45) / 2^10."""
        a = [1, 1] + [0] * 8 + [1] * 5 + [0] * 4
        b = [0, 0] + [1] * 8 + [1] * 5 + [0] * 4
        (one,) = self.both({"arc": (a, b)}, flipped=3)
        assert one.answers.model_dump() == {
            "both": 5,
            "only_a": 2,
            "only_b": 8,
            "neither": 4,
            "p": pytest.approx(112 / 1024),
            "holm": pytest.approx(112 / 1024),
            "tests": 1,
            "flipped": {"only_a": [0, 10], "only_b": [20, 30, 40]},
        }
        assert self.both({"arc": (a, b)})[0].answers.flipped.only_b == [], "none was asked for"

    def test_p_is_corrected_over_the_benchmarks_of_a_metric(self) -> None:
        pairs: dict[str, tuple[Sequence[float], Sequence[float]]] = {
            "arc": ([0.0] * 10, [1.0] * 10),
            "piqa": ([1, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1]),
            "wsc": ([1, 0], [0, 1]),
        }
        found = [one.answers for one in self.both(pairs)]
        assert [one.p for one in found] == pytest.approx([2 / 2**10, 2 * 8 / 2**7, 1.0])
        assert [one.holm for one in found] == pytest.approx([3 * 2 / 2**10, 2 * 2 * 8 / 2**7, 1.0])
        assert {one.tests for one in found} == {3}
        (alone,) = self.both(pairs, metrics=("arc/acc",))
        assert (alone.answers.holm, alone.answers.tests) == (alone.answers.p, 1)


def test_a_comparison_says_what_is_suspicious_about_either_side() -> None:
    """A difference between two numbers says nothing where one of them cannot be right."""
    sides = [result(value("pairs/text", number), name=name) for name, number in (("a", 1.0), ("b", 9.0))]
    warning = {"code": "worse_than_guessing", "metric": "pairs/image_within", "message": "9 is above 4.16"}
    other = {"code": "inputs_cut", "metric": "coco", "message": "9 captions were cut"}
    warnings = {"pairs": [TaskWarning(**warning)], "coco": [TaskWarning(**other)]}
    after = Result("b", sides[1].document.model_copy(update={"warnings": warnings}))
    found = compare_results(sides[0], after).warnings
    assert (found.a, found.b) == ([], [TaskWarning(**warning)])


def protocols(contrast: Contrast) -> tuple[str | None, ...]:
    return tuple(side and side.metric.protocol for side in (contrast.a, contrast.b))


def test_each_value_is_held_against_one_other() -> None:
    """A stranger that stood against two values looked as if both had been measured in another way."""
    a, b = [guided(1.0), guided(3.0), guided(9.0)], [guided(5.0, steps=1), guided(9.0), guided(3.5)]
    found = list(contrast_results(result(*a), result(*b)))
    ours, theirs = [[metric.protocol.id for metric in side] for side in (a, b)]
    assert [protocols(one) for one in found] == [*zip(ours, (theirs[2], theirs[0], theirs[1]), strict=True)]
    assert [one.verdict(0.95) for one in found] == ["other_protocol", "other_protocol", "indistinguishable"]
    scale = "sampling.guidance_scale"
    assert [set(one.differing) for one in found] == [{scale}, {scale, "steps"}, set()]
    lonely = list(contrast_results(result(*a[:2]), result(b[2])))
    assert [protocols(one) for one in lonely] == [(ours[0], theirs[2]), (ours[1], None)]


def test_a_contrast_is_kept_without_the_results_per_item() -> None:
    """Of two runs with a thousand steps all items would be in memory."""
    metric = value("t/x", 4.5, 0.1, n=10, items=("x",))
    side = result(metric, items={"t": [{"index": index, "x": float(index)} for index in range(10)]})
    [found] = contrast_results(side, side)
    kept = found.without_items()
    assert not kept.a.result.document.items
    assert (kept.distance, kept.verdict(0.95)) == (found.distance, found.verdict(0.95))


FILES = Service(None)
"""Files need no service."""

METRIC = value("a/b", 1.0).to_json()

WRONG_FIELDS: list[dict[str, Any]] = [
    *({"name": 3}, {"value": None}, {"stderr": "small"}, {"n": None}, {"n": "many"}, {"direction": "sideways"}),
    *({key: "a\n::error::b"} for key in ("name", "unit", "task", "protocol", "grouped_by")),
    *({"items": ["a\nb"]}, {"name": "\u202e"}),
    *({"protocol": [1]}, {"unit": None}, {"items": "x"}, {"items": [1]}, {"items": ["x", "y", "z"]}, {"task": [1]}),
    *({"n": -1}, {"n": 10**400}, {"n": True}, {"n": 3.0}, {"groups": 10**400}, {"drawn_from": 10**400}),
    *({"value": 10**400}, {"stderr": 10**400}, {"stderr": 1e308}, {"value": "1e3"}, {"value": True}, {"name": None}),
    *(
        {"low": low, "high": high}
        for low, high in ((2, 1), (10**400, None), (-math.inf, 1), (0.8, None), (math.nan, 1))
    ),
]


def nested(depth: int) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for _ in range(depth):
        content = {"x": content}
    return content


WRONG_PARTS: list[dict[str, Any]] = [
    *({"metrics": 3}, {"metrics": [{"name": "a/b"}]}, *({"metrics": [METRIC | wrong]} for wrong in WRONG_FIELDS)),
    *({"protocols": wrong} for wrong in ([1], {"x": 1}, {"x": nested(300)})),
    *({"errors": wrong} for wrong in ([1], {"a": {}})),
    *({"errors": {"a\nb": {"code": "a", "message": "b"}}}, {"protocols": {"a\nb": {}}}, {"items": {"a\nb": []}}),
    *({"items": [1]}, {"items": {"a": [1]}}, {"items": {"a": [{"index": [0]}]}}),
]


def test_what_is_not_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "wrong.json"
    for text in ("", "{", "[" * 9999):
        path.write_text(text)
        with pytest.raises(InvalidData, match=r"wrong\.json is not JSON"):
            read_result(str(path), FILES)
    for content in ([1], *(document(value("a/b", 1.0)) | wrong for wrong in WRONG_PARTS)):
        path.write_text(json.dumps(content))
        with pytest.raises(InvalidData, match=r"wrong\.json is no result of `evalsvc run") as error:
            read_result(str(path), FILES)
        assert "\n" not in error.value.message
    monkeypatch.setattr(source, "MAX_BYTES", 64)
    with pytest.raises(InvalidData, match=r"wrong\.json has more than 64 bytes"):
        read_result(str(path), FILES)
    with pytest.raises(InvalidData, match="cannot be read: is a directory"):
        read_result(str(tmp_path), FILES)


def test_the_error_of_a_task_is_one_line(tmp_path: Path) -> None:
    """A line of a stranger's file that begins with `::` is a command to the runner of a workflow."""
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document(errors={"a": "x\n::error::y\x1b[2J"})))
    assert read_result(str(path), FILES).error("a").message == r"x\x0a::error::y\x1b[2J"


MESSY: list[dict[str, Any]] = [
    {"benchmark": "arc", "index": 0, "acc": 1, "bits": 2.5, "bytes": 4},
    {"benchmark": "arc", "index": 3, "acc": 0.0, "bits": "NaN", "bytes": 2},
    {"benchmark": "wsc", "index": 0, "acc": 1, "bits": 1.0, "bytes": 1},
    {"benchmark": "arc", "index": 1, "acc": None, "bits": 0.25, "bytes": 0},
    {"benchmark": "arc", "index": 9, "bits": "-Infinity", "bytes": 3, "text": ["x"]},
    {"index": 5, "acc": 0.5},
    {"benchmark": "arc", "acc": 1.0, "bits": 1.0, "bytes": 1},
]
KEYS = [("acc",), ("bits", "bytes"), ("nothing",), ("acc", "bytes")]


@pytest.mark.parametrize("keys", KEYS, ids=lambda keys: "/".join(keys))
@pytest.mark.parametrize("name", ["arc/acc", "wsc/acc", "other/acc"])
def test_columns_give_the_numbers_of_the_objects(name: str, keys: tuple[str, ...]) -> None:
    metric = value(name, 1.0, items=keys)
    plain = result(metric, items={name.partition("/")[0]: MESSY})
    tables = dict.fromkeys(["arc", "wsc", "other"], lambda: _stored(MESSY))
    packed = Result("packed", plain.document.model_copy(update={"items": {}}), tables)
    slow = item_numbers(MESSY, name, keys)
    (written,) = plain.document.metrics
    for side in (plain, packed):
        assert repr(side.numbers(written)) == repr(slow), "by repr, since NaN equals nothing"


def _stored(items: list[dict[str, Any]]) -> ItemTable:
    return ItemTable.from_bytes(pack_items(items))


def test_numbers_of_other_groups_are_no_pairs() -> None:
    items = [{"index": index, "x": float(index), "image": index // 2} for index in range(10)]
    sides = [result(value("t/x", 4.5, 0.1, items=("x",)), items={"t": items}) for _ in range(2)]
    [metric] = sides[0].document.metrics
    grouped = Measured(metric.model_copy(update={"groups": 5, "grouped_by": "image"}), sides[0])
    assert paired_numbers(grouped, Measured(metric, sides[1])) is None
    assert len(set(paired_numbers(grouped, grouped)[0].groups)) == 5


def test_shares_count_in_rows_of_every_benchmark() -> None:
    items = [{"benchmark": name, "index": 0, "t/mean": share} for name, share in (("arc", 0.25), ("piqa", 0.75))]
    found = result(value("t/mean", 0.5, 0.1, items=("t/mean",)), items={"t": items})
    assert found.numbers(found.document.metrics[0]) == Numbers([("arc", 0), ("piqa", 0)], [[0.25, 0.75]])


def test_two_tasks_with_one_benchmark_are_kept_apart() -> None:
    """At zero and at five shots a benchmark has the same name and the same items."""
    metric = value("arc/acc", 0.5, items=("acc",))
    items = {task: [{"benchmark": "arc", "index": 0, "acc": right}] for task, right in (("zero", 0), ("five", 1))}
    found = result(metric, items=items)
    [written] = found.document.metrics
    numbers = [found.numbers(written.model_copy(update={"task": task})).columns for task in ("zero", "five")]
    assert numbers == [[[0.0]], [[1.0]]]


def test_items_that_are_no_numbers() -> None:
    found = result(value("a/b", 1.0, items=("nll",)), items={"a": [{"index": 0, "nll": "word"}]}, name="wrong.json")
    with pytest.raises(InvalidData, match=r"wrong\.json: the results per item of task 'a' have values under nll"):
        found.numbers(found.document.metrics[0])


def test_a_table_is_read_once_and_only_when_it_is_needed() -> None:
    read: list[str] = []

    def tables(name: str) -> Any:
        return lambda: read.append(name) or _stored(MESSY)

    metrics = [value("arc/acc", 1.0, items=("acc",)), value("arc/bits", 1.0, items=("bits", "bytes"))]
    document = result(*metrics, task="language").document
    found = Result("x", document, {name: tables(name) for name in ("language", "loss")})
    for metric in document.metrics:
        found.numbers(metric)
    assert read == ["language"]
