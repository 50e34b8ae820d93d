"""Outputs that are in rows and files while the service is upgraded are merged afterwards: their form stays."""

from typing import Any

import msgpack
import numpy as np
import pytest

from evalsvc.files.arrays import pack_array
from evalsvc.spec.documents.results import Completion
from evalsvc.tasks.alignment.work import AlignmentWork
from evalsvc.tasks.completions.work import CompletionsWork
from evalsvc.tasks.loss.work import LossWork
from evalsvc.tasks.stages import AnyWork

CODES = {"ids": pack_array(np.arange(4, dtype=np.uint8)), "lengths": [4], "firsts": [0]}
LOSS = {"cut": 1, "sums": {"n_text": [2.0]}, "profile": {"text_position": [[1.0], [2.0]]}, "empty": 0, "codes": CODES}
TABLE = {
    "places": [0, 1],
    "columns": {"loss_fitted": [0.5, 0.25]},
    "chance": {"at_1": 0.5},
    "hit_chance": {"neighbour_hits": 0.5},
    "floor": 0.0,
    "fitted_scale": 2.0,
    "tests": {"pairs": {"p": 0.1, "mean": 0.0, "deviation": 1.0}},
    "overlap": {"inside": [0.5], "whole": [1.0]},
    "overlap_chance": 0.5,
    "nearest_tokens": "page",
}
ITEM: dict[str, Any] = {
    "index": 0,
    "prompt": "A cat",
    "way": "greedy",
    "protocol": "ab",
    "text": " sat",
    "ids": [1],
    "drawn": 1,
    "image_ids": 0,
    "seq_rep_4": None,
    "distinct_1": 1.0,
    "distinct_2": None,
    "ended": 0,
    "base": None,
    "base_ids": None,
}
COMPLETIONS = {
    "items": [ITEM],
    "cut": 0,
    "chance": None,
    "base": None,
    "base_layout": None,
    "base_rotary": {},
    "base_text_ids": 0,
    "protocol": {"prompts": "ab"},
}


@pytest.mark.parametrize(
    ("work", "document"),
    [(LossWork, LOSS), (AlignmentWork, TABLE), (CompletionsWork, COMPLETIONS)],
)
def test_an_output_is_the_map_of_its_fields(work: type[AnyWork], document: dict[str, Any]) -> None:
    packed = msgpack.packb(document)
    again = msgpack.unpackb(work.output_codec.pack(work.output_codec.unpack(packed)))
    assert {key: again[key] for key in document if key != "items"} == {
        key: value for key, value in document.items() if key != "items"
    }


def test_completions_of_a_stored_output_come_back() -> None:
    [item] = CompletionsWork.output_codec.unpack(msgpack.packb(COMPLETIONS)).items
    assert item == Completion(**ITEM)
