"""A folder as a training job fills it, and what is posted of it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import httpx2
import pytest
from app_in_process import App, app_in_process
from torch_files import save_filled

from evalsvc.client import Client
from evalsvc.config import Settings
from evalsvc.errors import CheckpointNotAllowed, InvalidRequest, Unauthorized, UnknownName
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout
from evalsvc.store.tables import Checkpoint
from evalsvc.watch import watcher as watcher_module
from evalsvc.watch.completeness import Classifier, Memory
from evalsvc.watch.folders import LocalFolder, RemoteFolder
from evalsvc.watch.watcher import Posting, Watcher
from evalsvc.watch.wide_table import require_layout

MINIATURE = ROOT / "runs" / "pretrained" / "checkpoints"


class Scene:
    """A training job's folder, a service, and watchers of them."""

    def __init__(self, tmp_path: Path, app: App) -> None:
        self.app = app
        self.folder = tmp_path / "run" / "checkpoints"
        self.folder.mkdir(parents=True)
        self.now = 1000.0
        self.memory = tmp_path / "memory.json"
        self.rules: dict[str, Any] = {}
        self.place: LocalFolder | RemoteFolder = LocalFolder(self.folder.parent)
        self.said: list[str] = []
        self.noted: list[str] = []
        self.plan()

    def plan(self, every: int = 1, **rules: Any) -> None:
        plan = {"suites": [{"suite": "loss", "every": every}], **rules}
        self.app.http.put("/v1/runs/run-a/plan", json=plan).raise_for_status()

    def watcher(self, transport: httpx2.BaseTransport | None = None, settle: float = 10, **posting: Any) -> Watcher:
        client = Client("http://evalsvc", transport=transport or self.app.transport)
        # By its date everything is new here, so only the clock settles it.
        rules: dict[str, Any] = {"clock": lambda: self.now, "wall": lambda: 0.0, **self.rules}
        classifier = Classifier(Memory(self.memory), settle=settle, **rules)
        wanted = Posting(**{"run": "run-a", **posting})
        return Watcher(self.place, client, wanted, classifier, self.said.append, self.noted.append)

    def look(self, watcher: Watcher) -> None:
        """Two looks, far enough from each other for what does not change."""
        watcher.look()
        self.now += 11
        watcher.look()

    def write(self, name: str, step: int, **content: Any) -> Path:
        path = self.folder / name
        save_filled(path, {"state_dict": {"w": [step] * 4}, "epoch": 1, "step": step, **content})
        return path

    def posted(self) -> dict[tuple[int, str], dict[str, Any]]:
        response = self.app.http.get("/v1/runs/run-a")
        return {(item["step"], item["variant"]): item for item in response.json()["checkpoints"]}

    def rows(self) -> int:
        with self.app.store.reading() as session:
            return session.query(Checkpoint).count()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with app_in_process(tmp_path / "data") as app:
        yield Scene(tmp_path, app)


def test_open_lm_folder_raw_and_averaged(scene: Scene, open_lm_case: Path) -> None:
    """optimizer_1.pt and stats_1.pt have an epoch in their names, too."""
    shutil.copytree(open_lm_case / "checkpoints", scene.folder, dirs_exist_ok=True)
    scene.look(scene.watcher())
    assert set(scene.posted()) == {(2, "raw"), (2, "ema_0.9_1")}
    assert scene.said == [
        "ema_0.9_1_1.pt: step 2 ema_0.9_1 is checkpoint 1; loss",
        "epoch_1.pt: step 2 raw is checkpoint 2; loss",
    ]
    assert scene.noted == [
        "optimizer_1.pt, stats_1.pt: not posted, since a training job keeps its own state in such files, and no weights"
    ]


def test_posts_in_the_order_of_steps_once_with_digest_and_link(scene: Scene) -> None:
    shutil.copytree(MINIATURE, scene.folder, dirs_exist_ok=True)
    watcher = scene.watcher(tokens_per_step=1000)
    scene.look(watcher)
    scene.look(watcher)
    assert [line.partition(":")[0] for line in scene.said] == [f"epoch_{epoch}.pt" for epoch in range(6)]
    posted = scene.posted()
    assert sorted(posted) == [(step, "raw") for step in (0, 10, 20, 80, 300, 3000)]
    assert posted[80, "raw"]["tokens_seen"] == 80_000
    detail = scene.app.http.get(f"/v1/checkpoints/{posted[80, 'raw']['id']}").json()
    assert (detail["spool"], detail["spool_state"]) == ("link", "ready")
    assert len(detail["evaluations"]) == 1
    assert len(detail["sha256"]) == 64


def test_an_empty_file_is_said_once_and_posted_when_it_is_written(scene: Scene) -> None:
    (scene.folder / "epoch_1.pt").touch()
    watcher = scene.watcher()
    for _ in range(3):
        scene.look(watcher)
    assert scene.noted == ["epoch_1.pt is empty; evalsvc posts the file when it is written"]
    scene.write("epoch_1.pt", step=5)
    scene.look(watcher)
    assert set(scene.posted()) == {(5, "raw")}


def test_links_and_copies_are_not_posted_again(scene: Scene) -> None:
    path = scene.write("epoch_6.pt", step=600)
    (scene.folder / "epoch_latest.pt").symlink_to(path)
    (scene.folder / "step_600.pt").symlink_to(path)
    os.link(path, scene.folder / "step_0600.pt")
    shutil.copyfile(path, scene.folder / "ckpt_600.pt")
    scene.look(scene.watcher())
    assert (scene.rows(), len(scene.said), scene.noted) == (1, 1, [])


def test_a_restart_posts_nothing_again_and_misses_nothing(scene: Scene) -> None:
    """Also where the watcher was killed before the answer to its post arrived."""
    scene.write("epoch_1.pt", step=5)
    transport = Unsteady(scene.app.transport)
    transport.lose_answers = True
    scene.watcher(transport, settle=0).look()
    scene.write("epoch_2.pt", step=10)
    scene.look(scene.watcher())
    scene.memory.write_text("{torn")  # the memory saves time and is not what is relied on
    scene.look(scene.watcher())
    assert [line.partition(":")[0] for line in scene.said] == ["epoch_2.pt"]
    assert scene.rows() == 2
    assert [len(item["evaluations"]) for item in scene.posted().values()] == [1, 1]


def test_what_somebody_else_posted_is_not_posted_again(scene: Scene) -> None:
    path = scene.write("epoch_1.pt", step=5)
    scene.app.post(path, step=5, suites=[]).raise_for_status()
    scene.look(scene.watcher())
    assert (scene.rows(), scene.noted) == (1, [])


def test_another_file_in_the_place_is_said_once(scene: Scene) -> None:
    """A training run that was begun anew in the same folder."""
    scene.write("epoch_1.pt", step=5)
    watcher = scene.watcher()
    scene.look(watcher)
    scene.write("epoch_1.pt", step=5, more="another run")
    for _ in range(3):
        scene.look(watcher)
    (noted,) = scene.noted
    assert "epoch_1.pt is not posted: run 'run-a' has a checkpoint at step 5" in noted
    assert ("replace=true" in noted, watcher.refused) == (True, 1)
    scene.look(scene.watcher(replace=True))
    assert (scene.rows(), len(scene.posted())) == (2, 1)


class Unsteady(httpx2.BaseTransport):
    """A service that goes away: before it takes a request, or before its answer arrives."""

    def __init__(self, inner: httpx2.BaseTransport) -> None:
        self.inner = inner
        self.down = False
        self.lose_answers = False

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if self.down:
            raise httpx2.ConnectError("connection refused")
        response = self.inner.handle_request(request)
        if self.lose_answers and request.method == "POST":
            raise httpx2.ReadError("connection reset")
        return response


def test_a_service_that_is_down_costs_no_checkpoint(scene: Scene) -> None:
    transport = Unsteady(scene.app.transport)
    watcher = scene.watcher(transport)
    scene.write("epoch_1.pt", step=5)
    transport.down = True
    for _ in range(3):
        scene.look(watcher)
    (noted,) = scene.noted
    assert "no evaluation service answers" in noted
    transport.down, transport.lose_answers = False, True
    watcher.look()  # it was entered, and nobody heard of it
    transport.lose_answers = False
    watcher.look()
    assert scene.noted[-1] == "the service accepts posts again"
    assert (scene.rows(), len(scene.posted()[5, "raw"]["evaluations"])) == (1, 1)


def test_waits_longer_each_time(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is down for hours must not be asked all the time, and is not given up."""
    transport = Unsteady(scene.app.transport)
    transport.down = True
    watcher = scene.watcher(transport, settle=0)
    scene.write("epoch_1.pt", step=5)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        transport.down = len(slept) < 9
        if len(slept) == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(watcher_module.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        watcher.watch(every=5)
    assert slept == [1, 2, 4, 8, 16, 32, 60, 60, 60, 5]
    assert set(scene.posted()) == {(5, "raw")}


@pytest.mark.parametrize("once", [True, False])
def test_a_run_that_is_behind_is_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch, once: bool) -> None:
    """Each step is posted when the one before is over, after the seconds that the service says, and that is said."""
    scene.plan(when_behind="refuse")
    for step in (5, 6, 7):
        scene.write(f"epoch_{step}.pt", step=step)
    watcher = scene.watcher(settle=0)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        scene.app.coordinator.work()
        if not once and len(scene.said) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(watcher_module.time, "sleep", sleep)
    if once:
        watcher.post_all(every=5)
    else:
        with pytest.raises(KeyboardInterrupt):
            watcher.watch(every=5)
    assert [line.partition(":")[0] for line in scene.said] == ["epoch_5.pt", "epoch_6.pt", "epoch_7.pt"]
    assert slept[0] == max(slept) == 30, "the second wait is no longer than the service says"
    behind, again = scene.noted
    assert behind.endswith("post step 6 again in 30 s; evalsvc tries again")
    assert again == "the service accepts posts again"


def test_an_instruction_is_said_once_and_others_go_on(tmp_path: Path) -> None:
    with app_in_process(tmp_path / "data", roots=str(tmp_path / "run" / "checkpoints")) as app:
        scene = Scene(tmp_path, app)
        outside = tmp_path / "outside.pt"
        save_filled(outside, {"state_dict": {}, "epoch": 1, "step": 1})
        (scene.folder / "epoch_1.pt").symlink_to(outside)
        scene.write("epoch_2.pt", step=10)
        watcher = scene.watcher()
        for _ in range(3):
            scene.look(watcher)
        (noted,) = scene.noted
        assert "epoch_1.pt is not posted" in noted
        assert "outside the allowed folders" in noted
        assert set(scene.posted()) == {(10, "raw")}


def test_without_a_token_it_ends(scene: Scene) -> None:
    """Every post would be refused: whoever started it has to know."""
    scene.write("epoch_1.pt", step=5)
    closed = httpx2.MockTransport(lambda _: httpx2.Response(401, json={"code": "unauthorized", "detail": "no token"}))
    with pytest.raises(Unauthorized):
        scene.look(scene.watcher(closed))


def test_where_links_do_not_reach_it_copies(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(*_: Any, **__: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", elsewhere)
    scene.write("epoch_1.pt", step=5)
    scene.write("epoch_2.pt", step=10)
    scene.look(scene.watcher())
    assert scene.noted == []
    for item in scene.posted().values():
        assert scene.app.http.get(f"/v1/checkpoints/{item['id']}").json()["spool"] == "copy"


def test_files_that_are_never_posted_are_named_once(scene: Scene) -> None:
    """`nothing to post: no checkpoint is in …`, where last.pt, model_best.pth and five parts of a model lay."""
    for name in ("last.pt", "model_best.pth", "optimizer_1.pt", "epoch_1.pt.tmp"):
        scene.write(name, step=5)
    for number in (1, 2):
        scene.write(f"model-0000{number}-of-00002.safetensors", step=5)
    for name in ("logs", "wandb"):
        (scene.folder / name).mkdir()
        (scene.folder / name / "events.json").write_text("{}")
    watcher = scene.watcher()
    scene.look(watcher)
    for name in ("last.pt", "optimizer_2.pt", "model-00003-of-00003.safetensors"):
        scene.write(name, step=10)
    (scene.folder / "logs" / "more.json").write_text("{}")
    scene.look(watcher)
    overwritten, folders, parts, state = sorted(scene.noted)
    assert folders == "logs, wandb: not posted, since such folders hold no weights"
    assert state.startswith("optimizer_1.pt: not posted, since a training job keeps its own state in such files")
    assert overwritten == (
        "last.pt, model_best.pth: not posted, since a training replaces such files; save each checkpoint under a name "
        "with its step, or give --step-pattern"
    )
    names = "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors"
    assert parts.startswith(f"{names}: not posted, since each is a part of a model; watch the folder above")
    assert (scene.said, scene.rows()) == ([], 0)


class TestUpload:
    """A service that reads no file of the training job's machine."""

    @pytest.fixture
    def far(self, tmp_path: Path) -> Iterator[Scene]:
        with app_in_process(tmp_path / "data", roots=str(tmp_path / "elsewhere"), upload_bytes=10_000_000) as app:
            yield Scene(tmp_path, app)

    def test_files_and_folders_are_sent_once(self, far: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(MINIATURE.parent, far.folder.parent, dirs_exist_ok=True)
        folder = far.folder / "checkpoint-5000"
        folder.mkdir()
        shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        config = {"model_type": "llama", "vocab_size": 64, "max_position_embeddings": 8, **shape}
        (folder / "config.json").write_text(json.dumps(config))
        shutil.copyfile(MINIATURE / "epoch_1.pt", folder / "pytorch_model.bin")
        (folder / "optimizer.pt").write_bytes(b"x")
        far.look(far.watcher())
        assert far.posted() == {}
        assert "outside the allowed folders" in far.noted[0]
        far.noted.clear()
        far.look(far.watcher(upload=True))
        assert sorted(step for step, _ in far.posted()) == [0, 10, 20, 80, 300, 3000, 5000]
        items = [far.app.http.get(f"/v1/checkpoints/{item['id']}").json() for item in far.posted().values()]
        assert {item["uri"].partition(":")[0] for item in items} == {"upload"}
        assert {item["spool_state"] for item in items} == {"ready"}
        assert len(far.noted) == 7
        assert far.noted[-1].startswith("checkpoint-5000: sending ")
        assert sorted(path.name for path in far.app.settings.data_path.glob("spool/7/*/*")) == [
            "config.json",
            "pytorch_model.bin",
        ]
        assert list(far.app.settings.uploads_path.iterdir()) == []
        with monkeypatch.context() as patch:
            patch.setattr("evalsvc.client.uploads.opened_upload", None)
            far.look(far.watcher(upload=True))
        assert (len(far.said), len(far.noted)) == (7, 7), "a watcher that is started again reads nothing"

    def test_a_suite_that_is_added_later_gets_the_files_again(self, far: Scene) -> None:
        """The service drops the files of a step that is evaluated."""
        shutil.copytree(MINIATURE.parent, far.folder.parent, dirs_exist_ok=True)
        far.look(far.watcher(upload=True))
        far.app.coordinator.work()
        with far.app.store.transaction() as session:
            for row in session.query(Checkpoint):
                row.spool_state = "released"
        shutil.rmtree(far.app.settings.data_path / "spool")
        far.look(far.watcher(upload=True, suites=["loss", "text-quick"]))
        items = [far.app.http.get(f"/v1/checkpoints/{item['id']}").json() for item in far.posted().values()]
        assert {(item["spool_state"], len(item["evaluations"])) for item in items} == {("ready", 2)}

    def test_a_full_service_is_waited_for(self, far: Scene) -> None:
        shutil.copytree(MINIATURE.parent, far.folder.parent, dirs_exist_ok=True)
        usage = shutil.disk_usage(far.folder)
        watcher = far.watcher(upload=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("evalsvc.files.uploads.shutil.disk_usage", lambda _: usage._replace(free=0))
            far.look(watcher)
        assert far.posted() == {}
        assert far.noted[-1].endswith("evalsvc tries again")
        far.look(watcher)
        assert len(far.posted()) == 6

    def test_a_checkpoint_without_a_model_is_not_sent(self, far: Scene) -> None:
        far.write("step_5.pt", step=5)
        far.look(far.watcher(upload=True))
        [noted] = far.noted
        assert noted.startswith("step_5.pt is not posted: no file next to")
        assert noted.endswith("describe the model by --model")


class TestSuites:
    """What was posted without a suite is not left without values."""

    @pytest.mark.parametrize(
        ("posting", "error", "words"),
        [
            (
                {"run": "run-b"},
                InvalidRequest,
                "'run-b' has no plan, .*; give --suite NAME, or .*: evalsvc plan .*loss",
            ),
            ({"run": "empty"}, InvalidRequest, "run 'empty' has no plan"),
            ({"suites": ["los"]}, UnknownName, "no suite is named 'los'; did you mean 'loss'"),
            ({"suites": ["loss"], "model": {"vocab_size": 66_816}}, InvalidRequest, "the table has 66,816 rows"),
        ],
    )
    def test_what_would_leave_every_checkpoint_without_values_ends_it(
        self, scene: Scene, posting: dict[str, Any], error: type[Exception], words: str
    ) -> None:
        """Six checkpoints were posted with `no suite is due`, and the same error came once for every checkpoint."""
        scene.app.http.put("/v1/runs/empty/plan", json={"suites": []}).raise_for_status()
        for step in (5, 10):
            scene.write(f"step_{step}.pt", step=step)
        with pytest.raises(error, match=words):
            scene.look(scene.watcher(**posting))
        assert (scene.rows(), scene.noted) == (0, [])

    def test_a_step_without_a_suite_is_posted_with_the_reason(self, scene: Scene) -> None:
        scene.plan(every=10)
        scene.write("epoch_1.pt", step=5)
        scene.look(scene.watcher())
        assert scene.said[0].endswith("; the plan of run 'run-a' has no suite for step 5, so nothing is evaluated")

    def test_what_was_posted_before_is_evaluated_with_a_suite_that_it_lacks(self, scene: Scene) -> None:
        scene.write("epoch_1.pt", step=5)
        scene.write("epoch_2.pt", step=10)
        scene.look(scene.watcher(suites=[]))
        assert [len(item["evaluations"]) for item in scene.posted().values()] == [0, 0]
        scene.look(scene.watcher(suites=["loss", "loss"]))
        assert scene.said[2:] == [
            "epoch_1.pt: step 5 raw was posted before as checkpoint 1; loss",
            "epoch_2.pt: step 10 raw was posted before as checkpoint 2; loss",
        ]
        scene.look(scene.watcher(suites=["loss"]))
        assert len(scene.said) == 4
        assert [len(item["evaluations"]) for item in scene.posted().values()] == [1, 1]
        assert scene.rows() == 2

    def test_another_layout_is_reported_and_replaces_where_that_is_asked_for(self, scene: Scene) -> None:
        scene.write("epoch_1.pt", step=5)
        scene.look(scene.watcher(suites=["loss"]))
        layout = parse_layout({"text": {"size": 80}}).to_json()
        for _ in range(2):
            scene.noted.clear()
            scene.look(scene.watcher(suites=["loss"], layout=layout))
            (noted,) = scene.noted
            assert "epoch_1.pt is not posted: run 'run-a' has a checkpoint at step 5" in noted
            assert "with another layout" in noted
        scene.noted.clear()
        scene.look(scene.watcher(suites=["loss"], layout=layout, replace=True))
        scene.look(scene.watcher(suites=["loss"], layout=layout))
        assert (scene.noted, scene.rows()) == ([], 2)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with app_in_process(tmp_path / "data") as app, Client("http://evalsvc", transport=app.transport) as client:
        yield client


def test_a_table_that_is_wider_than_the_tokenizer_of_open_lm(client: Client, weights: Path) -> None:
    for rows in (1_000, 50_277, 50_432, 50_688):
        require_layout(client, weights, {"vocab_size": rows}, [])
    with pytest.raises(InvalidRequest) as caught:
        require_layout(client, weights, {"vocab_size": 66_816}, [])
    said = caught.value.message
    assert said.startswith(
        "epoch_1.pt: the table has 66,816 rows and open_lm's tokenizer 50,277 ids; name the image rows by --layout FILE"
    )
    assert "evalsvc layout CHECKPOINT --pairs PAIRS" in said
    everything_is_text = json.loads(said.partition("give --layout '")[2].removesuffix("'"))
    assert parse_layout(everything_is_text).resolve(66_816).text.size == 66_816


def test_the_tokenizer_that_a_suite_names_counts_first(client: Client, weights: Path) -> None:
    tokenizer = str(ROOT / "tokenizer.json")
    client.put_suite("small", {"tasks": [{"kind": "loss", "data": "/a.jsonl", "tokenizer": tokenizer}]})
    client.put_suite("elsewhere", {"tasks": [{"kind": "loss", "data": "/a.jsonl", "tokenizer": "/nowhere.json"}]})
    with pytest.raises(InvalidRequest, match="the table has 2,000 rows and the suite's tokenizer"):
        require_layout(client, weights, {"vocab_size": 2_000}, ["elsewhere", "small"])
    require_layout(client, weights, {"vocab_size": 2_000}, ["elsewhere"])
    with pytest.raises(UnknownName, match="did you mean 'small'"):
        require_layout(client, weights, {"vocab_size": 2_000}, ["smal"])


def test_a_suite_of_images_needs_a_layout_of_images(client: Client, tmp_path: Path) -> None:
    """All checkpoints of a folder were posted, and every evaluation failed: the layout had no image block."""
    pairs = str(ROOT / "heldout_pairs.jsonl")
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text_ids": [1, 2]}\n')
    captions = {"captions": "/captions.json", "decoder": "/decoder.pt", "samples": 4}
    for name, task in (
        ("pairs", {"kind": "loss", "data": pairs}),
        ("aligned", {"kind": "alignment", "data": "/elsewhere.jsonl"}),
        ("drawn", {"kind": "text_to_image", **captions}),
    ):
        client.put_suite(name, {"tasks": [task]})
        with pytest.raises(InvalidRequest, match=f"of suite '{name}' needs the rows of the images; .* --layout FILE"):
            require_layout(client, None, None, [name])
    os.mkfifo(tmp_path / "pipe")
    for path in (str(texts), "/elsewhere.jsonl", str(tmp_path / "pipe"), str(tmp_path)):
        client.put_suite("texts", {"tasks": [{"kind": "loss", "data": path}]})
        require_layout(client, None, None, ["texts", "loss"])


def test_another_family_is_compared_with_its_own_tokenizer(client: Client, tmp_path: Path) -> None:
    """The table of a Llama has more rows than open_lm's tokenizer, and all of them are text."""
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = {"model_type": "llama", "vocab_size": 128_256, "max_position_embeddings": 8, **shape}
    (tmp_path / "config.json").write_text(json.dumps(config))
    require_layout(client, tmp_path, None, [])
    (tmp_path / "tokenizer.json").write_bytes((ROOT / "tokenizer.json").read_bytes())
    for model in (None, {"family": "transformers"}):
        with pytest.raises(InvalidRequest, match="the table has 128,256 rows and the model's tokenizer"):
            require_layout(client, tmp_path, model, [])


def test_the_configuration_next_to_the_checkpoint_is_read_if_it_can_be(client: Client, weights: Path) -> None:
    """The service, which reads the configuration too, says what is wrong with it."""
    for content in (None, "{", '{"hidden_dim": 8, "vocab_size": "many"}', "[" * 10_000):
        if content is not None:
            (weights.parent / "model.json").write_text(content)
        require_layout(client, weights, None, [])
        require_layout(client, weights.parent / "nowhere.pt", None, [])
    config = json.loads((ROOT / "runs" / "pretrained" / "open_lm_miniature.json").read_text())
    (weights.parent / "model.json").write_text(json.dumps({**config, "vocab_size": 66_816}))
    with pytest.raises(InvalidRequest, match="66,816 rows"):
        require_layout(client, weights, None, [])


PLACE = "memory://bucket/run"


class TestRemoteFolder:
    """A folder elsewhere, by fsspec's own store in memory."""

    @pytest.fixture
    def far(self, tmp_path: Path) -> Iterator[Scene]:
        with app_in_process(tmp_path / "data", schemes="file,memory") as app:
            scene = Scene(tmp_path, app)
            scene.place, scene.rules = RemoteFolder(PLACE + "/", app.settings), {"steps_per_epoch": 100}
            yield scene
        fsspec.filesystem("memory").rm("/bucket", recursive=True)

    def write(self, name: str, content: bytes = b"weights") -> None:
        fsspec.filesystem("memory").pipe_file(f"/bucket/run/{name}", content)

    def test_files_and_folders_are_posted_once(self, far: Scene) -> None:
        watcher = far.watcher(settle=0)
        watcher.look()  # there is nothing yet, not even the folder
        for name in ("checkpoints/epoch_3.pt", "checkpoints/optimizer_3.pt", "step_50.safetensors"):
            self.write(name)
        for _ in range(2):
            watcher.look()
        assert {step: item["uri"] for (step, _), item in far.posted().items()} == {
            50: f"{PLACE}/step_50.safetensors",
            300: f"{PLACE}/checkpoints/epoch_3.pt",
        }
        far.watcher(settle=0).look()
        assert (len(far.said), len(far.noted)) == (2, 2), "of each watcher one line about the optimizer"
        far.noted.clear()
        self.write("checkpoints/epoch_3.pt", b"others")
        for _ in range(2):
            watcher.look()
        (noted,) = far.noted
        assert "epoch_3.pt is not posted: run 'run-a' has a checkpoint at step 300" in noted

    def test_a_folder_waits_for_all_its_shards(self, far: Scene) -> None:
        watcher = far.watcher(settle=0)
        index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
        self.write("checkpoint-500/model-1.safetensors")
        self.write("checkpoint-500/config.json", b'{"dim": 8, "n_layers": 1, "n_heads": 1, "vocab_size": 8}')
        watcher.look()
        self.write("checkpoint-500/model.safetensors.index.json", json.dumps(index).encode())
        watcher.look()
        assert far.said == []
        assert far.noted[0].startswith("checkpoint-500 is not complete: it has none of model.safetensors.index.json")
        assert far.noted[1:] == ["checkpoint-500 is not complete: the folder lacks model-2.safetensors"]
        self.write("checkpoint-500/model-2.safetensors")
        watcher.look()
        assert [line.partition(":")[0] for line in far.said] == ["checkpoint-500"], far.noted


def test_what_may_not_be_read_or_cannot_be_listed() -> None:
    with pytest.raises(CheckpointNotAllowed, match="EVALSVC_SCHEMES"):
        RemoteFolder("s3://bucket/run", Settings())
    with pytest.raises(InvalidRequest, match="cannot be listed by"):
        RemoteFolder("https://example.org/run", Settings(schemes="https"))
