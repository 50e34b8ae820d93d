"""`/docs`: the OpenAPI document to read and to try, by Swagger UI.

Swagger UI is too large to come along. Its files are of one version and named with their digests: people put their
tokens into the page, so it runs what was looked at or nothing. Without the internet it says where the document is.
"""

from __future__ import annotations

import base64
import hashlib

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse

_FILES = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.35.0"

_STYLE_DIGEST = "sha384-WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I"

_SCRIPT_DIGEST = "sha384-gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9"

_SCRIPT = 'SwaggerUIBundle({url: "/openapi.json", dom_id: "#ui", deepLinking: true, layout: "BaseLayout"})'

_PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>evalsvc</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{_FILES}/swagger-ui.css" integrity="{_STYLE_DIGEST}" crossorigin="anonymous">
</head>
<body>
<div id="ui"><p>This page is drawn by Swagger UI from cdn.jsdelivr.net, which your browser does not reach.
What it would show is at <a href="/openapi.json">/openapi.json</a>.</p></div>
<script src="{_FILES}/swagger-ui-bundle.js" integrity="{_SCRIPT_DIGEST}" crossorigin="anonymous"></script>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


_POLICY = "; ".join(
    (
        "default-src 'none'",
        f"script-src {_FILES}/ 'sha256-{_digest(_SCRIPT)}'",
        f"style-src {_FILES}/ 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


def add_docs(app: FastAPI) -> None:
    app.add_route("/docs", _docs, include_in_schema=False)


def _docs(_request: Request) -> HTMLResponse:
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})
