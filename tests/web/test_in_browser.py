"""Pages in a real browser: a run with its slider, pointer and search, the wall of images, signing in, and events."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from app_in_process import app_on_port
from chromium import Visit
from dashboard_history import Dashboard
from history_reference import Point, write
from queue_steps import cancel, enter, metric, submission, suite
from sqlalchemy import update
from told_run import FAILURE, OTHER, RUN, fail, fill, losses, post

from evalsvc.api.middleware import authentication
from evalsvc.api.state import State
from evalsvc.store.tables import Evaluation
from evalsvc.store.tokens import create_token, revoke_token

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

POINT = "svg .role-mark.mark-symbol path"

SOON = 5_000
"""Milliseconds in which an open page shows a new value."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    with app_on_port(tmp_path_factory.mktemp("told") / "data") as (url, state):
        fill(state)
        yield Dashboard(url, state)


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visit]:
    """An empty page, on which nothing goes wrong; without the right to see a page the browser tells of a 401."""
    with Visit(chromium) as visit:
        yield visit
        assert [message for message in visit.messages if "401" not in message] == visit.violations == []


def panel(visit: Visit, metric_name: str) -> Locator:
    return visit.page.locator(f'.panel[data-name="{metric_name}"]')


def legend(visit: Visit, metric_name: str) -> Locator:
    """The cells of the legend that have the values of a metric, one for each curve."""
    heads = [head.get_attribute("data-metric") for head in visit.page.locator("#legend thead th").all()]
    return visit.page.locator(f"#legend tbody tr > :nth-child({1 + heads.index(metric_name)})")


def labels(panel: Locator) -> list[str]:
    texts = panel.locator("svg .role-axis-label").first.locator("text").all_text_contents()
    assert texts
    return texts


def place_in(panel: Locator) -> tuple[float, float]:
    """Scroll to a chart, and return a point inside it."""
    panel.scroll_into_view_if_needed()
    box = panel.locator(".chart").bounding_box()
    return box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"]


def test_new_values_come_to_an_open_page_and_leave_its_zoom(visit: Visit, service: Dashboard) -> None:
    """Late and repeated values took no place at all in other trackers, and a reload threw the zoom away."""
    store = service.state.store
    for step in (0, 100, 300):
        post(store, "live", step, losses(step))
    visit.open(f"{service.url}/runs/live")
    text = panel(visit, "loss/text")
    assert text.locator(POINT).count() == 3
    x, y = place_in(text)
    visit.page.mouse.move(x, y)
    visit.page.keyboard.down("Control")
    visit.page.mouse.wheel(0, -200)
    visit.page.keyboard.up("Control")
    visit.page.wait_for_timeout(300)
    zoomed, scrolled = labels(text), visit.page.evaluate("scrollY")
    visit.page.mouse.move(0, 0)
    visit.page.get_by_text("Table", exact=True).first.click()

    post(store, "live", 400, losses(400))
    visit.page.locator('#legend [title="5.00 ± 0.10 at 400 (perplexity 32)"]').wait_for(timeout=SOON)
    post(store, "live", 200, losses(200))  # a late one
    visit.page.wait_for_function("() => document.querySelector('.panel table').rows.length == 6", timeout=SOON)
    post(store, "live", 400, [replace(value, value=1.5) for value in losses(400)], limit=2)
    legend(visit, "loss/text").get_by_text("1.50 ± 0.10").wait_for(timeout=SOON)
    fail(service.state, "live", 500)
    [evaluation] = post(store, "live", 600)
    cancel(store, evaluation)
    text.get_by_text(f"failed: {FAILURE}").wait_for(state="attached", timeout=SOON)
    text.get_by_text("cancelled: ").wait_for(state="attached", timeout=SOON)
    visit.page.wait_for_timeout(500)

    assert text.locator(POINT).count() == 7
    assert labels(text) == zoomed
    assert visit.page.evaluate("scrollY") == scrolled
    assert visit.page.locator("details[open]").count() >= 1, "what was open stays open"
    visit.page.mouse.dblclick(*place_in(text))
    visit.page.wait_for_timeout(300)
    assert labels(text) != zoomed


def test_a_page_asks_the_more_rarely_the_longer_there_is_nothing_new(visit: Visit, service: Dashboard) -> None:
    """An open page asked every three seconds, all night."""
    post(service.state.store, "quiet", 0, losses(0))
    with service.state.store.transaction() as session:  # what waits keeps pages asking
        session.execute(update(Evaluation).where(Evaluation.state == "queued").values(state="cancelled"))
    page = visit.page
    page.clock.install()
    visit.open(f"{service.url}/runs/quiet")

    def asked(minutes: int) -> int:
        before = len(visit.requests)
        for _ in range(60 * minutes):
            page.clock.run_for(1000)
            page.evaluate("() => fetch('/healthz')")  # until the answers are there
        return len([url for url in visit.requests[before:] if "/v1/" in url])

    assert asked(1) >= 6, "at first every three seconds"
    asked(4)
    assert asked(2) <= 4, "then each minute"
    page.mouse.move(5, 5)
    page.wait_for_timeout(100)
    assert asked(1) >= 6, "until the reader is back"


def test_all_charts_show_the_same_part_of_training(visit: Visit, service: Dashboard) -> None:
    """One chart zoomed, and the fields From and To spoke for all."""
    for step in (0, 100, 300):
        post(service.state.store, "zoomed", step, losses(step))
    visit.open(f"{service.url}/runs/zoomed")
    text, image = panel(visit, "loss/text"), panel(visit, "loss/image")
    whole = labels(image)
    x, y = place_in(text)
    visit.page.mouse.move(x, y)
    visit.page.keyboard.down("Control")
    visit.page.mouse.wheel(0, -200)
    visit.page.keyboard.up("Control")
    visit.page.wait_for_timeout(300)
    assert labels(image) == labels(text) != whole
    assert visit.page.locator("[name=from]").input_value() != ""
    visit.page.mouse.dblclick(*place_in(image))
    visit.page.wait_for_timeout(300)
    assert sorted(labels(image)) == sorted(labels(text)) == sorted(whole)


def test_ctrl_k_finds_and_the_bar_says_what_runs(visit: Visit, service: Dashboard) -> None:
    post(service.state.store, "sought", 100, losses(100))
    post(service.state.store, "busy", 0)
    visit.open(f"{service.url}/status")
    visit.page.locator("#pill").get_by_text("waiting").wait_for()
    visit.page.keyboard.press("Control+k")
    visit.page.keyboard.type("sought 100")
    visit.page.locator("#hits a").wait_for()
    visit.page.keyboard.press("Escape")
    assert not visit.page.locator("#hits").is_visible()
    visit.page.keyboard.type(" step")
    visit.page.locator("#hits a").first.wait_for()
    visit.page.keyboard.press("Tab")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_url("**/runs/sought?step=100")


def test_a_phone_shows_every_verdict_and_number(chromium: Browser, dashboard: Dashboard) -> None:
    """At 360 pixels the table had the names of the metrics alone, and the rest to the right of the screen."""
    with Visit(chromium, viewport={"width": 360, "height": 760}) as visit:
        visit.open(f"{dashboard.url}/compare?a=digits@4000&b=digits-2@4000")
        cells = visit.page.locator("main table").first.locator("td:not(:empty)")
        assert cells.count() > 20
        for cell in cells.all():
            box = cell.bounding_box()
            assert 0 <= box["x"] <= box["x"] + box["width"] <= 360, cell.inner_text()
        head = cells.first.evaluate("(cell) => getComputedStyle(cell, '::before').content")
        assert head == '"B is"'


def test_the_first_values_come_to_a_page_that_has_none(visit: Visit, service: Dashboard) -> None:
    post(service.state.store, "young", 0)
    visit.open(f"{service.url}/runs/young")
    visit.page.get_by_text("This run has no values yet.").wait_for()
    post(service.state.store, "young", 0, losses(0), limit=2)
    panel(visit, "loss/text").locator("svg").wait_for(timeout=2 * SOON)
    assert visit.page.get_by_text("This run has no values yet.").count() == 0


def test_the_slider_says_what_every_chart_has_at_a_step(visit: Visit, service: Dashboard) -> None:
    visit.open(f"{service.url}/runs/{RUN}?with={OTHER}")
    text, image = legend(visit, "loss/text"), legend(visit, "loss/image")
    slider = visit.page.get_by_label("Step", exact=True)
    slider.focus()
    visit.page.keyboard.press("Home")
    visit.page.keyboard.press("ArrowRight")
    visit.page.keyboard.press("ArrowRight")
    visit.page.wait_for_url("**&step=200")
    assert visit.page.locator("#legend tbody th").all_text_contents() == [RUN, OTHER]
    assert text.all_text_contents() == ["7.00 ± 0.10", "7.50 ± 0.10"]
    assert text.first.get_attribute("title") == "7.00 ± 0.10 (perplexity 128)"
    assert image.first.text_content() == "NaN ± 0.10"
    visit.page.keyboard.press("End")
    visit.page.keyboard.press("ArrowLeft")
    assert text.all_text_contents() == ["no value, failed", "no value"]
    assert text.first.get_attribute("title") == f"no value, failed: {FAILURE}"
    visit.page.reload()
    visit.drawn()
    text.get_by_text("no value, failed").wait_for()
    assert visit.page.locator("#step-shown").text_content() == "400"
    visit.page.get_by_role("button", name="Newest").click()
    visit.page.wait_for_url(lambda url: "step=" not in url)
    assert text.first.get_attribute("title") == "5.50 ± 0.10 at 350 (perplexity 45.25)"
    assert visit.page.locator("#headline .role-legend").count() == 0, "one legend for all charts"


def test_charts_ticks_and_all_values_of_a_long_history_with_many_runs_are_on_the_first_screen(
    visit: Visit, service: Dashboard
) -> None:
    values = {f"six/m{index}": [Point(step, float(step), 0.1, 50) for step in range(60)] for index in range(6)}
    runs = [f"first-{index}" for index in range(8)]
    for run in runs:
        write(service.state.store, values, run=run)
    visit.open(f"{service.url}/runs/{runs[0]}?" + "&".join(f"with={run}" for run in runs[1:]))
    page = visit.page
    page.wait_for_function("() => document.querySelectorAll('#legend td:not(:empty)').length === 48")
    charts = [chart.bounding_box() for chart in page.locator("#headline .chart").all()[:3]]
    assert all(box["y"] + box["height"] <= 800 for box in charts)
    assert page.locator("#step-ticks option").count() == 20, "of 60 steps"


def test_a_box_zooms_all_charts_until_all_of_training_is_asked_for(visit: Visit, service: Dashboard) -> None:
    visit.open(f"{service.url}/runs/{RUN}")
    text, image = panel(visit, "loss/text"), panel(visit, "loss/image")
    whole, button = labels(image), visit.page.get_by_role("button", name="Show all of training")
    assert not button.is_visible()
    x, y = place_in(text)
    visit.page.mouse.move(x, y)
    visit.page.mouse.down()
    visit.page.mouse.move(x - 90, y + 60, steps=3)
    assert visit.page.locator(".box").count() == 1
    visit.page.mouse.up()
    button.wait_for()
    assert visit.page.locator(".box").count() == 0
    assert "step=" not in visit.page.url, "a drag is no click"
    assert labels(image) == labels(text) != whole
    button.click()
    button.wait_for(state="hidden")
    visit.page.wait_for_timeout(300)
    assert sorted(labels(image)) == sorted(labels(text)) == sorted(whole)


def test_a_chosen_step_stays_chosen_when_values_come(visit: Visit, service: Dashboard) -> None:
    for step in (0, 100, 300):
        post(service.state.store, "strip", step, losses(step))
    visit.open(f"{service.url}/runs/strip")
    visit.page.get_by_label("A: step 100").check()
    post(service.state.store, "strip", 400, losses(400))
    visit.page.get_by_label("B: step 400").wait_for(timeout=SOON)
    visit.page.get_by_role("button", name="Compare B with A").click()
    visit.page.wait_for_url("**/compare?*a=strip%40100*")


def test_the_pointer_reads_all_charts_at_a_place_and_a_tooltip_says_what_a_point_is(
    visit: Visit, service: Dashboard
) -> None:
    visit.open(f"{service.url}/runs/{RUN}")
    text = panel(visit, "loss/text")
    for at, words in ((4, ("5.5", "virtual", "perplexity 45.25", "400")), (5, ("failed", FAILURE))):
        text.locator(POINT).nth(at).hover()
        tip = visit.page.locator("#vg-tooltip-element.visible")
        tip.wait_for()
        assert all(word in (tip.text_content() or "") for word in words), tip.text_content()
        visit.page.mouse.move(0, 0)
    x, y = place_in(panel(visit, "loss/image"))
    visit.page.mouse.move(x, y)
    legend(visit, "loss/text").and_(visit.page.get_by_title("6.00 ± 0.10 (perplexity 64)")).wait_for()
    assert visit.page.locator(".mark-rule.role-mark line").count() >= 2
    visit.page.mouse.click(x, y)
    visit.page.wait_for_url("**/runs/digits?step=300")
    visit.page.mouse.move(0, 0)
    legend(visit, "loss/text").and_(visit.page.get_by_title("6.00 ± 0.10 (perplexity 64)")).wait_for()


def test_a_metric_is_found_by_typing_and_drawn_when_it_is_seen(visit: Visit, service: Dashboard) -> None:
    many = [metric(float(index), f"probe/m{index:02d}") for index in range(30)]
    for step in (0, 100):
        post(service.state.store, "wide", step, [*losses(step), *many])
    visit.open(f"{service.url}/runs/wide")
    specs = [asked for asked in visit.requests if "/panels/curve.json" in asked]
    assert len(specs) < 20, "what is far below is not asked for"
    assert not panel(visit, "loss/text_perplexity").is_visible()
    visit.page.get_by_label("Find", exact=True).fill("text PERP")
    panel(visit, "loss/text_perplexity").locator("svg").wait_for()
    assert visit.page.locator("#rest .panel:visible").count() == 1
    visit.page.wait_for_url("**?find=text+perp")
    visit.page.reload()
    assert visit.page.locator("#rest .panel:visible").count() == 1


def test_a_long_history_is_drawn_on_a_canvas(visit: Visit, service: Dashboard) -> None:
    values = {"lower/a": [Point(step, float(step % 7), 0.1, 50) for step in range(500)]}
    runs = [f"long-{index}" for index in range(5)]
    for run in runs:
        write(service.state.store, values, run=run)
    query = "&".join(f"with={run}" for run in runs[1:])
    visit.open(f"{service.url}/runs/{runs[0]}")
    assert visit.page.locator(".chart svg").count() == 1
    visit.open(f"{service.url}/runs/{runs[0]}?{query}")
    assert visit.page.locator(".chart canvas").count() == 1
    assert visit.page.locator(".chart").first.get_attribute("aria-label").startswith("lower/a of long-0, long-1")


def test_a_choice_is_a_short_address(visit: Visit, service: Dashboard) -> None:
    visit.open(f"{service.url}/runs/{RUN}")
    visit.page.get_by_label("Scale", exact=False).and_(visit.page.locator("select")).select_option("log")
    visit.page.wait_for_url("**/runs/digits?scale=log")
    visit.page.get_by_text("Overlay other runs").click()
    visit.page.get_by_label(OTHER).check()
    visit.page.get_by_role("button", name="Show").click()
    visit.page.wait_for_url("**/runs/digits?scale=log&with=digits-2")


def test_the_bar_of_chosen_runs_leads_to_what_can_be_done_with_them(visit: Visit, service: Dashboard) -> None:
    visit.open(f"{service.url}/?find=digits")
    page = visit.page

    def open_acts() -> tuple[str | None, list[str]]:
        return page.locator("#select output").text_content(), page.locator(".act-on[href]").all_text_contents()

    assert open_acts() == ("0 chosen", [])
    page.get_by_label(f"choose {RUN}", exact=True).check()
    assert open_acts() == ("1 chosen", ["Export"])
    page.get_by_text("Select all").click()
    assert open_acts() == ("2 chosen", ["Overlay", "Compare", "Export"])
    address = page.get_by_text("Overlay", exact=True).get_attribute("href")
    assert address == f"/runs/{RUN}?with={OTHER}", "as the page without JavaScript has it"
    page.get_by_text("Clear", exact=True).click()
    assert open_acts() == ("0 chosen", [])


WALL = f"/runs/{RUN}/images"


def test_the_slider_shows_one_step_or_says_that_it_has_no_images(visit: Visit, dashboard: Dashboard) -> None:
    visit.open(f"{dashboard.url}{WALL}?with={OTHER}")
    page = visit.page
    assert page.locator("#wall-step-shown").text_content() == "All steps"
    page.locator("#wall-step").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelectorAll('#wall thead th').length === 3")
    assert page.url.endswith(f"{WALL}?with={OTHER}&at=0")
    page.keyboard.press("End")  # a step whose evaluation has not ended
    page.locator("#wall .warning").first.wait_for()
    assert page.locator("#wall-step-shown").text_content() == "6,000: no images"
    assert page.locator("#wall img").count() == 0
    page.keyboard.press("Home")
    page.wait_for_function("() => document.querySelectorAll('#wall thead th').length === 9")
    page.get_by_role("button", name="Play").click()
    page.wait_for_url("**&at=1000")
    page.get_by_role("button", name="Stop").click()
    page.locator("#wall-size").fill("64")
    # The wall of step 1,000 takes the place of the one before it.
    page.wait_for_function("() => document.querySelector('#wall img')?.getBoundingClientRect().width === 64")


def test_two_checkpoints_are_laid_over_each_other_by_keyboard(visit: Visit, dashboard: Dashboard) -> None:
    visit.open(dashboard.url + WALL)
    page = visit.page
    page.goto(visit.page.url)  # a page that has not changed works as the first time
    page.locator("a.sample").first.focus()
    page.keyboard.press("Enter")
    place = page.locator("#wipe")
    assert "a red seven" in (place.text_content() or "")
    assert place.locator("img").count() == 2, "two images at once"
    assert place.get_by_role("button", name="Close").bounding_box()["y"] < 700
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    chosen = [select.evaluate("(each) => each.value") for select in place.locator("select").all()]
    assert chosen == [f"{RUN}, step 0", f"{RUN}, step 2,000"]
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert "a red seven" in (place.text_content() or ""), "no prompt is before the first"
    wipe = place.locator("input[type=range]")
    wipe.focus()
    before = place.locator("img").nth(1).evaluate("(image) => image.style.clipPath")
    page.keyboard.press("ArrowRight")
    after = place.locator("img").nth(1).evaluate("(image) => image.style.clipPath")
    assert (before, after) == ("inset(0px 0px 0px 50%)", "inset(0px 0px 0px 49%)")
    assert "Same prompt, seed and parameters." in (place.text_content() or "")
    page.keyboard.press("Escape")
    assert not place.evaluate("(dialog) => dialog.open")


# Signing in, the forms of an evaluation, and its events

ANSWER = 10_000
"""Milliseconds that the page has to show what happened; the events come after half a second."""


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, State]]:
    monkeypatch.setattr(authentication, "LIFETIME", -1.0)
    with app_on_port(tmp_path / "data") as (url, state):
        enter(state.store, submission(), suite(tasks=2))
        yield url, state


def sign_in(visit: Visit, token: str) -> None:
    visit.page.get_by_label("Token").fill(token)
    visit.page.get_by_role("button", name="Sign in").click()


@pytest.mark.parametrize("java_script", [True, False])
def test_sign_in_act_and_sign_out(chromium: Browser, waiting: tuple[str, State], java_script: bool) -> None:
    url, state = waiting
    with state.store.transaction() as session:
        shown = create_token(session, "submit", "submit")
    with Visit(chromium, java_script_enabled=java_script) as visit:
        visit.page.goto(f"{url}/evaluations/1")
        assert visit.page.url == f"{url}/sign-in?next=%2Fevaluations%2F1"
        sign_in(visit, "evalsvc_wrong")
        assert "does not know the token" in visit.page.get_by_role("alert").inner_text()
        sign_in(visit, shown)
        visit.page.wait_for_url(f"{url}/evaluations/1")
        (cookie,) = visit.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/")
        assert shown not in cookie["value"]
        visit.page.get_by_role("button", name="Cancel").click()
        visit.page.get_by_text("cancelled", exact=True).first.wait_for()
        visit.page.get_by_role("button", name="Retry").click()
        visit.page.get_by_role("button", name="Cancel").wait_for()
        visit.page.get_by_role("button", name="Sign out").click()
        visit.page.wait_for_url(f"{url}/sign-in")
        visit.page.goto(f"{url}/evaluations/1")
        assert "/sign-in" in visit.page.url
        assert [message for message in visit.messages if "401" not in message] == []


def test_a_link_of_another_site_finds_the_session_whose_end_leads_to_the_sign_in(
    visit: Visit, waiting: tuple[str, State]
) -> None:
    """The first request has no strict cookie; without a second one, each link in a chat would ask for the token.

    A wall display would show old values for ever after the end of its session.
    """
    url, state = waiting
    with state.store.transaction() as session:
        shown = create_token(session, "read", "read")
    visit.page.goto(f"{url}/status")
    sign_in(visit, shown)
    visit.page.wait_for_url(f"{url}/status")
    visit.page.route("http://chat.example/", lambda route: route.fulfill(body=f'<a href="{url}/compare?a=x">x</a>'))
    visit.page.goto("http://chat.example/")
    visit.page.get_by_role("link").click()
    visit.page.wait_for_url(f"{url}/compare?a=x")
    visit.page.get_by_role("heading", name="Compare", exact=True).wait_for()
    visit.page.goto(f"{url}/status")
    with state.store.transaction() as session:
        revoke_token(session, "read")
    visit.page.wait_for_url(re.compile("/sign-in"), timeout=ANSWER)


def test_a_page_shows_progress_and_results_by_events(visit: Visit, waiting: tuple[str, State]) -> None:
    url, state = waiting
    visit.page.goto(f"{url}/evaluations/1")
    summary = visit.page.locator("details summary").last
    summary.click()
    visit.page.evaluate("window.scrollTo(0, 200)")
    before = visit.page.evaluate("[performance.timeOrigin, scrollY]")
    state.coordinator.step()
    state.coordinator.step()
    visit.page.locator("progress[value='4'][max='8']").wait_for(timeout=ANSWER)
    state.coordinator.work()
    visit.page.get_by_text("succeeded", exact=True).first.wait_for(timeout=ANSWER)
    visit.page.get_by_role("button", name="Evaluate again").wait_for(timeout=ANSWER)
    assert visit.page.locator("th", has_text=re.compile("loss/text$")).count() == 2
    assert visit.page.evaluate("[performance.timeOrigin, scrollY]") == before, "no reload, and the same place"
    assert visit.page.locator("details[open]").count() == 1
