"""Settings from the environment, and the tokens and addresses that are secret among them."""

import os
from pathlib import Path

import pytest

from evalsvc import config
from evalsvc.access_tokens import PREFIX, TokenScope, hash_token, includes, new_token
from evalsvc.access_tokens import TOKEN as FORM
from evalsvc.config import REMOVED, SETTINGS, Settings, drop_secrets, setting_help, setting_sources, usable_cores
from evalsvc.errors import InvalidRequest


def test_defaults_need_no_environment() -> None:
    settings = Settings.load({"EVALSVC_PORT": ""})
    assert settings == Settings(), "an empty variable is not set"
    assert settings.host == "127.0.0.1"
    assert settings.suites_path is None
    assert settings.root_paths == (Path("/"),)


@pytest.mark.parametrize(
    ("quotas", "cores"),
    [
        ({}, 64),
        ({"pods/pod1": "150000 100000"}, 2),
        ({"pods/pod1": "max 100000"}, 64),
        ({"": "50000 100000"}, 1),
    ],
    ids=["no quota", "one core and a half", "unlimited", "of a group above"],
)
def test_threads_follow_affinity_and_the_quota_of_control_groups(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quotas: dict[str, str], cores: int
) -> None:
    """A worker that was kept to one core computed with two threads, and a pod with as many as its node has cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)))
    (tmp_path / "own").write_text("3:cpu:/\n0::/pods/pod1\n")
    groups = tmp_path / "cgroup"
    (groups / "pods" / "pod1").mkdir(parents=True)
    for group, quota in quotas.items():
        (groups / group / "cpu.max").write_text(f"{quota}\n")
    assert usable_cores(groups, tmp_path / "own") == cores
    assert usable_cores(groups, tmp_path / "nowhere") == 64
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3})
    assert usable_cores(groups, tmp_path / "own") == 1
    assert Settings(threads=7).worker_threads(2) == 7


def test_variables_have_the_types_of_their_defaults_and_arguments_win() -> None:
    environ = {"EVALSVC_PORT": "9", "EVALSVC_GRACE": "1.5", "EVALSVC_SUITES": "/s", "EVALSVC_HOST": "::1", "HOME": "/h"}
    settings = Settings.load(environ, port=10, host=None)
    assert (settings.port, settings.grace, settings.suites, settings.host) == (10, 1.5, "/s", "::1")
    assert Settings.load(environ).port == 9
    with pytest.raises(InvalidRequest, match=r"^--upload-bytes is -1; it must be at least 0$"):  # as it was typed
        Settings.load({}, upload_bytes=-1)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"EVALSVC_PORT": "9.5"}, "EVALSVC_PORT is '9.5'; it must be a whole number"),
        *(  # no service of Kubernetes sets these
            ({"EVALSVC_PORT": text}, "EVALSVC_PORT is .* it must be a whole number")
            for text in ("http://10.0.0.1:8321", "tcp://10.0.0.1", "tcp://10.0.0.1:8321/x", "tcp:8321")
        ),
        ({"EVALSVC_GRACE": "long"}, "EVALSVC_GRACE is 'long'; it must be a number"),
        ({"EVALSVC_GRACE": "nan"}, "EVALSVC_GRACE is nan; it must be at least 0"),
        ({"EVALSVC_THREADS": "-5"}, "EVALSVC_THREADS is -5; it must be at least 0"),
        ({"EVALSVC_PORT": "70000"}, "EVALSVC_PORT is 70000; it must be from 0 to 65535"),
        ({"EVALSVC_READ_ONLY": "2"}, "EVALSVC_READ_ONLY is 2; it must be from 0 to 1"),
    ],
)
def test_wrong_variables_are_named(environ: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        Settings.load(environ)


def test_unknown_variables_are_warned_of_and_ignored() -> None:
    """A refusal stopped the service over a variable of somebody else's; the value may be a secret, and is not shown."""
    environ = {"EVALSVC_PROT": "9", "EVALSVC_XYZZY": "hunter2", "EVALSVC_PORT": "10", "HOME": "/h"}
    assert Settings.load(environ).port == 10
    assert config.unknown_variables(environ) == [
        "EVALSVC_PROT is not a setting of evalsvc and is ignored; did you mean EVALSVC_PORT?",
        "EVALSVC_XYZZY is not a setting of evalsvc and is ignored; evalsvc doctor lists the settings",
    ]


@pytest.mark.parametrize("name", REMOVED)
def test_a_setting_that_is_gone_is_refused_with_what_replaces_it(name: str) -> None:
    """A service without its keys or its token would start all the same."""
    with pytest.raises(InvalidRequest, match=f"EVALSVC_{name} is no setting any more; "):
        Settings.load({f"EVALSVC_{name}": "x"})
    assert name.lower() not in {item.name for item in SETTINGS}


OF_A_SERVICE = {"SERVICE_HOST": "10.0.171.239", **dict.fromkeys(("PORT", "PORT_8321_TCP"), "tcp://10.0.171.239:8321")}
OF_A_SERVICE |= dict.fromkeys(("SERVICE_PORT", "SERVICE_PORT_HTTP_API", "PORT_8321_TCP_PORT"), "8321")
OF_A_SERVICE |= {"PORT_8321_TCP_PROTO": "tcp", "PORT_8321_TCP_ADDR": "fd00::7"}
OF_A_SERVICE |= {"PORT_53_UDP": "udp://[fd00::7]:53", "PORT_53_UDP_ADDR": "fd00::7"}
"""What Kubernetes sets in every pod for a Service, behind its name."""


@pytest.mark.parametrize("name", ["EVALSVC", "EVALSVC_SCHEDULER", "EVALSVC_2"])
def test_the_variables_of_a_service_of_kubernetes_are_ignored(name: str) -> None:
    """Every pod beside a Service named `evalsvc` refused to start: EVALSVC_PORT was no number."""
    environ = {f"{name}_{variable}": value for variable, value in OF_A_SERVICE.items()}
    assert Settings.load(environ) == Settings()
    assert config.unknown_variables(environ) == []
    assert set(setting_sources(environ).values()) == {"default"}


def test_what_follows_from_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLAlchemy takes a bare postgresql:// for psycopg2, which is not installed."""
    settings = Settings.load({"EVALSVC_DATA_DIR": "/data"})
    assert settings.database == "sqlite:////data/evalsvc.db"
    assert settings.datasets_path == Path("/data/datasets")
    assert Settings.load({"EVALSVC_DATASETS": "/sets"}).datasets_path == Path("/sets")
    assert settings.assets_path == Path("/data/assets")
    assert Settings.load({"EVALSVC_ASSETS": "/weights"}).assets_path == Path("/weights")
    monkeypatch.setenv("XDG_DATA_HOME", "/xdg")
    assert Settings.load({}).data_path == Path("/xdg/evalsvc")
    for scheme in ("postgres", "postgresql"):
        url = Settings.load({"EVALSVC_DATABASE_URL": f"{scheme}://u@h/d"}).database
        assert url == "postgresql+psycopg://u@h/d"
    assert Settings.load({"EVALSVC_ROOTS": "/a:/b:"}).root_paths == (Path("/a"), Path("/b"))
    assert [Settings(devices=text).device for text in ("all", "cpu", "cuda:1,cuda:0")] == ["", "cpu", "cuda:1"]


def test_every_setting_has_help() -> None:
    table = setting_help()
    assert [variable for variable, _, _ in table] == [f"EVALSVC_{item.name.upper()}" for item in SETTINGS]
    assert all(text and text[0].isupper() for _, _, text in table)


def test_secrets_are_neither_shown_nor_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker needs none of them, and its environment can be read by whoever reads its core dump or its /proc."""
    monkeypatch.setenv("EVALSVC_TOKEN", "evalsvc_secret")
    monkeypatch.setenv("EVALSVC_DATABASE_URL", "postgresql://me:secret@h/d")
    monkeypatch.setenv("EVALSVC_PORT", "9")
    settings = Settings.load()
    assert (settings.token, settings.database) == ("evalsvc_secret", "postgresql+psycopg://me:secret@h/d")
    assert "secret" not in repr(settings)
    assert settings.without_secrets() == Settings(port=9)
    drop_secrets()
    assert sorted(name for name in os.environ if name.startswith("EVALSVC_")) == ["EVALSVC_PORT"]


TOKEN = "evalsvc_" + "a" * 43


def test_the_token_comes_from_the_environment_or_a_private_file(tmp_path: Path) -> None:
    """Never from an argument, which every user of the machine sees in the list of processes."""
    file = tmp_path / "token"
    settings = Settings.load({"EVALSVC_TOKEN": f"@{file}"})  # without the token, which a command is to make
    assert file in settings.private_paths, "no checkpoint or suite is read from it"
    assert file in settings.without_secrets().private_paths
    file.write_text(TOKEN + "\n")
    file.chmod(0o600)
    assert Settings().client_token() is None
    assert Settings(token=TOKEN).client_token() == TOKEN
    assert settings.client_token() == TOKEN


@pytest.mark.parametrize(
    ("mode", "content", "words"),
    [
        (0o644, TOKEN, r"may be read by others \(mode 644\); run: chmod 600 /.*/token"),
        (0o640, TOKEN, "may be read by others"),
        (0o600, "hunter2", r"holds no token of evalsvc, which begins with evalsvc_ and has 51 characters; found 7"),
        (0o600, "", "found 0"),
        (None, "", "cannot be read: no such file"),
    ],
)
def test_token_files_that_are_refused(tmp_path: Path, mode: int | None, content: str, words: str) -> None:
    file = tmp_path / "token"
    if mode is not None:
        file.write_text(content)
        file.chmod(mode)
    # The last may be the secret of something else that was pasted in.
    for given, told in ((f"@{file}", words), ("hunter2", "EVALSVC_TOKEN holds no token")):
        with pytest.raises(InvalidRequest, match=told) as error:
            Settings(token=given).client_token()
        assert "hunter2" not in error.value.message


def test_the_url_of_the_database_may_come_from_a_file(tmp_path: Path) -> None:
    """A container gets secrets as files that all of its users may read."""
    file = tmp_path / "database_url"
    file.write_text("postgresql://me:hunter2@h/d\n")
    file.chmod(0o444)
    environ = {"EVALSVC_DATABASE_URL": f"@{file}"}
    settings = Settings.load(environ)
    assert settings.database == "postgresql+psycopg://me:hunter2@h/d"
    assert "hunter2" not in repr(settings)
    assert file in settings.private_paths, "no checkpoint or suite is read from it"
    file.unlink()
    assert settings.database == "postgresql+psycopg://me:hunter2@h/d", "it is read once"
    given = (environ, {"EVALSVC_DATABASE_URL": "sqlite:///a.db"}, {})
    assert [setting_sources(item)["database_url"] for item in given] == ["file", "environment", "default"]
    # A file that names SQLite makes that file private.
    file.write_text("sqlite:////keys/a.db")
    settings = Settings.load({"EVALSVC_DATABASE_URL": f"@{file}"})
    for own in (settings, settings.without_secrets()):
        assert {Path("/keys/a.db"), Path("/keys/a.db-wal"), Path("/keys/a.db-shm")} <= set(own.private_paths)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "EVALSVC_DATABASE_URL /.*/database_url cannot be read: no such file"),
        (b"", "holds no URL of a database on one line"),
        (b"hunter2", "holds no URL of a database on one line, such as postgresql://USER:PASSWORD@HOST/NAME"),
        (b"postgresql://me:hunter2@h/d\npostgresql://h/e\n", "on one line"),
        (b"postgresql://me:hunter2 @h/d", "on one line"),
        (b"postgresql://me:hunter2@h/" + 4096 * b"d", "has more than 4096 bytes; use a file that holds only the"),
        (b"\xff\xfehunter2", "cannot be read: it is not text"),
        ("folder", "cannot be read: is a directory"),
    ],
)
def test_files_without_a_url_are_refused(tmp_path: Path, content: bytes | str | None, words: str) -> None:
    file = tmp_path / "database_url"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        file.mkdir()
    with pytest.raises(InvalidRequest, match=words) as error:
        Settings.load({"EVALSVC_DATABASE_URL": f"@{file}"})
    assert "hunter2" not in error.value.message


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@h:5432/d", "postgresql://me:***@h:5432/d"),
        ("postgresql://me:se/cr@et@h/d", "postgresql://me:***@h/d"),
        ("postgresql://h/d?user=me&password=secret", "postgresql://h/d"),
        ("postgresql://me@h/d", "postgresql://me@h/d"),
        ("sqlite:////data/evalsvc.db", "sqlite:////data/evalsvc.db"),
        ("postgres//me:secret@h/d", "set, and not shown: it is no URL"),
        ("postgresql://me:sec?ret@h/d", "set, and not shown: it has an @ behind a ?"),
        ("postgresql://h:5432/d", "postgresql://h:5432/d"),
        ("postgresql://me:sec#ret", "set, and not shown: it has no @ behind a password"),
        ("postgresql://me:123#ret/d", "set, and not shown: it has no @ behind a password"),
        ("sqlite:////data/a:b.db", "sqlite:////data/a:b.db"),
    ],
)
def test_addresses_of_databases_are_shown_without_what_lets_in(url: str, shown: str) -> None:
    assert config.shown_url(url) == shown


def test_tokens_are_long_random_and_recognisable() -> None:
    """A scanner of repositories finds a leaked one by its prefix; 43 characters of 64 kinds are 256 bits and more."""
    tokens = {new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(FORM.fullmatch(token) and len(token) == len(PREFIX) + 43 for token in tokens)
    places = list(zip(*(token.removeprefix(PREFIX)[:42] for token in tokens), strict=True))
    assert all(len(set(place)) > 48 for place in places), "each place takes nearly all of its 64 characters"
    assert hash_token("a") == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    assert hash_token("a") != hash_token("A")


def test_scopes_hold_those_before_them() -> None:
    scopes: tuple[TokenScope, ...] = ("read", "submit", "admin")
    allowed = [[needed for needed in scopes if includes(scope, needed)] for scope in scopes]
    assert allowed == [["read"], ["read", "submit"], ["read", "submit", "admin"]]
