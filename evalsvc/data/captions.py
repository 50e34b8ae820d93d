"""Captions from COCO annotations, CSV or JSONL: prompts to sample from, and texts of images.

These are texts. They become ids in `tasks.text_to_image.prompts` (prompts) and in `data.tokens` (pairs).

COCO (`.json`): every entry of `annotations` is a caption with the id `image_id:id` and the image whose `file_name` is
in `images`.

MJHQ-30K's `meta_data.json`: an object of `{"category", "prompt"}` by id. The image is `<category>/<id>.jpg`, and the
label is the place of the category in their alphabetical order.

CSV (`.csv`): a header with a column `prompt`, `caption` or `text`, and optional columns `id` or `image_id`, `image` or
`file_name`, and `label`. The id of a caption is that of the column `id`, else `image_id`, else the number of its row,
counted from 1 without the header. If the text is the only column, texts with commas need no quotes.

JSONL (`.jsonl`): an object per line, `{"text", "id"?, "image"?, "label"?}`; the default id is the line's number.

Line breaks and blanks at both ends of a text are stripped. Repeated and empty texts are separate captions.
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
from typing import Any, TypeVar

from evalsvc.checkpoints.reference import Identity
from evalsvc.data.files import CACHED_FILES, check_text, identify_file, parse_object, read_bytes, read_lines
from evalsvc.errors import InvalidData, json_reason, show_name, type_name
from evalsvc.files.opened import Allow, anywhere
from evalsvc.spec.images import Selection

TEXT_COLUMNS = ("prompt", "caption", "text")
ID_COLUMNS = ("id", "image_id")
IMAGE_COLUMNS = ("image", "file_name")

T = TypeVar("T", int, str)


@dataclass(frozen=True)
class Caption:
    id: str
    """Id that is unique in the file; the noise of a sampled image depends on the id."""
    text: str
    """Text of the caption, which may be empty."""
    image: str | int | None
    """Image that the text describes, by file name or by index; None without an image."""
    label: int | None
    """Class that the text names, for data with classes."""
    where: str
    """Place of the caption in messages: `line 7`, `annotation 7`, counted from 1."""


@dataclass(frozen=True)
class CaptionData:
    """Captions of a file, in the file's order."""

    path: str
    captions: tuple[Caption, ...]
    digest: str
    """Digest of ids and texts: the same prompts have the same digest in every format."""


def read_captions(path: str | Path, allow: Allow = anywhere) -> CaptionData:
    """Read COCO annotations, a CSV or a JSONL file, chosen by the suffix, once per process and file."""
    path = Path(path)
    return _read_captions(path, identify_file(path, "caption file"), allow)


def select_captions(data: CaptionData, rule: Selection, count: int | None, seed: int) -> tuple[Caption, ...]:
    """Return `count` captions, by default all that the rule allows, in the order of the draw.

    `random` draws captions without replacement; `one_per_image` draws images, and then one caption of each, as the
    published COCO FIDs do. The draw depends only on the seed and the ids, and a smaller count is the beginning of a
    larger count.
    """
    captions, drawn = data.captions, "captions"
    if rule == "one_per_image":
        captions, drawn = tuple(_one_per_image(data, seed)), "images"
    if count is not None and count > len(captions):
        raise InvalidData(
            f"{data.path} has {len(captions):,} {drawn}, but {count:,} images are requested; lower `samples` or "
            "give more captions"
        )
    if rule == "random":
        captions = tuple(sorted(captions, key=lambda caption: _draw(seed, caption.id)))
    return captions[:count]


def chosen_captions(path: Path, parameters: Mapping[str, Any], allow: Allow) -> Sequence[Caption]:
    """Return the captions of a file that a task with these parameters uses."""
    data = read_captions(path, allow)
    if "select" not in parameters:
        return data.captions
    return select_captions(data, parameters["select"], parameters["samples"], parameters["select_seed"])


def _one_per_image(data: CaptionData, seed: int) -> Iterator[Caption]:
    by_image: dict[str | int, list[Caption]] = {}
    for caption in data.captions:
        if caption.image is None:
            raise InvalidData(
                f"{data.path}, {caption.where} names no image; `select: one_per_image` needs an image for every caption"
            )
        by_image.setdefault(caption.image, []).append(caption)
    for image in sorted(by_image, key=lambda image: _draw(seed, f"image {image}")):
        yield min(by_image[image], key=lambda caption: _draw(seed, caption.id))


def _draw(seed: int, name: str) -> bytes:  # a sort key that is the same on every machine and in every version
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


@lru_cache(maxsize=CACHED_FILES)
def _read_captions(path: Path, identity: Identity, allow: Allow) -> CaptionData:
    # `identity` invalidates the cache when the file changes.
    if path.suffix not in _READERS:
        known = ", ".join(f"{suffix} ({what})" for suffix, (what, _) in _READERS.items())
        raise InvalidData(f"{path} ends in {path.suffix or 'nothing'!r}; give captions in {known}")
    return caption_data(str(path), _READERS[path.suffix][1](path, allow))


def caption_data(path: str, read: Iterable[Caption]) -> CaptionData:
    """Return the captions of a file with their digest. Raises InvalidData for none, and for equal ids."""
    captions = tuple(read)
    if not captions:
        raise InvalidData(f"{path} holds no captions; write at least one")
    first: dict[str, str] = {}
    total = hashlib.sha256()
    for caption in captions:
        if caption.id in first:
            raise InvalidData(
                f"{path}, {caption.where}: the id is also that of {first[caption.id]}; "
                "give each caption a different id, since each is a separate prompt"
            )
        first[caption.id] = caption.where
        for part in (caption.id.encode(), caption.text.encode()):
            # The length distinguishes "a", "bc" from "ab", "c".
            total.update(len(part).to_bytes(8, "little") + part)
    return CaptionData(path, captions, total.hexdigest())


def _read_coco(path: Path, allow: Allow) -> Iterator[Caption]:
    raw = read_bytes(path, allow)
    if not raw.strip():
        raise InvalidData(f"{path} is empty; give COCO's annotations: an object with `images` and `annotations`")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        hint = "; give a file with an object per line the suffix .jsonl" if "Extra data" in str(error) else ""
        raise InvalidData(f"{path} is not valid JSON: {json_reason(error)}{hint}") from None
    entries = list(content.values()) if isinstance(content, dict) else []
    if entries and all(isinstance(entry, dict) and "category" in entry for entry in entries):
        yield from _mjhq(path, content)
        return
    if not isinstance(content, dict):
        raise InvalidData(
            f"{path} is {type_name(content)}; COCO's annotations are an object with `images` and `annotations`"
        )
    files = {}
    for number, image in enumerate(_entries(path, content, "images"), 1):
        where = f"{path}, image {number}"
        key = _whole_number(where, image, "id")
        if key in files:
            raise InvalidData(f"{where}: another image has the id {key} too; remove one of the images")
        files[key] = check_text(where, image.get("file_name"), "file_name")
    for number, annotation in enumerate(_entries(path, content, "annotations"), 1):
        where = f"{path}, annotation {number}"
        image_id, caption_id = (_whole_number(where, annotation, key) for key in ("image_id", "id"))
        if image_id not in files:
            raise InvalidData(f"{where}: `images` has no image {image_id}; add the image or remove the annotation")
        text = check_text(where, annotation.get("caption"), "caption").strip()
        yield Caption(f"{image_id}:{caption_id}", text, files[image_id], None, f"annotation {number}")


def _mjhq(path: Path, content: Mapping[str, Mapping[str, object]]) -> Iterator[Caption]:
    wheres = [f"{path}, entry {number}" for number in range(1, len(content) + 1)]
    entries = list(zip(wheres, content.items(), strict=True))
    categories = [check_text(where, entry["category"], "category") for where, (_, entry) in entries]
    labels = {category: label for label, category in enumerate(sorted(set(categories)))}
    for (where, (name, entry)), category in zip(entries, categories, strict=True):
        text, known = check_text(where, entry.get("prompt"), "prompt").strip(), check_text(where, name, "id")
        yield Caption(known, text, f"{category}/{known}.jpg", labels[category], where.rpartition(", ")[2])


def _entries(path: Path, content: Mapping[str, object], key: str) -> Sequence[Mapping[str, object]]:
    if key not in content:
        raise InvalidData(f"{path} has no list `{key}`, as COCO's annotations have; {_present_keys(content, (key,))}")
    entries = content[key]
    if not isinstance(entries, list):
        raise InvalidData(f"{path}: `{key}` is {type_name(entries)}; it must be a list of objects")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise InvalidData(f"{path}: entry {number} of `{key}` is {type_name(entry)}; it must be an object")
    return entries


def _whole_number(where: str, entry: Mapping[str, object], key: str) -> int:
    value = entry.get(key)
    if type(value) is not int:
        problem = f"is {type_name(value)}" if key in entry else "is missing"
        raise InvalidData(f"{where}: `{key}` {problem}; it must be a whole number")
    return value


def _read_csv(path: Path, allow: Allow) -> Iterator[Caption]:
    rows = _csv_rows(path, allow)
    line, header = next(rows, (0, []))
    if not header:
        return
    columns = _columns(f"{path}, line {line}", header)
    for number, (line, row) in enumerate(rows, 1):
        where = f"{path}, line {line}"
        if len(row) != len(header):
            raise InvalidData(
                f"{where} has {len(row)} fields, but the header has {len(header)}; put texts with commas or line "
                "breaks between double quotes"
            )
        fields = {key: row[index] for key, index in columns.items()}
        identifier = fields.get("id", str(number)).strip()
        if not identifier:
            raise InvalidData(f"{where}: the id is empty; give every row an id, or remove the column")
        text = check_text(where, fields["text"]).strip()
        image = fields.get("image", "").strip() or None
        try:
            label = int(fields["label"]) if fields.get("label", "").strip() else None
        except ValueError:
            raise InvalidData(f"{where}: the label is no whole number; correct the label, or drop the column") from None
        yield Caption(identifier, text, image, label, f"line {line}")


def _csv_rows(path: Path, allow: Allow) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with its first line. A blank line is no row: an empty text alone in its row is `""`."""
    try:
        # utf-8-sig: spreadsheets write a byte order mark, which would become part of the first column's name.
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
        raise InvalidData(f"{path}, line {begin} is not valid CSV: {error}; correct the row") from None


_OPEN = re.compile(r'"(?:[^"]|"")*')
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def _single_column(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield rows of one field, with commas and quotation marks kept unless the whole row is quoted."""
    lines = iter(enumerate(text.split("\n"), 1))
    for begin, row in lines:
        while _OPEN.fullmatch(row):
            _, following = next(lines, (0, None))
            if following is None:
                raise InvalidData(f"{path}, line {begin} is not valid CSV: a quotation mark is not closed; close it")
            row = f"{row}\n{following}"
        if quoted := _QUOTED.fullmatch(row.rstrip()):
            yield begin, [quoted[1].replace('""', '"')]
        elif row.strip():
            yield begin, [row]


def _columns(where: str, header: Sequence[str]) -> dict[str, int]:
    names = [name.strip().lower() for name in header]
    texts = [name for name in names if name in TEXT_COLUMNS]
    if not texts:
        wanted = ", ".join(map(repr, TEXT_COLUMNS))
        raise InvalidData(f"{where}: the header has no column {wanted}; {_present_keys(names, TEXT_COLUMNS)}")
    if len(texts) > 1:
        raise InvalidData(f"{where}: the header has the columns {' and '.join(map(repr, texts))}; keep one text column")
    columns = {"text": names.index(texts[0])}
    for key, choices in (("id", ID_COLUMNS), ("image", IMAGE_COLUMNS), ("label", ("label",))):
        if present := [name for name in choices if name in names]:
            columns[key] = names.index(present[0])
    return columns


def _read_jsonl(path: Path, allow: Allow) -> Iterator[Caption]:
    for number, line in read_lines(path, allow):
        where = f"{path}, line {number}"
        content = parse_object(where, line, "`text`")
        if "text" not in content:
            raise InvalidData(f"{where} has no `text`; {_present_keys(content, ('text',))}")
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
    raise InvalidData(f"{where}: `{key}` is {type_name(value)}; it must be {must}")


def _present_keys(present: Iterable[str], wanted: Sequence[str]) -> str:
    names = [str(name) for name in present]
    near = [match for name in wanted for match in difflib.get_close_matches(name, names, n=1, cutoff=0.6)]
    shown = ", ".join(map(show_name, names[:10])) or "nothing"
    return f"found {shown}" + (f"; rename {near[0]!r}?" if near else "")


_READERS: Mapping[str, tuple[str, Callable[[Path, Allow], Iterator[Caption]]]] = {
    ".json": ("COCO annotations", _read_coco),
    ".csv": ("a header and a caption a row", _read_csv),
    ".jsonl": ("an object with `text` a line", _read_jsonl),
}
