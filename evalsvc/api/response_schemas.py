"""What the routes answer with, as JSON schemas; those of the history are in `history_schemas`.

Tests hold the answers to them, so a field that is named here is there, in every answer.
"""

from __future__ import annotations

from evalsvc.api.json_schema import (
    ANYTHING,
    COUNT,
    FIELDS,
    FINITE,
    FLAG,
    ID,
    NUMBER,
    TEXT,
    TIME,
    Schema,
    alike,
    array,
    by_name,
    has,
    one_of,
    or_null,
)

STATE = one_of("queued", "running", "succeeded", "partly_failed", "failed", "cancelled")

DIRECTION = one_of("lower", "higher", "none")

_PLACE = {"run": TEXT, "step": COUNT, "variant": TEXT}
"""How documents name a checkpoint."""

ERROR = has(code=TEXT, message=TEXT)

WARNING = has(code=TEXT, metric=TEXT, message=TEXT)
"""A suspicion about a task's result."""

_METRIC = has(
    name=TEXT,
    value=NUMBER,
    stderr=or_null(NUMBER),
    n=or_null(COUNT),
    unit=TEXT,
    direction=DIRECTION,
    protocol=TEXT,
    baseline=or_null(NUMBER),
)

_GROUPS = {"groups": or_null(COUNT), "grouped_by": or_null(TEXT), "drawn_from": or_null(COUNT)}

METRIC = {**_METRIC, "properties": {**_METRIC["properties"], **_GROUPS}}
"""What an older version measured lacks the fields of `_GROUPS`."""

PROGRESS = has(
    done=COUNT,
    total=or_null(COUNT),
    unit=or_null(TEXT),
    per_second=or_null(FINITE),
    seconds_left=or_null(FINITE),
)

SHARDS = has(**alike(COUNT, "total", "succeeded", "running", "queued", "failed", "cancelled", "skipped", "attempts"))

TASK = has(
    name=TEXT,
    kind=TEXT,
    state=STATE,
    progress=PROGRESS,
    error=or_null(ERROR),
    warnings=array(WARNING),
    metrics=or_null(array(METRIC)),
    interim=or_null(has(done=COUNT)),
    protocols=by_name(FIELDS),
    provenance=or_null(FIELDS),
    shards=SHARDS,
    retry=or_null(has(shards=COUNT, at=TIME, error=ERROR)),
)

EVALUATION = has(
    id=ID,
    checkpoint=ID,
    **_PLACE,
    suite=has(name=TEXT, digest=TEXT),
    state=STATE,
    priority={"type": "integer"},
    created_at=TIME,
    started_at=or_null(TIME),
    finished_at=or_null(TIME),
    error=or_null(ERROR),
    tasks=array(TASK),
)

EVALUATION_SUMMARY = has(id=ID, suite=TEXT, state=STATE)

PARENT = has(name=TEXT, checkpoint=ID, sha256=or_null(TEXT), replaced_at=or_null(TIME))

CHECKPOINT = has(
    id=ID,
    **_PLACE,
    uri=TEXT,
    sha256=or_null(TEXT),
    model=or_null(FIELDS),
    layout=or_null(FIELDS),
    tokens_seen=or_null(COUNT),
    tags=by_name(TEXT),
    spool=one_of("none", "link", "copy"),
    spool_state=or_null(one_of("copying", "ready", "failed", "released")),
    in_use=FLAG,
    created_at=TIME,
    replaced_at=or_null(TIME),
    parents=array(PARENT),
    evaluations=array(EVALUATION_SUMMARY),
)

POSTED = has(checkpoint=CHECKPOINT, evaluations=array(EVALUATION_SUMMARY))

EVENT = {
    **has(
        event=one_of("state", "task", "interim", "progress", "end"),
        data={**TEXT, "contentMediaType": "application/json"},
    ),
    "description": "One of the stream; `data` is JSON, an object.",
}

ITEMS = has(evaluation=ID, state=STATE, items=by_name(array(FIELDS)))

ARTIFACT = has(
    id=ID,
    evaluation=ID,
    **_PLACE,
    **alike(TEXT, "task", "kind", "name", "media_type"),
    size=COUNT,
    sha256=TEXT,
    details=FIELDS,
    pruned_at=or_null(TIME),
)

RETENTION = has(run=TEXT, keep=or_null(FIELDS), **{"from": or_null(one_of("run", "service"))})

PRUNED = has(artifacts=COUNT, bytes=COUNT, freed_bytes=COUNT, runs=by_name(COUNT), dry_run=FLAG)

ARTIFACTS = has(artifacts=array(ARTIFACT))

PLAN = has(
    suites=array(has(suite=TEXT, every=ID, first=or_null(COUNT), last=or_null(COUNT))),
    when_behind=one_of("all", "newest"),
)

BASE = has(**_PLACE, named=FLAG, checkpoint=or_null(ID))

RUN = has(
    name=TEXT,
    created_at=TIME,
    plan=PLAN,
    base=BASE,
    checkpoints=array(
        has(
            id=ID,
            step=COUNT,
            variant=TEXT,
            uri=TEXT,
            tokens_seen=or_null(COUNT),
            created_at=TIME,
            evaluations=array(EVALUATION_SUMMARY),
        )
    ),
)

DELETED = has(run=TEXT, **alike(COUNT, "checkpoints", "evaluations", "values", "artifacts", "freed_bytes"))

COMPLETIONS = has(run=TEXT, steps=array(has(step=COUNT, variant=TEXT, task=TEXT, completions=array(FIELDS))))

SUITE = has(
    name=TEXT,
    description=TEXT,
    tasks=array(has(kind=TEXT, name=TEXT)),
    digest=TEXT,
    source=one_of("put", "folder", "shipped"),
)

SUITES = has(
    suites=array(
        {
            "anyOf": [
                has(name=TEXT, source=TEXT, description=TEXT, digest=TEXT, tasks=array(TEXT)),
                has(name=TEXT, source=TEXT, error=ERROR),
            ]
        }
    )
)

HEALTH = has(status=TEXT, version=TEXT)

READY: Schema = {"anyOf": [has(status=TEXT, database=TEXT, schema=TEXT, workers=COUNT), has(status=TEXT)]}

TABLE = has(columns=by_name(array(ANYTHING)))

SUITE_INPUT: Schema = {
    "type": "object",
    "required": ["tasks"],
    "properties": {
        "description": or_null(TEXT),
        "tasks": {"type": "array", "minItems": 1, "items": has(kind=TEXT)},
    },
}
"""The body that keeps a suite; a task's kind has its own parameters."""

STATUS = has(
    status=one_of("ready", "not_ready"),
    missing=array(TEXT),
    version=TEXT,
    database=TEXT,
    workers=array(
        has(
            name=TEXT,
            host=TEXT,
            takes_shards=FLAG,
            runs=or_null(
                has(evaluation=ID, run=TEXT, step=COUNT, task=TEXT, stage=TEXT, seconds={**FINITE, "minimum": 0})
            ),
        )
    ),
    queue=has(
        queued=COUNT,
        running=COUNT,
        oldest_seconds=or_null(FINITE),
        shards=has(queued=COUNT, running=COUNT),
        finished_last_hour=COUNT,
        seconds_left=or_null(FINITE),
        runs=array(has(run=TEXT, queued=COUNT, running=COUNT, oldest_seconds=or_null(FINITE))),
    ),
    running=array(has(id=ID, **_PLACE, suite=TEXT, tasks=array(has(name=TEXT, progress=PROGRESS)))),
    failed=array(has(id=ID, **_PLACE, suite=TEXT, state=STATE, error=or_null(ERROR))),
    warned=array(has(id=ID, **_PLACE, suite=TEXT, task=TEXT, warnings=array(WARNING))),
)
