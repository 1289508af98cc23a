"""Pages of other origins (CORS): off by default, and what the setting allows."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from app.keys import hash_key
from app.origins import parse_origins
from tests.app.fakes import PHOTO, ask, serving

if TYPE_CHECKING:
    import httpx

ORIGIN = "https://app.example.com"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-request-timeout-ms",
}


def cors_headers(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-")}


def test_by_default_no_other_origin_is_allowed() -> None:
    assert cors_headers(ask("POST", "/segment", content=PHOTO, headers={"Origin": ORIGIN})) == {}
    preflight = ask("OPTIONS", "/segment", headers=PREFLIGHT)
    assert (preflight.status_code, cors_headers(preflight)) == (204, {})


@pytest.mark.parametrize(("setting", "allowed"), [(f"{ORIGIN}, http://localhost:3000", ORIGIN), ("*", "*")])
def test_a_preflight_is_answered_without_a_key(setting: str, allowed: str, tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{hash_key('key').hex()} someone\n")
    response = ask(
        "OPTIONS", "/segment", headers=PREFLIGHT, settings={"cors_origins": setting, "api_keys_file": keys}
    )
    assert response.status_code == 200
    found = cors_headers(response)
    assert found["access-control-allow-origin"] == allowed
    assert "POST" in found["access-control-allow-methods"]
    assert "Authorization" in found["access-control-allow-headers"]


def test_another_origin_is_refused() -> None:
    response = ask(
        "OPTIONS",
        "/segment",
        headers=PREFLIGHT | {"Origin": "https://evil.example"},
        settings={"cors_origins": ORIGIN},
    )
    assert response.status_code == 400
    assert "access-control-allow-origin" not in response.headers


def test_scripts_can_read_answers_and_refusals_and_their_headers() -> None:
    async def run() -> list[httpx.Response]:
        async with serving(cors_origins=ORIGIN, max_queue_requests=1) as (client, app):
            client.headers["Origin"] = ORIGIN
            answer = await client.post("/segment", content=PHOTO)
            wrong = await client.post("/segment?masks=x", content=PHOTO)
            with app.state.service.admission.admit(1):
                full = await client.post("/segment", content=PHOTO)
            return [answer, wrong, full]

    responses = asyncio.run(run())
    assert [response.status_code for response in responses] == [200, 422, 429]
    for response in responses:
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "Retry-After" in response.headers["access-control-expose-headers"]
        assert "Origin" in response.headers["vary"]


@pytest.mark.parametrize(
    "text", ["", " ", "*", ORIGIN, "http://localhost:3000,http://[::1]:8080", f"{ORIGIN},"]
)
def test_origins_are_read(text: str) -> None:
    assert ",".join(parse_origins(text)) == text.strip(" ,")


@pytest.mark.parametrize(
    "text", ["app.example.com", f"{ORIGIN}/", f"{ORIGIN}/app", "file://x", "null", "https://*.a"]
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no origin: write"):
        parse_origins(text)
