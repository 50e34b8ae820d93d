"""What the sections on sampling make of a card's clock and trace, on made-up ones: there is no card in tests."""

import json
from pathlib import Path
from typing import Any

import pytest


class Profiled:
    """A profiler that has seen these events."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self.events = events

    def export_chrome_trace(self, path: str) -> None:
        Path(path).write_text(json.dumps({"traceEvents": self.events}))


def event(kind: str, name: str, start: float, length: float, **arguments: Any) -> dict[str, Any]:
    renamed = {key.replace("_", " "): value for key, value in arguments.items()}
    return {"ph": "X", "cat": kind, "name": name, "ts": start, "dur": length, "tid": kind, "args": renamed}


def operator(name: str, start: float, length: float, number: int, *shapes: tuple[list[int], str]) -> dict[str, Any]:
    found = event("cpu_op", name, start, length, External_id=number)
    found["args"] |= {"Input Dims": [shape for shape, _ in shapes], "Input type": [kind for _, kind in shapes]}
    return found


EAGER = (
    operator("aten::linear", 0, 10, 1, ([8, 96], "c10::BFloat16")),
    operator("aten::mm", 1, 5, 2, ([8, 96], "c10::BFloat16")),
    event("kernel", "nvjet", 20, 3, External_id=2, correlation=1),
    operator("aten::scaled_dot_product_attention", 11, 9, 3),
    operator("aten::bmm", 12, 5, 4),
    event("kernel", "batched_gemm", 30, 3, External_id=4, correlation=2),
    operator("aten::add", 21, 2, 5),
    event("kernel", "sum", 40, 1, External_id=5, correlation=3),
)
REPLAYED = (
    event("cuda_runtime", "cudaGraphLaunch", 0, 1, correlation=9),
    event("kernel", "nvjet", 10, 4, correlation=9),
    event("kernel", "batched_gemm", 14, 6, correlation=9),
    event("kernel", "sum", 20, 1, correlation=9),
    event("kernel", "some_gemm_of_the_head", 21, 2, correlation=9),
    event("kernel", "triton_red_fused_noise", 25, 3, correlation=10),
    operator("aten::mul", 8, 1, 11, ([80], "long int")),
    event("kernel", "product_of_counters", 28, 1, External_id=11, correlation=11),
    event("kernel", "gather", 29, 1, correlation=12),
)


def test_kernels_of_a_graph_are_named_by_the_operators_of_a_step_without_one():
    """A replayed kernel names no operator: attention's product would count as one of the weights'."""
    from on_card.trace import account, named_parts, read_trace

    found = account(read_trace(Profiled(*REPLAYED)), named_parts(read_trace(Profiled(*EAGER)), 80), 80)
    assert found.parts == {"attention": 6, "products": 4, "head": 2, "noise": 4, "other": 2}
    assert (found.between, found.busy) == (20, 18)


def test_a_kernel_of_several_operators_is_none_of_them():
    from on_card.trace import named_parts, read_trace

    copies = (
        operator("aten::scaled_dot_product_attention", 0, 2, 1),
        event("kernel", "copy", 1, 1, External_id=1),
        operator("aten::mm", 3, 2, 2),
        event("kernel", "copy", 4, 1, External_id=2),
    )
    assert named_parts(read_trace(Profiled(*copies)), 80) == {"copy": "other"}


def test_captures_are_what_the_first_steps_of_spans_take_longer():
    import torch
    from on_card.kit import Kit
    from on_card.shapes import Course, large

    subject = large(Kit(torch.device("cpu"), small=True))  # prompts of 16 slots
    seconds = [0.01] * 150
    for step, excess in ((1, 0.5), (49, 0.2), (113, 0.1)):  # the slots 16, 64 and 128
        seconds[step - 1] += excess
    course = Course(subject, seconds)
    assert course.captures == pytest.approx([0.5, 0.2, 0.1])
    assert course.at(subject.prompt + 49) == 0.01
    assert course.at(subject.prompt + 300) is None
