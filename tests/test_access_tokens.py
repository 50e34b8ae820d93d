"""What a token is made of."""

import pytest

from evalsvc.access_tokens import PREFIX, TOKEN, TokenScope, hash_token, includes, new_token


def test_tokens_are_long_random_and_recognisable() -> None:
    """A scanner of repositories finds a leaked one by its prefix; 43 characters of 64 kinds are 256 bits and more."""
    tokens = {new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(TOKEN.fullmatch(token) and len(token) == len(PREFIX) + 43 for token in tokens)
    places = list(zip(*(token.removeprefix(PREFIX)[:42] for token in tokens), strict=True))
    assert all(len(set(place)) > 48 for place in places), "each place takes nearly all of its 64 characters"


def test_the_hash_is_that_of_the_whole_token() -> None:
    assert hash_token("a") == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    assert hash_token("a") != hash_token("A")


@pytest.mark.parametrize(
    ("scope", "allowed"), [("read", ["read"]), ("submit", ["read", "submit"]), ("admin", ["read", "submit", "admin"])]
)
def test_scopes_hold_those_before_them(scope: TokenScope, allowed: list[TokenScope]) -> None:
    scopes: tuple[TokenScope, ...] = ("read", "submit", "admin")
    assert [needed for needed in scopes if includes(scope, needed)] == allowed
