"""Chromium on the page of a real server. Where there is no Chromium these tests are skipped and say so."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import sync_playwright

from app.api import pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route

EXAMPLES = Path(__file__).parents[3] / "examples" / "shapes" / "images"
# The first has no windows to manage: to open a page takes it a third of the processor time.
CHROMIUM = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PATIENCE = 30_000  # milliseconds
ORIGIN = "http://localhost:1"  # nothing is there; every request is answered below
MODEL = {
    "name": "fake",
    "notice": None,
    "categories": [{"id": number, "name": f"kind {number}"} for number in range(1, 91)],
    "device": "cpu",
    "precision": "float32",
    "sha256": "0",
    "ap": {},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Closed with the tests of a file: Playwright's event loop keeps other tests from running theirs."""
    with sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, CHROMIUM)), None)
        if path is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium: `apt-get install chromium` or `playwright install chromium` brings one")
        arguments = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        launched = playwright.chromium.launch(executable_path=path, args=[*arguments, "--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def url(start_for_session: Callable[..., Any]) -> str:
    """The page of a server with the bundled model that the drawn scenes are for."""
    return f"{start_for_session(model='shapes', threads=0, precision='auto').wait_until_ready().url}/"


@dataclass
class Recorded:
    """The real service's answer to an example scene, to be given again without running the model."""

    content: bytes
    headers: dict[str, str]
    document: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.document = json.loads(self.content)


@pytest.fixture(scope="session")
def recorded(url: str) -> Callable[[str], Recorded]:
    """What the service answers to the page's question about an example scene."""
    known: dict[str, Recorded] = {}

    def ask(name: str) -> Recorded:
        if name not in known:
            query = "score_threshold=0.05&masks=rle"
            response = httpx.post(
                f"{url}segment?{query}", content=(EXAMPLES / name).read_bytes(), timeout=300
            )
            headers = {"Server-Timing": response.headers["server-timing"], "Content-Type": "application/json"}
            known[name] = Recorded(response.raise_for_status().content, headers)
        return known[name]

    return ask


class Visit:
    """A tab on the page, and everything that it asked for and complained about."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("request", self._sent)
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _sent(self, request: Request) -> None:
        self.requests.append(request)  # Playwright takes no built-in function for a handler

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type == "error":  # every answer from 400 on is one
            self.complaints.append(f"{message.text} {message.location['url']}")

    def open(self) -> Visit:
        self.page.goto(self.url)
        self.page.wait_for_selector("html[data-ready]")
        self.page.wait_for_selector("#model strong")
        return self

    def answer_with(self, answer: Recorded) -> None:
        """Give this answer to every image, instead of the service's own."""

        def fulfil(route: Route) -> None:
            route.fulfill(body=answer.content, headers=answer.headers)

        self.page.route("**/segment?*", fulfil)

    def choose(self, name: str, content: bytes, media_type: str = "image/jpeg") -> None:
        """Choose a file with the button."""
        self.page.set_input_files("#file", files=[{"name": name, "mimeType": media_type, "buffer": content}])

    def wait_for_answer(self) -> None:
        self.page.wait_for_selector("#timing:not([hidden])")

    @property
    def shown(self) -> list[str]:
        """The instances in the list: category and score."""
        return self.page.locator("#instances > li:not([hidden]) > button").all_inner_texts()

    @property
    def asked(self) -> int:
        """How many images were sent."""
        return sum("/segment" in request.url for request in self.requests)

    def painted(self, layer: str, size: tuple[int, int], places: list[tuple[int, int]]) -> list[list[int]]:
        """RGBA of a canvas at pixels (x, y) of an image of this size (width, height), which is seen as a whole."""
        return self.page.evaluate(
            """([layer, [imageWidth, imageHeight], places]) => {
              const canvas = document.querySelector(`canvas.${layer}`);
              const { width, height } = canvas;
              const ratio = width / canvas.clientWidth;
              const scale = Math.min(canvas.clientWidth / imageWidth, canvas.clientHeight / imageHeight, 3) * ratio;
              const left = (width - imageWidth * scale) / 2, top = (height - imageHeight * scale) / 2;
              const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
              return places.map(([x, y]) => {
                const place = Math.floor(top + (y + 0.5) * scale) * width + Math.floor(left + (x + 0.5) * scale);
                return [...pixels.slice(4 * place, 4 * place + 4)];
              });
            }""",
            [layer, size, places],
        )


@pytest.fixture
def visit(browser: Browser, url: str) -> Iterator[Callable[..., Visit]]:
    """Open the page. Afterwards: nothing came from another host, and nothing was complained about but what a test
    has taken off the list itself."""
    visits: list[Visit] = []

    def open_page(answer: Recorded | None = None, **context: Any) -> Visit:
        visited = Visit(browser.new_context(**context).new_page(), url)
        visits.append(visited)
        if answer:
            visited.answer_with(answer)
        return visited.open()

    yield open_page
    for visited in visits:
        visited.page.context.close()
        assert visited.complaints == []
        hosts = {urlsplit(r.url).netloc for r in visited.requests if not r.url.startswith(("blob:", "data:"))}
        assert hosts <= {urlsplit(url).netloc}


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    """The page without a service."""
    tab = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()

    def answer(route: Route) -> None:
        path = route.request.url.removeprefix(ORIGIN).partition("?")[0]
        if path == "/":
            route.fulfill(
                path=pages.PAGE / "index.html",
                headers={
                    "Content-Security-Policy": pages.PAGE_CSP + pages.NO_EMBEDDING,
                    "Content-Type": "text/html",
                },
            )
        elif path == "/model":
            route.fulfill(json=MODEL)
        elif path.startswith("/page/examples/"):
            *_, model, name = path.split("/")
            route.fulfill(path=pages.EXAMPLES[model] / name)
        elif path.startswith("/page/"):
            route.fulfill(path=pages.PAGE / Path(path).name)
        else:
            route.fulfill(status=404)

    tab.route("**/*", answer)
    tab.goto(ORIGIN)
    tab.wait_for_selector("html[data-ready]")
    yield tab
    tab.context.close()
