from collections.abc import Mapping
from typing import Any

import pytest

from evalsvc.errors import InvalidSuite
from evalsvc.spec.suite import parse_suite

TASK: Mapping[str, Any] = {
    "kind": "text_to_image",
    "name": "digits",
    "captions": "/captions.jsonl",
    "samples": 96,
    "decoder": "/movqgan.ckpt",
    "metrics": ["fid64"],
}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"captions": None, "samples": None}, "give `captions`, or `samples`"),
        ({"guidance_scale": [1, -2]}, "guidance_scale is -2"),
        ({"guidance_scale": [1, 3, 1.0]}, "with a scale twice"),
        ({"metrics": ["fid46"]}, "no metric is named 'fid46'; did you mean 'fid64'"),
        ({"metrics": ["fid64", "fid64"]}, "named twice"),
        ({"until": {"metric": "kid", "stderr": 1.0}}, "until: no metric is named 'kid'"),
        ({"until": {"metric": "fid64", "stderr": 1.0}, "guidance_scale": [1, 3]}, "needs one guidance scale"),
        ({"reference": "theirs", "reference_of": "captions"}, "needs `captions`, and a folder or file of images"),
        ({"protocol": "llamagen"}, "no protocol is named 'llamagen'; did you mean 'llamagen-coco'"),
        ({"protocol": "llamagen-coco", "top_k": 500}, "top_k is 500, the protocol llamagen-coco has 1000; leave one"),
        ({"protocol": "llamagen-coco", "samples": 30_001}, "samples is 30001, the protocol llamagen-coco has 30000"),
        ({"name": "fid-30k"}, "'fid-30k' promises 30,000 images, `samples` is 96"),
    ],
)
def test_parameters_are_checked_when_the_suite_is_given(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSuite, match=message):
        parse_suite({"tasks": [{**TASK, **parameters}]}, "test")
