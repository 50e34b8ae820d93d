"""From captions and images to shards, in two stages.

The first stage turns images into codes, which are kept by the digest of the image (`encoding.py`, `code_store.py`). It
takes nearly all of the time, and knows nothing of captions and layouts. The second stage turns captions into ids and
writes the sequences of a layout (`records.py`, `sequence_form.py`, `shards.py`). A killed run goes on where it was: no
image is encoded twice, no shard is written twice, and the result has the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from pydantic import JsonValue

from evalsvc.config import Settings
from evalsvc.data.tokenizer import TextTokenizer, read_tokenizer
from evalsvc.errors import InvalidData, InvalidRequest
from evalsvc.precision import use_full_float32
from evalsvc.spec.images import Crop, Filter
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.spec.paths import Readable
from evalsvc.spec.protocol import digest
from evalsvc.tasks.image_codes import ImageCoder
from evalsvc.worker.context import find_decoder
from prepare.caption_texts import CaptionEncoder
from prepare.code_store import CodeStore
from prepare.datasheet import Contents, Datasheet, make_datasheet
from prepare.encoding import EncodedImages, Show, encode_images
from prepare.output import CODES, OutputFolder, locked_output, writing
from prepare.pairs import read_source
from prepare.records import PairRecord, Records, Split, arrange
from prepare.sequence_form import SequenceForm, sequence_form
from prepare.shards import MANIFEST, SHARD_NAME, ShardFile, ShardWriter, equal_parts, manifest

HELD_OUT, HELD_OUT_CAPTIONS, REFUSED = "held_out.jsonl", "held_out_captions.jsonl", "refused.jsonl"


@dataclass(frozen=True)
class Request:
    """What to prepare, and how."""

    source: Path
    output: Path
    decoder: str
    """Name of an asset, or a path with a slash."""
    tokenizer: Path
    layout: VocabularyLayout
    images: Path | None = None
    """Folder of the images that a file of captions names."""
    decoder_config: str | None = None
    decoder_ema: bool = False
    size: int | None = None
    """Side of the images in pixels [the decoder's]."""
    crop: Crop = "center"
    filter: Filter = "lanczos"
    records: int | None = None
    """Number of ids of a record [the layout's length]."""
    shard_size: int = 8192
    """Largest number of sequences of a shard."""
    seed: int = 0
    """Seed of the order and of the images that are held out."""
    held_out: int = 0
    """Number of images to hold out."""
    codes: Path | None = None
    """Folder of codes that several outputs share [in the output]."""


@dataclass(frozen=True)
class Prepared:
    """The result of a run."""

    datasheet: Datasheet
    encoded: EncodedImages
    damaged: Sequence[str]
    """Files of codes that were damaged, whose images were encoded again."""


def prepare(request: Request, settings: Settings, show: Show) -> Prepared:
    """Write the training data of a source into a folder, or go on with an interrupted run.

    Raises:
        InvalidRequest: an option is wrong, or the output cannot be used.
        InvalidLayout: the layout does not fit the decoder.
        InvalidData: the source or the tokenizer is broken, or no pair of the source can be used.
        DataChanged: source or codes change meanwhile.
        Or as `find_decoder`, `load_decoder` and `encode_images` raise.
    """
    _require_apart(request)
    torch.set_num_threads(settings.worker_threads())
    use_full_float32()
    allow = Readable(settings)
    data = read_source(request.source, request.images, allow)
    tokenizer = read_tokenizer(request.tokenizer, allow)
    tokenizer.require_fits(request.layout.text)
    bos = tokenizer.beginning(request.layout.text.bos)
    coder = _coder(request, settings)
    form = sequence_form(request.layout, coder.codes, coder.decoder.codebook_size, request.records)
    identity = coder.identity()
    with locked_output(request.output, _settings(request, form, tokenizer, bos, identity)) as output:
        codes = request.codes or request.output / CODES
        with writing(f"--codes {codes}" if request.codes else f"--output {request.output}"):
            store = CodeStore(codes / digest(identity), coder.codes, coder.decoder.codebook_size)
            indices = sorted({pair.image for pair in data.pairs})
            encoded = encode_images(data.images, indices, coder, store, show)
        records = arrange(data, encoded, store, CaptionEncoder(tokenizer, bos), Split(request.seed, request.held_out))
        contents = Contents(data, encoded, records, form)
        _require_pairs(request, contents)
        with writing(f"--output {request.output}"):
            sheet = _write(request, output, contents, ShardWriter(form, store), show)
    return Prepared(sheet, encoded, store.damaged)


def _require_apart(request: Request) -> None:
    """Raise InvalidRequest if the output lies in the source, or the other way round."""
    # os.path raises nothing for links that form a loop, and for folders that cannot be searched.
    output = Path(os.path.realpath(request.output))
    if not os.path.isdir(output.parent):
        raise InvalidRequest(f"--output {request.output}: the folder {output.parent} does not exist; create it first")
    for option, path in (("the source", request.source), ("--images", request.images)):
        if path is None or not os.path.isdir(path):
            continue
        folder = os.path.realpath(path)
        if output.is_relative_to(folder) or Path(folder).is_relative_to(output):
            raise InvalidRequest(
                f"--output {request.output} and {option} {path} lie in each other; name another folder"
            )


def _coder(request: Request, settings: Settings) -> ImageCoder:
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    file = find_decoder(settings, request.decoder, request.decoder_config)
    decoder = file.load(request.decoder_ema, "float32", device)
    return ImageCoder(decoder, request.size, request.crop, request.filter)


def _settings(
    request: Request, form: SequenceForm, tokenizer: TextTokenizer, bos: int | None, identity: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    """Return all that the bytes of the output depend on, except for the source."""
    return {
        **identity,
        "tokenizer": tokenizer.digest,
        "bos": bos,
        "layout": form.layout.digest,
        "records": form.length,
        "shard_size": request.shard_size,
        "seed": request.seed,
        "held_out": request.held_out,
    }


def _require_pairs(request: Request, contents: Contents) -> None:
    if not contents.records.training:
        refused = contents.refused
        reason = f"; the first of {len(refused):,} reasons: {refused[0]}" if refused else ""
        raise InvalidData(f"no pair of {request.source} can be used{reason}")


def _write(request: Request, output: OutputFolder, contents: Contents, writer: ShardWriter, show: Show) -> Datasheet:
    """Write all files of the output; return the datasheet."""
    shards = list(_write_shards(request, output, contents.records, writer, show))
    files = {MANIFEST: manifest(shards), REFUSED: _lines(asdict(refusal) for refusal in contents.refused)}
    if request.held_out:
        held_out = contents.records.held_out
        files[HELD_OUT] = _lines(_held_out_pair(record, writer) for record in held_out)
        files[HELD_OUT_CAPTIONS] = _lines(
            {"id": record.key, "text": record.caption, "image": record.image} for record in held_out
        )
    for name, content in files.items():
        output.write(name, content)
    sheet = make_datasheet(contents, output.settings, shards, files)
    output.finish(asdict(sheet))
    return sheet


def _write_shards(
    request: Request, output: OutputFolder, records: Records, writer: ShardWriter, show: Show
) -> Iterator[ShardFile]:
    """Write the shards that are not there yet, and yield all of them in order."""
    training = records.training
    known = output.known_shards(records.digest)
    starts = equal_parts(len(training), request.shard_size)
    names = [SHARD_NAME.format(number) for number in range(1, len(starts))]
    kept = {name: known[name] for name in names if name in known and known[name].is_whole(output.path)}
    output.begin_shards(records.digest, list(kept.values()))
    for name, (start, stop) in zip(names, pairwise(starts), strict=True):
        shard = kept.get(name)
        if shard is None:
            shard = writer.write(output.path, name, training[start:stop])
            output.add_shard(shard)
        show("write", stop, len(training), "sequences")
        yield shard


def _held_out_pair(record: PairRecord, writer: ShardWriter) -> dict[str, JsonValue]:
    """Return a record of the task `loss`, for which the captions of one image are one document."""
    return {
        "id": record.key,
        "text_ids": list(record.text_ids),
        "image_codes": list(writer.store.codes(record.file)),
        "document": record.pixels,
    }


def _lines(documents: Iterator[Mapping[str, JsonValue]]) -> bytes:
    return "".join(json.dumps(document) + "\n" for document in documents).encode()
