"""The baseline: code of a commit or a folder, and stored values."""

import subprocess
from pathlib import Path

import pytest
from harness import baseline
from harness.document import EMPTY

from evalsvc.compare.result import Result
from evalsvc.errors import InvalidData, InvalidRequest
from evalsvc.spec.documents.results import Error, ResultDocument, TaskMetric

ROOT = Path(__file__).parents[3]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of two commits; the first is tagged `old`."""
    root = tmp_path / "repository"
    package = root / "evalsvc"
    package.mkdir(parents=True)
    git(root, "init", "--quiet")
    for number, tag in enumerate(("old", "new"), 1):
        (package / "__init__.py").write_text(f"version = {number}\n")
        (root / "other.txt").write_text(f"{number}\n")
        git(root, "add", ".")
        git(root, "-c", "user.name=n", "-c", "user.email=e@example.org", "commit", "--quiet", "-m", tag)
        git(root, "tag", tag)
    return root


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_code_of_a_commit_is_unpacked(repository: Path, tmp_path: Path) -> None:
    tree = baseline.find_code("old", repository, tmp_path / "work")
    assert tree is not None
    assert tree.label == git(repository, "rev-parse", "old")
    assert (tree.folder / "evalsvc" / "__init__.py").read_text() == "version = 1\n"
    assert not (tree.folder / "other.txt").exists(), "the package is all that is measured"
    assert baseline.find_code("old", repository, tmp_path / "work") == tree


def test_an_interrupted_unpacking_is_done_again(repository: Path, tmp_path: Path) -> None:
    commit = git(repository, "rev-parse", "old")
    partial = tmp_path / "work" / "code" / f"{commit}.partial" / "evalsvc"
    partial.mkdir(parents=True)
    (partial / "__init__.py").write_text("half")
    tree = baseline.find_code("old", repository, tmp_path / "work")
    assert tree is not None
    assert (tree.folder / "evalsvc" / "__init__.py").read_text() == "version = 1\n"


def test_the_code_of_another_checkout_is_taken_as_it_lies(tmp_path: Path) -> None:
    tree = baseline.find_code(str(ROOT), tmp_path, tmp_path)
    assert tree == baseline.Tree(ROOT, str(ROOT))
    assert baseline.find_code("none", tmp_path, tmp_path) is None


@pytest.mark.parametrize("against", ["0" * 40, "--output=stolen", "old:other.txt", ""])
def test_a_commit_that_is_not_there_is_refused(repository: Path, tmp_path: Path, against: str) -> None:
    """An option of git in the place of a commit is only a name that does not exist."""
    with pytest.raises(InvalidRequest, match="fetch the whole history"):
        baseline.find_code(against, repository, tmp_path / "work")
    assert not list(tmp_path.rglob("stolen*"))


def test_a_folder_without_the_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="holds no evalsvc"):
        baseline.find_code(str(tmp_path), ROOT, tmp_path)


def test_the_stored_commit_is_the_full_id_of_one() -> None:
    commit = baseline.COMMIT.read_text().strip()
    assert len(commit) == 40
    assert set(commit) <= set("0123456789abcdef")


def quality() -> ResultDocument:
    metric = TaskMetric(
        name="pairs/image", value=1.5, stderr=0.1, n=2, unit="nats/token", direction="lower", protocol="p",
        items=["nll", "tokens"], task="pairs",
    )  # fmt: skip
    rows: list[dict[str, object]] = [{"index": i, "nll": 3.0 + i, "tokens": 2, "codes": [1] * 64} for i in range(2)]
    return ResultDocument(metrics=[metric], protocols={"p": {"task": "loss"}}, items={"pairs": rows})


def test_stored_values_are_read_again_with_what_pairs_them(tmp_path: Path) -> None:
    """Codes of images would make the file large, and no metric is made of them."""
    path = tmp_path / "quick.json"
    baseline.store_quality(path, quality())
    again = baseline.read_quality(path)
    assert again.metrics == quality().metrics
    assert again.items == {"pairs": [{"index": i, "nll": 3.0 + i, "tokens": 2} for i in range(2)]}
    numbers = Result("stored", again).numbers(again.metrics[0])
    assert numbers.columns == [[3.0, 4.0], [2.0, 2.0]]


def test_nothing_stored_is_no_baseline_and_another_file_is_an_error(tmp_path: Path) -> None:
    assert baseline.read_quality(tmp_path / "none.json") == EMPTY
    (tmp_path / "wrong.json").write_text("[]")
    with pytest.raises(InvalidData, match=r"wrong\.json"):
        baseline.read_quality(tmp_path / "wrong.json")


def test_a_failed_task_is_not_stored(tmp_path: Path) -> None:
    failed = ResultDocument(metrics=[], errors={"pairs": Error(code="non_finite", message="the loss is NaN")})
    with pytest.raises(InvalidRequest, match="pairs: the loss is NaN"):
        baseline.store_quality(tmp_path / "quick.json", failed)
    assert not (tmp_path / "quick.json").exists()
