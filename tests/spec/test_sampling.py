from typing import Any

import pytest

from evalsvc.errors import InvalidRequest
from evalsvc.spec.sampling import SamplingParams


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be 0, or 0.001 or more"),
        ({"temperature": 1e-4}, "temperature is 0.0001"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"temperature": True}, "temperature is True"),
        ({"top_k": 0}, "top_k is 0; it must be a whole number above 0"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"guidance_scale": -1}, "guidance_scale is -1; it must be 0 or more"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"temperature": 0, "top_k": 5}, "top_k has no effect at temperature 0"),
        ({"temperature": 0, "top_p": 0.9}, "top_p has no effect at temperature 0"),
    ],
)
def test_wrong_params_name_the_field(fields: dict[str, Any], fragment: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**fields)
    assert fragment in caught.value.message


def test_equal_draws_have_equal_params() -> None:
    """They are part of a series' identity: 1 and 1.0 must not be two series."""
    assert SamplingParams(temperature=1, top_p=1, guidance_scale=1).to_json() == {
        "temperature": 1.0,
        "top_k": None,
        "top_p": None,
        "guidance_scale": 1.0,
        "seed": 0,
    }
    assert str(SamplingParams(temperature=1)) == str(SamplingParams())


def test_guidance_scale_1_runs_no_unconditional_rows() -> None:
    assert not SamplingParams(guidance_scale=1).guided
    assert SamplingParams(guidance_scale=0).guided
