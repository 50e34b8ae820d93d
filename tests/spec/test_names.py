"""Names that users type and programs print: RUN@STEP, RUN@STEP:VARIANT, RUN:VARIANT."""

import pytest

from evalsvc.errors import InvalidRequest
from evalsvc.spec.names import checkpoint_name, parse_checkpoint, parse_run


def test_names_of_checkpoints_and_runs() -> None:
    assert parse_checkpoint("t2i-1b.x@400") == ("t2i-1b.x", 400, "raw")
    assert parse_checkpoint("a@0:ema_0.9999") == ("a", 0, "ema_0.9999")
    assert checkpoint_name(*parse_checkpoint("a@0:ema_0.9999")) == "a@0:ema_0.9999"
    assert checkpoint_name("a", 0, "raw") == "a@0"
    assert parse_run("a:ema") == ("a", "ema")
    assert parse_run("a") == ("a", "raw")
    for wrong in ("a", "a@", "a@-1", "a@\u0663", "a@1.5", "a@" + "9" * 19, "@1", "a@1:b/c"):
        with pytest.raises(InvalidRequest, match="is not a checkpoint; write RUN@STEP or RUN@STEP:VARIANT"):
            parse_checkpoint(wrong)
    with pytest.raises(InvalidRequest, match="is not a run; write RUN or RUN:VARIANT"):
        parse_run("a@1")
