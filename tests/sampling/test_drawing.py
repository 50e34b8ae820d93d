"""The kernel of a draw, in Triton's interpreter and as compiled for GPUs."""

import functools

import programs
import pytest

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("child_process")]
in_triton = functools.partial(programs.in_triton, "drawing_in_triton.py")


@pytest.mark.parametrize("what", ["codes", "neighbours", "generated"])
def test_the_kernel_draws_what_torch_draws(what: str) -> None:
    """For all parameters, ties and values that are not finite; whatever the other rows are; in the loop."""
    answers = in_triton(what, interpret=True)
    assert answers
    assert [case for case, same in answers.items() if not same] == []


def test_the_kernel_is_compiled_for_gpus_without_spills() -> None:
    """At most 128 registers for 16 warps, all that a multiprocessor has for them."""
    kernels = in_triton("compiled", interpret=False)
    assert {case.split(",")[0] for case in kernels} == {"sm_80", "sm_89", "sm_90a"}
    for case, facts in kernels.items():
        assert (facts["spills"], facts["registers"] <= 128, facts["shared"] <= 1_024) == (0, True, True), (case, facts)
