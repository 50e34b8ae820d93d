"""Servers of the tests' own: handlers that a test writes, on a free port of this machine."""

import hashlib
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Pages(BaseHTTPRequestHandler):
    """Answers GET and HEAD by `respond`, and is silent about it."""

    def respond(self) -> None:
        raise NotImplementedError

    def do_GET(self) -> None:
        self.respond()

    def do_HEAD(self) -> None:
        self.respond()

    def answer(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


COMMIT = "c" * 40


class FakeHub(Pages):
    repository: str
    files: dict[str, bytes]
    asked: list[str]

    def respond(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        if "/resolve/" in path:
            self._file(path.split("/resolve/")[1].partition("/")[2])
        elif "/tree/" in path:
            self._json(self._tree(path.split("/tree/")[1].partition("/")[2]))
        elif path.startswith(f"/api/{self.repository}"):
            name = self.repository.partition("/")[2]
            self._json({"id": name, "sha": COMMIT, "tags": [], "siblings": [], "private": False})
        else:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _file(self, name: str) -> None:
        if name not in self.files:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content, status = self.files[name], 200
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if found := self.headers.get("Range"):
            begin, _, end = found.removeprefix("bytes=").partition("-")
            headers["Content-Range"] = f"bytes {begin}-{end or len(content) - 1}/{len(content)}"
            content, status = content[int(begin) : int(end) + 1 if end else None], 206
        self.answer(status, content, headers)

    def _tree(self, folder: str) -> list[dict[str, Any]]:
        inside = [self._info(name) for name in self.files if name.rpartition("/")[0] == folder]
        folders = {name.partition("/")[0] for name in self.files if "/" in name and not folder}
        return inside + [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in folders]

    def _info(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
        return {"type": "file", "path": name, "size": len(content), "oid": "0" * 40, "lfs": lfs}

    def _json(self, content: Any) -> None:
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})


@contextmanager
def fake_hub(repository: str, files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """The hub's address, and the paths that it was asked for so far."""
    asked: list[str] = []
    with serving(type("Hub", (FakeHub,), {"repository": repository, "files": files, "asked": asked})) as port:
        yield f"http://127.0.0.1:{port}", asked


@dataclass(frozen=True)
class Pair:
    cert: Path
    key: Path


def make_pair(folder: Path, *, name: str = "127.0.0.1", days: tuple[int, int] = (-1, 1)) -> Pair:
    """Make a certificate for an address or name, valid from and to so many days from now."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    is_address = name[0].isdigit()
    names = [x509.IPAddress(ipaddress.ip_address(name)) if is_address else x509.DNSName(name)]
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pair = Pair(folder / "cert.pem", folder / "key.pem")
    pair.cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pair.key.write_bytes(key.private_bytes(*form))
    return pair


@contextmanager
def server(pair: Pair | None) -> Iterator[int]:
    """The port of a server that answers every connection with an empty HTTP answer, by TLS where a pair is given."""
    context = None
    if pair is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.cert, pair.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_answer_all, args=(listener, context))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _answer_all(listener: socket.socket, context: ssl.SSLContext | None) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, suppress(OSError):
            stream = connection if context is None else context.wrap_socket(connection, server_side=True)
            with stream:
                stream.recv(65536)
                stream.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
