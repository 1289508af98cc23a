"""The page when something is refused, missing or slow, and with videos; against a real server."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from playwright.sync_api import expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Route

EXAMPLES = Path(__file__).parents[3] / "examples" / "shapes" / "images"
SCENE = EXAMPLES / "000049.jpg"
PATIENCE = 30_000  # milliseconds
PROBLEM = {
    "type": "urn:maskserve:problem:x",
    "title": "Some title",
    "detail": "Some detail.",
    "request_id": "7",
}


@pytest.fixture
def answer(recorded: Callable[[str], Any]) -> Any:
    return recorded(SCENE.name)


def refuse(route: Route, status: int, **headers: str) -> None:
    route.fulfill(
        status=status, json=PROBLEM | {"status": status}, headers={"X-Request-ID": "the-id", **headers}
    )


def converted(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    with Image.open(SCENE) as image:
        image.save(file, kind, **options)
    return file.getvalue()


def test_a_refused_file_shows_the_problems_title_and_detail_and_what_to_do(visit: Callable[..., Any]) -> None:
    visited = visit()
    page = visited.page
    visited.choose("notes.txt", b"These are no pixels.", "text/plain")
    page.wait_for_selector("#problem:not([hidden])")
    assert page.inner_text("#problem-title") == "Unsupported image format"
    assert "JPEG" in page.inner_text("#problem-detail")
    assert re.fullmatch(r"status 415 · request [0-9a-f]{32}", page.inner_text("#problem-facts"))
    assert page.is_visible("#another")
    assert not page.is_visible("#try-again")
    page.click("#dismiss")
    assert page.is_visible("#welcome")
    assert len(visited.complaints) == 1
    visited.complaints.clear()  # the 415


def test_an_unreachable_service_is_reported_and_can_be_tried_again(
    visit: Callable[..., Any], answer: Any
) -> None:
    visited = visit()
    page = visited.page
    page.route("**/segment?*", lambda route: route.abort())
    visited.choose("scene.jpg", SCENE.read_bytes())
    page.wait_for_selector("#problem:not([hidden])")
    assert page.inner_text("#problem-title") == "No answer"
    page.unroute("**/segment?*")
    visited.answer_with(answer)
    page.click("#try-again")
    visited.wait_for_answer()
    assert not page.is_visible("#problem")
    visited.complaints.clear()  # the request that failed


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_or_loading_service_is_asked_again_after_retry_after(
    visit: Callable[..., Any], answer: Any, status: int
) -> None:
    visited = visit(answer)
    page = visited.page
    page.clock.install()
    page.route("**/segment?*", lambda route: refuse(route, status, **{"Retry-After": "7"}), times=1)
    visited.choose("scene.jpg", SCENE.read_bytes())
    expect(page.locator("#busy-text")).to_have_text("Some detail.")
    page.clock.run_for(6_500)
    assert visited.asked == 1
    page.clock.run_for(1_000)
    visited.wait_for_answer()
    assert visited.asked == 2
    visited.complaints.clear()  # the refusal


def test_a_required_key_can_be_entered_and_stays_out_of_snippets_and_storage(
    visit: Callable[..., Any], answer: Any
) -> None:
    visited = visit()
    page = visited.page

    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer sesame":
            route.fulfill(body=answer.content, headers=answer.headers)
        else:
            refuse(route, 401)

    page.route("**/segment?*", guard)
    visited.choose("scene.jpg", SCENE.read_bytes())
    page.fill("#key", "wrong")
    page.click("#key-form button")
    expect(page.locator("#key")).to_have_value("")
    page.wait_for_selector("#key:visible")
    page.fill("#key", "sesame")
    page.keyboard.press("Enter")
    visited.wait_for_answer()
    for snippet in ("#curl-text", "#python-text"):
        assert "MASKSERVE_API_KEY" in page.inner_text(snippet)
        assert "sesame" not in page.inner_text(snippet)
    assert "sesame" not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
    page.click("#forget-key")
    assert page.evaluate("sessionStorage.length") == 0
    visited.complaints.clear()  # the 401s


def test_a_slow_answer_can_be_cancelled_and_a_new_picture_takes_its_place(
    visit: Callable[..., Any], answer: Any
) -> None:
    visited = visit()
    page = visited.page

    def hold(route: Route) -> None:
        """Let it wait for ever."""

    page.route("**/segment?*", hold)
    visited.choose("slow.jpg", SCENE.read_bytes())
    page.click("#cancel")
    assert not page.is_visible("#busy")
    visited.choose("slower.jpg", SCENE.read_bytes())
    page.wait_for_selector("#busy:visible")
    page.unroute("**/segment?*")
    visited.answer_with(answer)
    visited.choose("new.jpg", SCENE.read_bytes())
    visited.wait_for_answer()
    assert page.inner_text("#readout").startswith("new.jpg")
    assert not page.is_visible("#problem")


def test_a_file_that_the_browser_cannot_show_is_segmented(visit: Callable[..., Any]) -> None:
    visited = visit()
    visited.choose("scan.tiff", converted("TIFF"), "image/tiff")
    visited.wait_for_answer()
    assert visited.page.inner_text("#readout") == "scan.tiff · 419 × 263"
    assert len(visited.shown) > 5


def test_a_turned_photo_is_upright_as_the_service_sees_it(visit: Callable[..., Any]) -> None:
    visited = visit()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    visited.choose("turned.jpg", converted("JPEG", exif=exif))
    visited.wait_for_answer()
    assert visited.page.inner_text("#readout") == "turned.jpg · 263 × 419"
    visited.page.click("#json summary")
    expect(visited.page.locator("#json-text")).to_contain_text('"width": 263')


def test_a_picture_without_instances_says_so(visit: Callable[..., Any]) -> None:
    visited = visit()
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (128, 128, 128)).save(file, "PNG")
    visited.choose("grey.png", file.getvalue(), "image/png")
    visited.wait_for_answer()
    assert visited.shown == []
    assert visited.page.is_visible("#nothing")


def test_a_video_runs_frame_by_frame_with_its_rate(visit: Callable[..., Any], answer: Any) -> None:
    visited = visit(answer)
    page = visited.page
    page.evaluate(
        """async () => {
          // Half a second of a moving square. Like other browsers' recordings it does not say how long it is.
          const canvas = Object.assign(document.createElement("canvas"), { width: 419, height: 263 });
          const context = canvas.getContext("2d");
          const parts = [];
          const recorder = new MediaRecorder(canvas.captureStream(20), { mimeType: "video/webm" });
          recorder.addEventListener("dataavailable", ({ data }) => parts.push(data));
          const ended = new Promise((resolve) => recorder.addEventListener("stop", resolve));
          recorder.start();
          for (let i = 0; i < 10; i++) {
            context.fillStyle = "white"; context.fillRect(0, 0, 419, 263);
            context.fillStyle = "teal"; context.fillRect(20 * i, 100, 60, 60);
            await new Promise((resolve) => setTimeout(resolve, 50));
          }
          recorder.stop();
          await ended;
          const files = new DataTransfer();
          files.items.add(new File(parts, "clip.webm", { type: "video/webm" }));
          document.querySelector("#film select").value = "10";
          document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
        }"""
    )
    expect(page.locator("#film progress")).to_have_js_property("value", 1, timeout=PATIENCE)
    assert re.fullmatch(r"\d+\.\d frames/s", page.inner_text("#film .rate"))
    assert re.fullmatch(r"clip-0\.\d\ds\.jpg · 419 × 263", page.inner_text("#readout"))
    assert 4 <= visited.asked <= 8  # ten frames a second of about half a second
    assert visited.shown


def test_a_webcam_runs_until_it_is_paused_or_stopped(visit: Callable[..., Any], answer: Any) -> None:
    visited = visit(answer)
    page = visited.page
    page.click("#webcam")
    expect(page.locator("#film .rate")).to_have_text(re.compile(r"^\d+\.\d frames/s$"), timeout=PATIENCE)
    page.click("#film .pause")
    assert page.inner_text("#film .pause") == "Resume"
    page.click("#film .pause")
    before = visited.asked
    while visited.asked < before + 2:
        page.wait_for_timeout(10)
    page.click("#film .stop")
    assert not page.is_visible("#film")
    assert visited.shown
