import pytest
from pydantic import ValidationError

from evalsvc.tasks.loss.spec import Loss


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"images": "/images"}, "`images` is given without `decoder`; images need a decoder"),
        ({"decoder": "movqgan-67M"}, "`decoder` is given without `images`"),
    ],
)
def test_images_and_decoder_come_together(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Loss(name="x", data="/data.json", **parameters)
