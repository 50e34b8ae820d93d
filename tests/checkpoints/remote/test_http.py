"""http(s) is no way into the operator's network: not by a name, a number, a redirect, or a DNS of two minds."""

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from evalsvc.checkpoints.remote import http
from evalsvc.checkpoints.remote.http import HttpSource, is_public, resolve_host
from evalsvc.checkpoints.remote.uri import parse_remote
from evalsvc.config import Settings
from evalsvc.errors import CheckpointChanged, CheckpointNotAllowed, NotACheckpoint, SourceUnreachable

PUBLIC = "93.184.216.34"
CONTENT = bytes(range(256)) * 100

Handler = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def pages() -> dict[str, Handler]:
    return {}


@pytest.fixture
def server(pages: dict[str, Handler]) -> Iterator[int]:
    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pages[self.path](self)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *arguments: Any) -> None:
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    yield found.server_address[1]
    found.shutdown()
    thread.join()
    found.server_close()


class Network:
    """Names and their addresses; every public address leads to the tests' server, and what was asked is kept."""

    def __init__(self, port: int, **names: list[str]) -> None:
        self.port = port
        self.names = names
        self.resolved: list[str] = []
        self.connected: list[str] = []

    def resolve(self, host: str, port: int) -> list[str]:
        self.resolved.append(host)
        answers = self.names[host.partition(".")[0]]
        return [answers.pop(0) if len(answers) > 1 else answers[0]]

    def connect(self, address: str, port: int, seconds: float) -> socket.socket:
        self.connected.append(address)
        return socket.create_connection(("127.0.0.1", self.port), seconds)

    def source(self, uri: str, seconds: float = 60) -> HttpSource:
        settings = Settings(schemes="http,https")
        parsed = parse_remote(uri, settings)
        return HttpSource(parsed, settings.allowed_schemes, seconds=seconds, resolve=self.resolve, connect=self.connect)


def page(content: bytes = CONTENT, status: int = 200, **headers: str) -> Handler:
    def answer(request: BaseHTTPRequestHandler) -> None:
        body, code = content, status
        found = request.headers.get("Range")
        if found and status == 200:
            body, code = content[int(found.removeprefix("bytes=").rstrip("-")) :], 206
        request.send_response(code)
        for name, value in {"ETag": '"one"', "Content_Length": str(len(body)), **headers}.items():
            if value:
                request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    return answer


def test_a_file_is_listed_and_read_from_anywhere_in_it(pages: dict[str, Handler], server: int) -> None:
    pages["/a/x.pt"] = page()
    network = Network(server, models=[PUBLIC])
    found = network.source("http://models.example/a/x.pt")
    listing = found.list()
    assert [(file.name, file.size, file.etag) for file in listing.files] == [("x.pt", len(CONTENT), "one")]
    for offset in (0, 7, len(CONTENT) - 1):
        assert b"".join(found.read(listing.files[0], offset)) == CONTENT[offset:]
    assert set(network.connected) == {PUBLIC}


@pytest.mark.parametrize(("name", "asked"), [("a b.pt", "/a%20b.pt"), ("é.pt", "/%C3%A9.pt"), ("a%20b", "/a%20b")])
def test_names_are_encoded_once(pages: dict[str, Handler], server: int, name: str, asked: str) -> None:
    pages[asked] = page()
    assert Network(server, models=[PUBLIC]).source(f"http://models.example/{name}").list().files[0].size == len(CONTENT)


def test_a_name_that_no_host_can_have() -> None:
    network = Network(1)
    network.resolve = resolve_host  # type: ignore[method-assign]
    with pytest.raises(CheckpointNotAllowed, match="which is no name of a host"):
        network.source("http://a..b/x").list()


def test_a_server_without_ranges_is_read_from_the_start(pages: dict[str, Handler], server: int) -> None:
    pages["/x"] = page(status=203)
    found = Network(server, models=[PUBLIC]).source("http://models.example/x")
    with pytest.raises(SourceUnreachable, match="the server answers 203"):
        found.list()

    def whole(request: BaseHTTPRequestHandler) -> None:
        del request.headers["Range"]
        page()(request)

    pages["/x"] = whole
    assert b"".join(found.read(found.list().files[0], 1000)) == CONTENT[1000:]


PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_public_is_not_asked(address: str) -> None:
    assert not is_public(address)
    network = Network(1, inside=[address])
    with pytest.raises(CheckpointNotAllowed, match="which is not a public address"):
        network.source("http://inside.example/latest/meta-data").list()
    assert network.connected == []


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "::ffff:1.1.1.1", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_what_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost", "0"])
def test_numbers_in_any_base_are_addresses_too(host: str) -> None:
    """The system's resolver reads them all, so a check of the text would miss them."""
    assert not all(is_public(address) for address in resolve_host(host, 80))


def test_a_redirect_into_the_network_is_not_followed(pages: dict[str, Handler], server: int) -> None:
    network = Network(server, models=[PUBLIC], inside=["169.254.169.254"])
    pages["/x"] = page(b"", 302, Location="http://inside.example/latest/meta-data")
    with pytest.raises(CheckpointNotAllowed, match=r"models.example/x: inside.example is at 169.254.169.254"):
        network.source("http://models.example/x").list()
    assert network.connected == [PUBLIC]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("file:///etc/passwd", "leads to file:///etc/passwd, which is not allowed"),
        ("ftp://models.example/x", "which is not allowed"),
        ("http://u:hunter2@models.example/y", "leads to http://…@models.example/y, which is not allowed"),
        ("/x", "leads through more than 5 redirects"),
    ],
)
def test_redirects_that_lead_nowhere_good(pages: dict[str, Handler], server: int, target: str, words: str) -> None:
    pages["/x"] = page(b"", 307, Location=target)
    with pytest.raises((CheckpointNotAllowed, SourceUnreachable)) as caught:
        Network(server, models=[PUBLIC]).source("http://models.example/x").list()
    assert words in caught.value.message
    assert "hunter2" not in caught.value.message


def test_a_redirect_to_a_public_place_is_followed(pages: dict[str, Handler], server: int) -> None:
    pages["/x"] = page(b"", 302, Location="http://mirror.example/y?signature=secret")
    pages["/y?signature=secret"] = page()
    network = Network(server, models=[PUBLIC], mirror=["1.1.1.1"])
    found = network.source("http://models.example/x")
    assert b"".join(found.read(found.list().files[0], 0)) == CONTENT
    assert network.connected == [PUBLIC, "1.1.1.1"] * 2


def test_a_name_that_changes_its_address_gains_nothing(pages: dict[str, Handler], server: int) -> None:
    """DNS rebinding: public when it is checked, loopback when it is used. The connection is to what was checked."""
    pages["/x"] = page()
    network = Network(server, models=[PUBLIC, "127.0.0.1"])
    found = network.source("http://models.example/x")
    listing = found.list()
    assert network.resolved == ["models.example"], "asked once for one connection"
    assert network.connected == [PUBLIC]
    with pytest.raises(CheckpointNotAllowed, match=r"models\.example is at 127\.0\.0\.1"):
        b"".join(found.read(listing.files[0], 0))


def test_one_private_address_among_public_ones_is_enough() -> None:
    network = Network(1)
    network.resolve = lambda host, port: [PUBLIC, "10.0.0.1"]  # type: ignore[method-assign]
    with pytest.raises(CheckpointNotAllowed, match=r"is at 10\.0\.0\.1"):
        network.source("http://models.example/x").list()


def test_a_file_without_a_length_is_refused(pages: dict[str, Handler], server: int) -> None:
    pages["/x"] = page(Content_Length="")
    with pytest.raises(NotACheckpoint, match="does not say how long the file is"):
        Network(server, models=[PUBLIC]).source("http://models.example/x").list()


def test_a_file_that_was_replaced_between_two_requests(pages: dict[str, Handler], server: int) -> None:
    pages["/x"] = page()
    found = Network(server, models=[PUBLIC]).source("http://models.example/x")
    listing = found.list()
    pages["/x"] = page(ETag='"two"')
    with pytest.raises(CheckpointChanged, match="was replaced while it was fetched"):
        b"".join(found.read(listing.files[0], 0))


def test_a_server_that_says_nothing_is_given_up(
    pages: dict[str, Handler], server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    pages["/x"] = lambda request: release.wait(10) and None
    monkeypatch.setattr(http, "METADATA_SECONDS", 0.2)
    with pytest.raises(SourceUnreachable, match=r"did not answer within 0.2 s|cannot be read \(TimeoutError\)"):
        Network(server, models=[PUBLIC]).source("http://models.example/x").list()
    release.set()


def test_a_server_that_sends_ever_so_slowly_has_an_end(pages: dict[str, Handler], server: int) -> None:
    """Every byte comes in time, and the file never: a timeout of a single read does not see it."""
    pages["/x"] = page()
    found = Network(server, models=[PUBLIC]).source("http://models.example/x", seconds=0.3)
    listing = found.list()
    stop = threading.Event()

    def trickle(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("ETag", '"one"')
        request.end_headers()
        while not stop.wait(0.02):
            request.wfile.write(b"x")

    pages["/x"] = trickle
    with pytest.raises(SourceUnreachable, match=r"was not fetched within 0\.3 s; raise EVALSVC_SHARD_DEADLINE"):
        list(found.read(listing.files[0], 0))
    stop.set()


def test_nobody_there() -> None:
    network = Network(1, models=[PUBLIC])
    with pytest.raises(SourceUnreachable, match=r"the server cannot be read \(ConnectionRefusedError\)"):
        network.source("http://models.example/x").list()


STATUSES = [(404, FileNotFoundError), (403, CheckpointNotAllowed), (500, SourceUnreachable)]


@pytest.mark.parametrize(("status", "error"), STATUSES)
def test_what_a_server_answers(pages: dict[str, Handler], server: int, status: int, error: type[Exception]) -> None:
    pages["/x"] = page(b"", status)
    with pytest.raises(error):
        Network(server, models=[PUBLIC]).source("http://models.example/x").list()
