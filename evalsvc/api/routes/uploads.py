"""Routes of uploads: clients send files in parts by the protocol tus 1.0, and parts are written as they arrive."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from contextlib import closing
from email.utils import format_datetime
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Request, Response
from pydantic import BeforeValidator, WithJsonSchema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from evalsvc.api.errors import PROBLEM_CONTENT
from evalsvc.api.middleware.access import TokenName, needs
from evalsvc.api.routing import router_of
from evalsvc.api.state import CurrentState, State
from evalsvc.errors import Forbidden, InvalidRequest
from evalsvc.files.uploads import Part, Upload
from evalsvc.store.runs.posting import uploaded_bytes

VERSION, EXTENSIONS = "1.0.0", "creation,checksum,expiration"
PART_TYPE = "application/offset+octet-stream"

HEADERS = {"Tus-Resumable": VERSION, "Tus-Version": VERSION, "Cache-Control": "no-store"}
"""Headers of every successful answer."""

PIECE_BYTES = 1 << 20
"""The size of a piece: the bytes of a part that are buffered in memory and written together."""

FULL: dict[int | str, dict[str, Any]] = {
    507: {"description": "The disk or the space for uploads is full.", "content": PROBLEM_CONTENT}
}


def _bytes(text: object) -> int:
    if not isinstance(text, str) or not re.fullmatch("[0-9]{1,16}", text):
        raise ValueError(f"{str(text)[:40]!r} is not a number of bytes; give a whole number")
    return int(text)


Bytes = Annotated[int, BeforeValidator(_bytes), WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 2**53})]

UploadSha256 = Annotated[
    str,
    Path(
        description="The SHA-256 of the file in hexadecimal digits.", examples=[hashlib.sha256(b"weights").hexdigest()]
    ),
]


async def require_supported(
    request: Request,
    state: CurrentState,
    version: Annotated[
        str | None,
        WithJsonSchema({"type": "string", "enum": [VERSION]}),
        Header(alias="Tus-Resumable", description="The version of tus."),
    ] = None,
) -> None:
    if state.settings.upload_bytes <= 0:
        raise Forbidden(
            "this service takes no uploads, since EVALSVC_UPLOAD_BYTES is 0; post a path that the service can read (a "
            "shared disk, or s3://, gs://, hf:// or https:// if EVALSVC_SCHEMES allows the scheme), or ask the "
            "operator to set EVALSVC_UPLOAD_BYTES to the bytes that uploads may take"
        )
    if version not in (None, VERSION):
        raise HTTPException(
            412, f"Tus-Resumable: {version[:40]!r} is not supported; send {VERSION}, or leave the header out", HEADERS
        )
    # A client must not believe that one of these headers had an effect.
    for name in ("Upload-Concat", "Upload-Defer-Length"):
        if name in request.headers:
            raise InvalidRequest(
                f"{name}: this extension of tus is not supported; leave the header out, and send one file with its "
                f"Upload-Length. Supported: {EXTENSIONS}"
            )
    if request.method != "GET":
        state.require_writer()


router = router_of(prefix="/v1/uploads", tags=["uploads"], dependencies=[Depends(require_supported)])


@router.options(
    "",
    status_code=204,
    summary="Get the supported features of tus",
    description="`Tus-Extension` lists the extensions of the protocol, and `Tus-Max-Size` is `EVALSVC_UPLOAD_BYTES`.",
    responses={204: {"description": "The headers say what is supported."}},
)
@needs("submit")
async def options(state: CurrentState) -> Response:
    supported = {
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(state.settings.upload_bytes),
        "Tus-Checksum-Algorithm": "sha256,sha1",
    }
    return Response(status_code=204, headers=HEADERS | supported)


@router.post(
    "",
    status_code=201,
    summary="Create an upload, or find the upload of the same file",
    description="Announce a file by its length and SHA-256, and then send the file in parts by `PATCH` to the URL in "
    "`Location`, from the byte in `Upload-Offset`. After the last byte, post the checkpoint with `uri: upload:SHA256`. "
    "The operator enables uploads with `EVALSVC_UPLOAD_BYTES`. An upload expires a day after its last byte.",
    response_class=Response,
    responses=FULL | {201: {"description": "`Location` is the URL of the upload, `Upload-Offset` its bytes so far."}},
)
@needs("submit")
async def post_upload(
    request: Request,
    state: CurrentState,
    owner: TokenName,
    length: Annotated[Bytes, Header(alias="Upload-Length", description="Bytes of the whole file, at least 1.")],
    metadata: Annotated[
        str,
        Header(
            alias="Upload-Metadata",
            max_length=4096,
            description="`sha256 BASE64`: the SHA-256 of the whole file in hexadecimal digits, encoded in base64. "
            "Other keys are ignored.",
            examples=["sha256 " + base64.b64encode(hashlib.sha256(b"weights").hexdigest().encode()).decode()],
        ),
    ],
) -> Response:
    if "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0":
        raise InvalidRequest("POST /v1/uploads takes no body; send the file by PATCH to the URL in Location")
    sha256, limit = _sha256(metadata), state.settings.upload_bytes
    if length == 0:
        raise InvalidRequest("Upload-Length is 0, and an empty file is no checkpoint; check that the file was written")
    if length > limit:
        raise HTTPException(
            413,
            f"the file has {length:,} bytes, and all uploads together may take {limit:,} (EVALSVC_UPLOAD_BYTES); ask "
            "the operator to raise EVALSVC_UPLOAD_BYTES, or post a path that the service can read",
        )
    kept_bytes = await state.threads.run("upload", _kept_bytes, state)
    upload = await state.threads.run("upload", state.uploads.create, owner, sha256, length, kept_bytes)
    headers = _headers(upload) | {"Location": f"{router.prefix}/{sha256}"}
    return Response(status_code=201, headers=headers)


@router.get(
    "/{sha256}",
    status_code=204,
    summary="Get the offset of an upload, also by HEAD",
    description="`Upload-Offset` is the number of bytes that have arrived, at which the next part starts.",
    responses={204: {"description": "`Upload-Offset`, `Upload-Length` and `Upload-Expires`."}},
)
@needs("read")
async def get_upload(sha256: UploadSha256, state: CurrentState, owner: TokenName) -> Response:
    upload = await state.threads.run("upload", state.uploads.find, owner, sha256)
    return Response(status_code=204, headers=_headers(upload))


@router.patch(
    "/{sha256}",
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
            "content": {PART_TYPE: {"schema": {"type": "string", "format": "binary"}, "example": "…"}},
        }
    },
)
@needs("submit", body=None)
async def patch_upload(
    sha256: UploadSha256,
    request: Request,
    state: CurrentState,
    owner: TokenName,
    offset: Annotated[Bytes, Header(alias="Upload-Offset", description="The number of bytes before this part.")],
    checksum: Annotated[
        str | None,
        Header(
            alias="Upload-Checksum",
            pattern="^(sha256 [A-Za-z0-9+/]{43}=|sha1 [A-Za-z0-9+/]{27}=)$",
            description="`sha256 BASE64` or `sha1 BASE64`: the digest of this part.",
        ),
    ] = None,
) -> Response:
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != PART_TYPE:
        raise HTTPException(
            415, f"Content-Type is {content_type[:80] or 'missing'}; a part is sent as Content-Type: {PART_TYPE}"
        )
    run = state.threads.run
    kept_bytes = await run("upload", _kept_bytes, state)
    with closing(await run("upload", Part, state.uploads, owner, sha256, offset, checksum, kept_bytes)) as part:
        await _receive(request, state, part, kept_bytes)
        await run("upload", part.finish)
    if part.offset == part.upload.length:
        await run("digest", state.uploads.verify, owner, sha256)
    return Response(status_code=204, headers=_headers(await run("upload", state.uploads.find, owner, sha256)))


async def _receive(request: Request, state: State, part: Part, kept_bytes: int) -> None:
    """Write a part as it arrives. The bytes that have arrived before an error are written too."""
    run, announced = state.threads.run, request.headers.get("content-length", "0")
    size = int(announced) if announced.isdecimal() else 0
    _require_fits(size, part)
    await run("upload", state.uploads.require_space, size, kept_bytes)
    piece = bytearray()
    try:
        async for chunk in request.stream():
            _require_fits(len(piece) + len(chunk), part)
            piece += chunk
            if len(piece) >= PIECE_BYTES:
                full, piece = piece, bytearray()
                await run("upload", part.write, full)
    except ClientDisconnect:
        raise HTTPException(408, "the connection broke; get the offset with HEAD, and resume from the offset") from None
    finally:
        await run("upload", part.write, piece)


def _kept_bytes(state: State) -> int:
    with state.reading() as session:
        return uploaded_bytes(session)


def _sha256(metadata: str) -> str:
    pairs = [pair.strip().partition(" ") for pair in metadata.split(",")]
    digests = [encoded.strip() for key, _, encoded in pairs if key == "sha256"]
    try:
        [digest] = (base64.b64decode(encoded, validate=True).decode().lower() for encoded in digests)
    except (binascii.Error, ValueError):
        digest = ""
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise InvalidRequest(
            f"Upload-Metadata: sha256 is {', '.join(digests)[:80]!r}; send the SHA-256 of the whole file once, in 64 "
            "hexadecimal digits, encoded in base64, as `Upload-Metadata: sha256 BASE64`"
        )
    return digest


def _require_fits(size: int, part: Part) -> None:
    rest = part.upload.length - part.offset
    if size > rest:
        raise HTTPException(
            413,
            f"the part exceeds the announced length of the upload, {part.upload.length:,} bytes; send at most {rest:,} "
            "bytes more",
        )


def _headers(upload: Upload) -> dict[str, str]:
    return HEADERS | {
        "Upload-Offset": str(upload.offset),
        "Upload-Length": str(upload.length),
        "Upload-Expires": format_datetime(upload.expires_at, usegmt=True),
    }
