"""Names of files of a copy: what a service says never leads out of the folder."""

from pathlib import Path

import pytest

from evalsvc.client import Client
from evalsvc.errors import InvalidRequest
from evalsvc.web.page import Surroundings
from evalsvc.web.site_files import Site

HOSTILE = ("../../x", "/etc/passwd", "a/../../b", "..", ".", "C:\\x", "a\0b", "x" * 5000, "a\nb", "\u202ea", ".../..")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    folder = tmp_path / "site"
    folder.mkdir()
    return Site(Client(), Surroundings(None, "", is_copy=True), folder, ["run"])


@pytest.mark.parametrize("stem", HOSTILE)
def test_a_claimed_name_stays_in_the_folder(site: Site, stem: str) -> None:
    name = site.claim(stem, "html")
    site.write(name, b"content")
    [written] = [path for path in site.folder.parent.rglob("*") if path.is_file()]
    assert written.is_relative_to(site.folder)
    assert name.isascii()
    assert not any(part.startswith(".") for part in Path(name).parts)


@pytest.mark.parametrize("name", ["../x.html", "/tmp/x.html", "a/../../x.html"])
def test_a_name_that_was_not_claimed_is_refused_outside_of_the_folder(site: Site, name: str) -> None:
    with pytest.raises(InvalidRequest, match="outside"):
        site.write(name, b"content")
    assert list(site.folder.parent.rglob("*")) == [site.folder]


def test_no_two_files_have_one_name(site: Site) -> None:
    """Some disks do not tell cases apart."""
    names = [site.claim(stem, "html") for stem in ("runs/A", "runs/a", "runs/a", "runs/a-2", "runs/ä", "runs/ö")]
    assert len({name.lower() for name in names}) == len(names)


def test_files_can_be_read_by_others(site: Site) -> None:
    """A host of files runs as another user."""
    site.write("index.html", b"content")
    assert (site.folder / "index.html").stat().st_mode & 0o444 == 0o444
    assert (site.files, site.size) == (1, 7)
