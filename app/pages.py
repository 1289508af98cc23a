"""What a browser gets: the landing page at /, and the interactive documentation at /docs.

Everything comes from this process: no page reaches for another host, so they work without internet too, and
their Content-Security-Policy forbids it.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    from fastapi import FastAPI

PAGE = Path(__file__).parent / "page"
SWAGGER_UI = Path(str(files("fastapi_offline") / "static"))  # the files of Swagger UI 5, as a Python package

STRICT = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
# Swagger UI sets styles from its script and draws its icons from data: addresses.
SWAGGER = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; "
)
NOWHERE_ELSE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index() -> HTMLResponse:
    """What this is, which model answers, and how to ask it."""
    return page("index.html", STRICT)


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The OpenAPI document in Swagger UI."""
    return page("docs.html", SWAGGER)


def page(name: str, policy: str) -> HTMLResponse:
    """One HTML file of the page folder, under a content security policy."""
    headers = {
        "Content-Security-Policy": policy + NOWHERE_ELSE,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return HTMLResponse((PAGE / name).read_text(encoding="utf-8"), headers=headers)


def mount(app: FastAPI) -> None:
    """Add the pages, and the files that they load."""
    app.include_router(router)
    app.mount("/page", StaticFiles(directory=PAGE))
    app.mount("/swagger-ui", StaticFiles(directory=SWAGGER_UI))
