"""The page of a run, as a browser without JavaScript gets it: its steps, its sections and what is pinned."""

import re
from html import unescape
from typing import Any

import pytest
from app_in_process import App
from history_reference import Point, write
from queue_steps import metric
from told_run import RUN, losses, post

from evalsvc.web.pages.run import MAX_PINS, STRIP


def page(app: App, address: str = RUN) -> str:
    response = app.http.get(f"/runs/{address}")
    assert response.status_code == 200, response.text
    return str(response.text)


def strip(text: str) -> dict[str, list[str]]:
    """Return the cells of the table of steps, without its buttons, by step; `*` marks the best value of a metric."""
    body = text[text.index('data-live="strip"') : text.index("</tbody>")]
    rows = re.findall(r'<tr><th scope="row">([^<]*)</th>(.*?)</tr>', body, re.DOTALL)
    cells = {step: re.findall(r"<td[^>]*>(?!<input)(.*?)</td>", row) for step, row in rows}
    marked = {step: [cell.replace("<strong>", "*") for cell in row] for step, row in cells.items()}
    return {step: [re.sub("<[^>]*>", "", cell) for cell in row] for step, row in marked.items()}


def test_steps_have_their_best_values_and_those_within_noise(told: App) -> None:
    near = [metric(3.95, "loss/text", stderr=0.1, n=400), metric(7.0, "loss/image", stderr=0.1, n=400)]
    for step in (100, 200):
        post(told.store, "noisy", step, losses(500) if step == 100 else near)
    assert strip(page(told, "noisy")) == {"200": ["7.00", "*3.95"], "100": ["*4.00", "≈ 4.00"]}


def test_two_steps_are_compared_by_a_form(told: App) -> None:
    text = page(told)
    chosen = re.findall(r'form="pair" name="(.)" value="([^"]*)"[^>]* checked', text)
    assert dict(chosen)["b"] == f"{RUN}@350"
    assert dict(chosen)["a"] != f"{RUN}@350"
    answer = told.http.get("/compare", params=dict(chosen))
    assert answer.status_code == 200
    assert 'form="pair"' not in page(told, "text-1b"), "one step has nothing to be compared with"


def test_a_long_run_has_few_steps_with_the_best_one_among_them(told: App) -> None:
    falling = [Point(step, 5.0 - step / 1000, 0.1, 50) for step in range(500)]
    rising = [Point(step, 1.0 + abs(step - 251) / 100, 0.1, 50) for step in range(500)]
    write(told.store, {"lower/a": falling, "lower/b": rising}, run="lengthy")
    shown = strip(page(told, "lengthy"))
    assert len(shown) == STRIP + 1
    assert next(iter(shown)) == "499"
    assert shown["251"] == ["4.75", "*1.00"], "other metrics have their values at that step too"


def test_other_metrics_are_in_closed_sections_by_task(told: App) -> None:
    many = [metric(1.0, f"{task}/m{index}") for task in ("probe", "quiz", "arc") for index in range(3)]
    post(told.store, "tasks", 0, [*losses(0), *many])

    def sections(query: str = "") -> list[tuple[str, bool]]:
        found = re.findall(r'<details data-name="([^"]*)"( open)?>', page(told, f"tasks{query}"))
        return [(name, bool(is_open)) for name, is_open in found]

    assert dict(sections()).keys() >= {"probe", "quiz"}
    assert not any(is_open for _, is_open in sections())
    assert sections("?find=quiz") == [("quiz", True)]
    assert sum(is_open for _, is_open in sections("?find=m2")) == 2


def pins(text: str) -> dict[str, str]:
    found = re.findall(r'<a class="pin" href="([^"]*)" aria-label="((?:Unpin|Pin) [^"]*)"', text)
    return {label: unescape(address) for address, label in found}


def test_pins_are_in_the_address(told: App) -> None:
    name = "loss/text_unigram"
    first = pins(page(told, f"{RUN}?scale=log"))
    assert first[f"Pin {name}"] == f"?scale=log&pin={name.replace('/', '%2F')}"
    text = page(told, RUN + first[f"Pin {name}"])
    assert pins(text)[f"Unpin {name}"] == "?scale=log"
    assert text.index(f'data-name="{name}"') < text.index('id="rest"')
    assert text.count(f'data-name="{name}"') == 1
    assert f'<input type="hidden" name="pin" value="{name}">' in text, "the form keeps it"
    assert page(told, f"{RUN}?pin=of/another")
    full = "&".join(f"pin=m{number}" for number in range(MAX_PINS))
    assert "pin=m0&" not in pins(page(told, f"{RUN}?{full}"))[f"Pin {name}"], "the oldest pin makes room"


@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_a_chart_has_files_also_of_the_width_of_a_column(told: App, kind: str) -> None:
    addresses: list[Any] = [
        unescape(each) for each in re.findall(rf'href="(/panels/curve\.{kind}[^"]*)" download', page(told))
    ]
    options = [set(re.findall(r"(width=column|theme=dark)", address)) for address in addresses]
    assert options.count({"width=column"}) == options.count(set()) == options.count({"theme=dark"}) == 2
