"""An image of 64 megapixels on the page: it does not freeze, and shows the right pixels at every zoom.

The answers are drawn up here; no model runs.
"""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from model.images.overlay import colour_of
from model.masks import rle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

SIDE = 8000
COUNT = 600
GROUND, INK = 60, 230
# How long the page may be deaf: milliseconds on an idle machine, and yardsticks on one that other tests share.
LIMIT, YARDSTICKS = 400, 2
# Milliseconds of a computation that is always the same, about 250 on an idle machine.
YARDSTICK = """() => {
  const started = performance.now();
  let x = 0;
  for (let i = 0; i < 4e7; i++) x = (x * 31 + i) | 0;
  return x === 1 ? 0 : performance.now() - started;
}"""
# Half the side of the area around the image's middle that has only the instances that a test knows.
QUIET = 300
HEADERS = {"Server-Timing": "forward;dur=1.0, total;dur=2.0", "Content-Type": "application/json"}
PRESS = """() => {
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
}"""
# How long each task of the page took, in `tasks`.
WATCH = """() => {
  window.tasks = [];
  new PerformanceObserver((list) => list.getEntries().forEach((e) => window.tasks.push(e.duration)))
    .observe({ entryTypes: ["longtask"] });
}"""
# RGBA of the canvases at pixels (x, y) of the image, whose middle is in the middle of the stage.
READ = """([layer, scale, side, places]) => {
  const canvas = document.querySelector(`canvas.${layer}`);
  const { width, height, clientWidth, clientHeight } = canvas;
  const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  return places.map(([x, y]) => {
    const across = Math.floor((clientWidth / 2 + (x + 0.5 - side / 2) * scale) * (width / clientWidth));
    const down = Math.floor((clientHeight / 2 + (y + 0.5 - side / 2) * scale) * (height / clientHeight));
    return [...pixels.slice(4 * (down * width + across), 4 * (down * width + across) + 4)];
  });
}"""
FRAME = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"


def disc(x: int, y: int, radius: int, category: int, score: float) -> dict[str, Any]:
    """A record of the answer."""
    columns = np.arange(x - radius, x + radius + 1)
    half = np.sqrt(radius**2 - (columns - x) ** 2).astype(np.int64)
    changes = np.stack([columns * SIDE + y - half, columns * SIDE + y + half + 1], axis=1).reshape(-1)
    [encoded] = rle.from_changes(changes, range(1), (SIDE, SIDE))
    return {
        "category_id": category,
        "category": f"kind {category}",
        "score": score,
        "bbox": [x - radius, y - radius, 2 * radius + 1, 2 * radius + 1],
        "area": encoded.area,
        "segmentation": encoded.to_coco(),
    }


# In the middle of the image: one over the border of the pieces that the picture is cut into (4,096), two beside it.
KNOWN = [(4096, 3950, 60, 3), (3900, 4100, 40, 5), (4180, 4120, 25, 6)]
# And one that is large enough to be seen as a whole.
LARGE = (1200, 1200, 900, 7)
# Over the border, too.
BAR = (4080, 4000, 4119, 4039)


def answer() -> bytes:
    """Hundreds of discs, some of them large. No others are where a test looks."""
    random = np.random.default_rng(3)
    records = [disc(*known, 0.999) for known in [*KNOWN, LARGE]]
    while len(records) < COUNT:
        radius = 900 if len(records) < 6 else int(random.integers(12, 110))
        x, y = (int(value) for value in random.integers(radius, SIDE - radius, 2))
        if min(max(abs(x - u), abs(y - v)) for u, v in ((SIDE // 2, SIDE // 2), LARGE[:2])) > QUIET + radius:
            score = round(0.99 - 0.4 * len(records) / COUNT, 4)
            records.append(disc(x, y, radius, len(records) % 20 + 1, score))
    size = {"width": SIDE, "height": SIDE}
    return json.dumps({"id": "1", "model": "fake", "image": size, "instances": records}).encode()


def photo() -> bytes:
    """A JPEG of that size, even but for the bar in its middle."""
    image = Image.new("L", (SIDE, SIDE), GROUND)
    ImageDraw.Draw(image).rectangle(BAR, fill=INK)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def test_an_instance_larger_than_the_stage_is_painted_in_the_time_of_its_pixels(page: Page) -> None:
    covering, crossing, outlines = page.evaluate(
        """async () => {
          const { Mask } = await import("/page/rle.js");
          const { rasterise } = await import("/page/painter.js");
          const mask = Mask.ofBox([0, 0, 4000, 3000], { width: 4000, height: 3000 });
          const time = (y) => {
            const times = [1, 2, 3].map(() => {
              const started = performance.now();
              rasterise(mask, { scale: 1, x: -50, y }, 1600, 900, 3);
              return performance.now() - started;
            });
            return Math.min(...times);
          };
          const outline = (y) => {
            const { kinds, rows, margin } = rasterise(mask, { scale: 1, x: -50, y }, 1600, 900, 3);
            return kinds.slice((margin + 7) * rows + margin, (margin + 7) * rows + margin + 5).join("");
          };
          // One reaches over all edges of the canvas; of the other the canvas shows the upper edge, or nearly does.
          return [time(-50), time(10), [-50, 10, 0, -1, -2, -3, -4].map(outline)];
        }"""
    )
    assert covering < 6 * crossing + 5
    assert outlines == ["22222", "11122", "11122", "11222", "12222", "22222", "22222"]


def test_pieces_show_the_pixels_of_the_whole_without_seams_and_are_freed(page: Page) -> None:
    found = page.evaluate(
        """async () => {
          const { read } = await import("/page/picture.js");
          const [width, height] = [4300, 2500];
          const coarse = new OffscreenCanvas(430, 250), whole = new OffscreenCanvas(width, height);
          const [noise, context] = [coarse, whole].map((canvas) => canvas.getContext("2d"));
          for (let i = 0; i < 430 * 250; i += 7) {
            noise.fillStyle = `hsl(${(i * 137) % 360} 80% 50%)`;
            noise.fillRect(i % 430, Math.floor(i / 430), 7, 1);
          }
          context.imageSmoothingEnabled = false;
          context.drawImage(coarse, 0, 0, width, height);

          const create = window.createImageBitmap, close = ImageBitmap.prototype.close;
          let open = 0, made = 0;
          window.createImageBitmap = (...given) => (open++, made++, create(...given));
          ImageBitmap.prototype.close = function () { open--; close.call(this); };
          const picture = await read(await whole.convertToBlob(), "noise.png");

          const pixels = (draw, smooth) => {
            const canvas = new OffscreenCanvas(900, 700), context = canvas.getContext("2d");
            context.imageSmoothingEnabled = smooth;
            draw(context);
            return context.getImageData(0, 0, 900, 700).data;
          };
          const differences = (scale, x, y, smooth) => {
            const view = { scale, x, y };
            const ours = pixels((context) => picture.draw(context, view, smooth), smooth);
            const rest = [x, y, width * scale, height * scale];
            const theirs = pixels((context) => context.drawImage(whole, ...rest), smooth);
            let different = 0, clear = 0;
            for (let i = 0; i < ours.length; i += 4) {
              different += Math.max(...[0, 1, 2].map((k) => Math.abs(ours[i + k] - theirs[i + k]))) > 8;
              clear += ours[i + 3] < 255;
            }
            return [different / (ours.length / 4), clear];
          };
          // The corner of four pieces is in each.
          const seen = [
            differences(1, -1600, -1700, true),
            differences(7.3, -14500.4, -14600.7, false),
            differences(0.61, -800.3, -700.6, true),
          ];
          picture.close();
          window.createImageBitmap = create;
          ImageBitmap.prototype.close = close;
          return { seen, open, made };
        }"""
    )
    exact, *scaled = found["seen"]
    assert exact == [0, 0]
    for different, clear in scaled:
        assert clear == 0
        # Where a colour begins it may be one canvas pixel off.
        assert different < 0.15
    assert found["made"] == 1 + 6 * 3
    assert found["open"] == 0


def test_a_saved_picture_is_the_same_in_bands(page: Page) -> None:
    """Of 1,500 × 1,600 pixels it is painted in three bands."""
    bands, least, different = page.evaluate(
        """async () => {
          const { png } = await import("/page/export.js");
          const { Mask } = await import("/page/rle.js");
          const { Layer } = await import("/page/painter.js");
          const image = { width: 1500, height: 1600 };
          const boxes = [[100, 200, 1100, 1300], [300, 650, 80, 90], [1250, 690, 12, 20], [900, 1390, 200, 30]];
          const instances = boxes.map((bbox, i) => ({
            mask: Mask.ofBox(bbox, image), record: { bbox }, colour: [50 * i, 255 - 50 * i, 90], keypoints: [],
          }));
          const paint = Layer.prototype.paint;
          let bands = 0;
          Layer.prototype.paint = function (...given) { bands++; paint.apply(this, given); };
          const draw = (context) => { context.fillStyle = "#808080"; context.fillRect(0, 0, 1500, 1600); };
          const file = await png({ ...image, draw }, instances, { opacity: 0.4, labels: false, model: null });
          Layer.prototype.paint = paint;

          const whole = new Layer(1500, 1600);
          whole.paint(instances, { scale: 1, x: 0, y: 0 }, { opacity: 0.4, line: 5, linesPerObject: 8 });
          const [above, below] = [1, 2].map(() => new OffscreenCanvas(1500, 1600).getContext("2d"));
          above.putImageData(whole.image, 0, 0);
          draw(below);
          below.drawImage(above.canvas, 0, 0);
          const expected = below.getImageData(0, 0, 1500, 1600).data;
          above.drawImage(await createImageBitmap(file), 0, 0);
          const saved = above.getImageData(0, 0, 1500, 1600).data;
          let different = 0;
          for (let i = 0; i < saved.length; i++) different += Math.abs(saved[i] - expected[i]) > 1;
          // The line of the object that is 12 pixels wide.
          const red = (x) => saved[4 * (700 * 1500 + x)];
          return [bands, [1249, 1250, 1251].map(red), different];
        }"""
    )
    assert bands == 3
    assert least[0] == 128
    assert least[1] == 100
    assert least[2] not in (100, 128)
    assert different == 0


@pytest.fixture(scope="module")
def opened(page: Page) -> Iterator[Page]:
    """The page with the image on its stage; `tasks` has what opening it took."""
    large, text = photo(), answer()
    page.route("**/segment?*", lambda route: route.fulfill(body=text, headers=HEADERS))
    page.evaluate(WATCH)
    page.set_input_files("#file", files=[{"name": "slide.jpg", "mimeType": "image/jpeg", "buffer": large}])
    page.wait_for_selector("#timing:not([hidden])")
    page.uncheck("#labels")
    page.evaluate(FRAME)
    yield page
    page.unroute("**/segment?*")


def test_a_64_megapixel_image_with_hundreds_of_instances_does_not_freeze_the_page(
    opened: Page, capsys: pytest.CaptureFixture[str]
) -> None:
    page = opened
    assert page.inner_text("#shown") == f"{COUNT} of {COUNT}"
    longest = {"open": max(page.evaluate("window.tasks.splice(0)"), default=0)}
    yardsticks = [page.evaluate(YARDSTICK)]

    def measure(name: str, change: str, count: int) -> None:
        page.evaluate("window.tasks.splice(0)")
        for _ in range(count):
            page.evaluate(change)
            page.evaluate(FRAME)
        longest[name] = max(page.evaluate("window.tasks.splice(0)"), default=0)
        yardsticks.append(page.evaluate(YARDSTICK))

    page.check("#labels")
    measure("zoom in", """() => document.querySelector("#zoom-in").click()""", 7)
    assert int(page.inner_text("#zoom").split()[0].replace(",", "")) > 80
    page.focus("#stage")
    measure("pan", PRESS, 5)
    measure("zoom out", """() => document.querySelector("#zoom-out").click()""", 4)
    page.click("#fit")
    page.uncheck("#labels")
    page.evaluate(FRAME)
    limit = max(LIMIT, YARDSTICKS * max(yardsticks))
    with capsys.disabled():
        text = ", ".join(f"{name} {value:.0f}" for name, value in longest.items())
        sys.stdout.write(
            f"\n{COUNT} instances on 64 megapixels, the longest task in ms: {text} of {limit:.0f}\n"
        )
    assert max(longest.values()) < limit, longest


@pytest.mark.parametrize("steps", [0, 4, 6, 10])
def test_at_every_zoom_the_picture_and_its_masks_lie_on_their_pixels(opened: Page, steps: int) -> None:
    page = opened
    page.click("#fit")
    box = page.locator("#stage").bounding_box()
    assert box is not None
    scale = min(box["width"], box["height"]) / SIDE
    for _ in range(steps):
        page.click("#zoom-in")
        scale *= 1.5
    page.evaluate(FRAME)
    half = box["width"] / 2 / scale, box["height"] / 2 / scale

    def is_seen(x: int, y: int) -> bool:
        return abs(x - SIDE / 2) < half[0] - 2 and abs(y - SIDE / 2) < half[1] - 2

    def read(layer: str, places: list[tuple[int, int]]) -> np.ndarray:
        return np.array(page.evaluate(READ, [layer, scale, SIDE, places]))

    if steps:
        # No seam in the bar, and clean ground around it.
        bar = [(x, 4020) for x in range(BAR[0] + 6, BAR[2] - 5)]
        around = [(4100, 3990), (4100, 4050), (4060, 4020), (3990, 4000)]
        assert all(is_seen(*place) for place in [*bar, *around])
        assert np.abs(read("pixels", bar)[:, :3] - INK).max() <= 6
        assert np.abs(read("pixels", around)[:, :3] - GROUND).max() <= 6
    checked = 0
    for x, y, radius, category in [*KNOWN, LARGE]:
        beside = [(x + radius + 6, y), (x - radius - 6, y), (x, y + radius + 6), (x, y - radius - 6)]
        outside = [place for place in beside if is_seen(*place)]
        if radius * scale > 8 and is_seen(x, y) and outside:
            inside, *others = read("masks", [(x, y), *outside]).tolist()
            assert inside[:3] == pytest.approx(colour_of(category), abs=3)
            if radius < QUIET:
                assert [alpha for *_, alpha in others] == [0] * len(others)
            checked += 1
    assert checked == {0: 1, 4: 3, 6: 3, 10: 1}[steps]
