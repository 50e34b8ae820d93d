"""Images and captions in WebDataset's tar files, as img2dataset writes them.

Members that follow each other and have the same name up to the first dot are one sample: `000000012.jpg`, and the
caption in `000000012.txt`, or as `caption` in `000000012.json`. Other members are ignored.

Nothing is unpacked: an image is read from its place in the tar. Python's tarfile follows links, reads extended headers
of any size into memory, and unpacks compressed archives. Here only regular files with plain names count. Links, devices
and names such as `/a.jpg` and `../a.jpg` are left out with their reason. What hides the place of the next header, such
as a sparse file or a broken header, ends the tar there, with its reason.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy
from numpy.typing import NDArray

from evalsvc.data.archives import MAX_STORED_BYTES
from evalsvc.data.files import check_text
from evalsvc.data.images import ImageSource, StoredImage, stored_image
from evalsvc.errors import DataChanged, InvalidData
from evalsvc.files.opened import Allow, OpenFile, open_file
from evalsvc.spec.images import PICTURES, Fit
from prepare.caption_texts import MAX_CAPTION_BYTES, caption_of
from prepare.refusals import Refusal

BLOCK = tarfile.BLOCKSIZE

MAX_METADATA = 1_000_000
"""Largest number of bytes of a sample's JSON."""
MAX_EXTENDED = 1 << 16
"""Largest number of bytes of an extended header."""
MAX_NAME = 255
MAX_MEMBERS = 100
"""Largest number of members of a sample."""

HARMLESS = {"mtime", "atime", "ctime", "uid", "gid", "uname", "gname"}
"""Keywords of extended headers that change neither a member's name nor its size."""

FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
"""Types of regular files. tarfile counts sparse files as regular, too."""

NO_FILES = {
    **dict.fromkeys((tarfile.LNKTYPE, tarfile.SYMTYPE), "the member is a link"),
    **dict.fromkeys((tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE), "the member is a device or a pipe"),
}
"""Reasons to leave out a member, by its type. Such members have no content."""

Refuse = Callable[[Refusal], None]


@dataclass(frozen=True)
class Member:
    """A regular file in a tar."""

    tar: Path
    name: str
    offset: int
    """Place of the content, in bytes from the beginning of the tar."""
    size: int
    file: OpenFile = field(repr=False)
    """State of the tar when its headers were read. The stream is closed."""

    @property
    def shown(self) -> str:
        """Name of the member in messages."""
        return f"{self.tar.name}/{self.name}"


@dataclass(frozen=True)
class Sample:
    """An image with its caption."""

    image: Member
    caption: str


class TarImages(ImageSource):
    """Images in tar files, each read from its place."""

    def __init__(self, source: Path, members: Sequence[Member], allow: Allow) -> None:
        self.path = str(source)
        self._members = members
        self._allow = allow

    def __len__(self) -> int:
        return len(self._members)

    def name(self, index: int) -> str:
        return self._members[index].shown

    def index(self, image: str | int) -> int:
        """Return an index unchanged; images of tars are not requested by name."""
        if isinstance(image, str):
            raise InvalidData(f"images of {self.path} are numbered; give one of 0…{len(self) - 1}")
        return self._checked(image)

    def load(self, index: int, fit: Fit | None) -> NDArray[numpy.uint8]:
        return self.stored(index).pixels(fit)

    def content_digest(self, index: int) -> str:
        return self.stored(index).digest

    def stored(self, index: int) -> StoredImage:
        """Read an image once. Raises InvalidData for a large one, and DataChanged if the tar was replaced."""
        member = self._members[index]
        if member.size > MAX_STORED_BYTES:
            raise InvalidData(f"{member.shown} has more than {MAX_STORED_BYTES:,} bytes; give a smaller image")
        file = open_file(member.tar, "tar file", self._allow)
        with file.stream as stream:
            if file != member.file:
                raise DataChanged(f"{member.tar} was replaced while its images were read; prepare the source again")
            return stored_image(_content(stream, member), member.shown)


def read_samples(tar: Path, allow: Allow, refuse: Refuse) -> Iterator[Sample]:
    """Yield the samples of a tar file in its order. `refuse` gets what is left out.

    Raises InvalidData if the file cannot be opened, or as `allow` raises.
    """
    file = open_file(tar, "tar file", allow)
    with file.stream as stream:
        keys: set[str] = set()
        for key, members in _grouped(_members(tar, file, refuse)):
            if key in keys:
                refuse(Refusal(f"{tar.name}/{key}", "the key occurs twice in the tar"))
                continue
            keys.add(key)
            sample = _sample(f"{tar.name}/{key}", stream, members)
            if isinstance(sample, Refusal):
                refuse(sample)
            else:
                yield sample


def _grouped(members: Iterator[Member]) -> Iterator[tuple[str, list[Member]]]:
    """Yield the members of each sample, with the sample's key."""
    key, group = "", list[Member]()
    for member in members:
        following = _key_and_ending(member.name)[0]
        if group and following != key:
            yield key, group
            group = []
        key = following
        if len(group) <= MAX_MEMBERS:  # one more than allowed tells that there are too many
            group.append(member)
    if group:
        yield key, group


def _key_and_ending(name: str) -> tuple[str, str]:
    """Return `a/b`, `seg.png` for `a/b.seg.png`, as WebDataset cuts names."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def _sample(shown: str, stream: BinaryIO, members: Sequence[Member]) -> Sample | Refusal:
    """Return the image and the caption of a sample, or why there is none."""
    if len(members) > MAX_MEMBERS:
        return Refusal(shown, f"the sample has more than {MAX_MEMBERS} members")
    by_ending: dict[str, Member] = {}
    for member in members:
        ending = _key_and_ending(member.name)[1]
        if ending in by_ending:
            return Refusal(shown, "the sample has two members of one name")
        by_ending[ending] = member
    images = [member for ending, member in by_ending.items() if f".{ending}" in PICTURES]
    if len(images) != 1:
        return Refusal(shown, "the sample has several images" if images else "the sample has no image")
    try:
        caption = _caption(stream, by_ending)
    except InvalidData as error:
        return Refusal.of_error(shown, error)
    return Refusal(shown, "the sample has no caption") if caption is None else Sample(images[0], caption)


def _caption(stream: BinaryIO, by_ending: dict[str, Member]) -> str | None:
    text, metadata = by_ending.get("txt"), by_ending.get("json")
    if text is not None:
        _require_size(text, MAX_CAPTION_BYTES, "the caption")
        return caption_of(_content(stream, text))
    if metadata is None:
        return None
    _require_size(metadata, MAX_METADATA, "the sample's JSON")
    try:
        content = json.loads(_content(stream, metadata))
    except (ValueError, RecursionError):
        raise InvalidData("the sample's JSON cannot be read") from None
    caption = content.get("caption") if isinstance(content, dict) else None
    return None if caption is None else check_text("the sample's JSON", caption, "caption")


def _require_size(member: Member, limit: int, what: str) -> None:
    if member.size > limit:
        raise InvalidData(f"{what} has more than {limit:,} bytes")


def _content(stream: BinaryIO, member: Member) -> bytes:
    stream.seek(member.offset)
    return stream.read(member.size)


# Headers


class _Ended(Exception):
    """The rest of a tar cannot be read; the message says why."""


def _members(tar: Path, file: OpenFile, refuse: Refuse) -> Iterator[Member]:
    """Yield the regular files of a tar with plain names."""
    try:
        for header in _headers(file.stream, file.version[2]):
            problem = NO_FILES.get(header.type) or _problem_of(header.name)
            if problem is not None:
                refuse(Refusal(f"{tar.name}/{header.name[:MAX_NAME]}", problem))
            elif header.type in FILES:
                yield Member(tar, header.name.removeprefix("./"), header.offset_data, header.size, file)
    except _Ended as ended:
        refuse(Refusal(tar.name, f"the rest of the tar is left out: {ended}"))


def _problem_of(name: str) -> str | None:
    """Return why a member's name is refused; None for a plain name."""
    if name.startswith("/") or ".." in name.split("/"):
        return "the name leads out of the tar"
    return None if name.isprintable() and len(name) <= MAX_NAME else "the name is long or has control characters"


def _headers(stream: BinaryIO, end: int) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of files, folders, links and devices, with `offset_data` set. Raises _Ended."""
    offset = 0
    while (header := _header(stream, offset, end)) is not None:
        if header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE):
            _check_extended(stream.read(header.size))
        elif header.type in FILES or header.isdir() or header.type in NO_FILES:
            yield header
        else:
            raise _Ended("a member is sparse, has a long name, or is of an unknown kind")
        offset = header.offset_data + _padded(header)


def _header(stream: BinaryIO, offset: int, end: int) -> tarfile.TarInfo | None:
    """Read the header at `offset`; return None at the end of the tar."""
    stream.seek(offset)
    block = stream.read(BLOCK)
    if block == bytes(BLOCK):
        return None
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        raise _Ended(
            "it is cut off" if len(block) < BLOCK else "a header is broken, or the file is no plain tar"
        ) from None
    header.offset_data = offset + BLOCK
    limit = MAX_EXTENDED if header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE) else end
    if not 0 <= header.size <= limit:
        raise _Ended("a header has an impossible size")
    if _padded(header) and header.offset_data + header.size > end:
        raise _Ended("it is cut off")
    return header


def _padded(header: tarfile.TarInfo) -> int:
    """Return the number of bytes between a header and the following one."""
    return 0 if header.type in NO_FILES or header.isdir() else -(-header.size // BLOCK) * BLOCK


def _check_extended(content: bytes) -> None:
    """Raise _Ended unless the lines of an extended header, `LENGTH KEYWORD=VALUE`, have harmless keywords only."""
    while content:
        digits, _, _ = content[:8].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        keyword = content[len(digits) + 1 : length].partition(b"=")[0].decode("ascii", "replace")
        if length < 5 or content[length - 1 : length] != b"\n" or keyword not in HARMLESS:
            raise _Ended("an extended header changes a name or a size, or is broken")
        content = content[length:]
