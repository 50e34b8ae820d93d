import hashlib
from pathlib import Path

import numpy as np
import pytest
from prepare import code_store
from prepare.code_store import CodeStore


def name(number: int) -> str:
    return hashlib.sha256(bytes([number])).hexdigest()


def filled(folder: Path, numbers: range, codebook: int = 64) -> CodeStore:
    store = CodeStore(folder, 4, codebook)
    for number in numbers:
        store.add(name(number), name(100 + number), np.arange(number, number + 4))
    store.flush()
    return store


@pytest.mark.parametrize("codebook", [64, 1 << 16, 1 << 20])
def test_codes_come_back(tmp_path: Path, codebook: int) -> None:
    filled(tmp_path, range(3), codebook)
    store = filled(tmp_path, range(3, 5), codebook)
    last = CodeStore(tmp_path, 4, codebook)
    for number in range(5):
        for opened in (store, last):
            assert name(number) in opened
            assert opened.codes(name(number)) == [*range(number, number + 4)]
            assert opened.pixels(name(number)) == name(100 + number)
    assert name(5) not in last
    assert len(last) == 5


def test_codes_are_written_after_a_number_of_images_and_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not written is lost with the process."""
    monkeypatch.setattr(code_store, "FILE_IMAGES", 2)
    store = CodeStore(tmp_path, 4, 64)
    for number in range(3):
        store.add(name(number), name(100), np.zeros(4, np.int64))
    assert len(CodeStore(tmp_path, 4, 64)) == 2
    monkeypatch.setattr(code_store, "FILE_SECONDS", -1.0)
    store.add(name(3), name(100), np.zeros(4, np.int64))
    assert len(CodeStore(tmp_path, 4, 64)) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: b"",
        lambda content: content + content,
    ],
)
def test_a_damaged_file_is_noticed(tmp_path: Path, damage: object) -> None:
    """A flipped bit would be another image for ever."""
    filled(tmp_path, range(3))
    [path] = tmp_path.glob("*.codes")
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    store = CodeStore(tmp_path, 4, 64)
    assert (store.damaged, len(store)) == ([path.name], 0)


def test_codes_of_another_codebook_are_refused(tmp_path: Path) -> None:
    filled(tmp_path, range(60, 62), codebook=1 << 16)
    store = CodeStore(tmp_path, 4, 64)
    assert (len(store.damaged), len(store)) == (1, 0)
