"""Every setting, and the only place that reads the environment.

A setting is `EVALSVC_` and its name in capitals. `--help`, README and `evalsvc doctor` are held to this table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from evalsvc.errors import InvalidRequest, UnknownName

PREFIX = "EVALSVC_"


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _data_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "evalsvc"


@dataclass(frozen=True)
class Settings:
    """The settings of this process. Build one with `Settings.load`."""

    data_dir: str = _setting("", "Folder of the database, spooled checkpoints and artifacts [~/.local/share/evalsvc]")
    database_url: str = _setting(
        "", "SQLAlchemy URL of the store; postgresql://… works too [SQLite in the data folder]"
    )
    host: str = _setting("127.0.0.1", "Address that the service listens on")
    port: int = _setting(8321, "Port that the service listens on; 0 takes a free one")
    url: str = _setting("http://127.0.0.1:8321", "Where the client finds the service")
    suites: str = _setting("", "Folder with suites of your own, one YAML file each")
    datasets: str = _setting("", "Folder that `datasets:NAME` in a suite points into [datasets in the data folder]")
    assets: str = _setting("", "Folder of the weights that `evalsvc assets pull` fetches [assets in the data folder]")
    roots: str = _setting("/", "Folders under which checkpoints may lie, separated by ':'")
    devices: str = _setting("all", "One worker process each: all, or a list such as cuda:0,cuda:1 or cpu,cpu")
    device: str = _setting(
        "", "Device of this worker process; set by `serve`, and by you for `worker` [cuda, else cpu]"
    )
    threads: int = _setting(0, "CPU threads of a worker process [cores / workers]")
    batch_tokens: int = _setting(8192, "Tokens in a batch, padding included; moves speed and memory, not the numbers")
    allow_benchmark_code: int = _setting(
        0, "With 1, benchmarks may run code: `!function` and `class` in YAML, foreign metrics, what the model writes"
    )
    scheduler: str = _setting("", "An existing Dask scheduler, tls://HOST:PORT [a cluster of the service's own]")
    tls_ca: str = _setting("", "Certificate authority file for --scheduler and `worker`")
    tls_cert: str = _setting("", "Certificate file for --scheduler and `worker`")
    tls_key: str = _setting("", "Private key file for --scheduler and `worker`")
    worker_ttl: float = _setting(120.0, "Seconds of silence after which a worker is given up")
    shard_deadline: float = _setting(7200.0, "Seconds after which a running shard is stopped and tried again")
    max_attempts: int = _setting(3, "How often a shard that kills its worker or overruns its deadline is tried")
    grace: float = _setting(10.0, "Seconds that running shards get when they are cancelled or the service stops")

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Settings from the environment, with `overrides` (None means not given) on top.

        Raises:
            UnknownName: a variable with the prefix is not a setting.
            InvalidRequest: not a number where one is due.
        """
        environ = os.environ if environ is None else environ
        known = {PREFIX + item.name.upper() for item in fields(cls)}
        for variable in environ:
            if variable.startswith(PREFIX) and variable not in known:
                raise UnknownName.among("setting", variable, known)
        values: dict[str, Any] = {}
        for item in fields(cls):
            text = environ.get(PREFIX + item.name.upper())
            if text is not None and text != "":
                values[item.name] = _parse(item.name, text, type(item.default))
        values.update({name: value for name, value in overrides.items() if value is not None})
        return cls(**values)

    def worker_threads(self, processes: int = 1) -> int:
        """CPU threads of each of `processes` worker processes on this machine. One rule for service and `evalsvc run`:
        the number of threads moves the last digits of sums."""
        return self.threads or max(1, (os.cpu_count() or 1) // processes)

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).expanduser() if self.data_dir else _data_home()

    @property
    def database(self) -> str:
        """The SQLAlchemy URL, with psycopg 3 as PostgreSQL's driver."""
        url = self.database_url or f"sqlite:///{self.data_path / 'evalsvc.db'}"
        for scheme in ("postgresql://", "postgres://"):
            if url.startswith(scheme):
                return "postgresql+psycopg://" + url.removeprefix(scheme)
        return url

    @property
    def statistics_path(self) -> Path:
        """Of reference images: a cache, computed again where it is missing, and what was imported."""
        return self.data_path / "statistics"

    @property
    def artifacts_path(self) -> Path:
        return self.data_path / "artifacts"

    @property
    def outputs_path(self) -> Path:
        """Of shards that wait for their merge."""
        return self.data_path / "outputs"

    @property
    def items_path(self) -> Path:
        """Of results per item that are too large for a row."""
        return self.data_path / "items"

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
    def root_paths(self) -> tuple[Path, ...]:
        return tuple(Path(root).expanduser() for root in self.roots.split(":") if root)

    def environment(self) -> dict[str, str]:
        """The variables that reproduce these settings in a child process."""
        return {
            PREFIX + item.name.upper(): str(value)
            for item in fields(self)
            if (value := getattr(self, item.name)) != item.default
        }


def setting_help() -> list[tuple[str, str, str]]:
    """(variable, default, help) of every setting, in the order of the table."""
    return [(PREFIX + item.name.upper(), str(item.default), item.metadata["help"]) for item in fields(Settings)]


def setting_sources(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Where the value of each setting comes from, by its name: `environment` or `default`."""
    environ = os.environ if environ is None else environ
    return {
        item.name: "environment" if environ.get(PREFIX + item.name.upper()) else "default" for item in fields(Settings)
    }


def _parse(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        variable = PREFIX + name.upper()
        raise InvalidRequest(
            f"{variable} is {text!r}; it must be {'a whole number' if kind is int else 'a number'}"
        ) from None
