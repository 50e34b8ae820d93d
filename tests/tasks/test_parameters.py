"""Parameters that do not go together, or that a kind of task does not have, are refused with the suite."""

from typing import Any

import pytest

from evalsvc.errors import InvalidSuite
from evalsvc.spec.suite import parse_suite

NEEDED: dict[str, dict[str, Any]] = {
    "alignment": {"data": "/pairs.jsonl"},
    "completions": {},
    "forgetting": {},
    "language": {"benchmarks": ["piqa"]},
    "loss": {"data": "/data.json"},
    "text_to_image": {"captions": "/captions.jsonl", "samples": 96, "decoder": "/movqgan.ckpt", "metrics": ["fid64"]},
}
"""By kind of task."""

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("alignment", {"learn": {}}, "no key is named 'learn'"),
    ("alignment", {"data": "pairs.jsonl"}, "data: 'pairs.jsonl' is relative"),
    ("alignment", {"table": "both"}, "table: input should be 'input' or 'output'"),
    ("alignment", {"batch": 1}, "batch: input should be greater than or equal to 2"),
    ("completions", {"prompts": []}, "prompts: tuple should have at least 1 item"),
    ("completions", {"prompts": ["a", "b", "a"]}, "the prompt 'a' is given twice"),
    (
        "completions",
        {"temperature": 0},
        "seeded completions at temperature 0 equal the greedy completion; set `samples` to 0",
    ),
    ("completions", {"top_p": 2}, "top_p is 2.0"),
    ("completions", {"seed": -1}, "seed: input should be greater than or equal to 0, found -1"),
    ("completions", {"guidance_scale": 2}, "no key is named 'guidance_scale'"),
    ("forgetting", {}, "neither `benchmarks` nor `text` is given"),
    ("forgetting", {"benchmarks": ["a"], "text_limit": 3}, "`text_limit` is given without `text`"),
    ("forgetting", {"text": "/a", "icl_positions": [500, 50]}, "the earlier one first"),
    ("forgetting", {"benchmarks": ["a"], "icl": ["b"]}, "icl: 'b' is not one of `benchmarks`; choose from a"),
    ("forgetting", {"text": "/a", "icl": True}, "icl: there are no `benchmarks`"),
    ("language", {"benchmarks": []}, "benchmarks: tuple should have at least 1 item"),
    ("language", {"benchmarks": ["a", {"name": "a", "limit": 3}]}, "the benchmark 'a' is listed twice; move one"),
    ("language", {"benchmarks": [{"name": "a", "limit": 3, "samples": [1]}]}, "`limit` and `samples` are both given"),
    ("language", {"benchmarks": [{"name": "a", "sample": 3, "samples": [1]}]}, "`samples` and `sample` are both given"),
    ("language", {"sample": 3, "limit": 3}, "`limit` and `sample` are both given; set only one"),
    ("language", {"include_path": ["here"]}, "include_path.0: 'here' is relative; use an absolute"),
    ("language", {"limits": 3}, "no key is named 'limits'; did you mean 'limit'"),
    ("loss", {"images": "/images"}, "`images` is given without `decoder`; set both"),
    ("loss", {"decoder": "movqgan-67M"}, "`decoder` is given without `images`"),
    (
        "loss",
        {"profile": False, "profile_metrics": ["image_row"]},
        "`profile_metrics` are given, but `profile` is false",
    ),
    ("loss", {"profile_metrics": ["image_cell"]}, "input should be 'text_position', 'image_row'"),
    ("loss", {"images": "/i", "decoder": "d", "image_columns": 4}, "`image_columns` is given together with `decoder`"),
    ("text_to_image", {"temperature": -1}, "temperature is -1"),
    ("text_to_image", {"captions": None, "samples": None}, "set `captions`, or `samples`"),
    ("text_to_image", {"guidance_scale": [1, -2]}, "guidance_scale is -2"),
    ("text_to_image", {"guidance_scale": [1, 3, 1.0]}, "with a scale twice"),
    ("text_to_image", {"metrics": ["fid46"]}, "no metric is named 'fid46'; did you mean 'fid64'"),
    ("text_to_image", {"metrics": ["fid64", "fid64"]}, "is listed twice"),
    ("text_to_image", {"metrics": ["agreement"]}, "`metrics` has agreement without `classifier`; set `classifier`"),
    ("text_to_image", {"until": {"metric": "kid", "stderr": 1.0}}, "until: no metric is named 'kid'"),
    (
        "text_to_image",
        {"until": {"metric": "fid64", "stderr": 1.0}, "guidance_scale": [1, 3]},
        "a single guidance scale",
    ),
    ("text_to_image", {"reference": "x", "reference_of": "captions"}, "set `captions`, and `reference` to a folder"),
    ("text_to_image", {"protocol": "llamagen"}, "no protocol is named 'llamagen'; did you mean 'llamagen-coco'"),
    (
        "text_to_image",
        {"protocol": "llamagen-coco", "top_k": 500},
        "top_k is 500, but the protocol llamagen-coco has 1000",
    ),
    (
        "text_to_image",
        {"protocol": "llamagen-coco", "samples": 30_001},
        "samples is 30001, but the protocol llamagen-coco",
    ),
    ("text_to_image", {"name": "fid-30k"}, "'fid-30k' promises 30,000 images, `samples` is 96"),
]


@pytest.mark.parametrize(("kind", "parameters", "message"), REFUSED)
def test_wrong_parameters_are_refused_with_the_suite(kind: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSuite) as refused:
        parse_suite({"tasks": [{"kind": kind, **NEEDED[kind], **parameters}]}, "test")
    assert message in refused.value.message
