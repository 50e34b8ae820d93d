"""Series and steps of external images say what they are on every page that shows them."""

import pytest
from app_in_process import App
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.checkpoints.formats import IMAGES
from evalsvc.client import Client
from evalsvc.spec.protocol import Protocol, describe_fields

WORDS = "external images"

EXTERNAL = Protocol({"task": "images", "sampling": "external", "estimator": "fid/3"})


@pytest.fixture(autouse=True)
def _one_run_of_images(app: App) -> None:
    for step in (25, 50):
        path = f"/flow/{step}.tar"
        enter(app.store, submission(step, run="flow", uri=path, path=path, model=IMAGES), suite())
        evaluate_whole(app.store, metric(float(step), "coco/fid", protocol=EXTERNAL))
    enter(app.store, submission(25, run="trained"), suite())
    evaluate_whole(app.store, metric(3.0, "coco/fid", protocol=Protocol({"sampling": {"seed": 0}})))


@pytest.mark.parametrize(
    "address",
    [
        "/runs/flow",
        "/runs/flow/checkpoints",
        "/panels/curve.html?run=flow&metric=coco/fid",
        "/panels/curve.csv?run=flow&metric=coco/fid",
        "/compare?a=flow@25&b=flow@50",
        "/evaluations/1",
        f"/protocols/{EXTERNAL.id}",
    ],
)
def test_every_page_names_them(app: App, address: str) -> None:
    answer = app.http.get(address)
    assert answer.status_code == 200, answer.text
    assert WORDS in answer.text
    other = address.replace("flow@50", "trained@25").replace("flow", "trained").replace("trained@25&b=", "x")
    if other != address and "x" not in other:
        assert WORDS not in app.http.get(other).text


def test_a_history_names_them_alone_and_next_to_others(client: Client) -> None:
    [alone] = client.history("flow").series
    assert describe_fields(alone.differs) == WORDS
    assert client.compare("flow@25", "flow@50").contrasts[0].differs == {"sampling": "external"}
