"""Token data: text ids and image codes per record, from JSONL or safetensors; captions and the images they describe.

JSONL has one object per line, with `text_ids` (the tokenizer's ids) or `text` (a string, which needs a tokenizer), and
`image_codes`; either part may be absent, other keys are ignored, blank lines are skipped. `document` (a string or a
whole number) names the document of the record: windows of one document are not independent.

safetensors has the integer tensors `text_ids` [n, T] with, for texts of different lengths, `text_lengths` [n] (ids
beyond a record's length are ignored), and `image_codes` [n, N]; either part may be absent. `document` [n] is optional.

Ids and codes are those of tokenizer and codebook: `layout.py` maps them to rows of a model's table.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from evalsvc.checkpoints.reference import Identity, identify
from evalsvc.data.captions import Caption, read_captions
from evalsvc.data.files import CACHED_FILES, check_text, identify_file, parse_object, read_lines
from evalsvc.data.tokenizer import TextTokenizer, read_tokenizer
from evalsvc.errors import CheckpointGone, InvalidData, show_name
from evalsvc.files.opened import Allow, anywhere, open_file
from evalsvc.installation import missing_package
from evalsvc.spec.bounds import Beginning
from evalsvc.spec.layout_prompt import PromptForm, markers

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from evalsvc.data.images import ImageSource


@dataclass(frozen=True)
class Record:
    text_ids: array[int] | None
    """Ids of the text; None for a record without text, which differs from an empty text."""
    image_codes: array[int] | None
    where: str
    """Place of the record in messages: `line 7`, `record 7`, counted from 1."""
    document: str | int | None = None
    """Document that the record is a part of; None where the file names none."""
    names_tokens: bool = False
    """Whether the text in a prompt holds the names of special tokens, which became these tokens."""


@dataclass(frozen=True)
class TokenData:
    """Records of a data file, in the file's order."""

    path: str
    records: tuple[Record, ...]
    digest: str
    """Digest of all ids and codes and nothing else: the same tokens have the same digest in every format."""
    tokenizer_digest: str | None
    """Digest of the tokenizer's file, if text was tokenized."""
    bos: int | None
    """Id of the tokenizer before every text, if text was tokenized; None: no token."""

    def texts(self, limit: int | None, parameter: str) -> tuple[Record, ...]:
        """Return the first `limit` records, all of which must be only text, since `parameter` needs that."""
        return tuple(require_text(self.path, record, parameter) for record in self.records[:limit])


@dataclass(frozen=True)
class EncodedPrompt:
    """The ids of the tokenizer in front of an image."""

    ids: list[int]
    against: list[int] | None
    """Ids that guidance leads away from; None for a layout that has none."""
    names_tokens: bool
    """Whether the caption holds the names of special tokens, which became these tokens."""


MakePrompt: TypeAlias = Callable[[str | None, int], EncodedPrompt]


def require_text(path: str | Path, record: Record, parameter: str) -> Record:
    """Return a record of text only, which `parameter` needs."""
    if record.image_codes is not None or record.text_ids is None:
        raise InvalidData(f"{path}, {record.where} has image codes; give `{parameter}` records of text only")
    return record


def read_tokens(
    path: str | Path,
    tokenizer: str | Path | None = None,
    bos: Beginning | None = None,
    allow: Allow = anywhere,
    form: PromptForm | None = None,
) -> TokenData:
    """Read the records of a JSONL file, or of a file with the suffix .safetensors, once per process and file.

    `tokenizer` (a `tokenizer.json`) is for records with `text`; `bos` is put before the text's ids, see
    `TextTokenizer.beginning`. With `form`, `VocabularyLayout.prompt_form`, the `text_ids` of a record with an image are
    those of the layout's prompt.
    """
    path = Path(path)
    identity = identify_file(path, "data file")
    tokenizer = None if tokenizer is None else Path(tokenizer)
    return _read_tokens(path, identity, tokenizer, stamp_of(tokenizer), bos, allow, form)


@lru_cache(maxsize=2 * CACHED_FILES)
def _read_tokens(
    path: Path,
    identity: Identity,
    tokenizer: Path | None,
    stamp: Identity | None,
    bos: Beginning | None,
    allow: Allow,
    form: PromptForm | None,
    codes: int | None = None,
) -> TokenData:
    # `identity` and `stamp` invalidate the cache when a file changes. `codes` are those of the image of each caption.
    encoder = TextEncoder(path, tokenizer, bos, allow, form)
    if codes is not None:
        captions = read_captions(path, allow).captions
        records = tuple(_of_caption(path, caption, encoder, codes) for caption in captions)
    else:
        records = tuple(read_records(path, encoder, allow, None if form is None else encoder.prompt))
    return TokenData(str(path), records, _digest(records), encoder.digest, encoder.bos)


def _of_caption(path: Path, caption: Caption, encoder: TextEncoder, codes: int) -> Record:
    if encoder.form is None:
        return Record(array("i", encoder(caption.text)), None, caption.where)
    prompt = _in_prompt(f"{path}, {caption.where}", None, caption.text, codes, encoder.prompt)
    return Record(array("i", prompt.ids), None, caption.where, names_tokens=prompt.names_tokens)


def read_records(
    path: Path, encode: Callable[[str], list[int]], allow: Allow = anywhere, prompt: MakePrompt | None = None
) -> Iterator[Record]:
    """Yield the records of a file; `prompt` encodes the text of a record with an image, see `TextEncoder.prompt`."""
    records = (
        _read_safetensors(path, allow, prompt)
        if path.suffix == ".safetensors"
        else (
            _parse_line(f"{path}, line {number}", line, number, encode, prompt)
            for number, line in read_lines(path, allow)
        )
    )
    record = None
    for record in records:
        for name, ids in (("text_ids", record.text_ids), ("image_codes", record.image_codes)):
            if ids and min(ids) < 0:
                raise InvalidData(
                    f"{path}, {record.where}: `{name}` holds {min(ids)}, which is no token id; correct it"
                )
        yield record
    if record is None:
        raise InvalidData(f"{path} holds no records; each is an object with `text_ids`, `text` or `image_codes`")


@dataclass(frozen=True)
class PairData:
    """Captions, each with the image that it describes."""

    texts: TokenData
    """Captions in their file's order, as records without codes; an empty text is a record too."""
    captions: tuple[str, ...]
    images: tuple[int, ...]
    """Index in `source` of each record's image."""
    source: ImageSource


def read_pairs(
    path: str | Path,
    source: ImageSource,
    tokenizer: str | Path | None = None,
    bos: Beginning | None = None,
    allow: Allow = anywhere,
    form: PromptForm | None = None,
    codes: int = 0,
) -> PairData:
    """Read the captions of a COCO annotation file, a CSV or a JSONL file, with their images, each of `codes` codes.

    `tokenizer`, `bos`, `allow` and `form` are as in `read_tokens`; only `form` needs `codes`.
    """
    path = Path(path)
    identity = identify_file(path, "caption file")
    tokenizer = None if tokenizer is None else Path(tokenizer)
    texts = _read_tokens(path, identity, tokenizer, stamp_of(tokenizer), bos, allow, form, codes)
    captions = read_captions(path, allow).captions
    images_of = tuple(image_indices(path, captions, source))
    return PairData(texts, tuple(caption.text for caption in captions), images_of, source)


def image_indices(path: Path, captions: Iterable[Caption], source: ImageSource) -> Iterator[int]:
    for caption in captions:
        if caption.image is None:
            raise InvalidData(f"{path}, {caption.where} names no image; add an image or remove the caption")
        try:
            yield source.index(caption.image)
        except InvalidData as error:
            raise InvalidData(f"{path}, {caption.where}: {error.message}") from None


def stamp_of(tokenizer: str | Path | None) -> Identity | None:
    """Identify the file of a tokenizer; None for a missing file, which is an error only if a text needs it."""
    try:
        return None if tokenizer is None else identify(Path(tokenizer))
    except CheckpointGone:
        return None


@dataclass(frozen=True)
class _Template:
    tokenizer: TextTokenizer
    first: list[int]
    """`bos`, where the prompt does not begin with it by itself."""
    specials: int
    """Number of special ids of the prompt without a caption."""
    pad: int | None
    without_text: list[int] | None
    against: list[int] | None


def _specials(tokenizer: TextTokenizer, ids: list[int]) -> int:
    return sum(token in tokenizer.special_ids for token in ids)


def _padded(ids: list[int], pad: int) -> list[int]:
    return [pad if 0 < place < len(ids) - 1 else token for place, token in enumerate(ids)]


class TextEncoder:
    """Encoder from texts of the file `path` to ids of `tokenizer`, which is opened when the first text comes.

    Texts are tokenized unchanged, without truncation, padding or added tokens, except for `bos` before the ids. The
    tokenizer must allow `bos`, see `TextTokenizer.beginning`. `form` is for `prompt`.
    """

    def __init__(
        self,
        path: str | Path,
        tokenizer: str | Path | None,
        bos: Beginning | None = None,
        allow: Allow = anywhere,
        form: PromptForm | None = None,
    ) -> None:
        self._path, self._tokenizer, self._wanted, self._allow, self.form = path, tokenizer, bos, allow, form
        self._opened: TextTokenizer | None = None
        self._templates: dict[tuple[str, ...], _Template] = {}
        """By the texts of the prompt, which may hold the size of the grid."""
        self.bos: int | None = None
        """Id before every text, once a text was tokenized."""

    @property
    def digest(self) -> str | None:
        """Digest of the tokenizer; None if no text was tokenized."""
        return None if self._opened is None else self._opened.digest

    def __call__(self, text: str) -> list[int]:
        return self._open(f"{self._path} holds `text`").encode(text, self.bos)

    def prompt(self, caption: str | None, codes: int) -> EncodedPrompt:
        """Encode the prompt of an image of `codes` codes as the layout says; without text for a caption of None."""
        assert self.form is not None, "only a layout with a prompt has prompts"
        template = self._template(self.form, codes)
        if caption is None:
            if template.without_text is None:
                raise InvalidData(
                    "is an image without text, but the layout's prompt has neither `unconditional` nor `pad`; add one "
                    "of them to the layout, or give a text"
                )
            against = template.without_text if template.against is None else template.against
            return EncodedPrompt(template.without_text, against, False)
        # `bos` is also in front of a caption that begins with its name.
        ids = template.first + template.tokenizer.encode(self.form.filled(self.form.prompt.text, codes, caption))
        other = template.against if template.pad is None else _padded(ids, template.pad)
        return EncodedPrompt(ids, other, _specials(template.tokenizer, ids) != template.specials)

    def _template(self, form: PromptForm, codes: int) -> _Template:
        """Return what is the same for all captions of images of `codes` codes."""
        prompt, tokenizer = form.prompt, self._open("has an image, whose text the layout's `prompt` writes")
        strings = (prompt.text, prompt.unconditional or "", prompt.negative or "")
        texts = tuple(form.filled(string, codes) for string in strings)
        if (known := self._templates.get(texts)) is not None:
            return known
        for name in markers("\n".join(texts)):
            if tokenizer.encode(name) != [tokenizer.id_of(name)]:
                raise InvalidData(
                    f"has a prompt with {name}, but that is no token of the tokenizer {tokenizer.path}; give the "
                    "tokenizer that was saved with the checkpoint, or correct the layout's `prompt`"
                )
        pad = None if prompt.pad is None else tokenizer.id_of(prompt.pad)
        if pad is None and prompt.pad is not None:
            raise InvalidData(
                f"has no unconditional prompt: `prompt.pad` is no token of the tokenizer {tokenizer.path}; give the "
                "tokenizer that was saved with the checkpoint, or correct the layout's `prompt`"
            )
        ids, unconditional, negative = (tokenizer.encode(text, self.bos) for text in texts)
        first = ids[: len(ids) - len(tokenizer.encode(texts[0]))]
        without_text = None if prompt.unconditional is None else unconditional
        against = without_text if prompt.negative is None else negative
        template = _Template(tokenizer, first, _specials(tokenizer, ids), pad, without_text, against)
        if pad is not None:
            template = replace(template, without_text=_padded(ids, pad), against=None)
        self._templates[texts] = template
        return template

    def _open(self, needed: str) -> TextTokenizer:
        if self._tokenizer is None:
            raise InvalidData(
                f"{needed}, but no tokenizer is given; give the task's parameter `tokenizer` or the layout's "
                "`text.tokenizer`"
            )
        if self._opened is None:
            self._opened = read_tokenizer(self._tokenizer, self._allow)
            self.bos = self._opened.beginning(self._wanted)
        return self._opened


def _in_prompt(where: str, text_ids: object, text: str | None, codes: int, prompt: MakePrompt) -> EncodedPrompt:
    if text_ids is not None:
        raise InvalidData(
            f"{where} has an image and `text_ids`, but the layout has a `prompt`, which is encoded together with the "
            "text; give `text` instead, or set `prompt: null` in the layout and give all ids before the image"
        )
    if not codes:
        raise InvalidData(f"{where}: `image_codes` is empty; remove it, or give the codes of an image")
    try:
        return prompt(text, codes)
    except InvalidData as error:
        raise InvalidData(f"{where} {error.message}") from None


def _parse_line(
    where: str, line: bytes, number: int, encode: Callable[[str], list[int]], prompt: MakePrompt | None
) -> Record:
    content = parse_object(where, line, "`text_ids` or `image_codes`")
    text_ids = _ids(where, "text_ids", content.get("text_ids"))
    text = None
    if content.get("text") is not None:
        if text_ids is not None:
            raise InvalidData(f"{where} has both `text` and `text_ids`; remove one of them")
        text = check_text(where, content["text"])
        if prompt is None or content.get("image_codes") is None:
            text_ids = array("i", encode(text))
    image_codes, names_tokens = _ids(where, "image_codes", content.get("image_codes")), False
    if prompt is not None and image_codes is not None:
        encoded = _in_prompt(where, text_ids, text, len(image_codes), prompt)
        text_ids, names_tokens = array("i", encoded.ids), encoded.names_tokens
    if text_ids is None and image_codes is None:
        present = ", ".join(map(show_name, list(content)[:10])) or "no keys"
        raise InvalidData(f"{where} has neither `text_ids`, `text` nor `image_codes`, found {present}; add one of them")
    if not text_ids and not image_codes:
        raise InvalidData(f"{where} is empty: it has no text id and no image code; remove it")
    document = content.get("document")
    # A bool is an int to Python.
    if document is not None and (not isinstance(document, str | int) or isinstance(document, bool)):
        raise InvalidData(
            f"{where}: `document` is {type(document).__name__}; it must be a string or a whole number that names what "
            "the record is a part of, or be removed"
        )
    return Record(text_ids, image_codes, f"line {number}", document, names_tokens)


def _ids(where: str, key: str, values: object) -> array[int] | None:
    if values is None:
        return None
    if not isinstance(values, list):
        raise InvalidData(f"{where}: `{key}` is {type(values).__name__}; it must be a list of whole numbers")
    # A bool is an int to Python and to array, and would count as the id 0 or 1.
    wrong = [value for value in values if type(value) is not int]
    if wrong:
        raise InvalidData(f"{where}: `{key}` holds {type(wrong[0]).__name__}; it must hold whole numbers only")
    try:
        return array("i", values)
    except OverflowError:
        raise InvalidData(f"{where}: `{key}` holds {max(values, key=abs)}, which is no token id; correct it") from None


_TENSORS: Mapping[str, int] = {"text_ids": 2, "text_lengths": 1, "image_codes": 2, "document": 1}


def _read_safetensors(path: Path, allow: Allow, prompt: MakePrompt | None) -> Iterator[Record]:
    tensors = _load_tensors(path, allow)
    text_ids, codes, lengths = tensors.get("text_ids"), tensors.get("image_codes"), tensors.get("text_lengths")
    documents = tensors.get("document")
    count = len(next(iter(tensors.values())))
    if lengths is not None and text_ids is not None and lengths.size:
        low, high, width = int(lengths.min()), int(lengths.max()), text_ids.shape[1]
        if low < 0 or high > width:
            wrong = low if low < 0 else high
            raise InvalidData(
                f"{path}: `text_lengths` holds {wrong}; give lengths of 0…{width}, the width of `text_ids`"
            )
    for index in range(count):
        text = None if text_ids is None else text_ids[index, : None if lengths is None else int(lengths[index])]
        document = None if documents is None else int(documents[index])
        row, where = None if codes is None else _array(codes[index]), f"record {index + 1}"
        ids = _array(text)
        if prompt is not None and row is not None:
            ids = array("i", _in_prompt(f"{path}, {where}", text, None, len(row), prompt).ids)
        record = Record(ids, row, where, document)
        if not record.text_ids and not record.image_codes:
            raise InvalidData(f"{path}, {record.where} is empty: it has no text id and no image code; remove it")
        yield record


def _load_tensors(path: Path, allow: Allow) -> dict[str, NDArray[numpy.integer]]:
    try:  # imported here, since the service starts without safetensors
        import safetensors.numpy
    except ModuleNotFoundError:
        raise missing_package("safetensors", "a .safetensors data file") from None
    try:
        file = open_file(path, "data file", allow)
        with file.stream:
            tensors: dict[str, NDArray[numpy.integer]] = safetensors.numpy.load_file(file.name)
    except (safetensors.SafetensorError, OSError, TypeError, KeyError):  # whose messages quote the file
        raise InvalidData(f"{path} is not a safetensors file of integers, or is cut off; write it again") from None
    if not {"text_ids", "image_codes"} & set(tensors):
        present = ", ".join(map(show_name, sorted(tensors)[:10])) or "nothing"
        raise InvalidData(f"{path} has neither `text_ids` nor `image_codes`, found {present}; add one of them")
    for name, tensor in tensors.items():
        _check_tensor(path, name, tensor, {other: len(value) if value.ndim else 0 for other, value in tensors.items()})
    if "text_lengths" in tensors and "text_ids" not in tensors:
        raise InvalidData(f"{path} has `text_lengths` without `text_ids`; add `text_ids`")
    return tensors


def _check_tensor(path: Path, name: str, tensor: NDArray[numpy.integer], counts: Mapping[str, int]) -> None:
    if name not in _TENSORS:
        raise InvalidData(f"{path} has the tensor {show_name(name)}; known are {', '.join(_TENSORS)}")
    if tensor.dtype.kind not in "iu":
        raise InvalidData(f"{path}: `{name}` is {tensor.dtype}; it must hold whole numbers")
    if tensor.ndim != _TENSORS[name]:
        raise InvalidData(
            f"{path}: `{name}` has the shape {list(tensor.shape)}; it must have {_TENSORS[name]} dimensions"
        )
    if len(set(counts.values())) > 1:
        sizes = ", ".join(f"`{other}` {count}" for other, count in counts.items())
        raise InvalidData(f"{path}: the tensors have different numbers of records: {sizes}; give one row per record")
    if tensor.size and (tensor.min() < -(2**31) or tensor.max() >= 2**31):
        raise InvalidData(
            f"{path}: `{name}` holds {max(int(tensor.max()), int(tensor.min()), key=abs)}, which is no token id"
        )


def _array(row: NDArray[numpy.integer] | None) -> array[int] | None:
    return None if row is None else array("i", row.astype("i4").tobytes())


def _digest(records: tuple[Record, ...]) -> str:
    total = hashlib.sha256()
    for record in records:
        for ids in (record.text_ids, record.image_codes):
            # The length distinguishes [1], [2] from [1, 2], []; -1 stands for an absent part.
            total.update((-1 if ids is None else len(ids)).to_bytes(8, "little", signed=True))
            if ids is not None and sys.byteorder == "big":
                ids = array("i", ids)
                ids.byteswap()
            total.update(b"" if ids is None else ids.tobytes())
    return total.hexdigest()
