"""Captions: prompts to sample from and texts beside images, from COCO annotations, CSV or JSONL.

COCO (`.json`): every entry of `annotations` is a caption with the id `image_id:id` and the image that `images` calls
`file_name`.

CSV (`.csv`): a header with a column `prompt`, `caption` or `text`, and where there are such, `id` or `image_id`,
`image` or `file_name`, and `label`. The id of a caption is that of the column `id`, else `image_id`, else the number of
its row, counted from 1 without the header. Where the text is the only column, texts with commas need no quotes.

JSONL (`.jsonl`): an object a line, `{"text", "id"?, "image"?, "label"?}`; the id is the line's number where there is
none.

Line breaks and blanks at both ends of a text are stripped. Repeated and empty texts are captions of their own.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from evalsvc.checkpoints.reference import Identity
from evalsvc.data.files import CACHED_FILES, check_text, identify_file, parse_object, read_bytes, read_lines
from evalsvc.errors import InvalidData, json_reason, show_name
from evalsvc.files.opened import Allow, anywhere
from evalsvc.spec.images import Selection

TEXT_COLUMNS = ("prompt", "caption", "text")
ID_COLUMNS = ("id", "image_id")
IMAGE_COLUMNS = ("image", "file_name")

T = TypeVar("T", int, str)


@dataclass(frozen=True)
class Caption:
    id: str
    """Unique in its file, and what a sampled image's noise depends on."""
    text: str
    """Maybe empty."""
    image: str | int | None
    """The image that the text describes, by file name or by index; None: there is none."""
    label: int | None
    """The class that the text names, for data that have classes."""
    where: str
    """How messages name it: `line 7`, `annotation 7`, counted from 1."""


@dataclass(frozen=True)
class CaptionData:
    """The captions of a file, in its order."""

    path: str
    captions: tuple[Caption, ...]
    digest: str
    """Over ids and texts: the same prompts have the same digest in every format."""


def read_captions(path: str | Path, allow: Allow = anywhere) -> CaptionData:
    """Read COCO annotations, a CSV or a JSONL file, as the name ends, once per process and file.

    Raises InvalidData, with the line, where the file is missing, empty or broken, has no texts, or two captions with
    one id; and what `allow` raises of the file.
    """
    path = Path(path)
    return _read_captions(path, identify_file(path, "caption file"), allow)


def select_captions(data: CaptionData, rule: Selection, count: int | None, seed: int) -> tuple[Caption, ...]:
    """`count` captions [all that the rule allows], in the order in which they were drawn.

    `random` draws captions without replacement, `one_per_image` images, and then one caption of each, as the published
    COCO FIDs do. What is drawn follows from the seed and the ids alone, and a smaller count is the beginning of a
    larger one.

    Raises:
        InvalidData: there are fewer; or a caption names no image, which `one_per_image` needs.
    """
    captions, what = data.captions, "captions"
    if rule == "one_per_image":
        captions, what = tuple(_one_per_image(data, seed)), "images"
    if count is not None and count > len(captions):
        raise InvalidData(
            f"{data.path} has {len(captions):,} {what}, {count:,} images are asked for; lower `samples` or give more "
            "captions"
        )
    if rule == "random":
        captions = tuple(sorted(captions, key=lambda caption: _draw(seed, caption.id)))
    return captions[:count]


def _one_per_image(data: CaptionData, seed: int) -> Iterator[Caption]:
    by_image: dict[str | int, list[Caption]] = {}
    for caption in data.captions:
        if caption.image is None:
            raise InvalidData(
                f"{data.path}, {caption.where} names no image; `select: one_per_image` needs one for every caption"
            )
        by_image.setdefault(caption.image, []).append(caption)
    for image in sorted(by_image, key=lambda image: _draw(seed, f"image {image}")):
        yield min(by_image[image], key=lambda caption: _draw(seed, caption.id))


def _draw(seed: int, name: str) -> bytes:
    """A number as good as random, the same on every machine and for ever."""
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


@lru_cache(maxsize=CACHED_FILES)
def _read_captions(path: Path, identity: Identity, allow: Allow) -> CaptionData:
    # `identity` is there to make the cache forget a file that was written anew.
    if path.suffix not in _READERS:
        known = ", ".join(f"{suffix} ({what})" for suffix, (what, _) in _READERS.items())
        raise InvalidData(f"{path} ends in {path.suffix or 'nothing'!r}; captions are read from {known}")
    captions = tuple(_READERS[path.suffix][1](path, allow))
    if not captions:
        raise InvalidData(f"{path} holds no captions; write at least one")
    _check_ids(path, captions)
    return CaptionData(str(path), captions, _digest(captions))


def _check_ids(path: Path, captions: Iterable[Caption]) -> None:
    first: dict[str, str] = {}
    for caption in captions:
        if caption.id in first:
            raise InvalidData(
                f"{path}, {caption.where}: its id is that of {first[caption.id]} too; "
                "ids must differ, since each caption is its own prompt"
            )
        first[caption.id] = caption.where


def _digest(captions: Iterable[Caption]) -> str:
    total = hashlib.sha256()
    for caption in captions:
        for part in (caption.id.encode(), caption.text.encode()):
            # The length keeps "a", "bc" apart from "ab", "c".
            total.update(len(part).to_bytes(8, "little"))
            total.update(part)
    return total.hexdigest()


# COCO annotations


def _read_coco(path: Path, allow: Allow) -> Iterator[Caption]:
    content = _coco_content(path, allow)
    files = {}
    for number, image in enumerate(_entries(path, content, "images"), 1):
        where = f"{path}, image {number}"
        key = _whole_number(where, image, "id")
        if key in files:
            raise InvalidData(f"{where}: another image has the id {key} too; leave one out")
        files[key] = check_text(where, image.get("file_name"), "file_name")
    for number, annotation in enumerate(_entries(path, content, "annotations"), 1):
        where = f"{path}, annotation {number}"
        image_id, caption_id = (_whole_number(where, annotation, key) for key in ("image_id", "id"))
        if image_id not in files:
            raise InvalidData(f"{where}: `images` has no image {image_id}; add it or leave the annotation out")
        text = check_text(where, annotation.get("caption"), "caption").strip()
        yield Caption(f"{image_id}:{caption_id}", text, files[image_id], None, f"annotation {number}")


def _coco_content(path: Path, allow: Allow) -> Mapping[str, object]:
    raw = read_bytes(path, allow)
    if not raw.strip():
        raise InvalidData(f"{path} is empty; it must be COCO's annotations: an object with `images` and `annotations`")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        hint = "; a file with an object a line is named .jsonl" if "Extra data" in str(error) else ""
        raise InvalidData(f"{path} is not valid JSON: {json_reason(error)}{hint}") from None
    if not isinstance(content, dict):
        raise InvalidData(
            f"{path} is {type(content).__name__}; COCO's annotations are an object with `images` and `annotations`"
        )
    return content


def _entries(path: Path, content: Mapping[str, object], key: str) -> Sequence[Mapping[str, object]]:
    if key not in content:
        raise InvalidData(f"{path} has no list `{key}`, as COCO's annotations have; {_found(content, (key,))}")
    entries = content[key]
    if not isinstance(entries, list):
        raise InvalidData(f"{path}: `{key}` is {type(entries).__name__}; it must be a list of objects")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise InvalidData(f"{path}: entry {number} of `{key}` is {type(entry).__name__}; it must be an object")
    return entries


def _whole_number(where: str, entry: Mapping[str, object], key: str) -> int:
    value = entry.get(key)
    if type(value) is not int:
        found = f"is {type(value).__name__}" if key in entry else "is missing"
        raise InvalidData(f"{where}: `{key}` {found}; it must be a whole number")
    return value


# CSV


def _read_csv(path: Path, allow: Allow) -> Iterator[Caption]:
    rows = _csv_rows(path, allow)
    first = next(rows, None)
    if first is None:
        return
    line, header = first
    columns = _columns(f"{path}, line {line}", header)
    for number, (line, row) in enumerate(rows, 1):
        where = f"{path}, line {line}"
        if len(row) != len(header):
            raise InvalidData(
                f"{where} has {len(row)} fields, the header has {len(header)}; put texts with commas or line breaks "
                "between double quotes"
            )
        fields = {key: row[index] for key, index in columns.items()}
        identifier = fields.get("id", str(number)).strip()
        if not identifier:
            raise InvalidData(f"{where}: the id is empty; give every row one, or leave the column out")
        text = check_text(where, fields["text"]).strip()
        image = fields.get("image", "").strip() or None
        yield Caption(identifier, text, image, _csv_label(where, fields.get("label", "")), f"line {line}")


def _csv_rows(path: Path, allow: Allow) -> Iterator[tuple[int, list[str]]]:
    """Each row with the line that it begins in. A blank line is no row: an empty text alone in its row is `""`."""
    try:
        # utf-8-sig: spreadsheets put a byte order mark first, which would become part of the first column's name.
        text = read_bytes(path, allow).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InvalidData(f"{path}, line {line} is not UTF-8; save the file as UTF-8") from None
    if "," not in text.lstrip().partition("\n")[0]:
        yield from _single_column(path, text)
        return
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    begin = 1
    try:
        for row in reader:
            if row:
                yield begin, row
            begin = reader.line_num + 1
    except csv.Error as error:
        raise InvalidData(f"{path}, line {begin} is not valid CSV: {error}") from None


_OPEN = re.compile(r'"(?:[^"]|"")*')
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def _single_column(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield rows of one field, with commas and quotation marks as they come unless the whole row is quoted."""
    lines = iter(enumerate(text.split("\n"), 1))
    for begin, row in lines:
        while _OPEN.fullmatch(row):
            _, following = next(lines, (0, None))
            if following is None:
                raise InvalidData(f"{path}, line {begin} is not valid CSV: its quotation mark is never closed")
            row = f"{row}\n{following}"
        if quoted := _QUOTED.fullmatch(row.rstrip()):
            yield begin, [quoted[1].replace('""', '"')]
        elif row.strip():
            yield begin, [row]


def _columns(where: str, header: Sequence[str]) -> dict[str, int]:
    """Places of the columns `text`, and where there are such, `id`, `image` and `label`."""
    names = [name.strip().lower() for name in header]
    texts = [name for name in names if name in TEXT_COLUMNS]
    if not texts:
        raise InvalidData(
            f"{where}: the header has no column {', '.join(map(repr, TEXT_COLUMNS))}; {_found(names, TEXT_COLUMNS)}"
        )
    if len(texts) > 1:
        raise InvalidData(
            f"{where}: the header has the columns {' and '.join(map(repr, texts))}; leave one text column"
        )
    columns = {"text": names.index(texts[0])}
    for key, choices in (("id", ID_COLUMNS), ("image", IMAGE_COLUMNS), ("label", ("label",))):
        if present := [name for name in choices if name in names]:
            columns[key] = names.index(present[0])
    return columns


def _csv_label(where: str, text: str) -> int | None:
    if not text.strip():
        return None
    try:
        return int(text)
    except ValueError:
        raise InvalidData(f"{where}: the label is no whole number; correct it, or leave the column out") from None


# JSONL


def _read_jsonl(path: Path, allow: Allow) -> Iterator[Caption]:
    for number, line in read_lines(path, allow):
        where = f"{path}, line {number}"
        content = parse_object(where, line, "`text`")
        if "text" not in content:
            raise InvalidData(f"{where} has no `text`; {_found(content, ('text',))}")
        identifier = _one_of(where, content, "id", str, "a string or a whole number")
        image = _one_of(where, content, "image", str, "a file name or an index")
        label = _one_of(where, content, "label", int, "a whole number")
        text = check_text(where, content["text"]).strip()
        name = str(number) if identifier is None else check_text(where, str(identifier), "id")
        yield Caption(name, text, image, label, f"line {number}")


def _one_of(where: str, content: Mapping[str, object], key: str, kind: type[T], must: str) -> int | T | None:
    value = content.get(key)
    # A bool is an int to Python.
    if value is None or (isinstance(value, int | kind) and not isinstance(value, bool)):
        return value
    raise InvalidData(f"{where}: `{key}` is {type(value).__name__}; it must be {must}")


def _found(present: Iterable[str], wanted: Sequence[str]) -> str:
    """What is there instead, with what may have been meant."""
    names = [str(name) for name in present]
    near = [match for name in wanted for match in difflib.get_close_matches(name, names, n=1, cutoff=0.6)]
    shown = ", ".join(map(show_name, names[:10])) or "nothing"
    return f"found {shown}" + (f"; rename {near[0]!r}?" if near else "")


_READERS: Mapping[str, tuple[str, Callable[[Path, Allow], Iterator[Caption]]]] = {
    ".json": ("COCO annotations", _read_coco),
    ".csv": ("a header and a caption a row", _read_csv),
    ".jsonl": ("an object with `text` a line", _read_jsonl),
}
