"""What trainers' own libraries leave behind is read as the weights that they were given."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import trainer_files
from programs import lacking, output_of
from safetensors.torch import load_file, save_file
from tiny_families import write_ours, write_theirs
from torch import Tensor
from trainer_files import STEP

from evalsvc.checkpoints.formats import weights_at
from evalsvc.checkpoints.opening import opened, opened_neighbours
from evalsvc.checkpoints.reference import EVERY_FILE, CheckpointRef, hash_files, identify
from evalsvc.checkpoints.remote.fetch import locate_checkpoint
from evalsvc.checkpoints.remote.source import RemoteFile, weights_of_folder
from evalsvc.checkpoints.tensors import tensor_digest
from evalsvc.checkpoints.weights import read_weights
from evalsvc.config import Settings
from evalsvc.errors import CheckpointError, CheckpointMismatch, CheckpointNotAllowed, NotACheckpoint
from evalsvc.families.reading import find_model_config
from evalsvc.models import load_model
from evalsvc.watch.completeness import Classifier, Memory
from evalsvc.watch.folders import LocalFolder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A folder of transformers, whose weights every other file must have."""
    pytest.importorskip("transformers", reason="needs transformers, of the extra features")
    write_theirs("llama", tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(4, 6, generator=generator) for name in ("a.weight", "b.weight", "c.weight")}


def written(kind: str, folder: Path) -> None:
    output_of(sys.executable, trainer_files.__file__, kind, folder)


def is_same(path: Path, whole: Path) -> bool:
    return tensor_digest(read_weights(path).tensors) == tensor_digest(read_weights(whole).tensors)


def refused(path: Path, message: str, error: type[CheckpointError] = NotACheckpoint) -> str:
    with pytest.raises(error, match=message) as caught:
        read_weights(path)
    return caught.value.message


def test_files_of_fsdp(whole: Path, child_process: None) -> None:
    """With recomputed activations, whose wrapper is inside the names that are not of `state_dict`."""
    pytest.importorskip("accelerate", reason="needs accelerate, of the extra features")
    folder = whole.parent
    written("fsdp", folder)
    names = torch.load(folder / "names" / "wrapped.pt").keys() | torch.load(folder / "names" / "compiled.pt").keys()
    wrappers = ("_fsdp_wrapped_module.", "._checkpoint_wrapped_module.", "_orig_mod.")
    assert all(any(wrapper in name for name in names) for wrapper in wrappers)
    for place in ("consolidated", "accelerate", "names/wrapped.pt", "names/compiled.pt"):
        assert is_same(folder / place, whole), place
    shutil.copy(whole / "config.json", folder / "accelerate")
    assert is_same_model(folder / "accelerate", whole)


def is_same_model(path: Path, whole: Path) -> bool:
    first, second = load_model(path).state_dict(), load_model(whole).state_dict()
    return all(torch.equal(first[name], second[name]) for name in second)


def test_folders_of_deepspeed(whole: Path, child_process: None) -> None:
    """In the folder of a step, and above, as the Trainer of Hugging Face saves it next to its configuration."""
    if find_spec("deepspeed") is None:
        lacking("deepspeed", "needs deepspeed: pip install deepspeed")
    folder = whole.parent
    written("deepspeed", folder)
    for stage in ("stage-0", "stage-2"):
        shutil.copy(whole / "config.json", folder / stage)
        assert is_same_model(folder / stage, whole)
        for place in (stage, f"{stage}/{STEP}", f"{stage}/{STEP}/mp_rank_00_model_states.pt"):
            assert is_same(folder / place, whole), place
    optimizer = f"stage-2/{STEP}/zero_pp_rank_0_mp_rank_00_optim_states.pt"
    refused(folder / optimizer, "is of DeepSpeed's optimizer; post the folder of all files")
    for place in ("stage-3", f"stage-3/{STEP}"):
        command = refused(folder / place, r"ZeRO-3").rpartition(f"post {folder / place} again: python ")[2]
        assert refused(folder / f"stage-3/{STEP}" / "zero_pp_rank_0_mp_rank_00_model_states.pt", "ZeRO-3")
        output_of(sys.executable, *command.split())
        assert is_same(folder / place, whole)


def test_folders_and_files_are_pinned_and_watched(tmp_path: Path) -> None:
    """A worker reads names in a private folder, and the watcher asks whether a folder is whole."""
    write_ours("llama", tmp_path / "whole")
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    run, names, options = tmp_path / "run", list(tensors), argparse.Namespace(folder=tmp_path)
    for place in ("checkpoint-500/global_step500", "step_600", "step_700"):
        (run / place).mkdir(parents=True)
    deepspeed = {"module": {f"module.{name}": tensor for name, tensor in tensors.items()}, "optimizer": options}
    torch.save(deepspeed, run / "checkpoint-500" / "global_step500" / "mp_rank_00_model_states.pt")
    for number, part in enumerate((names[:5], names[5:]), 1):
        save_file({name: tensors[name] for name in part}, run / "step_600" / f"model-{number:05}-of-00002.safetensors")
    torch.save(tensors, run / "step_700" / "pytorch_model_fsdp.bin")
    torch.save({"model": tensors, "steps": 800, "args": options}, run / "0000800.pt")
    classifier, steps = Classifier(Memory(tmp_path / "memory.json"), settle=0), {}
    for candidate in LocalFolder(run).list():
        steps[classifier.classify(candidate).step] = candidate.name
        assert candidate.path is not None
        config = candidate.path if candidate.path.is_dir() else run
        shutil.copy(tmp_path / "whole" / "config.json", config)
        reference = CheckpointRef(str(candidate.path), identity=identify(candidate.path))
        with opened(reference) as pinned:
            assert hash_files(Path(pinned.path)) == hash_files(candidate.path)
            assert is_same_model(Path(pinned.path), tmp_path / "whole")
    assert steps == {500: "checkpoint-500", 600: "step_600", 700: "step_700", 800: "0000800.pt"}
    remote = [RemoteFile(path.name, 1, "", "") for path in (run / "step_600").iterdir()]
    assert len(weights_of_folder("s3://runs/step_600", remote)) == 3


def test_one_configuration_is_that_of_all_of_deepspeed_s_steps(tmp_path: Path) -> None:
    write_ours("llama", tmp_path / "whole")
    step = tmp_path / "run" / "global_step5"
    step.mkdir(parents=True)
    torch.save({"module": load_file(tmp_path / "whole" / "model.safetensors")}, step / "mp_rank_00_model_states.pt")
    shutil.copy(tmp_path / "whole" / "config.json", step.parent)
    for path in (step, step / "mp_rank_00_model_states.pt"):
        with opened(CheckpointRef(str(path), identity=identify(path))) as pinned:
            assert is_same_model(Path(pinned.path), tmp_path / "whole")
        with opened_neighbours(path, EVERY_FILE) as posted:
            assert find_model_config(posted) is not None


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_deepspeed_s_folders_that_hold_no_whole_model(tmp_path: Path) -> None:
    model, part = "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"
    run = touched(tmp_path / "run", f"global_step1/{model}", f"global_step2/{model}", "latest")
    refused(run, "is the folder of a run: post one of its folders global_step1, global_step2")
    assert weights_at(run / "global_step2", "x") == run / "global_step2" / model
    for number, other in enumerate(("mp_rank_01_model", "layer_00-model", "layer_0_expert_1_mp_rank_00_model")):
        parts = touched(tmp_path / str(number), model, f"{other}_states.pt")
        refused(parts, f"holds {other}_states.pt: DeepSpeed divided the model by tensors, layers or experts; save")
    refused(touched(tmp_path / "pipeline", "mp_rank_01_model_states.pt"), "divided the model by tensors")
    both = touched(tmp_path / "both", "model.safetensors", f"global_step1/{part}")
    assert weights_at(both, "x") == both / "model.safetensors"
    refused(touched(tmp_path / "unlike", "rng_states.pt", f"deep/er/{model}"), "it holds rng_states.pt: post one")


def test_links_of_a_step_lead_nowhere_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALSVC_ROOTS", str(tmp_path / "root"))
    outside = touched(tmp_path / "outside", "mp_rank_00_model_states.pt")
    for name, target in (("folder/global_step5", outside), ("file/global_step5/mp_rank_00_model_states.pt", outside)):
        link = tmp_path / "root" / name
        link.parent.mkdir(parents=True)
        link.symlink_to(target if link.suffix == "" else target / link.name)
        with pytest.raises(CheckpointNotAllowed, match="links, outside the allowed folders"):
            locate_checkpoint(str(tmp_path / "root" / name.partition("/")[0]), Settings.load())


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_parts_without_an_index(tensors: dict[str, Tensor], tmp_path: Path, ending: str) -> None:
    """The advice was to post one of the parts, which lacks the tensors of the others."""
    folder, save = tmp_path / "model", save_file if ending == "safetensors" else torch.save
    folder.mkdir()
    names = [f"model-{number:05}-of-00003.{ending}" for number in (1, 2, 3)]
    for name, (key, tensor) in zip(names, tensors.items(), strict=True):
        save({f"model.{key}": tensor}, folder / name)
    assert tensor_digest(read_weights(folder).tensors) == tensor_digest(tensors)
    for name in names:
        refused(folder / name, f"{name} is one of 3 parts of a model; post the folder of all parts")
    save({"model.a.weight": tensors["a.weight"]}, folder / names[2])
    refused(
        folder, f"a.weight is in two of the files that {folder} names; remove it from {names[2]}", CheckpointMismatch
    )
    (folder / names[1]).unlink()
    refused(folder, f"holds 2 of the 3 parts of a model, and not {names[1]}; copy all parts")
    (folder / names[1]).mkdir()
    refused(folder, f"{names[1]}, which is missing")
    save(tensors, folder / f"other-00001-of-00001.{ending}")
    refused(folder, f"holds parts of several models: {names[0]}, other-00001-of-00001.{ending}; keep the parts of one")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.move(folder / f"other-00001-of-00001.{ending}", alone)
    for path in (alone, *alone.iterdir()):
        assert read_weights(path).tensors.keys() == tensors.keys()


def test_a_claim_of_many_parts_is_refused_at_once(tmp_path: Path) -> None:
    claimed = touched(tmp_path / "many", "model-00001-of-99999.bin")
    named = touched(tmp_path / "names", *(f"model-{number:05}-of-{number:05}.bin" for number in range(1, 1001)))
    begin = time.process_time()
    refused(claimed, "holds 1 of the 99999 parts .* and 99995 more")
    refused(named, "holds parts of several models: model-00001-of-00001.bin, ")
    assert time.process_time() - begin < 1
