"""The web server. All settings are checked before the service starts."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from evalsvc.api.app import create_app
from evalsvc.api.middleware.browsers import is_loopback
from evalsvc.api.middleware.connections import CONNECTIONS, SEND_BYTES, TimeoutProtocol
from evalsvc.api.state import State
from evalsvc.checkpoints.opening import allow_open_files
from evalsvc.cluster.devices import check_devices, device_list
from evalsvc.config import OPEN_ROOTS, Settings
from evalsvc.doctor.checks import outside_roots
from evalsvc.errors import EvalsvcError, InternalError, InvalidRequest, PortInUse, os_reason
from evalsvc.files.kept import claim_shared
from evalsvc.service.coordinator import STOP_PATIENCE, Coordinator
from evalsvc.spec.suite import load_suite, suite_files
from evalsvc.store.data_folder import claim_data_folder, make_data_folder, may_begin_folder
from evalsvc.store.lock import CoordinatorLock, database_id
from evalsvc.store.session import Store, open_store, translated
from evalsvc.store.tokens import has_tokens

log = logging.getLogger(__name__)

DRAIN_SECONDS, LOCK_PATIENCE = 5, 3.0
"""Seconds for which running requests may go on when the service stops, and to wait for its lock of the database."""

SWITCH_SECONDS = 0.0005
"""Seconds after which a computing thread yields to another thread. By Python's default of 5 ms, the event loop would
wait up to 5 ms for each running thread."""

KEEP_ALIVE_SECONDS = 75
"""Seconds for which a connection may be idle. A client that sends a request at the moment of the end gets an error. By
uvicorn's default of 5 s, many clients that poll every few seconds would get such errors."""


RENEWAL_TICKS = 20
"""Tenths of a second between two looks at the certificate's file."""


@dataclass(frozen=True)
class Started:
    url: str
    has_tokens: bool
    """Whether requests need a token."""


def serve(
    settings: Settings,
    announce: Callable[[Started], None],
    *,
    migrate: bool = False,
    insecure: bool = False,
    new_data_folder: bool = False,
) -> None:
    """Run the service until a signal; call `announce` once the service answers requests. `new_data_folder` lets a
    database with runs claim an empty data folder, in place of a lost one."""
    if settings.https_cert:
        check_certificate(settings.https_cert)
    _ = settings.trusted_networks  # raises for what is neither an address nor a network
    if not settings.scheduler and not settings.read_only:
        check_devices(device_list(settings.devices))
    with listen(settings.host, settings.port) as listener, ExitStack() as stack:
        make_data_folder(settings.data_path)
        lock: CoordinatorLock | None = None
        if not settings.read_only:
            lock = CoordinatorLock(Store(settings.database).url)  # the store checks the URL
            lock.acquire(LOCK_PATIENCE)
            stack.callback(lock.release)
        has_tokens = _check_database(settings, migrate, insecure, new_data_folder)
        app = create_app(settings, partial(Coordinator, lock=lock), insecure=insecure)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        url = f"{'https' if settings.https_cert else 'http'}://{host}:{listener.getsockname()[1]}"
        sys.setswitchinterval(SWITCH_SECONDS)
        allow_open_files(2 * CONNECTIONS)  # a connection may need a socket, and a file or a database connection
        server = _Server(server_config(settings, app), app, lambda: announce(Started(url, has_tokens)))
        server.run(sockets=[listener])
        if not server.started:
            raise InternalError("the service could not start; fix the cause that the log above names")


def _check_database(settings: Settings, migrate: bool, insecure: bool, new_data_folder: bool) -> bool:
    with closing(open_store(settings.database, migrate, read_only=bool(settings.read_only))) as store:
        with translated(store.url), store.reading() as session:
            any_tokens = has_tokens(session)
        check_address(settings, any_tokens, insecure)
        warn_of_roots(settings, any_tokens)
        if not settings.read_only:
            with translated(store.url):
                identity = database_id(store)
                with store.reading() as session:
                    is_new = may_begin_folder(session, settings.artifacts_path, settings.items_path)
            claim_data_folder(settings.data_path, identity, store.url, may_begin=new_data_folder or is_new)
            claim_shared(settings.shared_path, identity)
        return any_tokens


def server_config(settings: Settings, app: ASGIApp) -> uvicorn.Config:
    proxies = settings.trusted_networks
    return uvicorn.Config(
        app,
        http=partial(TimeoutProtocol, proxies=proxies),  # type: ignore[arg-type]
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        # By default, uvicorn trusts every client on this machine, and reads an environment variable.
        proxy_headers=bool(proxies),
        forwarded_allow_ips=[str(network) for network in proxies],
        ssl_certfile=settings.https_cert or None,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )


def check_address(settings: Settings, has_tokens: bool, insecure: bool) -> None:
    """Check that a service without tokens listens on loopback only, unless `insecure` is set."""
    if is_loopback(settings.host):
        return
    if not has_tokens and not insecure:
        raise InvalidRequest(
            f"--host {settings.host}: anyone who reaches this address could use the service, which has no tokens; "
            "create a token first (evalsvc tokens create NAME --scope submit), or use 127.0.0.1 and an SSH tunnel, or "
            "add --insecure"
        )
    if has_tokens and not settings.https_cert:
        log.warning(
            "clients send tokens to %s unencrypted, so that the network can read them; give --https-cert, "
            "or run an https proxy in front of 127.0.0.1",
            settings.host,
        )


def warn_of_roots(settings: Settings, has_tokens: bool) -> None:
    """Log warnings about roots: a service with tokens has none, one is in the data folder, or a suite's data is
    outside."""
    if has_tokens and not settings.has_roots:
        log.warning(OPEN_ROOTS)
    for root in settings.useless_roots:
        log.warning("files below the root %s are not read, since it is in the data folder; move the files", root)
    # Uploaded suites are checked when they are put. The files of the folder are written by the operator.
    for name, path in suite_files(settings.suites_path).items():
        with suppress(EvalsvcError):  # a broken suite is reported where suites are listed
            for problem in outside_roots(load_suite(path), settings):
                log.warning("evaluations with suite %r will fail: %s", name, problem)


def check_certificate(file: str) -> None:
    """Raise InvalidRequest unless the file for https is a certificate with its key."""
    if not os.access(file, os.R_OK) or not Path(file).is_file():
        raise InvalidRequest(f"--https-cert {file}: the file does not exist or cannot be read; name a readable file")
    try:
        # Without a password function, OpenSSL would prompt for the password of an encrypted key.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError):
        raise InvalidRequest(
            f"--https-cert {file} is not a PEM file of a certificate and its unencrypted private key; join them: cat "
            "fullchain.pem privkey.pem > https.pem"
        ) from None


def listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise InvalidRequest(f"--port {port}: give a port from 0 to 65535; 0 takes a free port")
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        # Connections inherit the options. Without TCP_NODELAY, the body of an answer would wait for the client's
        # delayed acknowledgement of the head, which adds 40 ms to each request on a kept connection.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        return listener
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} of {host} is in use by another program, perhaps another evalsvc; "
                "choose another port with --port (EVALSVC_PORT); 0 takes a free port"
            ) from None
        reason = os_reason(error)
        raise InvalidRequest(f"cannot listen on {host} port {port}: {reason}; change --host or --port") from None


class _Server(uvicorn.Server):
    """A server that also reads renewed certificates. After the first signal, the coordinator drains while the server
    still answers. The second signal ends the process, and running shards are run again later."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._app = app
        self._on_started = on_started
        self._asked_to_end = False
        self._drained_by = 0.0
        self._certificate: tuple[int, int] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._asked_to_end:
            os._exit(128 + sig)
        self._asked_to_end = True

    async def on_tick(self, counter: int) -> bool:
        if counter % RENEWAL_TICKS == 0 and self.config.ssl is not None:
            self._read_certificate(self.config.ssl)
        if self._asked_to_end and not self.should_exit:
            self.should_exit = self._is_drained()
        return await super().on_tick(counter)

    def _read_certificate(self, context: ssl.SSLContext) -> None:
        """Let new connections use the certificate that is in the file now; one that cannot be used changes nothing."""
        file = str(self.config.ssl_certfile)
        try:
            status = os.stat(file)
            seen = status.st_mtime_ns, status.st_ino
        except OSError:
            seen = 0, 0
        before, self._certificate = self._certificate, seen
        if before in (None, seen):  # also a file that is missing or broken is told of once
            return
        try:
            check_certificate(file)
            context.load_cert_chain(file)
            log.info("the certificate of %s is renewed", file)
        except (EvalsvcError, OSError) as error:
            log.warning("the renewed certificate is not used, and the one before is still shown: %s", error)

    def _is_drained(self) -> bool:
        state: State = self._app.state.state
        if not state.coordinator.draining():
            log.info("stopping once running shards are stored; a second signal stops immediately")
            self._drained_by = time.monotonic() + state.settings.grace + STOP_PATIENCE
            state.coordinator.drain()
        return not state.coordinator.alive() or time.monotonic() > self._drained_by

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        hang_up = signal.getsignal(signal.SIGHUP)  # ignored under `nohup`
        if hang_up is not signal.SIG_IGN and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGHUP, self.handle_exit)  # a closed terminal, and managers that reload a service
        if self.started:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Otherwise uvicorn would wait for the ends of event streams.
        self._app.state.followers.stop()
        await super().shutdown(sockets)
