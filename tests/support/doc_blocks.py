"""Code blocks and links of README.md and docs/: the text between fences, and the mark that says how a test holds it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import generate

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
READMES = (README, *(ROOT / "benchmarks" / folder / "README.md" for folder in ("prepare", "harness")))
MARKS = ("run", "check", "output", "suite")
"""What follows the language of a fence: run literally, checked, output to look at, or parsed as a suite."""

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)$")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    mark: str
    """The words behind the language, one of MARKS where the block is marked as it should be."""
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


REFERENCE = {generate.FOLDER / f"{name}.md": page for name, page in generate.PAGES.items()}


def site_pages() -> list[Path]:
    return sorted({*DOCS.rglob("*.md"), *REFERENCE})


def pages() -> list[Path]:
    return [*READMES, *site_pages()]


@cache
def read_page(page: Path) -> str:
    """Return the text of a page. A page of the reference is that of the code, whatever lies in docs/reference."""
    return REFERENCE[page]() if page in REFERENCE else page.read_text()


def read_blocks(page: Path) -> list[Block]:
    return [block for block, _ in _parts(page) if block is not None]


def prose(page: Path) -> str:
    return "\n".join(line for block, line in _parts(page) if block is None)


def find_block(page: Path, language: str, text: str) -> str:
    [found] = [block.text for block in read_blocks(page) if block.language == language and text in block.text]
    return found


def section(page: Path, heading: str) -> str:
    lines = read_page(page).splitlines()
    first = lines.index(heading) + 1
    level = len(heading.partition(" ")[0])
    ends = (n for n, line in enumerate(lines[first:], first) if re.match(rf"#{{1,{level}}} ", line))
    return "\n".join(lines[first : next(ends, len(lines))])


def anchors(page: Path) -> set[str]:
    found: set[str] = set()
    for title in re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).replace("`", "").lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


def _parts(page: Path) -> Iterator[tuple[Block | None, str]]:
    lines = enumerate(read_page(page).splitlines(), 1)
    for number, line in lines:
        if (opening := FENCE.match(line)) is None:
            yield None, line
            continue
        indent = len(opening["indent"])
        language, _, mark = opening["info"].strip().partition(" ")
        body = []
        for _, inner in lines:
            if inner.strip().startswith(opening["fence"]) and not inner.strip().strip("`~"):
                break
            body.append(inner[min(indent, len(inner) - len(inner.lstrip())) :])
        else:
            raise AssertionError(f"{page}:{number}: the block is not closed")
        yield Block(page, number, language, mark, "\n".join(body) + "\n"), ""
