from typing import Any

import pytest
from pydantic import ValidationError

from evalsvc.tasks.loss.spec import Loss


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"images": "/images"}, "`images` is given without `decoder`; images need a decoder"),
        ({"decoder": "movqgan-67M"}, "`decoder` is given without `images`"),
        ({"profile": False, "profile_metrics": ["image_row"]}, "`profile_metrics` are given without `profile`"),
        ({"profile_metrics": ["image_cell"]}, "Input should be 'text_position', 'image_row'"),
        ({"images": "/i", "decoder": "d", "image_columns": 4}, "`image_columns` is given beside `decoder`"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Loss(name="x", data="/data.json", **parameters)
