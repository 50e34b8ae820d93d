"""Files of torch.save: hostile ones are refused however they come, and outlines are read without torch."""

import argparse
import codecs
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, ClassVar

import hostile_files
import numpy as np
import pytest
import torch
from hostile_files import archive, calling, patched, tensor_pickle
from safetensors.torch import save_file

from evalsvc.checkpoints.torch_file import OTHER, StandIn, read_outline
from evalsvc.checkpoints.weights import load_torch, read_weights
from evalsvc.errors import CheckpointError, NotACheckpoint, UnsafeCheckpoint


def called(kind: str, function: Any, *arguments: str) -> Callable[[Path], object]:
    """A checkpoint that calls a function when it is opened."""
    if kind == "zip":
        return lambda path: archive(path, calling(function, *arguments))
    if kind == "pickle":
        return lambda path: path.write_bytes(calling(function, *arguments))
    content = {"state_dict": {"a": torch.zeros(1)}, "callback": hostile_files.Calls(function, *arguments)}
    return lambda path: torch.save(content, path, _use_new_zipfile_serialization=False)


FLOAT64 = b"cnumpy\ndtype\n(U\x02f8K\x00K\x01tR"
POINTERS = b"cnumpy\ndtype\n(U\x02V8K\x00K\x01tR(K\x03U\x01|NNNK\x08K\x01K\x3ftb"
"""A numpy.dtype whose state says that its eight bytes are a pointer to an object; SCALAR gives them a value."""
SCALAR = b"\x80\x02cnumpy.core.multiarray\nscalar\n"


def two_directories(path: Path) -> None:
    """zipfile reads the catalogue in front of the end record, torch the one at the place that the record names."""
    archive(path, calling(os.system, "touch it-ran"), bytes(16))
    read_by_torch = path.read_bytes()[:-22]
    begin = read_by_torch.find(b"PK\1\2")
    archive(path, b"\x80\x02}.", bytes(16))
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, len(content) - 6, begin)
    catalogue = entry = content.find(b"PK\1\2")
    while entry >= 0:  # zipfile adds how far the catalogue is from where the record says
        (place,) = struct.unpack_from("<I", content, entry + 42)
        struct.pack_into("<I", content, entry + 42, place + begin - catalogue)
        entry = content.find(b"PK\1\2", entry + 1)
    path.write_bytes(read_by_torch + content)


def two_pickles(name: str) -> Callable[[Path], object]:
    """Two entries that could be the pickle: torch takes either."""

    def write(path: Path) -> None:
        archive(path, b"\x80\x02}.", data=bytes(4))
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(name, calling(os.system, "touch it-ran"))

    return write


def tar(path: Path) -> None:
    """torch's oldest format: pickles inside a tar file, which torch.load would unpack."""
    with tarfile.open(path, "w") as file:
        file.addfile(tarfile.TarInfo("sys_info"))


def announcing_header(path: Path) -> None:
    with path.open("wb") as file:
        file.write((10**9).to_bytes(8, "little") + b"{")
        file.truncate(2 * 10**9)


def announcing_storage(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"M\xe8\x03") > 0, "the number 1,000"
    path.write_bytes(content.replace(b"M\xe8\x03", b"J\xff\xff\xff\x7f"))


def stored(*tensor: Any, **where: int) -> Callable[[Path], object]:
    return lambda path: archive(path, tensor_pickle(*tensor, **where), bytes(16))


CLASS = "cno_such_module\nNoSuchClass\n"
REBUILT = "ctorch._utils\n_rebuild_tensor_v2\n("
STORAGE = f"(U\x07storage{CLASS}U\x010U\x03cpuK\x04t"


def state_dict(value: str) -> bytes:
    """A pickle of a state dict with one value, by the instructions that make it."""
    return b"\x80\x02}U\nstate_dict}U\x01w" + value.encode("latin-1") + b"ss."


DAMAGED = "damaged or not a torch.save file"
HUGE_TEXT = b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"x" * 1000
"""Whoever reads as many bytes as a pickle announces asks for that memory first."""

ATTACKS: tuple[tuple[bytes | Callable[[Path], object], type[CheckpointError], str], ...] = (
    *(
        (called(kind, function, *arguments), UnsafeCheckpoint, f".{function.__name__} when it is opened, so it was not")
        for kind in ("zip", "legacy", "pickle")
        for function, *arguments in ((os.system, "touch it-ran"), (getattr, "a", "format"), (torch.load, "it-ran"))
    ),
    (b"\x80\x02cno.such\nthing\n)R.", UnsafeCheckpoint, "would run no.such.thing"),
    (b"\x80\x02(S'touch it-ran'\nios\nsystem\n.", UnsafeCheckpoint, "pickle instruction"),  # INST
    (calling(os.system, "touch it-ran", protocol=4), UnsafeCheckpoint, "holds the pickle instruction"),
    (b"\x80\x02ctorch\nFloatStorage.from_file.__globals__\n.", UnsafeCheckpoint, "would run torch.FloatStorage.from_"),
    # BUILD on what torch allows, with a state of one's own
    (b"\x80\x02ccollections\nOrderedDict\n)R}U\x05itemsU\x01xsb.", NotACheckpoint, "holds nothing"),
    (b"\x80\x02]}U\x01aK\x01sb.", NotACheckpoint, DAMAGED),
    (SCALAR + POINTERS + b"U\x08AAAAAAAA\x86R.", UnsafeCheckpoint, "would create numpy values of kind 'V8'"),
    (b"\x80\x02" + FLOAT64 + b".", NotACheckpoint, "holds a PlainDtype"),
    (b"\x80\x02" + FLOAT64 + b"(K\x03U\x01OKJtb.", UnsafeCheckpoint, "would change the layout of numpy's numbers"),
    (SCALAR + b"U\x02f8U\x08AAAAAAAA\x86R.", UnsafeCheckpoint, "a numpy value from something other than its bytes"),
    (SCALAR + FLOAT64 + b"U\x04AAAA\x86R.", UnsafeCheckpoint, "a numpy value from something other than its bytes"),
    (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.", NotACheckpoint, "holds an object of a class, not tensors"),
    *(
        (b"\x80\x02c" + name + b"\n)R.", UnsafeCheckpoint, "would run " + name.replace(b"\n", b".").decode())
        for name in (b"os\nPathLike", b"posix\nDirEntry", b"a.b\nF.__globals__", b"torch\nFloatTensor", b"torch.nn\nf")
    ),
    # a class in the place of what torch makes a tensor of
    (state_dict(f"{REBUILT}{CLASS}tR"), NotACheckpoint, DAMAGED),
    (state_dict(f"{REBUILT}({STORAGE}QK\x00K\x04\x85K\x01\x85\x89Nt\x85R"), NotACheckpoint, DAMAGED),
    (state_dict(f"ctorch._tensor\n_rebuild_from_type_v2\n({CLASS}{CLASS})NtR"), NotACheckpoint, "other things than"),
    (state_dict(f"{CLASS})\x81}}U\x09__class__{CLASS}sb"), NotACheckpoint, "holds other things than tensors: w"),
    (state_dict(f"{CLASS})\x81(K\x01e"), NotACheckpoint, DAMAGED),
    (state_dict(f"{CLASS})\x81)R"), NotACheckpoint, DAMAGED),  # a call of an object
    (
        b"\x80\x02]" + b"".join(b"cm\nC%d\na" % number for number in range(101)) + b".",
        UnsafeCheckpoint,
        "than 100 classes",
    ),
    (calling(bytearray, b"x"), UnsafeCheckpoint, "would run builtins.bytearray"),  # of any length
    (calling(tuple, [codecs.encode]), UnsafeCheckpoint, "would run builtins.tuple"),
    (b"\x80\x02.", NotACheckpoint, DAMAGED),
    (b"\x80\x02X\xff\xff\xff\x7fabc.", NotACheckpoint, DAMAGED),
    # A pickle that is hidden from the check: torch reads what it takes for the pickle with `weights_only=True`.
    *(
        (write, CheckpointError, "")
        for write in (two_directories, two_pickles("x/Data.pkl"), two_pickles("y/data.pkl"))
    ),
    # More than the file holds: refused, and not read as the values of something else
    (hostile_files.deflated, NotACheckpoint, "is a compressed zip, which torch.save never writes"),
    (lambda path: patched(path, 2_000_000_000), NotACheckpoint, DAMAGED),
    (lambda path: path.write_bytes(HUGE_TEXT), UnsafeCheckpoint, "holds the pickle instruction 141"),
    (stored((10**10,), (1,), 10**10), NotACheckpoint, DAMAGED),
    (announcing_storage, NotACheckpoint, DAMAGED),
    (stored((4,), (1,), 4, offset=1000), NotACheckpoint, DAMAGED),
    (stored((4,), (-1,), 4), NotACheckpoint, DAMAGED),
    (announcing_header, NotACheckpoint, "claims a safetensors header of 1,000,000,000 bytes"),
    (tar, NotACheckpoint, "a checkpoint is a torch.save file"),
    (lambda path: archive(path, b"", **{"constants.pkl": b""}), NotACheckpoint, "is a TorchScript program; save the"),
)
"""Pickles of an archive, or functions that write a file; and how each is refused."""


@pytest.mark.parametrize(("attack", "error", "words"), ATTACKS)
def test_a_hostile_file_is_refused_and_runs_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    attack: bytes | Callable[[Path], object],
    error: type[CheckpointError],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pt"
    archive(path, attack) if isinstance(attack, bytes) else attack(path)
    with pytest.raises(error) as caught:
        read_weights(path)
    assert str(path) in caught.value.message
    assert words in caught.value.message
    assert not (tmp_path / "it-ran").exists()


class Colour(Enum):
    RED = 1


class Marked:
    """An object whose every method leaves a mark."""

    marks: ClassVar[list[str]] = []

    def __reduce_ex__(self, _protocol: object) -> Any:
        return Marked, (), {"a": 1}

    def __init__(self) -> None:
        self.marks.append("init")

    def __setstate__(self, _state: object) -> None:
        self.marks.append("setstate")


class Config(dict[str, Any]):
    """A dictionary with attributes, as of yacs and easydict."""


def options(folder: Path) -> argparse.Namespace:
    config = Config(a=Config(b=1))
    config.c = [1, 2]  # type: ignore[attr-defined]
    values = {"folder": folder, "colour": Colour.RED, "config": config, "more": SimpleNamespace(a=[1]), "kind": int}
    values |= {"times": [datetime.now(UTC), timedelta(1)], "by_name": defaultdict(dict, a=1), "dtype": torch.bfloat16}
    return argparse.Namespace(**values, draws=np.random.get_state(), array=np.ones(2), torch=torch.__version__)


def test_options_beside_the_tensors_are_not_created(tmp_path: Path) -> None:
    """LlamaGen's trainer saves its options in every checkpoint, which was refused."""
    path, tensor = tmp_path / "0000005.pt", torch.ones(2)
    torch.save({"model": {"w": tensor}, "optimizer": {"state": Marked()}, "steps": 5, "args": options(tmp_path)}, path)
    Marked.marks.clear()
    before = set(torch.serialization.get_safe_globals())
    assert torch.equal(read_weights(path).tensors["w"], tensor)
    content: Any = load_torch(path)
    assert type(content["args"]) is type(content["optimizer"]["state"]) is StandIn
    assert not hasattr(content["args"], "__dict__")
    assert read_outline(path) == {"model": OTHER, "optimizer": OTHER, "steps": 5, "args": OTHER}
    assert Marked.marks == []
    assert set(torch.serialization.get_safe_globals()) == before, "this ends with the call"
    for weights in ({"w": tensor, "o": Marked()}, Config(w=tensor)):
        torch.save({"model": weights}, path)
        with pytest.raises(NotACheckpoint, match=r"holds other things than tensors: (o|model); exp"):
            read_weights(path)
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(NotACheckpoint, match=r"holds an object of a class, not tensors, so .*model\.state_dict\(\)"):
        read_weights(path)
    torch.save({"model": {"w": tensor}, "args": options(tmp_path)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafeCheckpoint, match=r"would run argparse\.Namespace when it is opened"):
        read_weights(path)  # of torch before 1.6


def test_options_of_omegaconf_are_not_created(tmp_path: Path) -> None:
    omegaconf = pytest.importorskip("omegaconf", reason="needs omegaconf, whose objects trainers save")
    config = omegaconf.OmegaConf.create({"a": {"b": [1, "x", None, 1.5, True]}, "folder": tmp_path})
    torch.save({"state_dict": {"w": torch.ones(2)}, "cfg": config}, tmp_path / "x.pt")
    assert list(read_weights(tmp_path / "x.pt").tensors) == ["w"]


NESTED = b"\x80\x02}()" + b"\x85" * 100_000 + b"K\x01u."
DOUBLED = b"\x80\x02]()q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(50)) + b"e}h\x32K\x01s."
OPENED = b"\x80\x02" + b"(" * 2000 + b"t" * 2000 + b"."


@pytest.mark.parametrize("pickled", [NESTED, DOUBLED, OPENED])
def test_a_pickle_that_would_end_the_process_is_refused(tmp_path: Path, pickled: bytes) -> None:
    """The hash of a key of nested tuples ended the watcher, and that of a tuple doubled 50 times did not end."""
    archive(tmp_path / "x.pt", pickled)
    with pytest.raises(NotACheckpoint, match="too many or nested values"):
        read_weights(tmp_path / "x.pt")


def test_values_that_are_numbered_out_of_order_are_refused(tmp_path: Path) -> None:
    """Python makes room for 64 GB of numbered values."""
    archive(tmp_path / "x.pt", b"\x80\x02}r" + (2**31 - 1).to_bytes(4, "little") + b".")
    with pytest.raises(NotACheckpoint, match=DAMAGED):
        read_weights(tmp_path / "x.pt")


def test_the_numbers_of_python_2_begin_at_1(tmp_path: Path) -> None:
    """torchvision's VGG-16 and LPIPS's weights are files of Python 2."""
    path = tmp_path / "x.pth"
    torch.save({"a": torch.arange(3.0), "b": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    content, begin = bytearray(path.read_bytes()), 0
    for _ in range(5):
        codes = list(pickletools.genops(content[begin:]))
        for code, number, place in codes:
            if code.name in ("BINPUT", "BINGET"):
                content[begin + place + 1] = number + 1
        begin += codes[-1][2] + 1
    assert content != path.read_bytes()
    path.write_bytes(content)
    tensors = read_weights(path).tensors
    assert (tensors["a"].tolist(), tensors["b"].tolist()) == ([0, 1, 2], [0, 0])


def test_an_epoch_that_is_no_number_is_not_written_into_a_message(tmp_path: Path) -> None:
    archive(tmp_path / "x.pt", b"\x80\x02}U\x05epoch" + b"]" * 100_000 + b"a" * 99_999 + b"s.")
    with pytest.raises(NotACheckpoint, match="holds other things than tensors: epoch; expected tensors"):
        read_weights(tmp_path / "x.pt")


def test_no_module_of_a_file_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    archive(tmp_path / "x.pt", b"\x80\x02}(U\x04stepK\x05U\x01wcevil_module\nEvil\n)\x81}U\x01aK\x01sbu.")
    with pytest.raises(NotACheckpoint, match="holds other things than tensors: step, w"):
        read_weights(tmp_path / "x.pt")
    assert read_outline(tmp_path / "x.pt") == {"step": 5, "w": OTHER}
    assert "evil_module" not in sys.modules
    program = {"model": {"w": torch.ones(1)}, "hook": hostile_files.Calls(subprocess.Popen, ["touch", "it-ran"])}
    monkeypatch.chdir(tmp_path)
    torch.save(program, tmp_path / "x.pt")
    assert list(read_weights(tmp_path / "x.pt").tensors) == ["w"]
    assert not (tmp_path / "it-ran").exists()


def test_a_class_that_torch_was_told_to_trust_is_not_created(tmp_path: Path) -> None:
    """A library of a plug-in may have told torch so, for files of its own."""
    torch.save({"model": {"w": torch.ones(1)}, "x": Marked()}, tmp_path / "x.pt")
    Marked.marks.clear()
    trusted = torch.serialization.safe_globals([Marked])
    with trusted, pytest.raises(UnsafeCheckpoint, match=r"would run .*Marked when it is"):
        read_weights(tmp_path / "x.pt")
    assert Marked.marks == []


def test_the_pickle_of_a_file_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is read into memory, also by the watcher."""
    torch.save({"w": torch.ones(1), "log": list(range(1000))}, tmp_path / "x.pt")
    monkeypatch.setattr("evalsvc.checkpoints.torch_file.MAX_PICKLE", 1000)
    for read in (read_weights, read_outline):
        with pytest.raises(NotACheckpoint, match=r"has a pickle of 2,\d\d\d bytes, too many for a model"):
            read(tmp_path / "x.pt")


def test_methods_that_a_file_brings_along_are_left_behind(tmp_path: Path) -> None:
    """An attribute of a tensor would be called in the place of its method."""
    parameter = torch.nn.Parameter(torch.ones(2))
    torch.save({"state_dict": {"a": parameter}, "epoch": 1}, tmp_path / "x.pt")
    tensor = read_weights(tmp_path / "x.pt").tensors["a"]
    assert type(tensor) is torch.Tensor
    assert tensor.__dict__ == {}
    assert not tensor.requires_grad


def test_tensors_of_every_kind_are_read(tmp_path: Path) -> None:
    """Without checksums, which torch can be told not to compute; shared, as views, sparse, and without data."""
    table, place, path = torch.ones(1 << 18), torch.zeros(1, 1, dtype=torch.int64), tmp_path / "x.pt"
    sparse = torch.sparse_coo_tensor(place, torch.ones(1), (10**12,), check_invariants=True)
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, path)
    finally:
        torch.serialization.set_crc32_options(computed)
    assert read_weights(path).tensors["a"].tolist() == [1, 1, 1]
    for content in (
        {"tok_embeddings.weight": table, "output.weight": table},
        {"a": torch.ones(4, 6).T, "b": torch.ones(2, 3)[:, 1:]},
        {"a": sparse, "b": torch.empty(10**12, device="meta")},
    ):
        torch.save(content, path)
        assert len(read_weights(path).tensors) == 2


def damaged(content: bytes, chance: Random) -> bytes:
    """A few bytes changed, dropped, doubled, or made into instructions and large numbers."""
    found = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        place = chance.randrange(len(found))
        instruction = bytes([chance.choice(b"\x80}()]c\x85\x86\x87tRbsuaeqhXKJMGNU.Q0")])
        others = [bytes([chance.randrange(256)]), instruction, b"\xff\xff\xff\x7f", bytes(4)]
        found[place : place + chance.randrange(5)] = chance.choice([*others, bytes(found[place : place + 30])])
    return bytes(found)


def test_random_damage_is_told_and_never_crashes(tmp_path: Path) -> None:
    """20,000 such files were tried; these are for what changes later."""
    chance, path = Random(0), tmp_path / "x"
    tensors = {"tok_embeddings.weight": torch.ones(8, 4), "b": torch.ones(4, 4).T, "c": torch.arange(5)}
    content = {"epoch": 1, "step": np.int64(3), "state_dict": tensors}
    torch.save(content | {"args": options(tmp_path)}, tmp_path / "zip")
    torch.save(content, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    save_file({"a": torch.ones(8, 4), "c": torch.arange(5)}, tmp_path / "safetensors")
    originals = [(tmp_path / kind).read_bytes() for kind in ("zip", "legacy", "safetensors")]
    with zipfile.ZipFile(tmp_path / "zip") as source:
        pickled = source.read("zip/data.pkl")
    refusals = 0
    for number in range(200):
        if number % 2:
            archive(path, damaged(pickled, chance), bytes(128))
        else:
            path.write_bytes(damaged(chance.choice(originals), chance))
        try:
            read_weights(path)
        except CheckpointError:
            refusals += 1
    assert 100 < refusals < 200


# outlines


@pytest.mark.parametrize("name", ["epoch_1.pt", "ema_0.9_1_1.pt", "optimizer_1.pt", "stats_1.pt"])
def test_agrees_with_torch_on_what_open_lm_writes(open_lm_case: Path, name: str) -> None:
    path = open_lm_case / "checkpoints" / name
    content = torch.load(path, weights_only=False)
    found = read_outline(path)
    assert list(found) == list(content)
    plain = {key: value for key, value in found.items() if value is not OTHER}
    assert plain == {key: content[key] for key in plain}
    kinds = (int, float, str)
    assert {key for key, value in content.items() if type(value) in kinds} == set(plain)


def test_an_outline_is_of_what_is_read(tmp_path: Path) -> None:
    """What is refused has none."""
    content = {"state_dict": OrderedDict(a=[1, (2, 3)]), "step": 70_000, "large": 2**80, "text": "é"}
    archive(tmp_path / "x.pt", pickle.dumps(content, 2))
    assert read_outline(tmp_path / "x.pt") == {"state_dict": OTHER, "step": 70_000, "large": 2**80, "text": "é"}
    for pickled in (pickle.dumps(content, 4), pickle.dumps(hostile_files.Calls(time.sleep, 1000), 2)):
        archive(tmp_path / "x.pt", pickled)
        with pytest.raises(UnsafeCheckpoint):
            read_outline(tmp_path / "x.pt")


def test_outlines_of_what_is_no_plain_checkpoint(tmp_path: Path) -> None:
    """A `step` deep inside the optimizer's state is not the training's."""
    torch.save([1, 2], tmp_path / "x.pt")
    assert read_outline(tmp_path / "x.pt") == {}
    torch.save({"optimizer": {"state": {"step": 5}}, "epoch": 1}, tmp_path / "x.pt")
    assert read_outline(tmp_path / "x.pt") == {"optimizer": OTHER, "epoch": 1}
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NotACheckpoint, match="cut off"):
        read_outline(tmp_path / "x.pt")
