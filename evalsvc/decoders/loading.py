"""Loading a file as an image decoder that is ready to run, with errors that say why loading fails."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from evalsvc.checkpoints.tensors import DTYPES, copied, emptied, is_plain, listed, some
from evalsvc.checkpoints.weights import Weights, read_weights
from evalsvc.decoders.config import resolve_config
from evalsvc.decoders.decoder import ImageDecoder
from evalsvc.errors import CheckpointMismatch, InvalidModelConfig, UnknownName, UnsupportedModel, show_name
from evalsvc.families.refused import refuse_decoder, refuse_files
from evalsvc.spec import catalog

EXTRAS = ("loss.", "ema_", "model_ema.")
"""Prefixes of tensors that a training checkpoint has in addition to the network: discriminator, averaged weights."""
COUNTER = ".num_batches_tracked"
"""End of the names of counters of training, which batch norms have."""
CODEBOOK = "quantize.embedding.weight"


def load_decoder(
    path: str | Path,
    config: str | Path | Mapping[str, object] | None = None,
    ema: bool = False,
    *,
    device: str = "cpu",
    dtype: str = "float32",
) -> ImageDecoder:
    """Return the decoder in `path`, in eval mode and without gradients, as one copy of the weights on `device`.

    See `resolve_config` for `config`; its `model.target`, or without a target the file's keys, select the kind. With
    `ema`, the averaged weights that a training checkpoint holds under `ema` or `ema_…` are loaded instead of the raw
    weights.
    """
    if dtype not in DTYPES:
        raise UnknownName.among("dtype", dtype, DTYPES)
    path = Path(path)
    refuse_files(str(path), (path.name, *(file.name for file in path.glob("*.jit"))))
    content = resolve_config(config, path)
    refuse_decoder(str(path), content)
    weights = read_weights(path)
    kind = _kind(path, content.get("target"), weights.tensors)
    with torch.device("meta"):
        decoder = kind.from_config(content)
    tensors, ignored = _matched(path, weights, decoder, ema)
    del weights  # `tensors` then holds the last reference to each tensor
    decoder.load_state_dict(copied(path, emptied(tensors), DTYPES[dtype], device), assign=True)
    decoder.ignored = ignored
    if torch.device(device).type == "cpu":
        for parameter in decoder.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return decoder.requires_grad_(False).eval()


def _kind(path: Path, target: object, names: Collection[str]) -> type[ImageDecoder]:
    known = catalog.names("decoders")
    if target is not None and not isinstance(target, str):
        raise InvalidModelConfig(f"model.target is {type(target).__name__}; it must be the dotted name of a class")
    for name in known:
        kind: type[ImageDecoder] = catalog.load("decoders", name)
        if kind.recognises(target, names):
            return kind
    wanted = f"model.target {show_name(target)}" if target else f"keys such as {some(sorted(names))}"
    raise UnsupportedModel(f"{path} with {wanted} is of no known decoder; give a file of one of: {', '.join(known)}")


def _matched(
    path: Path, weights: Weights, decoder: ImageDecoder, ema: bool
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    is_apart = ema and bool(weights.averaged)
    held = _by_authors_name(path, weights.averaged if is_apart else weights.tensors, decoder)
    expected = {decoder.file_name(name): tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    source = {name: name for name in expected}
    if ema and not is_apart:
        parts = {name: name.partition(".") for name in expected}
        source = {name: f"ema_{part}.{rest.replace('.', '')}" for name, (part, _, rest) in parts.items()}
    if ema and not any(key in held for key in source.values()):
        raise CheckpointMismatch(
            f"{path} ({weights.format}) holds no averaged weights (keys such as {next(iter(source.values()))}); "
            "load the raw weights with ema=False"
        )
    used = {key: name for name, key in source.items()}
    for key, name in used.items():
        if key in held and expected[name] == (*held[key].shape, 1, 1):  # transformers' linear layers are convolutions
            held[key] = held[key][..., None, None]
    known = (*EXTRAS, *decoder.extras)
    missing = [key for key in used if key not in held]
    unknown = [key for key in held if key not in used and key not in expected]
    unexpected = [key for key in unknown if not key.startswith(known) and not key.endswith(COUNTER)]
    present = {key: (held[key], expected[name]) for key, name in used.items() if key in held}
    wrong = [
        f"{key} {list(tensor.shape)} instead of {list(shape)}"
        for key, (tensor, shape) in present.items()
        if tuple(tensor.shape) != shape
    ]
    problems = [*listed("missing", missing), *listed("unexpected", unexpected), *listed("wrongly shaped", wrong)]
    problems += listed("no plain floating-point tensor", (key for key, (t, _) in present.items() if not is_plain(t)))
    problems += _advice(present, used, missing)
    if problems:
        raise CheckpointMismatch("; ".join([f"{path} ({weights.format}) does not match its configuration", *problems]))
    tensors = {name: held[source[decoder.file_name(name)]] for name in decoder.state_dict()}
    return tensors, tuple(sorted(held.keys() - used.keys()))


def _by_authors_name(path: Path, tensors: Mapping[str, Tensor], decoder: ImageDecoder) -> dict[str, Tensor]:
    """Return a file's tensors of the decoder, without other networks', by the names of the decoder's authors."""
    prefix = next((prefix for prefix in decoder.prefixes if any(key.startswith(prefix) for key in tensors)), "")
    named: dict[str, Tensor] = {}
    keys: dict[str, str] = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            name = decoder.authors_name(key.removeprefix(prefix))
            if name in named:
                raise CheckpointMismatch(
                    f"{path} holds both {keys[name]} and {key}, which are one parameter; save one decoder only"
                )
            named[name], keys[name] = tensor, key
    return named


def _advice(
    present: Mapping[str, tuple[Tensor, tuple[int, ...]]], used: Mapping[str, str], missing: Collection[str]
) -> list[str]:
    parts = {used[key].partition(".")[0] for key in present}
    if "encoder" in parts and "decoder" not in parts:
        return ["the file has an encoder and no decoder (decoder.…); give the authors' file, which has both"]
    key = next((key for key, name in used.items() if name == CODEBOOK), "")
    if key in missing:
        return ["without its codebook (quantize.…) the file cannot decode codes"]
    if key in present and present[key][0].shape != present[key][1]:
        size = list(present[key][0].shape)
        return [f"the file's codebook is {' x '.join(map(str, size))}: set n_embed and embed_dim, or give another file"]
    return []
