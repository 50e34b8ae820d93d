"""`/docs`: Swagger UI for reading the OpenAPI document and trying the routes.

The package fastapi-swagger contains the files of Swagger UI, and the service serves two of these files. The page loads
nothing from another host, because users enter their tokens on the page, and the machine may have no internet access.
"""

from __future__ import annotations

import base64
import hashlib
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse

from evalsvc.api.middleware.access import needs

PACKAGE = "fastapi_swagger"

FILES = {"/docs/swagger-ui.css": "text/css", "/docs/swagger-ui-bundle.js": "text/javascript"}
"""The media types of the served files, by path. The last part of a path is the name of the file in the package."""

CACHED = "public, max-age=3600"
"""The Cache-Control of the files. Another release of Swagger UI has the same file names."""

_SCRIPT = (
    'SwaggerUIBundle({url: "/openapi.json", dom_id: "#ui", deepLinking: true, layout: "BaseLayout", '
    "validatorUrl: null})"
)

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>evalsvc</title>
<link rel="icon" href="data:,">
"""

_PAGE = f"""{_HEAD}<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="ui"><p>This page needs JavaScript. It shows the document <a href="/openapi.json">/openapi.json</a>.</p></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script>{_SCRIPT}</script>
</body>
</html>
"""

_PAGE_WITHOUT_FILES = f"""{_HEAD}</head>
<body>
<p>Swagger UI is not installed on the machine of this service; run <code>pip install fastapi-swagger</code> there and
restart the service. Without Swagger UI, read the document <a href="/openapi.json">/openapi.json</a>.</p>
</body>
</html>
"""

_DIGEST = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()

_POLICY = (
    f"default-src 'none'; script-src 'self' 'sha256-{_DIGEST}'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def add_docs(app: FastAPI) -> None:
    """Add the routes of the page and the OpenAPI document, and of Swagger UI's files if the package is installed."""
    folder = swagger_folder()
    page, headers = _PAGE if folder else _PAGE_WITHOUT_FILES, {"Content-Security-Policy": _POLICY}
    show = needs(None)(lambda _request: HTMLResponse(page, headers=headers))
    app.add_route("/docs", show, include_in_schema=False)
    app.add_route("/openapi.json", _send_document, include_in_schema=False)
    if folder is not None:
        for path, media_type in FILES.items():
            send = needs(None)(partial(_send_file, folder / Path(path).name, media_type))
            app.add_route(path, send, include_in_schema=False)


@needs(None, recognises=True)
async def _send_document(request: Request) -> JSONResponse:
    return JSONResponse(request.app.openapi())


def _send_file(file: Path, media_type: str, _request: Request) -> FileResponse:
    return FileResponse(file, media_type=media_type, headers={"Cache-Control": CACHED})


def swagger_folder() -> Path | None:
    package = find_spec(PACKAGE)
    if package is None or package.origin is None:
        return None
    folder = Path(package.origin).parent / "resources"
    return folder if all((folder / Path(path).name).is_file() for path in FILES) else None
