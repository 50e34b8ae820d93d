"""Checkpoints that are out to harm who opens them, by what is wrong with each; all are small."""

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

LEGACY_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file begins that torch.save wrote before 1.6: a pickled number."""


def archive(path: Path, pickled: bytes, data: bytes = b"", **more: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("x/data.pkl", pickled)
        file.writestr("x/byteorder", b"little")
        file.writestr("x/version", b"3\n")
        file.writestr("x/data/0", data)
        for name, content in more.items():
            file.writestr(f"x/{name}", content)


def tensor_pickle(
    shape: tuple[int, ...], stride: tuple[int, ...], numel: int, offset: int = 0, *, alone: bool = False
) -> bytes:
    """A state dict of one tensor whose storage and shape are what one says, whatever the file has; or `alone`."""

    class Storage:
        pass

    class Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the one in Python can be told everything
        def persistent_id(self, found: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if isinstance(found, Storage) else None

    class Rebuilt:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, stride, False, OrderedDict())

    stream = io.BytesIO()
    content = {"state_dict": {"tok_embeddings.weight": Rebuilt()}, "epoch": 1}
    Pickler(stream, protocol=2).dump(Rebuilt() if alone else content)
    return stream.getvalue()


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def calling(function: Any, *arguments: Any, protocol: int = 2) -> bytes:
    return pickle.dumps({"epoch": 1, "state_dict": {}, "callback": Calls(function, *arguments)}, protocol)


def deflated(path: Path, size: int = 200_000_000) -> None:
    """A file of 200 KB whose data is 200 MB of zeros when it is unpacked."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", tensor_pickle((size // 4,), (1,), size // 4))
        file.writestr("x/version", b"3\n")
        file.writestr("x/data/0", bytes(size))


def patched(path: Path, declared: int) -> None:
    """The catalogue announces another size of the data than there is."""
    archive(path, tensor_pickle((4,), (1,), 4), bytes(16))
    content = bytearray(path.read_bytes())
    place = content.rfind(b"PK\1\2", 0, content.rfind(b"x/data/0"))
    struct.pack_into("<II", content, place + 20, declared, declared)
    path.write_bytes(content)


def safetensors(path: Path, header: dict[str, Any] | bytes) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(16))


def entry(begin: int, end: int, shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}
