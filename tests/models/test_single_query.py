"""Attention of one query per row, in Triton's interpreter and as compiled for GPUs."""

import functools
import operator

import programs
import pytest

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("child_process")]
in_triton = functools.partial(programs.in_triton, "single_query_in_triton.py")
MOST_ERROR = {"float32": 1e-6, "bfloat16": 4e-3, "float16": 5e-4}
"""Of two bytes, half a unit in the last place."""


def test_the_kernel_computes_what_torch_computes() -> None:
    """In float32, for all groups of heads; a result of two bytes is rounded once, at the end."""
    errors = in_triton("errors", interpret=True)
    assert len(errors) == 28
    bounds = {case: (MOST_ERROR[case.split()[-1]], 4e-6) for case in errors}
    assert [case for case, found in errors.items() if any(map(operator.gt, found, bounds[case]))] == []


def test_norms_and_rotation_are_those_of_torch() -> None:
    """Norms up to the order of sums, of two bytes a last place where a tie is rounded; attention that rotates is equal
    to the bit to attention to what torch has rotated."""
    errors = in_triton("between", interpret=True)
    assert len(errors) == 90
    assert {case: e for case, e in errors.items() if e > (0 if "rotation" in case else 1e-6)} == {}


def test_gates_are_those_of_torch_in_one_launch() -> None:
    """Up to the last places of exp and erf, of two bytes a last place where a tie is rounded."""
    errors, bounds = in_triton("gates", interpret=True), {"float32": 4e-6, "float16": 1e-3, "bfloat16": 2**-7}
    assert len(errors) == 10
    assert {case: error for case, error in errors.items() if error > bounds.get(case.split()[-1], 0)} == {}


def test_a_row_depends_on_no_neighbour_and_no_padding() -> None:
    assert set(in_triton("neighbours", interpret=True).values()) == {True}


def test_the_codes_are_those_of_the_plain_path() -> None:
    assert set(in_triton("codes", interpret=True).values()) == {True}


def test_the_kernel_is_compiled_for_gpus_without_spills() -> None:
    """At most 128 registers and 57 KB: four programs and more share a multiprocessor, whose loads hide each other. All
    roundings are to the nearest, as the interpreter's are here."""
    kernels = in_triton("compiled", interpret=False)
    assert {case.split(",")[0] for case in kernels} == {"sm_80", "sm_89", "sm_90a"}
    for case, facts in kernels.items():
        assert (facts["spills"], facts["registers"] <= 128, facts["shared"] <= 57_000) == (0, True, True), case
        assert facts["cut"] == 0, case
