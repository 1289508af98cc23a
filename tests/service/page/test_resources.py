"""The page releases bitmaps and listeners, ends waits at once, and shortens captions that are too wide."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page, Route

SCENE = Path(__file__).parents[3] / "examples" / "shapes" / "images" / "000049.jpg"
PATIENCE = 30_000  # milliseconds
# Counts the bitmaps that are open.
COUNT_BITMAPS = """
  window.open_bitmaps = 0;
  const create = window.createImageBitmap, close = ImageBitmap.prototype.close;
  window.createImageBitmap = async (...given) => {
    const bitmap = await create(...given);
    window.open_bitmaps++;
    return bitmap;
  };
  ImageBitmap.prototype.close = function () {
    window.open_bitmaps--;
    close.call(this);
  };
"""


@pytest.fixture
def page(visit: Callable[..., Any], recorded: Callable[[str], Any]) -> Page:
    return visit(recorded(SCENE.name)).page


def test_no_bitmap_stays_open_when_requests_for_frames_fail(
    visit: Callable[..., Any], recorded: Callable[[str], Any]
) -> None:
    visited = visit(recorded(SCENE.name))
    page = visited.page
    page.add_init_script(COUNT_BITMAPS)
    visited.open()
    refused = []

    def refuse(route: Route) -> None:
        refused.append(route)
        problem = {"type": "urn:maskserve:problem:x", "title": "Busy", "detail": "", "request_id": "7"}
        route.fulfill(status=429, json=problem | {"status": 429}, headers={"Retry-After": "1"})

    page.route("**/segment?*", refuse, times=2)
    page.click("#webcam")
    expect(page.locator("#film .rate")).to_have_text(re.compile(r"^\d+\.\d frames/s$"), timeout=PATIENCE)
    page.click("#film .pause")
    # Not wait_for_function: its later tries are a string that the page's policy does not let it evaluate.
    page.evaluate(
        "async () => { while (window.open_bitmaps !== 1) await new Promise(requestAnimationFrame); }"
    )
    assert len(refused) == 2
    visited.complaints.clear()  # the refusals


def test_a_wait_ends_with_its_signal_and_leaves_no_listener(page: Page) -> None:
    found = page.evaluate(
        """async () => {
          const { patiently, Problem } = await import("/page/service.js");
          const busy = new Problem("Busy", "", { status: 429, retryAfter: 0.01 });
          const controller = new AbortController();
          const { signal } = controller;
          let listeners = 0, tries = 0;
          const add = signal.addEventListener.bind(signal), remove = signal.removeEventListener.bind(signal);
          signal.addEventListener = (...given) => (listeners++, add(...given));
          signal.removeEventListener = (...given) => (listeners--, remove(...given));
          const request = async () => {
            if (tries++ < 3) throw busy;
            return "answer";
          };
          const answer = await patiently(request, signal, () => {});
          // Aborted before the wait begins: the wait would be fifty seconds.
          const long = new Problem("Busy", "", { status: 429, retryAfter: 50 });
          const started = performance.now();
          let reason = "";
          try {
            await patiently(() => Promise.reject(long), signal, () => controller.abort("left"));
          } catch (error) {
            reason = error;
          }
          return { answer, listeners, reason, waited: performance.now() - started };
        }"""
    )
    assert found["answer"] == "answer"
    assert found["listeners"] == 0
    assert found["reason"] == "left"
    assert found["waited"] < 10_000


def test_a_video_keeps_no_listeners_of_its_frames(page: Page) -> None:
    added = page.evaluate(
        """async () => {
          const { Film } = await import("/page/frames.js");
          let listeners = 0;
          const video = document.createElement("video");
          const add = video.addEventListener.bind(video);
          video.addEventListener = (type, listener, options) => {
            listeners++;
            options.signal.addEventListener("abort", () => listeners--);
            add(type, listener, options);
          };
          Object.defineProperties(video, {
            videoWidth: { value: 4 },
            videoHeight: { value: 4 },
            currentTime: { get: () => 0, set: () => video.dispatchEvent(new Event("seeked")) },
          });
          const film = new Film(video, "clip", { live: false, duration: 9, close: () => {} });
          for (const time of [1, 2, 3]) await film.frame(time);
          return listeners;
        }"""
    )
    assert added == 0


def test_a_caption_that_is_too_wide_is_shortened_and_ends_no_other(page: Page) -> None:
    drawn = page.evaluate(
        """async () => {
          const { drawLabels } = await import("/page/labels.js");
          const { Instance } = await import("/page/answer.js");
          const canvas = Object.assign(document.createElement("canvas"), { width: 150, height: 400 });
          const context = canvas.getContext("2d");
          const texts = [];
          const fillText = context.fillText.bind(context);
          context.fillText = (text, ...place) => (texts.push(text), fillText(text, ...place));
          const names = ["one", "a category whose name is much too long for this picture", "three"];
          const instances = names.map((category, index) => new Instance({
            category, category_id: index + 1, score: 0.9 - index / 10, area: 4, bbox: [5, 90 * index, 20, 20],
            segmentation: { size: [2, 2], counts: "04" },
          }, index));
          drawLabels(context, instances, { scale: 1, x: 0, y: 0 }, 14);
          const narrow = [];
          canvas.width = 60;
          context.fillText = (text) => narrow.push(text);
          drawLabels(context, instances, { scale: 1, x: 0, y: 0 }, 14);
          return [texts, narrow];
        }"""
    )
    texts, narrow = drawn
    assert texts[0] == "one 0.90"
    assert re.fullmatch(r"a cat.*… 0\.80", texts[1])
    assert texts[2] == "three 0.70"
    assert len(narrow) == 3
    assert narrow[1].endswith("0.80")


def test_models_without_masks_show_boxes_and_keypoints(page: Page) -> None:
    shown = page.evaluate(
        """async () => {
          const { Instance } = await import("/page/answer.js");
          const { Layer } = await import("/page/painter.js");
          const { drawSkeletons } = await import("/page/skeleton.js");
          const image = { width: 50, height: 40 };
          const instance = new Instance({
            category: "person", category_id: 1, score: 0.9, area: 300, bbox: [10.2, 5, 20, 15.5],
            keypoints: [12, 8, 1, 28, 8, 1, 20, 18, 1], keypoint_scores: [4, 3, 1],
          }, 0, image);
          const { left, right, top, bottom, area } = instance.mask;
          const view = { scale: 1, x: 0, y: 0 };
          const layer = new Layer(50, 40);
          layer.paint([instance], view, { opacity: 0.5, line: 1 });
          const alpha = (x, y) => layer.image.data[4 * (y * 50 + x) + 3];
          const canvas = Object.assign(document.createElement("canvas"), image);
          const context = canvas.getContext("2d");
          const category = { id: 1, name: "person", skeleton: [[1, 2], [1, 3]] };
          drawSkeletons(context, [instance], view, 1, { categories: [category], keypoints: { shown_from: 2 } });
          const drawn = (x, y) => context.getImageData(x, y, 1, 1).data[3] > 0;
          return [[left, right, top, bottom, area], alpha(10, 12), alpha(20, 12), drawn(20, 8), drawn(16, 13)];
        }"""
    )
    box, edge, inside, line, to_hidden = shown
    assert box == [10, 31, 5, 21, 21 * 16]
    assert (edge, inside) == (255, 0)
    assert line
    assert not to_hidden


def test_one_category_and_two_categories(page: Page) -> None:
    found = page.evaluate(
        """async () => {
          const { formatCount } = await import("/page/dom.js");
          return [1, 2].map((count) => formatCount(count, "category", "categories"));
        }"""
    )
    assert found == ["1 category", "2 categories"]
