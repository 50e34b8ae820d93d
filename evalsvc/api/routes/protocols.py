"""Routes of protocols: everything that changes a value beyond its standard error, by the id in values."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from evalsvc.api.errors import PROBLEMS
from evalsvc.api.json_answer import JsonAnswer, document
from evalsvc.api.list_queries import ProtocolsQuery
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import Name
from evalsvc.api.state import CurrentState
from evalsvc.spec import documents
from evalsvc.store.protocols import listed_protocols, read_protocol

router = router_of(prefix="/v1", tags=["runs"], responses=PROBLEMS)


@router.get(
    "/protocols",
    summary="List protocols with their metrics and number of runs",
    description="With `run` or `metric`, the list only has protocols of values of the run or the metric. `metrics` and "
    "`runs` of a protocol cover all runs, whatever the filter.",
    responses=document(200, "A page of the protocols, ordered by id.", documents.Protocols),
)
def list_protocols(query: Annotated[ProtocolsQuery, Query()], state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(listed_protocols(session, query.run, query.metric, query.page()))


@router.get(
    "/protocols/{protocol_id}",
    summary="Get the content of a protocol",
    description="The content has everything that changes a value: the task with its parameters, digests of data and "
    "networks, and versions. Two values are comparable only if they have the same protocol.",
    responses={
        200: {
            "description": "The content of the protocol.",
            "content": {"application/json": {"schema": {"type": "object"}, "example": {"task": "loss", "version": 1}}},
        }
    },
)
def get_protocol(protocol_id: Name, state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(read_protocol(session, protocol_id))
