"""HEAD, OPTIONS, and the pages that a browser gets."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.app.fakes import ask, serving


@pytest.mark.parametrize("path", ["/", "/docs", "/model", "/healthz", "/livez", "/readyz", "/openapi.json"])
def test_head_is_get_without_the_body(path: str) -> None:
    head, get = ask("HEAD", path), ask("GET", path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize(
    ("path", "allow"),
    [("/segment", "OPTIONS, POST"), ("/model", "GET, HEAD, OPTIONS"), ("/", "GET, HEAD, OPTIONS")],
)
def test_options_lists_the_methods(path: str, allow: str) -> None:
    response = ask("OPTIONS", path)
    assert response.status_code == 204
    assert response.headers["allow"] == allow


def test_no_file_opened_as_a_page_runs_anything() -> None:
    async def run() -> None:
        async with serving() as (client, _):
            for path in (
                "/page/index.html",
                "/page/docs.html",
                "/page/main.js",
                "/swagger-ui/swagger-ui.css",
            ):
                response = await client.get(path)
                assert response.status_code == 200, path
                policy = response.headers["content-security-policy"]
                assert "default-src 'none'" in policy, path
                assert "frame-ancestors 'none'" in policy, path

    asyncio.run(run())


def test_files_are_answered_whole_whatever_range_is_asked_for() -> None:
    async def run() -> None:
        async with serving() as (client, _):
            whole = await client.get("/page/main.js")
            for wanted in ("bytes=0-9", "bytes=10000000-", "bytes=9-1", "lines=1-2", "x"):
                response = await client.get("/page/main.js", headers={"Range": wanted})
                assert (response.status_code, response.content) == (200, whole.content), wanted
                assert response.headers["accept-ranges"] == "none"
            nothing = await client.get("/page/none.js", headers={"Range": "x"})
            assert nothing.headers["content-type"] == "application/problem+json"

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_only_files_of_this_service(path: str) -> None:
    async def run() -> None:
        async with serving() as (client, _):
            page = await client.get(path)
            assert "default-src 'none'" in page.headers["content-security-policy"]
            assert not re.search(r"(src|href)=\"(https?:)?//", page.text)
            assert "<script>" not in page.text
            for name in re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text):
                file = await client.get(f"/{name}")
                assert file.status_code == 200, name
                assert (
                    "http://" not in file.text.replace("http://www.w3.org", "")
                    or "swagger" in name
                    or "json" in name
                )

    asyncio.run(run())
