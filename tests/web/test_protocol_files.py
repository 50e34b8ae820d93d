"""Which files the digests of a protocol are of."""

from evalsvc.web.protocol_files import Measured

DIGEST = "ab" * 32


def test_only_a_digest_has_a_file() -> None:
    """A seed is no file, though the task has a parameter of that name."""
    files = {"seed": "7", "data": "/data.jsonl", DIGEST: "/epoch_1.pt"}
    content = {"seed": "7", "data": "cd" * 32, "base": {"checkpoint": DIGEST, "data": {"of": "ef" * 32}}, "empty": {}}
    assert list(Measured("id", content, (), files).fields()) == [
        ("seed", "7", ""),
        ("data", "cd" * 32, "/data.jsonl"),
        ("base.checkpoint", DIGEST, "/epoch_1.pt"),
        ("base.data.of", "ef" * 32, "/data.jsonl"),
        ("empty", "{}", ""),
    ]
