from dataclasses import fields
from pathlib import Path

import pytest

from evalsvc.config import Settings, setting_help
from evalsvc.errors import InvalidRequest, UnknownName


def test_defaults_need_no_environment() -> None:
    settings = Settings.load({})
    assert settings == Settings()
    assert settings.host == "127.0.0.1"
    assert settings.suites_path is None
    assert settings.root_paths == (Path("/"),)


def test_variables_have_the_types_of_their_defaults() -> None:
    settings = Settings.load({"EVALSVC_PORT": "9", "EVALSVC_GRACE": "1.5", "EVALSVC_SUITES": "/s", "HOME": "/h"})
    assert (settings.port, settings.grace, settings.suites) == (9, 1.5, "/s")


def test_an_empty_variable_is_not_set() -> None:
    assert Settings.load({"EVALSVC_PORT": ""}).port == 8321


def test_arguments_win_and_none_is_not_given() -> None:
    settings = Settings.load({"EVALSVC_PORT": "9", "EVALSVC_HOST": "::1"}, port=10, host=None)
    assert (settings.port, settings.host) == (10, "::1")


@pytest.mark.parametrize(
    ("environ", "error", "fragment"),
    [
        ({"EVALSVC_PROT": "9"}, UnknownName, "'EVALSVC_PROT'; did you mean 'EVALSVC_PORT'"),
        ({"EVALSVC_PORT": "nine"}, InvalidRequest, "EVALSVC_PORT is 'nine'; it must be a whole number"),
        ({"EVALSVC_PORT": "9.5"}, InvalidRequest, "it must be a whole number"),
        ({"EVALSVC_GRACE": "long"}, InvalidRequest, "EVALSVC_GRACE is 'long'; it must be a number"),
    ],
)
def test_wrong_variables_are_named(environ: dict[str, str], error: type[Exception], fragment: str) -> None:
    with pytest.raises(error, match=fragment):
        Settings.load(environ)


def test_paths_follow_the_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.load({"EVALSVC_DATA_DIR": "/data"})
    assert settings.database == "sqlite:////data/evalsvc.db"
    assert settings.datasets_path == Path("/data/datasets")
    assert Settings.load({"EVALSVC_DATASETS": "/sets"}).datasets_path == Path("/sets")
    assert settings.assets_path == Path("/data/assets")
    assert Settings.load({"EVALSVC_ASSETS": "/weights"}).assets_path == Path("/weights")
    monkeypatch.setenv("XDG_DATA_HOME", "/xdg")
    assert Settings.load({}).data_path == Path("/xdg/evalsvc")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_postgresql_is_reached_by_psycopg_3(scheme: str) -> None:
    """SQLAlchemy takes a bare postgresql:// for psycopg2, which is not installed."""
    settings = Settings.load({"EVALSVC_DATABASE_URL": f"{scheme}://u@h/d"})
    assert settings.database == "postgresql+psycopg://u@h/d"


def test_roots_are_a_list() -> None:
    assert Settings.load({"EVALSVC_ROOTS": "/a:/b:"}).root_paths == (Path("/a"), Path("/b"))


def test_a_child_process_gets_the_same_settings() -> None:
    settings = Settings.load({"EVALSVC_PORT": "9", "EVALSVC_GRACE": "1.5"}, suites="/s")
    assert Settings.load(settings.environment()) == settings
    assert Settings().environment() == {}


def test_every_setting_has_help() -> None:
    table = setting_help()
    assert [variable for variable, _, _ in table] == [f"EVALSVC_{item.name.upper()}" for item in fields(Settings)]
    assert all(text and text[0].isupper() for _, _, text in table)
