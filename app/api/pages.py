"""What a browser gets: the demonstration page at /, and the interactive documentation at /docs.

Everything comes from this process: no page reaches for another host, so they work without internet too, and
their Content-Security-Policy forbids it.
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

PAGE = Path(__file__).parents[1] / "page"
SWAGGER_UI = Path(str(files("fastapi_offline") / "static"))  # the files of Swagger UI 5, as a Python package

# The scenes that the page offers: where the wheel has put them, or else those of the checkout.
EXAMPLES = PAGE / "examples"
if not EXAMPLES.is_dir():
    EXAMPLES = Path(__file__).parents[2] / "examples" / "images"

STRICT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "media-src blob:; "  # a video that the visitor chose plays from the browser's memory
    "require-trusted-types-for 'script'; trusted-types 'none'; "  # no text ever becomes markup
)
# Swagger UI sets styles from its script and draws its icons from data: addresses.
SWAGGER = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; "
)
NOWHERE_ELSE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

# A browser asks for each file anew, and most often gets 304: after an update old modules would not fit new ones.
PRUDENT = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index() -> HTMLResponse:
    """Try the model on a picture, and get the command that asks the same."""
    return page("index.html", STRICT)


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The OpenAPI document in Swagger UI."""
    return page("docs.html", SWAGGER)


def page(name: str, policy: str) -> HTMLResponse:
    """One HTML file of the page folder, under a content security policy."""
    headers = {
        **PRUDENT,
        "Content-Security-Policy": policy + NOWHERE_ELSE,
        "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
        "Referrer-Policy": "no-referrer",
    }
    return HTMLResponse((PAGE / name).read_text(encoding="utf-8"), headers=headers)


class Files(StaticFiles):
    """The files of one folder, under the same rules as the pages that load them."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Starlette's, with our headers."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(PRUDENT)
        return response


def mount(app: FastAPI) -> None:
    """Add the pages, and the files that they load."""
    app.include_router(router)
    app.mount("/page/examples", Files(directory=EXAMPLES, check_dir=False))
    app.mount("/page", Files(directory=PAGE))
    app.mount("/swagger-ui", Files(directory=SWAGGER_UI))
