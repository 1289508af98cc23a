"""The page as its visitors use it, against a real server with the bundled model of drawn shapes."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from model.images.overlay import colour_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page

EXAMPLES = Path(__file__).parents[3] / "examples" / "shapes" / "images"
TINT = 102  # alpha of a mask's inside at the opacity of 40 % that the page begins with
SCENE = "000012.jpg"
SIZE = (443, 665)  # its width and height, pixels
CHOOSE_SCENE = f"#examples a[href$='{SCENE}']"


@pytest.fixture(scope="module")
def scene(recorded: Callable[[str], Any]) -> Any:
    """An example scene's answer, and where in it one can tell the instances apart."""
    answer = recorded(SCENE)
    answer.shown = [i for i in answer.document["instances"] if i["score"] >= 0.5]
    bitmaps = [coco_mask.decode(i["segmentation"]) for i in answer.shown]
    covered = np.sum(bitmaps, axis=0)
    # A place of each instance that no other covers and that is far from all edges; [y, x] in a blur's maximum.
    answer.places = [inmost((bitmap > 0) & (covered == 1)) for bitmap in bitmaps]
    answer.background = inmost(covered == 0)
    return answer


def inmost(bitmap: np.ndarray) -> tuple[int, int]:
    """The x and y of the pixel that survives the most erosions."""
    while True:
        smaller = bitmap.copy()
        for axis in (0, 1):
            for step in (-1, 1):
                smaller &= np.roll(bitmap, step, axis)
        if not smaller.any():
            y, x = np.argwhere(bitmap)[0]
            return int(x), int(y)
        bitmap = smaller


def on_stage(page: Page, x: int, y: int) -> tuple[float, float]:
    """Where a pixel of the scene is in the window."""
    box = page.locator("#stage").bounding_box()
    scale = min(box["width"] / SIZE[0], box["height"] / SIZE[1], 3)
    left = box["x"] + (box["width"] - SIZE[0] * scale) / 2
    top = box["y"] + (box["height"] - SIZE[1] * scale) / 2
    return left + (x + 0.5) * scale, top + (y + 0.5) * scale


def captions(answer: Any, threshold: float = 0.5) -> list[str]:
    return [
        f"{i['category']}\n{i['score']:.3f}" for i in answer.document["instances"] if i["score"] >= threshold
    ]


def slide(page: Page, slider: str, value: float) -> None:
    """Move a slider as its user does: by one event for each new value."""
    page.locator(slider).fill(f"{value:.2f}")


# Seeing


def test_a_clicked_example_is_segmented_by_the_service_and_every_instance_painted_in_its_colour(
    visit: Callable[..., Any], scene: Any
) -> None:
    visited = visit()
    visited.page.uncheck("#labels")
    visited.page.click(CHOOSE_SCENE)
    visited.wait_for_answer()
    assert visited.shown == captions(scene)
    assert len(visited.shown) >= 10
    *painted, background = visited.painted("masks", SIZE, [*scene.places, scene.background])
    assert background == [0, 0, 0, 0]
    for instance, (*colour, alpha) in zip(scene.shown, painted, strict=True):
        # Canvases multiply by alpha, which rounds. A small instance is all outline.
        assert colour == pytest.approx(colour_of(instance["category_id"]), abs=2), instance["category"]
        assert alpha in ((TINT,) if instance["area"] > 2000 else (TINT, 255)), instance["category"]


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_dropped_or_pasted_image_is_segmented(visit: Callable[..., Any], scene: Any, event: str) -> None:
    visited = visit()
    content = (EXAMPLES / SCENE).read_bytes()
    visited.page.evaluate(
        """async ([event, bytes]) => {
          const files = new DataTransfer();
          const content = Uint8Array.from(atob(bytes), (character) => character.charCodeAt(0));
          files.items.add(new File([content], "mine.jpg", { type: "image/jpeg" }));
          const given = event === "drop"
            ? new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: files, bubbles: true, cancelable: true });
          document.querySelector("#stage").dispatchEvent(given);
        }""",
        [event, base64.b64encode(content).decode()],
    )
    visited.wait_for_answer()
    assert visited.shown == captions(scene)
    assert visited.page.inner_text("#readout") == "mine.jpg · 443 × 665"


def test_slider_and_toggles_act_at_once_and_without_another_request(
    visit: Callable[..., Any], scene: Any
) -> None:
    visited = visit(scene)
    page = visited.page
    page.uncheck("#labels")
    page.click(CHOOSE_SCENE)
    visited.wait_for_answer()
    assert visited.asked == 1
    scores = sorted(i["score"] for i in scene.document["instances"])
    for threshold in (0.05, 0.3, round(scores[len(scores) // 2], 2), 1.0):
        slide(page, "#threshold", threshold)
        assert visited.shown == captions(scene, threshold)
    assert page.inner_text("#nothing").startswith("Nothing at this score")
    slide(page, "#threshold", 0.5)
    square = next(i for i in scene.shown if i["category"] == "square")
    place = scene.places[scene.shown.index(square)]
    toggle = page.locator("#categories button", has_text="square")
    assert visited.painted("masks", SIZE, [place])[0][3] == TINT
    toggle.click()
    assert toggle.get_attribute("aria-pressed") == "false"
    assert visited.painted("masks", SIZE, [place])[0][3] == 0
    assert visited.shown == [c for c in captions(scene) if not c.startswith("square")]
    page.click("#none")
    assert visited.shown == []
    page.click("#all")
    slide(page, "#opacity", 0.8)
    assert visited.painted("masks", SIZE, [place])[0][3] == 204
    assert visited.asked == 1


def test_pointing_highlights_an_instance_and_a_click_pins_it_and_shows_its_record(
    visit: Callable[..., Any], scene: Any
) -> None:
    visited = visit(scene)
    page = visited.page
    page.click(CHOOSE_SCENE)
    visited.wait_for_answer()
    heart = next(i for i in scene.shown if i["category"] == "heart")
    place = scene.places[scene.shown.index(heart)]
    assert visited.painted("focus", SIZE, [place])[0][3] == 0
    page.mouse.move(*on_stage(page, *place))
    assert page.inner_text("#readout").startswith(f"heart · score {heart['score']:.3f} · {heart['area']} px")
    assert visited.painted("focus", SIZE, [place])[0][3] > 0
    page.mouse.down()
    page.mouse.up()
    page.mouse.move(*on_stage(page, *scene.background))
    assert page.inner_text("#readout").startswith("heart")  # pinned: it stays
    record = page.inner_text("#instances .record")
    assert f"score\n{heart['score']:g}\n" in record  # as JavaScript writes it: 1, not 1.0
    assert f"{heart['bbox'][0]}" in record
    page.mouse.down()
    page.mouse.up()
    assert page.locator("#instances .record").count() == 0
    assert visited.painted("focus", SIZE, [place])[0][3] == 0


def test_wheel_drag_and_buttons_zoom_and_pan(visit: Callable[..., Any], scene: Any) -> None:
    visited = visit(scene)
    page = visited.page
    page.click(CHOOSE_SCENE)
    visited.wait_for_answer()
    fitting = page.inner_text("#zoom")
    circle = next(i for i in scene.shown if i["category"] == "circle" and i["area"] > 5000)
    x, y = on_stage(page, *scene.places[scene.shown.index(circle)])
    page.mouse.move(x, y)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -200)
    page.keyboard.up("Control")
    assert int(page.inner_text("#zoom").split()[0]) > 2 * int(fitting.split()[0])
    page.mouse.move(x + 1, y)
    assert page.inner_text("#readout").startswith("circle")  # what was under the pointer has stayed there
    page.mouse.down()
    page.mouse.move(x - 60, y - 40, steps=3)
    page.mouse.up()
    page.mouse.move(x - 60, y - 41)
    assert page.inner_text("#readout").startswith("circle")  # and was dragged along
    assert page.locator("#instances .record").count() == 0  # which is no click
    page.click("#fit")
    assert page.inner_text("#zoom") == fitting


def test_everything_can_be_done_with_the_keyboard(visit: Callable[..., Any], scene: Any) -> None:
    visited = visit(scene)
    page = visited.page
    order: list[str] = []
    for _ in range(14):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate("(e => e.id || e.className || e.getAttribute('href'))(document.activeElement)")
        )
    assert order[0] == "skip"
    assert "primary choose" in order
    page.focus(CHOOSE_SCENE)
    page.keyboard.press("Enter")
    visited.wait_for_answer()
    assert page.inner_text("#status").startswith(f"{len(scene.shown)} instances in")
    page.focus("#stage")
    fitting = page.inner_text("#zoom")
    page.keyboard.press("+")
    assert page.inner_text("#zoom") != fitting
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("0")
    assert page.inner_text("#zoom") == fitting
    page.keyboard.press("n")
    page.keyboard.press("n")
    second = captions(scene)[1].split("\n")[0]
    assert page.inner_text("#status").startswith(second)
    page.keyboard.press("Enter")
    assert page.locator("#instances > li:nth-child(2) .record").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("#instances .record").count() == 0
    page.focus("#threshold")
    page.keyboard.press("End")
    assert page.inner_text("#threshold-value") == "1.00"
    page.keyboard.press("Home")
    assert len(visited.shown) == len(scene.document["instances"])
    page.focus("#instances button >> nth=0")
    assert page.inner_text("#readout").startswith(scene.shown[0]["category"])
    page.keyboard.press("Enter")
    assert page.locator("#instances .record").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violations(visit: Callable[..., Any], scene: Any, scheme: str) -> None:
    visited = visit(scene, color_scheme=scheme)
    page = visited.page
    check = Axe().run
    assert not check(page).response["violations"], "at the beginning"
    page.click(CHOOSE_SCENE)
    visited.wait_for_answer()
    page.click("#instances button >> nth=0")
    page.click("#categories button >> nth=0")
    page.click("#json summary")
    found = check(page)
    assert not found.response["violations"], found.generate_report()
    page.unroute("**/segment?*")
    visited.choose("broken.jpg", b"no image", "image/jpeg")
    page.wait_for_selector("#problem:not([hidden])")
    found = check(page)
    assert not found.response["violations"], found.generate_report()
    visited.complaints.clear()  # the 415 that was asked for


def test_light_and_dark_follow_the_system_until_the_button_is_pressed(visit: Callable[..., Any]) -> None:
    page = visit(color_scheme="dark").page
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.click("#theme")
    light = page.evaluate(background)
    assert light != dark
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate(background) == light


def test_a_phone_shows_everything_without_scrolling_sideways(visit: Callable[..., Any], scene: Any) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
    visited = visit(scene, **phone, device_scale_factor=3)
    page = visited.page
    page.tap(CHOOSE_SCENE)
    visited.wait_for_answer()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    small = page.evaluate(
        """[...document.querySelectorAll("button, input[type=range], select")]
          .filter(e => e.checkVisibility() && e.getBoundingClientRect().height < 24).map(e => e.id)"""
    )
    assert small == []  # WCAG 2.2, target size
    assert page.locator("#stage").bounding_box()["height"] > 250
    page.locator("#stage").scroll_into_view_if_needed()
    square = scene.places[0]
    page.touchscreen.tap(*on_stage(page, *square))
    assert page.inner_text("#readout").startswith(scene.shown[0]["category"])


# What the page tells besides


def test_model_demonstration_notice_stages_and_queue_are_shown(
    visit: Callable[..., Any], scene: Any, url: str
) -> None:
    visited = visit(scene)
    page = visited.page
    model = httpx.get(f"{url}model").json()
    assert page.inner_text("#model").startswith(
        f"shapes · cpu, {model['precision']} · 10 categories · box AP"
    )
    assert page.inner_text("#notice").startswith("Demonstration model.")
    page.wait_for_selector("#queue:not([hidden])")
    assert page.inner_text("#queue") == "queue 0 of 256"
    page.click(CHOOSE_SCENE)
    visited.wait_for_answer()
    words = page.inner_text("#timing-words")
    for stage in ("reading the body", "decoding the image", "the model", "encoding masks"):
        assert stage in words
    page.click("#json summary")
    expect(page.locator("#json-text")).not_to_be_empty()
    assert json.loads(page.text_content("#json-text")) == scene.document


def test_the_snippets_run_and_get_what_the_page_shows(
    visit: Callable[..., Any], scene: Any, tmp_path: Path
) -> None:
    visited = visit(scene)
    page = visited.page
    name = "it's a, scene.jpg"
    (tmp_path / name).write_bytes((EXAMPLES / SCENE).read_bytes())
    visited.choose(name, (EXAMPLES / SCENE).read_bytes())
    visited.wait_for_answer()
    slide(page, "#threshold", 0.3)
    page.locator("#categories button", has_text="square").click()
    seen = [caption.split("\n")[0] for caption in visited.shown]
    program = page.text_content("#python-text")
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert [line.split()[0] for line in ran.stdout.splitlines()] == seen, ran.stderr
    command = page.text_content("#curl-text")
    assert "score_threshold=0.05," in command
    if shutil.which("curl"):
        ran = subprocess.run(
            ["/bin/sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )
        assert [i["category"] for i in json.loads(ran.stdout)["instances"]] == seen, ran.stderr


def test_copy_buttons_fill_the_clipboard(visit: Callable[..., Any], scene: Any) -> None:
    page = visit(scene, permissions=["clipboard-read", "clipboard-write"]).page
    for kind in ("curl", "python"):
        page.click(f"#{kind}-copy")
        expect(page.locator(f"#{kind}-copy")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == page.text_content(f"#{kind}-text")


def test_the_saved_picture_and_coco_file_hold_what_is_seen(
    visit: Callable[..., Any], scene: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    visited = visit(scene)
    page = visited.page
    page.uncheck("#labels")
    content = (EXAMPLES / SCENE).read_bytes()
    visited.choose("scene.jpg", content)
    visited.wait_for_answer()
    with page.expect_download() as saved:
        page.click("#save-coco")
    assert saved.value.suggested_filename == "scene-coco.json"
    saved.value.save_as(tmp_path / "coco.json")
    loaded = COCO(tmp_path / "coco.json")
    assert [c["name"] for c in loaded.loadCats(loaded.getCatIds())][:2] == ["circle", "square"]
    annotations = loaded.loadAnns(loaded.getAnnIds())
    assert [a["score"] for a in annotations] == [i["score"] for i in scene.shown]
    for annotation in annotations:
        assert int(loaded.annToMask(annotation).sum()) == annotation["area"]
    capsys.readouterr()
    with page.expect_download() as saved:
        page.click("#save-png")
    assert saved.value.suggested_filename == "scene-instances.png"
    saved.value.save_as(tmp_path / "drawn.png")
    drawn = np.asarray(Image.open(tmp_path / "drawn.png").convert("RGB")).astype(int)
    image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    assert drawn.shape == image.shape
    for instance, (x, y) in zip(scene.shown, scene.places, strict=True):
        expected = 0.6 * image[y, x] + 0.4 * np.array(colour_of(instance["category_id"]))
        assert np.abs(drawn[y, x] - expected).max() <= 6  # two JPEG decoders
