import json
from pathlib import Path

from evalsvc.checkpoints.reference import CheckpointRef, hash_files
from evalsvc.spec.suite import Suite
from evalsvc.worker.local import run_suite


def test_a_suite_is_evaluated_without_a_service(checkpoint: CheckpointRef, suite: Suite, weights: Path) -> None:
    progress: list[tuple[str, int, int, str]] = []
    result = run_suite(suite, checkpoint, lambda *now: progress.append(now)).model_dump()
    json.dumps({**result, "artifacts": None}, allow_nan=False)
    assert [artifact["name"] for artifact in result["artifacts"]["pairs"]][:1] == ["loss_profile.json"]
    assert list(result["errors"]) == ["missing"], "a failed task must not take the others with it"
    assert result["errors"]["missing"]["code"] == "invalid_data"
    assert "none.jsonl does not exist" in result["errors"]["missing"]["message"]
    names = {metric["name"] for metric in result["metrics"]}
    assert {"pairs/text", "pairs/image_perplexity", "few/image_mass"} <= names
    assert {metric["protocol"] for metric in result["metrics"]} == set(result["protocols"])
    assert len(result["protocols"]) == 4, "of the losses and of the entropies that they are held against"
    assert [len(result["items"][task]) for task in ("pairs", "few")] == [3, 2]
    assert result["checkpoint"] == {"path": str(weights), "label": "run-a step 2", "sha256": hash_files(weights)}
    assert result["suite"]["digest"] == suite.digest
    assert len(result["provenance"]["pairs"]["shards"]) == 2
    assert result["provenance"]["pairs"]["notes"]["sequences"] == 3
    assert [now for now in progress if now[0] == "pairs"][-1] == ("pairs", 3, 3, "sequences")
    assert sorted(now[1] for now in progress if now[0] == "pairs") == [now[1] for now in progress if now[0] == "pairs"]
