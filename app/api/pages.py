"""The demonstration page at /, and the interactive API documentation at /docs.

All their files come from this process. The Content-Security-Policy forbids other hosts, so the pages work offline.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

PAGE = Path(__file__).parents[1] / "page"
# The files of Swagger UI 5, as a Python package.
SWAGGER_UI = Path(str(files("fastapi_offline") / "static"))

# Folders of example images, by the model that they are for: those of the installed wheel, or else of the checkout.
EXAMPLES = {
    name: PAGE / "examples" / name
    if (PAGE / "examples").is_dir()
    else Path(__file__).parents[2] / "examples" / name / "images"
    for name in ("nuclei", "shapes")
}

# Videos play from the browser's memory (blob:), and no text is ever parsed as markup (trusted types).
PAGE_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "media-src blob:; require-trusted-types-for 'script'; trusted-types 'none'; "
)
# Swagger UI sets styles from its script, and its icons are data: URLs.
SWAGGER_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; "
)
NO_EMBEDDING = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

# Browsers revalidate each file, usually with a 304: after an update, old modules would not match new ones.
REVALIDATE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}

# For the files themselves, should one be opened as a page: nothing runs, and nothing is loaded.
FILE_CSP = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index() -> HTMLResponse:
    """The page to try the model on a picture."""
    return page("index.html", PAGE_CSP)


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The API documentation in Swagger UI."""
    return page("docs.html", SWAGGER_CSP)


def page(name: str, policy: str) -> HTMLResponse:
    """An HTML file of the page folder, with its security headers. policy: for Content-Security-Policy."""
    headers = {
        **REVALIDATE,
        "Content-Security-Policy": policy + NO_EMBEDDING,
        "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
        "Referrer-Policy": "no-referrer",
    }
    return HTMLResponse((PAGE / name).read_text(encoding="utf-8"), headers=headers)


class Files(StaticFiles):
    """The files of one folder, always whole, with headers for the pages that load them."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer without regard to a Range, as RFC 9110 allows: Starlette refuses a wrong one in plain text."""
        headers = [pair for pair in scope["headers"] if pair[0] != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """The response of Starlette, with these headers added."""
        response = super().file_response(*args, **kwargs)
        response.headers.update({**REVALIDATE, "Content-Security-Policy": FILE_CSP, "Accept-Ranges": "none"})
        return response


def mount(app: FastAPI) -> None:
    """Add the pages and their files to the application."""
    app.include_router(router)
    for name, folder in EXAMPLES.items():
        app.mount(f"/page/examples/{name}", Files(directory=folder, check_dir=False))
    app.mount("/page", Files(directory=PAGE))
    app.mount("/swagger-ui", Files(directory=SWAGGER_UI))
