"""The service behind a gateway's path, and from pages of other origins, in the real browser."""

from __future__ import annotations

import base64
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page, Route

SCENE = Path(__file__).parents[3] / "examples" / "shapes" / "images" / "000049.jpg"
GATEWAY = "http://localhost:1"  # nothing is there; the test answers for it
SEGMENT = """async ([url, headers, content]) => {
  try {
    const body = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
    const response = await fetch(url, { method: "POST", body, headers });
    return {
      status: response.status,
      id: response.headers.get("X-Request-ID"),
      document: await response.json(),
    };
  } catch (error) {
    return { error: String(error) };
  }
}"""
HEADERS = {"Content-Type": "image/jpeg", "Authorization": "Bearer key", "X-Request-Timeout-Ms": "60000"}


class EmptyPage(BaseHTTPRequestHandler):
    """Serves an empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of another origin: a real one, because Chromium guards the local network from any other."""
    with ThreadingHTTPServer(("127.0.0.1", 0), EmptyPage) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        tab = browser.new_context().new_page()
        tab.goto(f"http://127.0.0.1:{other.server_port}")
        yield tab
        tab.context.close()
        other.shutdown()


def segment(page: Page, url: str) -> dict[str, Any]:
    return page.evaluate(SEGMENT, [url, HEADERS, base64.b64encode(SCENE.read_bytes()).decode()])


def test_a_page_of_an_origin_that_the_setting_names_gets_answers_and_refusals(
    page: Page, start: Callable[..., Any]
) -> None:
    url = start(cors_origins=f"https://app.example.com, {page.url.rstrip('/')}").wait_until_ready().url
    answer = segment(page, f"{url}/segment")
    assert answer["status"] == 200
    assert answer["id"] == answer["document"]["id"]
    refused = segment(page, f"{url}/segment?masks=x")
    assert refused["status"] == 422
    assert refused["document"]["request_id"] == refused["id"]


def test_a_page_of_any_other_origin_gets_nothing(page: Page, url: str) -> None:
    assert segment(page, f"{url}segment") == {"error": "TypeError: Failed to fetch"}


def test_execute_on_the_api_page_calls_the_gateways_path(browser: Browser, url: str) -> None:
    tab = browser.new_context().new_page()
    asked: list[str] = []

    def forward(route: Route) -> None:
        path = route.request.url.removeprefix(f"{GATEWAY}/seg/")
        asked.append(path)
        response = httpx.get(f"{url}{path}")
        headers = dict(response.headers)
        headers.pop("content-encoding", None)
        route.fulfill(status=response.status_code, body=response.content, headers=headers)

    tab.route(f"{GATEWAY}/seg/**", forward)
    tab.goto(f"{GATEWAY}/seg/docs")
    tab.click("#operations-default-healthz .opblock-summary-control")
    tab.click("#operations-default-healthz .execute")
    tab.wait_for_selector("#operations-default-healthz .live-responses-table")
    assert tab.inner_text("#operations-default-healthz .request-url pre") == f"{GATEWAY}/seg/healthz"
    assert asked[-1] == "healthz"
    tab.context.close()
