"""What is found before anything is started."""

import asyncio
import signal
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from http_pages import make_pair
from machines import wait_for
from service_process import ServiceProcess

from evalsvc.api.server import check_address, check_certificate, listen, server_config, warn_of_roots
from evalsvc.client import Client
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest, PortInUse, ServiceUnreachable, Unauthorized
from evalsvc.store.session import open_store
from evalsvc.store.tokens import create_token


def test_an_address_is_listened_on_once_or_not_at_all() -> None:
    with listen("127.0.0.1", 0) as first, socket.create_connection(first.getsockname()):
        port = first.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port} of 127.0.0.1 is in use.*--port"):
            listen("127.0.0.1", port)
        connection, _ = first.accept()
        with connection:  # or every request of a kept connection took 40 ms longer than its work
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    for host, port, words in [
        ("127.0.0.1", 70000, "give a port from 0 to 65535"),
        ("203.0.113.1", 0, "cannot listen on 203.0.113.1"),
        ("no.such.host.invalid", 0, "cannot listen on no.such.host.invalid"),
    ]:
        with pytest.raises(InvalidRequest, match=words):
            listen(host, port)


def test_others_only_with_a_token_or_when_that_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    check_address(Settings(host="localhost"), has_tokens=False, insecure=False)
    words = r"has no tokens; create a token first \(evalsvc tokens create .* --insecure"
    for host in ("0.0.0.0", "gpu-node"):
        with pytest.raises(InvalidRequest, match=words):
            check_address(Settings(host=host), has_tokens=False, insecure=False)
        check_address(Settings(host=host), has_tokens=False, insecure=True)
        check_address(Settings(host=host, https_cert="cert.pem"), has_tokens=True, insecure=False)
        assert caplog.text == ""
    check_address(Settings(host=host), has_tokens=True, insecure=False)
    assert f"clients send tokens to {host} unencrypted" in caplog.text


def test_roots_that_are_open_to_every_token_or_too_narrow(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """By default all files of the machine lie under the roots.

    With data outside, the service began without a word, took posts, and every evaluation failed.
    """
    warn_of_roots(Settings(), has_tokens=False)
    warn_of_roots(Settings(roots="/runs:/data"), has_tokens=True)
    assert caplog.text == ""
    warn_of_roots(Settings(), has_tokens=True)
    assert "EVALSVC_ROOTS IS NOT SET: anyone with the submit scope can make the service" in caplog.text
    caplog.clear()
    warn_of_roots(Settings(roots=f"{tmp_path}/data/runs", data_dir=f"{tmp_path}/data"), has_tokens=False)
    assert f"files below the root {tmp_path}/data/runs are not read, since it is in the data folder" in caplog.text
    caplog.clear()
    suites, data = tmp_path / "suites", tmp_path / "pairs.jsonl"
    suites.mkdir()
    (suites / "captions.yaml").write_text(f"tasks: [{{kind: loss, data: {data}}}]")
    (suites / "broken.yaml").write_text("tasks: [")
    (suites / "inside.yaml").write_text("tasks: [{kind: loss, data: pairs.jsonl}]")
    warn_of_roots(Settings(roots="/runs", suites=str(suites)), has_tokens=False)
    [warning] = caplog.messages
    assert warning.startswith("evaluations with suite 'captions' will fail: task 'loss': data: ")
    assert f"'{data}' is, or links, outside the allowed folders (/runs" in warning
    caplog.clear()
    warn_of_roots(Settings(suites=str(suites)), has_tokens=False)
    assert caplog.messages == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Files of a certificate that is signed by itself, and of the same with its key."""
    pair = make_pair(tmp_path_factory.mktemp("https"))
    both = pair.cert.with_name("https.pem")
    both.write_bytes(pair.cert.read_bytes() + pair.key.read_bytes())
    return str(pair.cert), str(both)


def test_certificates_are_looked_at_before_anything_starts(certificate: tuple[str, str]) -> None:
    folder = Path(certificate[0]).parent
    check_certificate(certificate[1])
    key = serialization.load_pem_private_key((folder / "key.pem").read_bytes(), None)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    locked = key.private_bytes(*form, serialization.BestAvailableEncryption(b"password"))
    (folder / "both.pem").write_bytes((folder / "cert.pem").read_bytes() + locked)
    wrong = {
        "nowhere.pem": "the file does not exist",
        "cert.pem": "is not a PEM file of a certificate and its unencrypted private key; join them",
        "key.pem": "is not a PEM file of a certificate and its unencrypted private key",
        "both.pem": "is not a PEM file of a certificate and its unencrypted private key",
    }
    for name, words in wrong.items():
        with pytest.raises(InvalidRequest, match=words) as error:
            check_certificate(str(folder / name))
        assert "PRIVATE" not in error.value.message


@pytest.mark.usefixtures("child_process")
def test_a_service_by_https(certificate: tuple[str, str], tmp_path: Path) -> None:
    """As it is started, with a token, reached by the client that trusts its certificate and by no other, and by those
    that trust the next certificate once that is in the file."""
    cert, pair = certificate
    store = open_store(f"sqlite:///{tmp_path / 'evalsvc.db'}", migrate=False)
    with store.transaction() as session:
        token = create_token(session, "ci", "read")
    store.close()
    service = ServiceProcess(tmp_path, "--https-cert", pair, "--devices", "cpu").start()
    try:
        assert service.url.startswith("https://127.0.0.1:")
        with Client(service.url, token=token, ca=cert) as client:
            assert client.runs() == []
        with Client(service.url, token=token) as client, pytest.raises(ServiceUnreachable, match="certificate"):
            client.runs()
        with Client(service.url, ca=cert) as client, pytest.raises(Unauthorized, match="this service needs a token"):
            client.runs()
        Path(pair).write_text("a renewal that was cut off")
        wait_for(lambda: "the one before is still shown" in service.log.read_text(), "the broken file is seen")
        with Client(service.url, token=token, ca=cert) as client:
            assert client.runs() == []
        Path(pair).unlink()
        wait_for(lambda: "the file does not exist" in service.log.read_text(), "the missing file is seen")
        renewed = make_pair(tmp_path / "renewed")
        Path(pair).write_bytes(renewed.cert.read_bytes() + renewed.key.read_bytes())

        def trusts_the_next() -> bool:
            with Client(service.url, token=token, ca=str(renewed.cert)) as client, suppress(ServiceUnreachable):
                return client.runs() == []
            return False

        wait_for(trusts_the_next, "the renewed certificate is shown")
        assert token not in service.log.read_text()
        assert "EVALSVC_ROOTS IS NOT SET" in service.log.read_text()
        assert service.process is not None
        service.process.send_signal(signal.SIGHUP)  # as a closed terminal
        assert service.process.wait(timeout=60) == 0
    finally:
        service.stop()
    assert stat.S_IMODE((tmp_path / "evalsvc.db").stat().st_mode) == 0o600


async def client_seen(settings: Settings, client: str, forwarded: str) -> str:
    """The address that the application is told of a request."""
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"][0])

    config = server_config(settings, app)
    config.load()
    headers = [(b"x-forwarded-for", forwarded.encode())]
    await config.loaded_app({"type": "http", "client": (client, 5), "headers": headers}, None, None)
    return seen[0]


def test_a_proxy_that_the_operator_names_is_believed_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of this machine had as many tries at tokens as it could make addresses up."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    assert asyncio.run(client_seen(Settings(), "127.0.0.1", "203.0.113.9")) == "127.0.0.1"
    settings = Settings(trusted_proxies="127.0.0.1, 10.1.0.0/16")
    seen = {
        ("127.0.0.1", "203.0.113.9"): "203.0.113.9",
        ("10.1.2.3", "198.51.100.1, 203.0.113.9"): "203.0.113.9",
        ("10.1.2.3", "198.51.100.1, 203.0.113.9, 10.1.0.7"): "203.0.113.9",
        ("10.2.2.3", "203.0.113.9"): "10.2.2.3",
        ("::1", "203.0.113.9"): "::1",
    }
    for (client, forwarded), expected in seen.items():
        assert asyncio.run(client_seen(settings, client, forwarded)) == expected
    words = r"EVALSVC_TRUSTED_PROXIES has .*; set e\.g\. 127\.0\.0\.1 or 10\.1\.0\.0/16"
    for proxies in ("*", "proxy.example", "10.1.2.3/16", "127.0.0.1;10.1.0.0/16"):
        with pytest.raises(InvalidRequest, match=words):
            _ = Settings(trusted_proxies=proxies).trusted_networks
