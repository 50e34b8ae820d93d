"""The command of the trainer: what it prints, and how it ends."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_trainings import tiny_recipe

import train

pytestmark = pytest.mark.usefixtures("one_thread")


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str, **changes: Any) -> None:
    """Call the command with a recipe of these changes."""
    recipe = tiny_recipe(folder, **changes)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_json()))
    monkeypatch.setattr("sys.argv", ["train.py", str(folder / "recipe.yaml"), "--work", str(folder / "run"), *options])
    train.main()


def test_it_trains_to_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run(tmp_path, monkeypatch, "--threads", "1")
    assert "tiny, step 6: text " in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "epoch_2.pt").exists()


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ((), {"data": "no.jsonl"}, "no.jsonl does not exist"),
        ((), {"start": "no.pt"}, "there is no checkpoint at"),
        ((), {"model": "no.json"}, "no.json"),
        ((), {"layout": "no.yaml"}, "no.yaml"),
        ((), {"image_rows": "no.safetensors"}, "no.safetensors"),
        ((), {"replay": {"share": 0.5, "text": "no.txt"}}, "no.txt"),
        (("--server", "localhost"), {}, "--server localhost is no address"),
        (("--device", "toaster"), {}, "--device toaster"),
    ],
)
def test_an_error_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, monkeypatch, *options, **changes)
    assert str(ended.value).startswith("error: ")
    assert message in str(ended.value)
    assert "\n" not in str(ended.value)
