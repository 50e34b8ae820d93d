"""What `evalsvc inspect` says of the files and folders of trainers; the hostile ones are in test_hostile_folders.py."""

import json
import os
import shlex
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from hostile_files import archive, calling, deflated, entry, patched, safetensors, tensor_pickle
from prompt_tokenizers import write_tokenizer
from safetensors.torch import load_file, save_file
from tiny_families import MODELS, write_ours

from evalsvc.checkpoints.reference import MAX_FILES
from evalsvc.config import Settings
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.doctor.inspection import PUBLISHED, Inspection, fitting_layouts, inspect_checkpoint
from evalsvc.errors import INSPECT
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.layout_presets import PublishedPreset, presets
from evalsvc.watch.completeness import Classifier, Memory
from evalsvc.watch.folders import look_at

RUN = ROOT / "runs" / "pretrained"


def inspected(path: Path, **model: Any) -> Inspection:
    return inspect_checkpoint(path, Settings(devices="cpu", threads=1), **model)


def rows(inspection: Inspection) -> dict[str, str]:
    """The findings by name; what is missing begins with NO."""
    return {
        check.name: check.found if check.ok else f"NO {check.found}; {check.do}".rstrip("; ")
        for check in inspection.checks
    }


def option(inspection: Inspection, name: str) -> str:
    [command] = [command for command in inspection.commands if command.startswith("evalsvc run")]
    words = shlex.split(command)
    return words[words.index(name) + 1]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-500"
    write_ours("llama", folder)
    return folder


def test_a_folder_of_hugging_face_trainer(llama: Path) -> None:
    (llama / "trainer_state.json").write_text(json.dumps({"global_step": 500}))
    (llama / "optimizer.pt").write_bytes(b"never opened")
    shown = rows(inspected(llama))
    size = sum(file.stat().st_size for file in llama.iterdir())
    assert shown["format"] == f"safetensors; 4 files, {size:,} bytes"
    assert shown["tensors"] == "21 with 44,784 parameters: 21 float32"
    assert shown["trainer"] == "Hugging Face Trainer (trainer_state.json), transformers (config.json)"
    assert (shown["step"], shown["fit"]) == ("500", "the tensors have the names and shapes of the model")
    assert shown["model"] == "llama, from config.json: 2 layers of 48, a table of 96 rows"
    assert "no tokenizer.json is near" in shown["tokenizer"]
    moved = llama.rename(llama.parent / "final")
    assert rows(inspected(moved))["step"].startswith("NO not known; `evalsvc watch` leaves it alone: has no step")


def test_the_words_and_the_rows_give_the_layout_of_a_language_model(llama: Path) -> None:
    """Without a layout no task reads text; the command has everything that it needs."""
    write_tokenizer("simplear", llama).rename(llama / "tokenizer.json")
    ids = read_tokenizer(llama / "tokenizer.json").size
    write_ours("llama", llama, vocab_size=ids + 7)
    inspection = inspected(llama)
    assert rows(inspection)["layout"] == "every row is text"
    layout = parse_layout(json.loads(option(inspection, "--layout"))).resolve(ids + 7)
    assert (layout.text.size, layout.text.tokenizer) == (ids + 7, str(llama / "tokenizer.json"))
    assert inspection.commands[-1].startswith(f"evalsvc submit RUN 500 {llama} --suite SUITE --layout '")
    write_ours("llama", llama, vocab_size=ids - 1)
    assert rows(inspected(llama))["tokenizer"].startswith(f"NO tokenizer.json, {ids:,} ids; give the model's")
    write_ours("llama", llama, vocab_size=ids + 1031)
    inspection = inspected(llama)
    assert rows(inspection)["layout"].startswith("NO 1,031 rows more than the tokenizer has ids; of this size: image-")
    assert "widened" in rows(inspection)["layout"]
    assert inspection.commands[0] == f"evalsvc layout {llama} --pairs PAIRS --output layout.yaml"
    assert option(inspection, "--layout") == "layout.yaml"


def test_files_of_open_lm_and_the_folder_of_a_run(open_lm_case: Path) -> None:
    raw = rows(inspected(RUN / "checkpoints" / "epoch_3.pt"))
    assert raw["format"].startswith("open_lm epoch; 1 file, ")
    assert (raw["trainer"], raw["step"]) == ("open_lm (params.txt)", "80")
    assert raw["model"] == "open_lm, from ../open_lm_miniature.json: 3 layers of 96, a table of 583 rows"
    average = rows(inspected(open_lm_case / "checkpoints" / "ema_0.9_1_1.pt"))
    assert (average["format"].partition(";")[0], average["step"]) == ("open_lm average", "2, ema_0.9_1")
    run = inspected(RUN)
    assert rows(run)["format"].startswith("is a folder of checkpoints")
    assert (run.identified, run.commands) == (True, [f"evalsvc watch {RUN} --run RUN --suite SUITE"])


def test_a_file_without_a_configuration_is_told_by_its_names(llama: Path, tmp_path: Path) -> None:
    model = {"model": load_file(llama / "model.safetensors"), "optimizer": {}, "steps": 7}
    torch.save(model, tmp_path / "0000007.pt")
    inspection = inspected(tmp_path / "0000007.pt")
    shown = rows(inspection)
    assert (inspection.identified, shown["trainer"], shown["step"]) == (True, "LlamaGen (steps)", "7")
    assert shown["model"].startswith("NO no model configuration was given")
    assert "llama" in shown["names"]
    assert "open_lm" not in shown["names"]
    assert inspection.commands == [f"evalsvc inspect {tmp_path}/0000007.pt --model MODEL"]
    given = json.loads((llama / "config.json").read_text())
    known = inspected(tmp_path / "0000007.pt", model=given, options=" --model a.json")
    assert rows(known)["model"].startswith("llama, from --model: 2 layers")
    assert option(known, "--model") == "a.json"
    other = inspected(tmp_path / "0000007.pt", model={**given, "vocab_size": 97})
    assert "2 wrongly shaped" in rows(other)["fit"]
    assert other.commands == []
    torch.save({"some.weight": torch.ones(2)}, tmp_path / "step_1.pt")
    assert inspected(tmp_path / "step_1.pt").identified is False


def test_what_evalsvc_does_not_evaluate_is_identified(tmp_path: Path) -> None:
    names = ("cls_embedding.cap_proj.fc1.weight", "layers.0.attention.wqkv.weight")
    torch.save({name: torch.ones(2) for name in names}, tmp_path / "0050000.pt")
    inspection = inspected(tmp_path / "0050000.pt")
    assert (inspection.identified, inspection.commands) == (True, [])
    assert rows(inspection)["format"].startswith("NO is of LlamaGen's text-to-image model")


def test_folders_that_other_libraries_write(tmp_path: Path) -> None:
    """Whatever a reader makes of them, they are identified; torch writes its own."""
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings(action="ignore"):
        dcp.save({"model": {"embed_tokens.weight": torch.ones(2, 2)}}, checkpoint_id=str(tmp_path / "step-5"))
    sharded = inspected(tmp_path / "step-5")
    assert (sharded.facts["trainers"], sharded.identified) == (["torch.distributed.checkpoint"], True)
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    save_file({"base_model.model.q_proj.lora_A.weight": torch.ones(2, 2)}, tmp_path / "lora/adapter_model.safetensors")
    assert inspected(tmp_path / "lora").identified is True


def of_code(path: Path) -> None:
    archive(path, calling(os.system, f"touch {path.parent}/it-ran"))


def of_many(path: Path) -> None:
    path.mkdir()
    for number in range(MAX_FILES + 1):
        (path / f"{number}.txt").touch()


HOSTILE: dict[str, Any] = {
    "a program": of_code,
    "text": lambda path: path.write_text("hello"),
    "a bomb": deflated,
    "a lie of the catalogue": lambda path: patched(path, 2**31),
    "a tensor of 2^60 values": lambda path: archive(path, tensor_pickle((2**30, 2**30), (2**30, 1), 2**60)),
    "a header of 25 MB": lambda path: safetensors(path, b"{" + b" " * 26_000_000),
    "100,000 tensors": lambda path: safetensors(path, {f"a{number}": entry(0, 16) for number in range(100_000)}),
    "a pipe": os.mkfifo,
    "a circle": lambda path: path.symlink_to(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "memory of a process": lambda path: path.symlink_to("/proc/self/environ"),
    "too many files": of_many,
    "nothing": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_not_identified(name: str, tmp_path: Path) -> None:
    path = tmp_path / "step_1.pt"
    HOSTILE[name](path)
    began = time.process_time()
    inspection = inspected(path)
    assert time.process_time() - began < 2
    assert (inspection.identified, inspection.commands) == (False, [])
    assert rows(inspection)["format"].startswith("NO ")
    assert json.dumps(inspection.to_json())
    assert not (tmp_path / "it-ran").exists()


def test_files_around_the_weights_that_mean_harm_change_nothing_else(llama: Path) -> None:
    sound = rows(inspected(llama))
    (llama / "trainer_state.json").write_text('{"a":' * 100_000)
    (llama / "\x1b[2J.distcp\n").touch()
    (llama / "tokenizer.json").write_text("[")
    shown = inspected(llama)
    assert {name: rows(shown)[name] for name in ("tensors", "step", "model", "fit")} == {
        name: sound[name] for name in ("tensors", "step", "model", "fit")
    }
    assert rows(shown)["tokenizer"].startswith("NO the tokenizer tokenizer.json is not a tokenizer.json that works")
    assert all(text.isprintable() for check in shown.checks for text in (check.found, check.do))
    (llama / "tokenizer.json").unlink()
    os.mkfifo(llama / "tokenizer.json")
    assert rows(inspected(llama))["tokenizer"].startswith("NO no tokenizer.json is near")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_of_a_published_model_has_its_preset(name: str) -> None:
    layout = parse_layout(name)
    assert layout.image is not None
    table = max(layout.text.size, layout.image.offset + layout.image.size)
    assert name in fitting_layouts(table, PUBLISHED[name], layout.text.size)
    assert name not in fitting_layouts(table, "mistral", layout.text.size)
    assert set(PUBLISHED) == {key for key, preset in presets().items() if isinstance(preset, PublishedPreset)}
    assert set(PUBLISHED.values()) <= {*MODELS, "janus"}


def test_the_papers_table_has_the_presets_of_its_size() -> None:
    assert "image-then-special" in fitting_layouts(66_823, "open_lm", 50_277)
    assert list(fitting_layouts(50_432, "open_lm", 50_277)) == []


def test_a_configuration_tells_nothing_of_a_file_that_cannot_be_read(llama: Path) -> None:
    (llama / "step_5.pt").write_bytes(b"cut off")
    assert (inspected(llama / "step_5.pt").identified, inspected(llama).identified) == (False, True)


def test_a_copy_that_is_changed_meanwhile_is_said(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer may write the file that is looked at."""
    from evalsvc.doctor import inspection

    read = inspection.read_weights

    def change(path: Path) -> Any:
        result = read(path)
        os.utime(llama / "model.safetensors", ns=(1, 1))
        return result

    monkeypatch.setattr(inspection, "read_weights", change)
    assert "was changed while it was read" in rows(inspected(llama))["format"]
    shutil.rmtree(llama)


def test_the_watcher_names_the_command_for_a_file_that_it_will_never_post(tmp_path: Path) -> None:
    of_code(tmp_path / "step_1.pt")
    candidate = look_at(tmp_path / "step_1.pt")
    assert candidate is not None
    verdict = Classifier(Memory(tmp_path / "memory.json"), settle=0).classify(candidate)
    assert (verdict.kind, verdict.reason.count(INSPECT)) == ("no checkpoint", 1)


def test_images_and_their_prompts(tmp_path: Path) -> None:
    (folder := tmp_path / "samples").mkdir()
    for name in ("a", "b"):
        PIL.Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    bare = inspected(folder)
    assert rows(bare)["images"] == "2 images; the first, a.png, has 8×8 pixels"
    assert bare.commands[0] == f"evalsvc score {folder} --prompts PROMPTS --reference IMAGES"
    (folder / "prompts.csv").write_text("id,prompt\na,a cat\nb,a dog\n")
    assert rows(inspected(folder))["prompts"] == "2 images have a prompt"
    (folder / "prompts.csv").write_text("id,prompt\na,a cat\nc,a dog\n")
    assert "the prompt 'c' has no image" in rows(inspected(folder))["images"]
    (tmp_path / "samples.tar").write_text("no tar")
    wrong = inspected(tmp_path / "samples.tar")
    assert (wrong.identified, wrong.commands) == (False, [])
    assert rows(wrong)["images"].startswith("NO ends in .tar and is no such file; give images as a folder")
