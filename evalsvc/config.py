"""Every setting, and the only place that reads the environment, or sets it against code of a `pull request`.

A setting is `EVALSVC_` and its name in capitals. `evalsvc doctor` and the reference of settings show this table.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from evalsvc.errors import InvalidRequest, near_misses
from evalsvc.files.secrets import check_token, read_database_url, read_token

PREFIX = "EVALSVC_"

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
_OF_A_SERVICE = re.compile(
    r"EVALSVC(_[A-Z0-9_]+)?_(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)=.*|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?=.*"
    r"|PORT=(tcp|udp|sctp)://[^/\s]+:\d+)",
    re.DOTALL,
)
"""Variables, as NAME=VALUE, that Kubernetes sets in every pod for a Service. EVALSVC_PORT may also be the setting."""

N = TypeVar("N", int, float)


def _setting(default: str, text: str, *, secret: bool = False) -> str:
    """Declare a setting. A `secret` setting is never shown and never passed to child processes."""
    return field(default=default, repr=not secret, metadata={"help": text, "secret": secret})


def _number(default: N, text: str, *, least: N, most: float = math.inf) -> N:
    return field(default=default, metadata={"help": text, "secret": False, "range": (least, most)})


def _switch(text: str) -> int:
    return _number(0, text, least=0, most=1)


@dataclass(frozen=True)
class Settings:
    """The settings of this process. Build one with `Settings.load`."""

    data_dir: str = _setting("", "Folder of the database, spooled checkpoints and artifacts [~/.local/share/evalsvc]")
    database_url: str = _setting(
        "",
        "SQLAlchemy URL of the store, such as postgresql://…, or @FILE for a file that holds the URL, such as a "
        "container's secret [SQLite in the data folder]",
        secret=True,
    )
    shared: str = _setting(
        "",
        "Folder that the service shares with workers of other machines, which only read it; each machine may have "
        "another path to it [shared in the data folder]",
    )
    host: str = _setting("127.0.0.1", "Address that the service listens on")
    port: int = _number(8321, "Port that the service listens on; 0 takes a free one", least=0, most=65_535)
    url: str = _setting("http://127.0.0.1:8321", "Address of the service, for the client")
    token: str = _setting(
        "",
        "Token that the client sends, or @FILE for a file that holds the token, readable by its owner only",
        secret=True,
    )
    https_cert: str = _setting(
        "", "PEM file with a certificate and its private key; with a certificate the service listens by https"
    )
    allowed_hosts: str = _setting(
        "", "Host names other than localhost that a service without tokens accepts, separated by ','"
    )
    open_reads: int = _switch(
        "With 1, reading needs no token: the dashboard, and each route that needs the scope `read`"
    )
    rate_limit: float = _number(
        100.0, "Requests per second of each token, with bursts of ten times as many; 0: no limit", least=0.0
    )
    trusted_proxies: str = _setting(
        "", "Addresses or networks of the proxies whose X-Forwarded-For and -Proto are trusted, separated by ','"
    )
    suites: str = _setting("", "Folder with suites of your own, one YAML file each")
    datasets: str = _setting("", "Folder that holds NAME of `datasets:NAME` in a suite [datasets in the data folder]")
    assets: str = _setting("", "Folder of the weights that `evalsvc assets pull` downloads [assets in the data folder]")
    roots: str = _setting(
        "/", "Folders, or s3://BUCKET/PREFIX, that checkpoints and data files are read from, separated by ':'"
    )
    schemes: str = _setting(
        "file", "URI schemes of checkpoints that are allowed, separated by ',': file, s3, gs, hf, https, http"
    )
    cache: str = _setting("", "Folder of the cache of remote checkpoints [cache in the data folder]")
    cache_bytes: int = _number(
        50_000_000_000,
        "Size limit of EVALSVC_CACHE in bytes; the least recently used checkpoint is deleted first",
        least=0,
    )
    upload_bytes: int = _number(
        0,
        "Bytes that uploaded checkpoints may take in the data folder together, from the beginning of the upload until "
        "nothing needs the checkpoint; 0: no uploads",
        least=0,
    )
    devices: str = _setting(
        "all",
        "Devices with one worker process each: all, or a list such as cuda:0,cuda:1 or cpu,cpu; a command that "
        "evaluates on this machine takes the first",
    )
    threads: int = _number(0, "CPU threads of a worker process [cores / workers]", least=0)
    batch_tokens: int = _number(
        8192, "Tokens in a batch, padding included; changes speed and memory use, not the metrics", least=1
    )
    allow_benchmark_code: int = _switch(
        "With 1, benchmarks may run code: `!function` and `class` in YAML, foreign metrics, programs of the model"
    )
    scheduler: str = _setting(
        "", "Address of an existing Dask scheduler, tls://HOST:PORT [the service starts a cluster]"
    )
    tls: str = _setting(
        "",
        "Folder with ca.pem, cert.pem and key.pem, by which service, scheduler and workers know each other; `evalsvc "
        "certificates` makes it",
    )
    retention: str = _setting(
        "", 'Rule for the artifacts of a run that are kept, e.g. {"last": 10, "every": 1000} [all of them]'
    )
    log_format: str = _setting(
        "text", "Log format of the service and its workers: text, or json with one object per line"
    )
    log_level: str = _setting(
        "warning", "Log level of the service and its workers: debug, info (every request and shard), warning or error"
    )
    worker_ttl: float = _number(
        120.0, "Seconds without a heartbeat after which the shard of a worker is rerun on another worker", least=1.0
    )
    shard_deadline: float = _number(
        7200.0,
        "Seconds after which a running shard is stopped and retried. Planning a task is stopped after a twelfth of the "
        "time without progress, and not retried: a template or a tokenizer that a suite names may never end",
        least=1.0,
    )
    max_attempts: int = _number(
        3, "Attempts of a shard that kills its worker, exceeds its deadline, or fails with a transient error", least=1
    )
    read_only: int = _switch("With 1, `serve` only answers reads, next to the service that writes to the database")
    grace: float = _number(
        10.0, "Seconds that running shards have to finish when they are cancelled or the service stops", least=0.0
    )

    secret_files: tuple[str, ...] = field(default=(), repr=False)
    """Files that secrets were read from; no setting of its own."""

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ, **overrides: str | float | Path | None) -> Settings:
        """Read the settings from the environment, and replace those in `overrides` that are not None. A file that holds
        the database's URL is read too; that of a token is not, because the command that creates the token runs before
        the file exists."""
        for name, instead in REMOVED.items():
            if environ.get(PREFIX + name):
                raise InvalidRequest(f"{PREFIX}{name} is no setting any more; {instead}")
        values: dict[str, Any] = {
            item.name: _parse(item.name, text, item.default)
            for item in SETTINGS
            if (text := _given(environ, item.name))
        }
        given = {name: value for name, value in overrides.items() if value is not None}
        values |= {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
        settings = cls(**values)
        settings._check_ranges(given)
        secret_files = {name: file for name in SECRETS if (file := file_of(values.get(name, "")))}
        if (file := secret_files.get("database_url")) is not None:
            settings = replace(settings, database_url=read_database_url(file, "EVALSVC_DATABASE_URL"))
        return replace(settings, secret_files=tuple(map(str, secret_files.values())))

    def _check_ranges(self, given: Container[str]) -> None:
        for item in SETTINGS:
            value = getattr(self, item.name)
            if isinstance(value, str):
                continue
            least, most = item.metadata["range"]
            if not least <= value <= most:  # NaN is in no range
                shown = f"--{item.name.replace('_', '-')}" if item.name in given else PREFIX + item.name.upper()
                raise InvalidRequest(f"{shown} is {value}; it must be {range_words(least, most)}")

    def worker_threads(self, processes: int = 1) -> int:
        """Return the CPU threads of each of `processes` worker processes on this machine. The service and `evalsvc run`
        use the same number, which changes the last digits of sums."""
        return self.threads or max(1, usable_cores() // processes)

    @property
    def data_path(self) -> Path:
        if self.data_dir:
            return Path(self.data_dir).expanduser()
        return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "evalsvc"

    @property
    def database(self) -> str:
        """Return the SQLAlchemy URL, with psycopg 3 as PostgreSQL's driver."""
        url = self.database_url or f"sqlite:///{self.data_path / 'evalsvc.db'}"
        for scheme in ("postgresql://", "postgres://"):
            if url.startswith(scheme):
                return "postgresql+psycopg://" + url.removeprefix(scheme)
        return url

    @property
    def shared_path(self) -> Path:
        """Folder that workers of other machines read; see `files.kept`."""
        return Path(self.shared).expanduser() if self.shared else self.data_path / "shared"

    @property
    def statistics_path(self) -> Path:
        """Folder of statistics of reference images: imported ones, and cached ones that are recomputed when missing."""
        return self.shared_path / "statistics"

    @property
    def artifacts_path(self) -> Path:
        return self.data_path / "artifacts"

    @property
    def outputs_path(self) -> Path:
        """Folder of shard outputs that have not been merged yet."""
        return self.shared_path / "outputs"

    @property
    def items_path(self) -> Path:
        """Folder of results per item that are too large for a database row."""
        return self.data_path / "items"

    @property
    def uploads_path(self) -> Path:
        """Folder of the files that clients send, on the file system of the spool: each is linked there in the end."""
        return self.data_path / "spool" / "uploads"

    @property
    def datasets_path(self) -> Path:
        return Path(self.datasets).expanduser() if self.datasets else self.data_path / "datasets"

    @property
    def assets_path(self) -> Path:
        return Path(self.assets).expanduser() if self.assets else self.data_path / "assets"

    @property
    def suites_path(self) -> Path | None:
        return Path(self.suites).expanduser() if self.suites else None

    @property
    def device(self) -> str:
        """Return the device of a command that evaluates on this machine; empty for cuda, else cpu."""
        return "" if self.devices == "all" else self.devices.partition(",")[0].strip()

    @property
    def plan_deadline(self) -> float:
        return self.shard_deadline / 12

    @property
    def root_paths(self) -> tuple[Path, ...]:
        """Return the local folders in EVALSVC_ROOTS that lie outside the data folder."""
        return tuple(root for root in self._local_roots() if not self._is_in_data_folder(root))

    @property
    def has_roots(self) -> bool:
        """Tell whether EVALSVC_ROOTS restricts anything: `/` does not."""
        return not any(root.resolve() == Path("/") for root in self.root_paths)

    @property
    def useless_roots(self) -> tuple[Path, ...]:
        """Return the local folders in EVALSVC_ROOTS that are, or lie in, the data folder."""
        return tuple(root for root in self._local_roots() if self._is_in_data_folder(root))

    @property
    def private_paths(self) -> tuple[Path, ...]:
        """Return the paths that no suite or checkpoint is read from: the data folder, the shared folder, and files with
        keys, tokens or the database."""
        database = re.fullmatch(r"sqlite(\+\w+)?:///([^?]+).*", self.database)
        databases = [database[2] + ending for ending in ("", "-wal", "-shm")] if database else []
        keys = (self.https_cert, self.tls and f"{self.tls}/key.pem", *self.secret_files)
        files = (Path(name).expanduser() for name in (*keys, *databases) if name)
        return (
            self.data_path,
            self.shared_path,
            *(file for file in files if ".." in file.parts or not file.is_relative_to(self.data_path)),
        )

    @property
    def remote_roots(self) -> tuple[str, ...]:
        """Return the remote locations in EVALSVC_ROOTS, such as `s3://bucket/prefix`."""
        return tuple(root.rstrip("/") for root in self._roots() if "://" in root)

    @property
    def allowed_schemes(self) -> frozenset[str]:
        return frozenset(name.strip().lower() for name in self.schemes.split(",") if name.strip())

    @property
    def cache_path(self) -> Path:
        return Path(self.cache).expanduser() if self.cache else self.data_path / "cache"

    @property
    def kept_paths(self) -> tuple[Path, ...]:
        """Return the folders in which evalsvc keeps copies of checkpoints."""
        return self.data_path / "spool", self.cache_path

    def _local_roots(self) -> list[Path]:
        return [Path(root).expanduser() for root in self._roots() if "://" not in root]

    def _is_in_data_folder(self, root: Path) -> bool:
        return root.resolve().is_relative_to(self.data_path.resolve())

    def _roots(self) -> list[str]:
        return [root for root in re.split(r":(?!//)", self.roots) if root]

    @property
    def allowed_host_names(self) -> tuple[str, ...]:
        return tuple(name.strip().lower() for name in self.allowed_hosts.split(",") if name.strip())

    @property
    def trusted_networks(self) -> tuple[Network, ...]:
        """Return the networks of the proxies whose X-Forwarded headers are trusted."""
        return tuple(_network(text.strip()) for text in self.trusted_proxies.split(",") if text.strip())

    def client_token(self) -> str | None:
        """Return the token that the client sends, from the setting or from its file; None if no token is set."""
        if (file := file_of(self.token)) is not None:
            return read_token(file, "EVALSVC_TOKEN")
        return check_token(self.token, "EVALSVC_TOKEN") if self.token else None

    def without_secrets(self) -> Settings:
        """Return the settings of a worker process, which needs neither a token nor the database. The path of an SQLite
        database stays, because shards may not read that file; see `private_paths`."""
        blank: dict[str, Any] = dict.fromkeys(SECRETS, "")
        if self.database.startswith("sqlite"):
            del blank["database_url"]
        return replace(self, **blank)


OPEN_ROOTS = (
    "EVALSVC_ROOTS IS NOT SET: anyone with the submit scope can make the service and its workers read any file; set "
    "EVALSVC_ROOTS to the folders of checkpoints and data, e.g. EVALSVC_ROOTS=/runs:/data"
)
"""Warning of a service that has tokens but no EVALSVC_ROOTS."""

SETTINGS = tuple(item for item in fields(Settings) if item.metadata)
"""Fields of `Settings` that the environment sets."""

REMOVED = {
    **dict.fromkeys(
        ("TLS_CA", "TLS_CERT", "TLS_KEY"), "set EVALSVC_TLS to the folder that has ca.pem, cert.pem and key.pem"
    ),
    "HTTPS_KEY": "append the private key to the file of EVALSVC_HTTPS_CERT",
    "HTTPS_CA": "set SSL_CERT_FILE, which Python's programs have in common",
    "TOKEN_FILE": "set EVALSVC_TOKEN=@FILE",
    "DATABASE_URL_FILE": "set EVALSVC_DATABASE_URL=@FILE",
    "DEVICE": "set EVALSVC_DEVICES",
    "PLAN_DEADLINE": "planning may take a twelfth of EVALSVC_SHARD_DEADLINE without progress",
}
"""What to do instead, by the name of a variable of earlier versions."""

SECRETS = tuple(item.name for item in SETTINGS if item.metadata["secret"])
"""Names of the settings that are secrets."""


def shown_url(url: str) -> str:
    """Return a database's address for display, without password and without query, which may hold a password."""
    scheme, separator, rest = url.partition("://")
    place, _, query = rest.partition("?")
    if not separator:
        return "set, and not shown: it is no URL"
    if "@" in query:
        # A ? may belong to the password. The text before the ? would then be displayed as host and user.
        return "set, and not shown: it has an @ behind a ?"
    # Split at the last @: a password may hold an unescaped @.
    who, at, where = place.rpartition("@")
    if not at and not scheme.startswith("sqlite") and re.search(r":(?!\d+(/|$))", place):
        return "set, and not shown: it has no @ behind a password"
    user, colon, _ = who.partition(":")
    return f"{scheme}://{user}{':***' if colon else ''}{at}{where}"


THREAD_WAITS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""How threads of a product wait for each other: libgomp's spin for a microsecond or two, then sleep. By default they
spin for milliseconds, and hold the core that another process, or the awaited thread, needs: next to one busy process a
step of sampling takes ten times as long. Sleeping at once costs a fifth of the speed of a quiet machine."""


def writes_to_journal() -> bool:
    """Return whether standard error is systemd's journal, which reads `<LEVEL>` at the beginning of a line."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


CONTROL_GROUPS = Path("/sys/fs/cgroup")


def usable_cores(groups: Path = CONTROL_GROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the number of cores that this process may use: those of its affinity, and at most the quota of its control
    group and of those above (`cpu.max` of version 2), as containers and units have one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has none
    try:
        name = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::")).strip("/")
    except (OSError, StopIteration):
        return cores
    for group in (groups / name, *(groups / name).parents):
        if not group.is_relative_to(groups):
            break
        with suppress(OSError, ValueError):  # no such file, or `max`: no quota
            quota, period = map(int, (group / "cpu.max").read_text().split())
            cores = min(cores, max(1, round(quota / period)))
    return cores


def thread_waits() -> dict[str, str]:
    """Return the variables of THREAD_WAITS, with the user's values where the user set them."""
    return {name: os.environ.get(name, value) for name, value in THREAD_WAITS.items()}


def guard_processes() -> None:
    """Have this process, if it has not imported torch, and all processes that it or a library starts, import nothing
    from the current folder, wait as `thread_waits` says, and log no backtraces of libraries in Rust."""
    os.environ |= {**thread_waits(), "PYTHONSAFEPATH": "1", "RUST_BACKTRACE": "0"}


def drop_secrets() -> None:
    """Remove the secrets from this process's environment, so that child processes do not inherit them."""
    for name in SECRETS:
        os.environ.pop(PREFIX + name.upper(), None)


def setting_help() -> list[tuple[str, str, str]]:
    """Return (variable, default, help) of every setting, in the order of the table."""
    return [(PREFIX + item.name.upper(), str(item.default), item.metadata["help"]) for item in SETTINGS]


def range_words(least: float, most: float) -> str:
    return f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"


def setting_sources(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return where the value of each setting comes from: `environment`, `file` or `default`."""
    given = {item.name: _given(environ, item.name) for item in SETTINGS}
    return {
        name: "default" if not text else "file" if name in SECRETS and file_of(text) else "environment"
        for name, text in given.items()
    }


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return a warning for each variable with the prefix that is neither a setting nor one of Kubernetes."""
    known = [item.name.upper() for item in SETTINGS]
    unknown = [
        variable.removeprefix(PREFIX)
        for variable, text in sorted(environ.items())
        if variable.startswith(PREFIX) and not _is_of_kubernetes(variable, text)
    ]
    near = {name: near_misses(name, known) for name in unknown if name not in known}
    return [
        f"{PREFIX}{name} is not a setting of evalsvc and is ignored; "
        + (f"did you mean {PREFIX}{names[0]}?" if names else "evalsvc doctor lists the settings")
        for name, names in near.items()
    ]


def _given(environ: Mapping[str, str], name: str) -> str:
    """Return the value of a setting's variable; an empty text where it is not set, or where Kubernetes set it."""
    variable = PREFIX + name.upper()
    text = environ.get(variable, "")
    return "" if _is_of_kubernetes(variable, text) else text


def _is_of_kubernetes(variable: str, text: str) -> bool:
    return _OF_A_SERVICE.fullmatch(f"{variable}={text}") is not None


def file_of(secret: str) -> Path | None:
    """Return the file that holds a secret, for a value @FILE."""
    return Path(secret[1:]).expanduser() if secret.startswith("@") else None


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise InvalidRequest(
            f"EVALSVC_TRUSTED_PROXIES has {text!r}, which is not an address or network ({error}); set e.g. "
            "127.0.0.1 or 10.1.0.0/16"
        ) from None


def _parse(name: str, text: str, default: object) -> str | int | float:
    for kind, words in ((int, "a whole number"), (float, "a number")):
        if isinstance(default, kind):
            try:
                return kind(text)
            except ValueError:
                raise InvalidRequest(f"{PREFIX}{name.upper()} is {text!r}; it must be {words}") from None
    return text
