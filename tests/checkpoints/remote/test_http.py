"""http(s) is no way into the operator's network: not by a name, a number, a redirect, or a DNS of two minds."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from http_pages import Pages, serving

from evalsvc.checkpoints.remote import http
from evalsvc.checkpoints.remote.http import HttpSource, is_public, resolve_host
from evalsvc.checkpoints.remote.uri import parse_remote
from evalsvc.config import Settings
from evalsvc.errors import CheckpointChanged, CheckpointNotAllowed, NotACheckpoint, SourceUnreachable

PUBLIC, MIRROR = "93.184.216.34", "1.1.1.1"
CONTENT = bytes(range(256)) * 100

Answer = Callable[[Pages], object]


class Network:
    """Names and their addresses; every public address leads to `pages`, and what was asked is kept."""

    def __init__(self, port: int, pages: dict[str, Answer]) -> None:
        self.port = port
        self.pages = pages
        self.names = {"models": [PUBLIC], "mirror": [MIRROR], "inside": ["169.254.169.254"]}
        """The addresses of a host by its first name: one for each time it is asked for, the last one from then on."""
        self.resolved: list[str] = []
        self.connected: list[str] = []

    def resolve(self, host: str, port: int) -> list[str]:
        self.resolved.append(host)
        answers = self.names[host.partition(".")[0]]
        return [answers.pop(0) if len(answers) > 1 else answers[0]]

    def connect(self, address: str, port: int, seconds: float) -> socket.socket:
        self.connected.append(address)
        return socket.create_connection(("127.0.0.1", self.port), seconds)

    def source(self, uri: str = "http://models.example/x", seconds: float = 60) -> HttpSource:
        settings = Settings(schemes="http,https")
        parsed = parse_remote(uri, settings)
        return HttpSource(parsed, settings.allowed_schemes, seconds=seconds, resolve=self.resolve, connect=self.connect)


@pytest.fixture
def network() -> Iterator[Network]:
    pages: dict[str, Answer] = {}

    class ByPath(Pages):
        def respond(self) -> None:
            pages[self.path](self)

    with serving(ByPath) as port:
        yield Network(port, pages)


def page(content: bytes = CONTENT, status: int = 200, **headers: str) -> Answer:
    def answer(request: Pages) -> None:
        body, code = content, status
        found = request.headers.get("Range")
        if found and status == 200:
            body, code = content[int(found.removeprefix("bytes=").rstrip("-")) :], 206
        request.answer(code, body, {"ETag": '"one"', **headers})

    return answer


def read(source: HttpSource, offset: int = 0) -> bytes:
    return b"".join(source.read(source.list().files[0], offset))


def test_a_file_is_listed_and_read_from_anywhere_in_it(network: Network) -> None:
    """Also where the server has no ranges."""

    def whole(request: Pages) -> None:
        del request.headers["Range"]
        page()(request)

    source = network.source("http://models.example/a/x.pt")
    for answer in (page(), whole):
        network.pages["/a/x.pt"] = answer
        assert [(file.name, file.size, file.etag) for file in source.list().files] == [("x.pt", len(CONTENT), "one")]
        for offset in (0, 7, len(CONTENT) - 1):
            assert read(source, offset) == CONTENT[offset:]
    assert set(network.connected) == {PUBLIC}
    for name, asked in (("a b.pt", "/a%20b.pt"), ("é.pt", "/%C3%A9.pt"), ("a%20b", "/a%20b")):  # encoded once
        network.pages[asked] = page()
        assert network.source(f"http://models.example/{name}").list().files[0].size == len(CONTENT)


PRIVATE = [
    *("127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1", "168.63.129.16", "192.0.0.192", "0.0.0.0"),
    *("224.0.0.1", "240.0.0.1", "::1", "fe80::1%eth0", "fd00:ec2::254", "ff02::1", "::ffff:169.254.169.254"),
    *("64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "2002:7f00:1::1"),
    *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "2002:808:808::1", "3fff::1", "2620:4f:8000::1"),
    *("fec0::1", "5f00::1", "100::1", "100:0:0:1::1", "4000::1", "::8.8.8.8", "::ffff:0:808:808"),
    *("192.88.99.1", "192.31.196.1", "192.52.193.1", "192.175.48.1", "198.18.0.1", "203.0.113.1"),
]
"""One of every kind: of a machine's own, of a network's, of a cloud's metadata, and as IPv6 carries them."""


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_public(address: str) -> None:
    assert not is_public(address)
    assert all(map(is_public, (PUBLIC, MIRROR, "::ffff:1.1.1.1", "2606:4700:4700::1111", "64:ff9b::101:101")))


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost", "0"])
def test_numbers_in_any_base_are_addresses_too(host: str) -> None:
    """The system's resolver reads them all, so a check of the text would miss them."""
    assert not all(is_public(address) for address in resolve_host(host, 80))


@pytest.mark.parametrize("addresses", [["169.254.169.254"], [PUBLIC, "10.0.0.1"]])
def test_one_address_that_is_not_public_is_enough_to_ask_none(network: Network, addresses: list[str]) -> None:
    network.resolve = lambda host, port: addresses  # type: ignore[method-assign]
    with pytest.raises(CheckpointNotAllowed, match=f"is at {addresses[-1]}, which is not public"):
        network.source().list()
    network.resolve = resolve_host  # type: ignore[method-assign]
    with pytest.raises(CheckpointNotAllowed, match="which is not a host name"):
        network.source("http://a..b/x").list()
    assert network.connected == []


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (page(b"", 404), FileNotFoundError, "http://models.example/x"),
        (page(b"", 403), CheckpointNotAllowed, "the server refuses access (403)"),
        (page(status=203), SourceUnreachable, "the server answers 203"),
        (
            lambda request: (request.send_response(200), request.end_headers()),
            NotACheckpoint,
            "does not report the file's size",
        ),
        ("http://inside.example/meta-data", CheckpointNotAllowed, "x: inside.example is at 169.254.169.254"),
        ("file:///etc/passwd", CheckpointNotAllowed, "redirects to file:///etc/passwd, which is"),
        ("http://u:hunter2@models.example/y", CheckpointNotAllowed, "to http://…@models.example/y, which is not"),
        ("/x", SourceUnreachable, "has more than 5 redirects"),
    ],
)
def test_answers_that_are_refused(network: Network, answer: Answer | str, error: type[Exception], words: str) -> None:
    network.pages["/x"] = page(b"", 307, Location=answer) if isinstance(answer, str) else answer
    with pytest.raises(error) as caught:
        network.source().list()
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert set(network.connected) == {PUBLIC}


def test_a_redirect_to_a_public_place_is_followed(network: Network) -> None:
    network.pages["/x"] = page(b"", 302, Location="http://mirror.example/y?signature=secret")
    network.pages["/y?signature=secret"] = page()
    assert read(network.source()) == CONTENT
    assert network.connected == [PUBLIC, MIRROR] * 2


def test_a_name_that_changes_its_address_gains_nothing(network: Network) -> None:
    """DNS rebinding: public when it is checked, loopback when it is used. The connection is to what was checked."""
    network.pages["/x"] = page()
    network.names["models"] = [PUBLIC, "127.0.0.1"]
    source = network.source()
    file = source.list().files[0]
    assert network.resolved == ["models.example"], "asked once for one connection"
    assert network.connected == [PUBLIC]
    with pytest.raises(CheckpointNotAllowed, match=r"models\.example is at 127\.0\.0\.1"):
        b"".join(source.read(file, 0))
    network.names["models"] = [PUBLIC]
    network.pages["/x"] = page(ETag='"two"')
    with pytest.raises(CheckpointChanged, match="was replaced while it was fetched"):
        b"".join(source.read(file, 0))


def test_a_server_that_says_nothing_is_given_up(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    network.pages["/x"] = lambda request: release.wait(10)
    monkeypatch.setattr(http, "METADATA_SECONDS", 0.2)
    with pytest.raises(SourceUnreachable, match=r"did not answer within 0.2 s|cannot be read \(TimeoutError\)"):
        network.source().list()
    release.set()
    network.port = 1
    with pytest.raises(SourceUnreachable, match=r"the server cannot be read \(ConnectionRefusedError\)"):
        network.source().list()


def test_a_server_that_sends_ever_so_slowly_has_an_end(network: Network) -> None:
    """Every byte comes in time, and the file never: a timeout of a single read does not see it."""
    network.pages["/x"] = page()
    source = network.source(seconds=0.3)
    file = source.list().files[0]
    stop = threading.Event()

    def trickle(request: Pages) -> None:
        request.send_response(200)
        request.send_header("ETag", '"one"')
        request.end_headers()
        while not stop.wait(0.02):
            request.wfile.write(b"x")

    network.pages["/x"] = trickle
    with pytest.raises(SourceUnreachable, match=r"was not fetched within 0\.3 s; raise EVALSVC_SHARD_DEADLINE"):
        list(source.read(file, 0))
    stop.set()
