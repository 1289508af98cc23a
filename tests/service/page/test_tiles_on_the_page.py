"""Tiles on the page: the control, the hint, the progress of an answer that comes in lines, and the snippets."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from tests.service.page.conftest import MODEL, ORIGIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Page

SCENE = Path(__file__).parents[3] / "examples" / "shapes" / "images" / "000012.jpg"
# Answers whose lines the test sends itself; `sent` has the request, and `line` sends a line in two chunks.
BY_HAND = """() => {
  const ask = window.fetch;
  window.fetch = (url, options) => {
    if (!String(url).startsWith("segment")) return ask(url, options);
    window.sent = { url: String(url), accept: options.headers.get("Accept") };
    const headers = { "Server-Timing": "read;dur=4.0, total;dur=5.0", "X-Request-ID": "the-id" };
    const body = new ReadableStream({
      start(stream) {
        options.signal.addEventListener("abort", () => {
          window.aborted = true;
          stream.error(options.signal.reason);
        });
        const bytes = (text) => stream.enqueue(new TextEncoder().encode(text));
        window.line = (value) => {
          const text = JSON.stringify(value) + "\\n";
          bytes(text.slice(0, 7));
          bytes(text.slice(7));
        };
        window.end = () => stream.close();
      },
    });
    return Promise.resolve(new Response(body, { headers }));
  };
}"""
SIZE = {"width": 60, "height": 40}
FOUND = {"category_id": 1, "category": "kind 1", "score": 0.9, "bbox": [5, 5, 20, 10], "area": 200}
ANSWER = {"index": 0, "id": "1", "model": "fake", "image": SIZE, "instances": [FOUND]}


def picture(width: int = 60, height: int = 40) -> list[dict[str, Any]]:
    """A grey file to choose."""
    file = io.BytesIO()
    Image.new("L", (width, height), 90).save(file, "PNG")
    return [{"name": "slide.png", "mimeType": "image/png", "buffer": file.getvalue()}]


@pytest.fixture
def by_hand(page: Page) -> Iterator[Page]:
    """The page, loaded again, with answers by hand, and a model with an input of 200 pixels."""
    size = {"shorter_side": 200, "longer_side_at_most": 300}
    document = MODEL | {"input_size": size, "tile_overlap": 0.47}
    page.route("**/model", lambda route: route.fulfill(json=document))
    # Not reloaded: browsers keep the fields' values then.
    page.goto(ORIGIN)
    page.wait_for_selector("#model strong")
    page.evaluate(BY_HAND)
    yield page
    page.unroute("**/model")


def send(page: Page, value: object) -> None:
    page.evaluate("(value) => window.line(value)", value)


def progress(done: int, total: int) -> dict[str, Any]:
    return {"index": 0, "id": "1", "tiles": {"done": done, "total": total}}


def test_the_tiles_that_are_done_are_shown_until_the_answer_is_there(by_hand: Page) -> None:
    page = by_hand
    page.select_option("#tile", "auto")
    page.set_input_files("#file", files=picture())
    bar = page.get_by_role("progressbar", name="Tiles done")
    expect(page.locator("#busy")).to_be_visible()
    expect(bar).to_be_hidden()
    send(page, progress(12, 80))
    expect(bar).to_be_visible()
    expect(page.locator("#tiles-text")).to_have_text("Tile 12 of 80")
    assert bar.evaluate("(bar) => [bar.value, bar.max]") == [12, 80]
    expect(page.locator("#status")).to_have_text("Tile 12 of 80")
    send(page, progress(13, 80))
    expect(page.locator("#tiles-text")).to_have_text("Tile 13 of 80")
    # Readers of the screen hear every tenth part, not four lines a second.
    expect(page.locator("#status")).to_have_text("Tile 12 of 80")
    send(page, progress(79, 80))
    expect(page.locator("#status")).to_have_text("Tile 79 of 80")
    send(page, ANSWER)
    page.wait_for_selector("#timing:not([hidden])")
    expect(bar).to_be_hidden()
    assert page.inner_text("#shown") == "1 of 1"
    assert "decoding, the model, merging" in page.inner_text("#timing-words")
    sent = page.evaluate("window.sent")
    assert sent["accept"] == "application/x-ndjson"
    assert parse_qs(urlsplit(sent["url"]).query) == {
        "score_threshold": ["0.05"],
        "masks": ["rle"],
        "tile": ["auto"],
    }


def test_a_tiled_request_can_be_cancelled_and_its_progress_goes(by_hand: Page) -> None:
    page = by_hand
    page.select_option("#tile", "auto")
    page.set_input_files("#file", files=picture())
    send(page, progress(3, 9))
    expect(page.locator("#tiles-text")).to_have_text("Tile 3 of 9")
    page.click("#cancel")
    expect(page.locator("#busy")).to_be_hidden()
    assert page.evaluate("window.aborted")
    page.set_input_files("#file", files=picture())
    expect(page.locator("#busy")).to_be_visible()
    expect(page.get_by_role("progressbar", name="Tiles done")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violations_in_control_hint_and_progress(by_hand: Page, scheme: str) -> None:
    page = by_hand
    # Nothing fades in: half transparent, it would have less contrast.
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_input_files("#file", files=picture(1600, 1600))
    expect(page.locator("#tile-hint")).to_be_visible()
    page.select_option("#tile", "side")
    send(page, progress(3, 9))
    expect(page.locator("#tiles-text")).to_have_text("Tile 3 of 9")
    found = Axe().run(page)
    assert not found.response["violations"], found.generate_report()


@pytest.mark.parametrize("ends", ["with a problem", "early"])
def test_an_answer_that_fails_behind_its_first_tiles_says_why(by_hand: Page, ends: str) -> None:
    page = by_hand
    page.select_option("#tile", "auto")
    page.set_input_files("#file", files=picture())
    send(page, progress(3, 9))
    if ends == "early":
        page.evaluate("window.end()")
        title, facts = "No answer", ""
    else:
        problem = {"title": "Too late", "detail": "Not within 60 seconds.", "status": 504, "request_id": "7"}
        send(page, {"index": 0, "type": "urn:x", **problem})
        title, facts = "Too late", "status 504 · request 7"
    page.wait_for_selector("#problem:not([hidden])")
    assert page.inner_text("#problem-title") == title
    assert page.inner_text("#problem-facts") == facts
    expect(page.locator("#busy")).to_be_hidden()


def test_the_control_asks_again_with_what_was_chosen_and_the_snippets_follow(by_hand: Page) -> None:
    page = by_hand
    assert "tile" not in page.text_content("#curl-text")
    page.set_input_files("#file", files=picture())
    assert parse_qs(urlsplit(page.evaluate("window.sent.url")).query).keys() == {"score_threshold", "masks"}
    assert page.evaluate("window.sent.accept") == "application/json"
    page.evaluate("(answer) => { window.line(answer); window.end(); }", ANSWER)
    page.wait_for_selector("#timing:not([hidden])")
    expect(page.locator("#overlap")).to_be_hidden()
    page.select_option("#tile", "side")
    # The model's own, which is not sent.
    expect(page.locator("#overlap-value")).to_have_text("47 %")
    assert "overlap" not in page.evaluate("window.sent.url") + page.text_content("#curl-text")
    assert '"tile": 1024}' in page.text_content("#python-text")
    page.locator("#tile-side").fill("90000")
    page.locator("#tile-side").press("Enter")
    expect(page.locator("#tile-side")).to_have_value("65535")
    page.locator("#tile-side").fill("512")
    page.locator("#tile-side").press("Enter")
    page.locator("#overlap").fill("0.3")
    expect(page.locator("#overlap-value")).to_have_text("30 %")
    asked = parse_qs(urlsplit(page.evaluate("window.sent.url")).query)
    assert (asked["tile"], asked["overlap"]) == (["512"], ["0.3"])
    send(page, ANSWER)
    page.wait_for_selector("#timing:not([hidden])")
    assert "tile=512&overlap=0.3" in page.text_content("#curl-text")
    assert '"tile": 512, "overlap": 0.3}' in page.text_content("#python-text")
    page.select_option("#tile", "auto")
    assert "tile=auto&overlap=0.3" in page.text_content("#curl-text")
    assert '"tile": "auto", "overlap": 0.3}' in page.text_content("#python-text")
    compile(page.text_content("#python-text"), "snippet", "exec")
    page.select_option("#tile", "")
    assert "tile" not in page.text_content("#curl-text") + page.text_content("#python-text")


def test_a_hint_offers_tiles_for_an_image_that_is_much_larger_than_the_models_input(by_hand: Page) -> None:
    page = by_hand
    page.set_input_files("#file", files=picture(790, 790))
    hint = page.locator("#tile-hint")
    expect(page.locator("#readout")).to_have_text("slide.png · 790 × 790")
    # 790 of 200 is less than four times.
    expect(hint).to_be_hidden()
    page.set_input_files("#file", files=picture(1210, 2000))
    expect(hint).to_be_visible()
    assert "7 times smaller" in hint.inner_text()
    page.click("#tile-offer")
    expect(hint).to_be_hidden()
    expect(page.locator("#tile")).to_have_value("auto")
    assert "tile=auto" in page.evaluate("window.sent.url")
    send(page, {**ANSWER, "image": {"width": 1210, "height": 2000}})
    page.wait_for_selector("#timing:not([hidden])")
    expect(hint).to_be_hidden()


def test_lines_are_read_whatever_the_chunks(page: Page) -> None:
    values = page.evaluate(
        """async () => {
          const { lines } = await import("/page/lines.js");
          const bytes = new TextEncoder().encode('{"a":"猫"}\\n{"b":1}\\n\\n{"c":[2]}'.replace("\\n\\n", "\\n"));
          const read = async (size) => {
            const body = new ReadableStream({
              start(stream) {
                for (let i = 0; i < bytes.length; i += size) stream.enqueue(bytes.slice(i, i + size));
                stream.close();
              },
            });
            const found = [];
            for await (const value of lines(new Response(body))) found.push(value);
            return JSON.stringify(found);
          };
          return [...new Set([await read(1), await read(5), await read(1000)])];
        }"""
    )
    assert [json.loads(value) for value in values] == [[{"a": "猫"}, {"b": 1}, {"c": [2]}]]


def test_the_service_cuts_as_the_page_asks_and_the_snippet_gets_what_it_shows(
    visit: Callable[..., Any], tmp_path: Path
) -> None:
    visited = visit()
    page = visited.page
    page.select_option("#tile", "side")
    page.locator("#tile-side").fill("400")
    page.locator("#tile-side").press("Enter")
    visited.choose(SCENE.name, SCENE.read_bytes())
    visited.wait_for_answer()
    assert any(sent.url.endswith("tile=400") for sent in visited.requests)
    page.locator("#threshold").fill("0.05")
    seen = [caption.split("\n")[0] for caption in visited.shown]
    assert len(seen) >= 10
    (tmp_path / SCENE.name).write_bytes(SCENE.read_bytes())
    program = [sys.executable, "-c", page.text_content("#python-text")]
    ran = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert [line.split()[0] for line in ran.stdout.splitlines()] == seen, ran.stderr
