"""Why a call is refused, in words that quote nothing of a file: who names a file need not be who may read it."""

from collections.abc import Callable
from typing import Any

import pytest


def refusal(errors: type[Exception] | tuple[type[Exception], ...], call: Callable[..., Any], *given: Any) -> str:
    """The message of the error with which `call` ends. Hostile files of tests hold the word hunter2."""
    with pytest.raises(errors) as caught:
        call(*given)
    assert "hunter2" not in str(caught.value)
    return str(caught.value)
