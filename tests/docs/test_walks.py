"""The paths of three values through the code: as traced over a real request, and as `architecture.md` tells them. A
path grows by a helper here and a callback there, and nobody sees the sum. The page shows it with every change. Files
and functions that the pages of explanations name exist."""

from __future__ import annotations

import ast
import json
import re
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType

import gate_documents
import pytest
from app_in_process import app_in_process
from dashboard_history import RUN, dashboard_on_port

import evalsvc
from evalsvc.cli.program import main
from evalsvc.miniature import ROOT as MINIATURE

ROOT = Path(__file__).parents[2]
EXPLANATION = ROOT / "docs" / "explanation"
PAGE = (EXPLANATION / "architecture.md").read_text()


def posted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Walk:
    run = MINIATURE / "runs"
    with (
        walking("api.routes.checkpoints.post_checkpoint", "body", "store.runs.posting.submit") as walk,
        app_in_process(folder, roots=str(MINIATURE)) as app,
    ):
        weights, layout = run / "pretrained" / "checkpoints" / "epoch_5.pt", str(run / "layout.yaml")
        assert app.post(weights, suites=["loss"], layout=layout).status_code == 201
    return walk


def charted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Walk:
    with walking("store.history.buckets.read_buckets") as walk, walk.pausing(), dashboard_on_port(folder) as dashboard:
        address = f"{dashboard.url}/panels/curve.json?run={RUN}&metric=loss/text"
        with walk.pausing(over=False), urllib.request.urlopen(address) as answer:
            assert json.load(answer)["layer"]
    return walk


def gated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Walk:
    monkeypatch.chdir(folder)
    for name, value in (("candidate", 1.0), ("baseline", 1.3)):
        metrics = [gate_documents.value("loss/image", value), gate_documents.value("loss/text", value + 1)]
        Path(f"result-of-the-{name}.json").write_text(json.dumps(gate_documents.document(*metrics)))
    arguments = ["gate", "result-of-the-candidate.json", "--baseline", "result-of-the-baseline.json"]
    monkeypatch.setattr(sys, "argv", ["evalsvc", *arguments])
    with walking("cli.gate.gate", "candidate") as walk, pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    return walk


WALKS: dict[str, Callable[[Path, pytest.MonkeyPatch], Walk]] = {
    "A post until its rows": posted,
    "A history until its chart": charted,
    "A gate from its files to the exit code": gated,
}


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory, many_cases: None) -> dict[str, Walk]:
    """Follow whole evaluations of nothing less than the application, with every call watched."""
    with pytest.MonkeyPatch.context() as patch:
        return {title: walk(tmp_path_factory.mktemp("walk"), patch) for title, walk in WALKS.items()}


def on_page(title: str) -> list[str]:
    text = PAGE.partition(f"### {title}\n")[2]
    return text.partition("```text output\n")[2].partition("```")[0].splitlines()


@pytest.mark.parametrize("title", WALKS)
def test_the_page_tells_the_walk(title: str, walks: dict[str, Walk]) -> None:
    assert on_page(title) == walks[title].functions, "\n".join(walks[title].functions)
    assert title != "A post until its rows" or len(on_page(title)) <= 31, "it was 47 once, in 13 packages"


def test_a_chart_takes_the_document_of_the_history(walks: dict[str, Walk]) -> None:
    """A number was nine things on its way, two of them texts of JSON inside of one process."""
    walk = walks["A history until its chart"]
    assert "bytes" not in walk.types
    assert walk.functions[-1].startswith("web.")
    kinds = {kind for kind in walk.types if kind.endswith(("Buckets", "BucketSeries", "Point", "Curve"))}
    assert kinds == {"Buckets", "BucketSeries"}


def test_a_gate_comes_back_to_the_command_line_once(walks: dict[str, Walk]) -> None:
    """With the report: where a command and its packages take turns, neither can be read alone."""
    rooms = [name.partition(".")[0] for name in walks["A gate from its files to the exit code"].functions]
    returns = [before for before, after in pairwise(rooms) if after == "cli" != before]
    assert len(returns) <= 2, returns


PACKAGE = str(Path(evalsvc.__file__).parent) + "/"

SHORT_TEXT, DEPTH, MOST_PARTS = 12, 3, 64
"""Characters of a text that may be anybody's; levels of parts that belong to a value; parts of a list or mapping."""

SMALL = (bool, int, float, complex, type, type(None), Path)


def name_of(code: CodeType) -> str:
    """Return `package.module.function`; what a function defines inside is a part of the function."""
    module = code.co_filename.removeprefix(PACKAGE).removesuffix(".py").replace("/", ".")
    return f"{module.removesuffix('.__init__')}.{code.co_qualname.partition('.<locals>')[0]}"


def parts_of(value: object, depth: int = DEPTH) -> Iterator[object]:
    """Return the value and its parts that can be told from those of other values."""
    if isinstance(value, SMALL) or callable(value) or (isinstance(value, str | bytes) and len(value) < SHORT_TEXT):
        return
    yield value
    if depth == 0 or isinstance(value, str | bytes):
        return
    inner: list[object] = []
    if isinstance(value, list | tuple | set | frozenset):
        inner = list(value)[:MOST_PARTS]
    elif isinstance(value, Mapping):
        inner = list(value.values())[:MOST_PARTS]
    elif is_dataclass(value):
        inner = [getattr(value, item.name, None) for item in fields(value)]
    elif hasattr(type(value), "model_fields"):
        inner = list(vars(value).values())
    for part in inner:
        yield from parts_of(part, depth - 1)


@dataclass
class Walk:
    start: str
    parameter: str | None
    """Parameter of the first function that is the value; None for what the first function returns."""
    end: str | None = None
    """Function with whose return the walk is over; None for a walk to the end of the context."""
    functions: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    _known: dict[int, object] = field(default_factory=dict)
    """The value and what came of it, by identity; kept, so that no identity is used again."""
    _frames: set[FrameType] = field(default_factory=set)
    _over: bool = False

    @contextmanager
    def pausing(self, over: bool = True) -> Iterator[None]:
        self._over = over
        try:
            yield
        finally:
            self._over = not over

    def _follow(self, value: object) -> None:
        for part in parts_of(value):
            self._known[id(part)] = part

    def _watch(self, frame: FrameType, event: str, argument: object) -> None:
        if self._over or event not in ("call", "return") or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        if event == "return":
            if frame in self._frames:
                self._frames.discard(frame)
                self._follow(argument)
                self._over = name_of(frame.f_code) == self.end
            return
        name = name_of(frame.f_code)
        if not self.functions and name == self.start:
            if self.parameter is None:
                self._frames.add(frame)
                self.functions.append(name)
                return
            self._follow(frame.f_locals[self.parameter])
        code = frame.f_code
        number = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
        received = [frame.f_locals[given] for given in code.co_varnames[:number] if given in frame.f_locals]
        known = [part for value in received for part in parts_of(value, 1) if id(part) in self._known]
        if known:
            self._frames.add(frame)
            if name not in self.functions:
                self.functions.append(name)
            self.types = list(dict.fromkeys([*self.types, *(type(part).__name__ for part in known)]))


@contextmanager
def walking(start: str, parameter: str | None = None, end: str | None = None) -> Iterator[Walk]:
    """Follow a value through what runs in this thread, and in threads that begin inside of the context."""
    walk = Walk(start, parameter, end)
    threading.setprofile(walk._watch)
    sys.setprofile(walk._watch)
    try:
        yield walk
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


TOLD = ("From a posted checkpoint to a stored metric", "From a caption to a FID")
ROW = re.compile(r"^\| .+ \| `([^`]+)` \| (`[^|]+`) \|$", re.MULTILINE)


def steps_of(page: str, heading: str) -> list[tuple[str, list[str]]]:
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [(file, re.findall(r"`([^`]+)`", names)) for file, names in ROW.findall(section)]


def names_in(body: list[ast.stmt], within: str = "") -> Iterator[str]:
    """The functions and classes of a module, and methods as `Class.method`."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield within + node.name
        if isinstance(node, ast.ClassDef):
            yield from names_in(node.body, f"{within}{node.name}.")


STEPS = [(heading, file, name) for heading in TOLD for file, names in steps_of(PAGE, heading) for name in names]


@pytest.mark.parametrize("heading", TOLD)
def test_every_row_is_a_step(heading: str) -> None:
    """A row of another form would be held to nothing."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    assert len(steps_of(PAGE, heading)) == sum(line.startswith("|") for line in section.splitlines()) - 2 > 15


@pytest.mark.parametrize(("file", "name"), [step[1:] for step in STEPS], ids=[": ".join(step) for step in STEPS])
def test_the_function_of_a_step_exists(file: str, name: str) -> None:
    assert name in set(names_in(ast.parse((ROOT / file).read_text()).body))


@pytest.mark.parametrize("page", sorted(EXPLANATION.glob("*.md")), ids=lambda page: page.stem)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"`((?:evalsvc|tests|benchmarks|docs)/[\w./-]+)`", page.read_text()))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


PAPER = """pre-trained | random initialisation | image tokens | text tokens | token-type loss | image : text ratio |
MoVQGAN | COCO FID | catastrophic forgetting | unconditional generation | partial fine-tuning |
which parameters are trained | contrastive alignment | nearest text tokens | completions of Table 1's prompts"""
"""The terms of the paper that evalsvc was built around, arXiv 2311.16201."""


def test_the_terms_of_the_paper_are_found() -> None:
    """Whoever comes from the paper searches for its words."""
    text = " ".join(" ".join(page.read_text().split()) for page in EXPLANATION.glob("*.md")).casefold()
    assert [term for term in map(str.strip, PAPER.split("|")) if term.casefold() not in text] == []
