"""Addresses that mean another place than they show, and those that the operator did not allow."""

import pytest

from evalsvc.checkpoints.remote.uri import RemoteUri, is_remote, parse_remote, without_secrets
from evalsvc.config import Settings
from evalsvc.errors import CheckpointNotAllowed

ALL = Settings(schemes="file, S3,gs,hf,https,http")


@pytest.mark.parametrize(
    ("uri", "parsed"),
    [
        ("s3://bucket/run/epoch_1.pt", RemoteUri("s3", "bucket", "run/epoch_1.pt")),
        ("S3://bucket/run/", RemoteUri("s3", "bucket", "run")),
        ("gs://bucket/a b.pt", RemoteUri("gs", "bucket", "a b.pt")),
        ("hf://owner/repo/sub/epoch_1.pt@v1.0", RemoteUri("hf", "owner", "repo/sub/epoch_1.pt", "v1.0")),
        ("hf://owner/repo@refs/pr/sub/x.pt", RemoteUri("hf", "owner", "repo/pr/sub/x.pt", "refs")),
        ("hf://owner/repo@main/sub/x.pt", RemoteUri("hf", "owner", "repo/sub/x.pt", "main")),
        ("hf://owner/repo/x.pt", RemoteUri("hf", "owner", "repo/x.pt")),
        ("https://host.example:8443/a/x.pt", RemoteUri("https", "host.example:8443", "a/x.pt")),
    ],
)
def test_addresses_are_taken_apart(uri: str, parsed: RemoteUri) -> None:
    assert parse_remote(uri, ALL) == parsed
    assert parse_remote(str(parsed), ALL) == parsed, "what is stored must mean the same again"
    assert all(map(is_remote, (uri, "nonsense://x")))
    assert not any(map(is_remote, ("/a/b.pt", "file:///a.pt", "FILE:///a.pt", "/a/s3://b/x", "a.pt")))
    assert without_secrets("https://u:p@host/x?X-Amz-Signature=abc#z") == "https://…@host/x"
    assert without_secrets("s3://bucket/x\x1b[31m") == "s3://bucket/x�[31m"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("ftp://host/x.pt", "the scheme 'ftp' is not allowed, and not supported; allowed here: file, gs, hf"),
        ("zip://x.pt::s3://bucket/a.zip", "chained addresses"),
        ("s3://bucket/../other/x.pt", "has an empty part, '.' or '..'"),
        ("s3://bucket/./x", "has an empty part"),
        ("https://host/%2e%2e/x", "has an empty part"),
        ("s3://bucket", "has an empty part"),
        ("s3:///x.pt", "is not of the form s3://PLACE/PATH"),
        ("hf://owner/repo", "is not of the form hf://OWNER/REPOSITORY/PATH@REVISION"),
        ("s3://bucket/x#y", "holds '#'"),
        ("https://host/x?y", "holds '?'"),
        ("s3://bucket/x;y", "holds ';'"),
        ("s3://bucket\\x/y", r"holds '\\'"),
        ("s3://bucket/x\ny", "cannot be printed"),
        ("https://host:port/x", "has no valid host and port"),
        ("https://user:hunter2@host/x", "holds a user or password"),
    ],
)
def test_addresses_that_are_refused(uri: str, words: str) -> None:
    with pytest.raises(CheckpointNotAllowed) as caught:
        parse_remote(uri, ALL)
    assert words in caught.value.message
    assert "hunter2" not in caught.value.message, "a password is no part of a message"


def test_a_scheme_is_allowed_by_the_operator_only() -> None:
    message = r"ask the operator to add it to EVALSVC_SCHEMES; allowed here: file"
    with pytest.raises(CheckpointNotAllowed, match=message):
        parse_remote("s3://bucket/x.pt", Settings())
    with pytest.raises(CheckpointNotAllowed, match="not supported"):
        parse_remote("local:///etc/passwd", Settings(schemes="file,local"))


def test_roots_of_a_scheme_bind_once_there_is_one() -> None:
    settings = Settings(roots="/data:s3://bucket/runs/:/more:s3://other", schemes="s3,gs")
    assert [str(path) for path in settings.root_paths] == ["/data", "/more"]
    for uri in ("s3://bucket/runs/a.pt", "s3://other/x", "gs://any/x"):
        assert str(parse_remote(uri, settings)) == uri
    for uri in ("s3://bucket/runs-too/a.pt", "s3://bucket/x", "s3://another/x"):
        with pytest.raises(
            CheckpointNotAllowed, match=r"outside the allowed locations \(s3://bucket/runs, s3://other\)"
        ):
            parse_remote(uri, settings)
