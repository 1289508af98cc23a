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
