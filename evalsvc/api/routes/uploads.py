"""Routes of uploads: clients send files in parts by the tus protocol, and parts are written to the disk in pieces."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

from fastapi import Header, Path, Query, Request, Response
from pydantic import BeforeValidator, Field, WithJsonSchema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from evalsvc.api import tus
from evalsvc.api.errors import PROBLEM_CONTENT, PROBLEMS
from evalsvc.api.json_answer import JsonAnswer, document
from evalsvc.api.middleware.access import TokenName
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import Input
from evalsvc.api.state import CurrentState, State
from evalsvc.errors import EvalsvcError, Forbidden, InvalidRequest
from evalsvc.files.uploads.part import ALGORITHMS, PartWriter
from evalsvc.files.uploads.stored import StoredUpload
from evalsvc.spec import documents
from evalsvc.store.runs.uploaded import uploaded_bytes

PIECE_BYTES = 1 << 20
"""The size of a piece: the bytes of a part that are buffered in memory and written together."""

FULL: dict[int | str, dict[str, Any]] = {
    507: {"description": "The disk or the space for uploads is full.", "content": PROBLEM_CONTENT}
}

router = router_of(prefix="/v1/uploads", tags=["uploads"], responses=PROBLEMS)

UploadId = Annotated[str, Path(examples=["5d41402abc4b2a76b9719d911017c592"])]

Bytes = Annotated[
    int, BeforeValidator(tus.number), WithJsonSchema({"type": "integer", "minimum": 0, "maximum": tus.MAX_BYTES})
]

Version = Annotated[
    str | None,
    WithJsonSchema({"type": "string", "enum": [tus.VERSION]}),
    Header(alias="Tus-Resumable", description="The version of tus."),
]


class UploadsQuery(Input):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    """Only uploads of the file with this digest."""


@router.options(
    "",
    status_code=204,
    summary="Get the supported features of tus",
    description="`Tus-Extension` lists the extensions of the protocol, and `Tus-Max-Size` is `EVALSVC_UPLOAD_BYTES`.",
    responses={204: {"description": "The headers say what is supported."}},
)
async def options(state: CurrentState) -> Response:
    _require_on(state)
    supported = {
        "Tus-Extension": tus.EXTENSIONS,
        "Tus-Max-Size": str(state.settings.upload_bytes),
        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
    }
    return Response(status_code=204, headers=tus.HEADERS | supported)


@router.post(
    "",
    status_code=201,
    summary="Create an upload",
    description="Announce a file by its length and SHA-256, and then send the file in parts by `PATCH` to the URL in "
    "`Location`. After the last byte, post the checkpoint with `uri: upload:SHA256`. The operator enables uploads with "
    "`EVALSVC_UPLOAD_BYTES`. An upload expires a day after its last byte.",
    responses=document(201, "The upload; `Location` is its URL.", documents.Upload) | FULL,
)
async def post_upload(
    request: Request,
    state: CurrentState,
    owner: TokenName,
    length: Annotated[Bytes, Header(alias="Upload-Length", description="Bytes of the whole file, at least 1.")],
    metadata: Annotated[
        str | None,
        WithJsonSchema({"type": "string", "maxLength": tus.MAX_METADATA}),
        Header(
            alias="Upload-Metadata",
            description="`sha256 BASE64`, and optionally `,filename BASE64`: the SHA-256 of the whole file in "
            "hexadecimal digits and the name to show, each encoded in base64.",
            examples=[tus.EXAMPLE_METADATA],
        ),
    ] = None,
    version: Version = None,
) -> JsonAnswer:
    _require_on(state)
    state.require_writer()
    tus.require_version(version, request.headers)
    if "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0":
        raise InvalidRequest("POST /v1/uploads takes no body; send the file by PATCH to the URL in Location")
    announced = tus.read_metadata(metadata)
    _require_size(length, state.settings.upload_bytes)
    upload = await state.threads.run("upload", _create, state, length, announced, owner)
    headers = _headers(upload) | {"Location": f"{router.prefix}/{upload.id}"}
    return JsonAnswer(_view(upload), 201, headers=headers)


@router.get(
    "",
    summary="List unfinished uploads, and finished uploads without a checkpoint",
    description="The list has the uploads of the request's token. A restarted client finds its upload by the digest of "
    "the file, and resumes from `offset`.",
    responses=document(200, "At most 16 uploads.", documents.Uploads),
)
async def list_uploads(query: Annotated[UploadsQuery, Query()], state: CurrentState, owner: TokenName) -> JsonAnswer:
    _require_on(state)
    sha256 = None if query.sha256 is None else query.sha256.lower()
    uploads = await state.threads.run("upload", state.uploads.of_owner, owner, sha256)
    return JsonAnswer(documents.Uploads(uploads=[_view(upload) for upload in uploads]))


@router.head(
    "/{upload_id}",
    summary="Get the offset of an upload",
    description="`Upload-Offset` is the number of bytes on the disk, at which the next part starts.",
    response_class=Response,
    responses={200: {"description": "`Upload-Offset`, `Upload-Length` and `Upload-Expires`."}},
)
async def head_upload(
    upload_id: UploadId, request: Request, state: CurrentState, owner: TokenName, version: Version = None
) -> Response:
    _require_on(state)
    tus.require_version(version, request.headers)
    upload = await state.threads.run("upload", state.uploads.find, upload_id, owner)
    return Response(headers=_headers(upload))


@router.get(
    "/{upload_id}",
    summary="Get an upload with its offset and length",
    description="The answer has the content of the headers of `HEAD` as a document, and says whether the upload is "
    "complete.",
    responses=document(200, "The upload.", documents.Upload),
)
async def get_upload(upload_id: UploadId, state: CurrentState, owner: TokenName) -> JsonAnswer:
    _require_on(state)
    upload = await state.threads.run("upload", state.uploads.find, upload_id, owner)
    return JsonAnswer(_view(upload), headers=_headers(upload))


@router.patch(
    "/{upload_id}",
    status_code=204,
    summary="Send a part of an upload",
    description="The body is the part that starts at `Upload-Offset`, of any length up to the rest of the file. If the "
    "connection breaks, the received bytes of the part are kept; a part with `Upload-Checksum` is kept as a whole or "
    "not at all. The answer to the last part comes after the digest of the whole file was compared with the announced "
    "digest.",
    responses=FULL | {204: {"description": "The part is on the disk; `Upload-Offset` is the new offset."}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {tus.PART_TYPE: {"schema": {"type": "string", "format": "binary"}, "example": "…"}},
        }
    },
)
async def patch_upload(
    upload_id: UploadId,
    request: Request,
    state: CurrentState,
    owner: TokenName,
    offset: Annotated[Bytes, Header(alias="Upload-Offset", description="The number of bytes before this part.")],
    checksum: Annotated[
        str | None,
        WithJsonSchema({"type": "string", "pattern": "^(sha256|sha1) [A-Za-z0-9+/]+=*$"}),
        Header(alias="Upload-Checksum", description="`sha256 BASE64` or `sha1 BASE64`: the digest of this part."),
    ] = None,
    version: Version = None,
) -> Response:
    _require_on(state)
    state.require_writer()
    tus.require_version(version, request.headers)
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != tus.PART_TYPE:
        raise HTTPException(
            415, f"Content-Type is {content_type[:80] or 'missing'}; a part is sent as Content-Type: {tus.PART_TYPE}"
        )
    part_checksum = tus.read_checksum(checksum)
    kept = await state.threads.run("upload", _kept_bytes, state)
    arguments = (state.uploads, upload_id, owner, offset, part_checksum, kept)
    writer = await state.threads.run("upload", PartWriter, *arguments)
    try:
        new_offset = await _receive(request, state, writer)
    finally:
        writer.close()
    if new_offset == writer.upload.length:
        await state.threads.run("digest", state.uploads.verify, upload_id, owner)
    upload = await state.threads.run("upload", state.uploads.find, upload_id, owner)
    return Response(status_code=204, headers=_headers(upload))


@router.delete(
    "/{upload_id}",
    status_code=204,
    summary="Delete an upload",
    description="Deletes the bytes of the upload. A checkpoint that was posted from the upload stays.",
    responses={204: {"description": "The upload is deleted."}},
)
async def delete_upload(
    upload_id: UploadId, request: Request, state: CurrentState, owner: TokenName, version: Version = None
) -> Response:
    _require_on(state)
    state.require_writer()
    tus.require_version(version, request.headers)
    await state.threads.run("upload", state.uploads.delete, upload_id, owner)
    return Response(status_code=204, headers=tus.HEADERS)


async def _receive(request: Request, state: State, writer: PartWriter) -> int:
    """Write a part as it arrives; return the new offset.

    Raises:
        HTTPException: the part is longer than the upload, too slow, or breaks off.
        ChecksumMismatch, StorageFull, DataDirectoryUnusable: see `PartWriter`.
    """
    run = state.threads.run
    announced = request.headers.get("content-length", "0")
    size = int(announced) if announced.isdecimal() else 0
    _require_fits(size, writer)
    await run("upload", writer.require_space, size)
    piece = bytearray()

    async def write() -> None:
        nonlocal piece
        received, piece = piece, bytearray()
        await run("upload", writer.write, received)

    try:
        async for chunk in request.stream():
            _require_fits(len(piece) + len(chunk), writer)
            piece += chunk
            if len(piece) >= PIECE_BYTES:
                await write()
        await write()
    except (ClientDisconnect, HTTPException, EvalsvcError) as error:
        with suppress(EvalsvcError):  # the disk may be full
            await write()
        with suppress(EvalsvcError):
            await run("upload", writer.keep, complete=False)
        if isinstance(error, ClientDisconnect):
            raise HTTPException(
                408, "the connection broke; get the offset with HEAD, and resume from the offset"
            ) from None
        raise
    return await run("upload", writer.keep)


def _create(state: State, length: int, announced: tus.Announced, owner: str | None) -> StoredUpload:
    return state.uploads.create(length, announced.sha256, announced.name, owner, _kept_bytes(state))


def _kept_bytes(state: State) -> int:
    with state.reading() as session:
        return uploaded_bytes(session)


def _require_on(state: State) -> None:
    if state.settings.upload_bytes <= 0:
        raise Forbidden(
            "this service takes no uploads, since EVALSVC_UPLOAD_BYTES is 0; post a path that the service can read (a "
            "shared disk, or s3://, gs://, hf:// or https:// if EVALSVC_SCHEMES allows the scheme), or ask the "
            "operator to set EVALSVC_UPLOAD_BYTES to the bytes that uploads may take"
        )


def _require_size(length: int, limit: int) -> None:
    if length < 1:
        raise InvalidRequest("Upload-Length is 0, and an empty file is no checkpoint; check that the file was written")
    if length > limit:
        raise HTTPException(
            413,
            f"the file has {length:,} bytes, and all uploads together may take {limit:,} (EVALSVC_UPLOAD_BYTES); ask "
            "the operator to raise EVALSVC_UPLOAD_BYTES, or post a path that the service can read",
        )


def _require_fits(size: int, writer: PartWriter) -> None:
    if size > writer.room:
        raise HTTPException(
            413,
            f"the part exceeds the announced length of upload {writer.upload.id}, {writer.upload.length:,} bytes; send "
            f"at most {writer.room:,} bytes more, or delete the upload and announce the right length",
        )


def _view(upload: StoredUpload) -> documents.Upload:
    return documents.Upload(
        id=upload.id,
        name=upload.name,
        length=upload.length,
        offset=upload.offset,
        sha256=upload.sha256,
        complete=upload.is_verified,
        expires_at=upload.expires_at.isoformat(timespec="milliseconds"),
    )


def _headers(upload: StoredUpload) -> dict[str, str]:
    return tus.HEADERS | {
        "Upload-Offset": str(upload.offset),
        "Upload-Length": str(upload.length),
        "Upload-Expires": tus.http_date(upload.expires_at),
    }
