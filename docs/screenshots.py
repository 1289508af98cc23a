"""Takes the pictures of the page in docs/images/, and writes the answer and the picture that README.md shows.

`.venv/bin/python docs/screenshots.py` starts servers with the bundled model of nuclei, and needs Chromium (`apt-get
install chromium`); with `--readme` it does without a browser, and takes no pictures of the page.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from PIL import Image
from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
README = ROOT / "README.md"
MODEL = "nuclei"
EXAMPLES = ROOT / "examples" / "nuclei" / "images"
DESKTOP = {"viewport": {"width": 1440, "height": 900}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
MOST_BYTES = 300_000


def main() -> None:
    """Start the service, visit it, and write what it answers and how it looks."""
    # The README says that its answer was computed in float32, which is the same on every machine.
    with serve("float32") as url:
        readme(url)
    if "--readme" in sys.argv[1:]:
        return
    with serve("auto") as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        light(browser, url)
        dark(browser, url)
        many(browser, url)
        phone(browser, url)
        error(browser, url)
        browser.close()


@contextmanager
def serve(precision: str) -> Iterator[str]:
    """The address of a server, while it runs."""
    server = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "serve", "--port", "0"],
        cwd=ROOT,
        # The browser needs the same cores: threads that wait for work sleep instead of spinning.
        env={
            **os.environ,
            "MASKSERVE_MODEL": MODEL,
            "MASKSERVE_PRECISION": precision,
            "MASKSERVE_LOG_FORMAT": "text",
            "GOMP_SPINCOUNT": "0",
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield address(server)
    finally:
        server.terminate()
        server.wait()


def address(server: subprocess.Popen[str]) -> str:
    """Where the server is, from the line that says that it is ready."""
    for line in server.stderr or ():
        if match := re.search(r"is ready at (http://\S+)", line):
            return match[1]
    raise SystemExit("the server ended before it was ready")


def readme(url: str) -> None:
    """Ask what the README's first command asks, and write the answer behind it; and the picture of its second."""
    text = README.read_text(encoding="utf-8")
    command = re.search(r"curl -F image=@(\S+) 'localhost:8000(/segment\S*)'", text)
    shown = re.search(r"(?<=```json\n).*?(?=```)", text, re.DOTALL)
    if command is None or shown is None:
        raise SystemExit(f"{README} has no curl command, or no answer behind it")
    image = {"image": (ROOT / command[1]).read_bytes()}
    answer = httpx.post(url + command[2], files=image, timeout=300).raise_for_status().json()
    # A new id each time would be a change without a reason.
    answer["id"] = json.loads(shown[0])["id"]
    README.write_text(text[: shown.start()] + pretty(answer) + text[shown.end() :], encoding="utf-8")
    drawn = httpx.post(f"{url}/segment", files=image, headers={"Accept": "image/png"}, timeout=300)
    (IMAGES / "example.png").write_bytes(drawn.raise_for_status().content)
    sys.stdout.write(
        f"README.md, docs/images/example.png: {len(answer['instances'])} instances of {command[1]}\n"
    )


def pretty(answer: dict[str, Any]) -> str:
    """An answer as JSON: an instance on one line, and its segmentation on the next."""
    lines = [f'  "{name}": {json.dumps(value)}' for name, value in answer.items() if name != "instances"]
    instances = []
    for instance in answer["instances"]:
        mask = json.dumps(instance.pop("segmentation"))
        instances.append(f'    {json.dumps(instance)[:-1]},\n     "segmentation": {mask}}}')
    lines.append('  "instances": [\n' + ",\n".join(instances) + "\n  ]")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def visit(browser: Browser, url: str, **context: object) -> Page:
    """The page, once it knows its model."""
    page = browser.new_context(**context).new_page()
    page.goto(url)
    page.wait_for_selector("#model strong")
    return page


def segment(page: Page, name: str) -> None:
    """Click an example and wait until it is painted."""
    page.click(f"#examples a[href$='{name}']")
    page.wait_for_selector("#timing:not([hidden])")
    page.evaluate("new Promise(requestAnimationFrame)")


def light(browser: Browser, url: str) -> None:
    """Many instances, painted and listed."""
    page = visit(browser, url, **DESKTOP)
    segment(page, "touching.png")
    keep(page, "page-light")


def dark(browser: Browser, url: str) -> None:
    """The whole page, with one instance pinned and everything that stands below the picture."""
    page = visit(browser, url, **DESKTOP, color_scheme="dark")
    segment(page, "sparse.png")
    page.locator("#instances button").first.click()
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    keep(page, "page-dark", full=True)


def many(browser: Browser, url: str) -> None:
    """Hundreds of instances, the picture alone."""
    page = visit(browser, url, **DESKTOP, device_scale_factor=1.5)
    segment(page, "crowded.png")
    keep(page, "page-instances", part=".frame")


def phone(browser: Browser, url: str) -> None:
    """The same page on a phone."""
    page = visit(browser, url, **PHONE)
    segment(page, "stained.png")
    keep(page, "page-phone")


def error(browser: Browser, url: str) -> None:
    """What a file that is cut short looks like."""
    page = visit(browser, url, **DESKTOP)
    cut = (EXAMPLES / "stained.png").read_bytes()[:20_000]
    page.set_input_files("#file", files=[{"name": "cut.png", "mimeType": "image/png", "buffer": cut}])
    page.wait_for_selector("#problem:not([hidden])")
    keep(page, "page-error")


def keep(page: Page, name: str, *, full: bool = False, part: str | None = None) -> None:
    """Write a picture of the window, of the full page, or of one part of it; as WebP, which is small and sharp."""
    shot = page.locator(part).screenshot() if part else page.screenshot(full_page=full)
    page.context.close()
    path = IMAGES / f"{name}.webp"
    Image.open(io.BytesIO(shot)).convert("RGB").save(path, quality=90, method=6)
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"{path} has {size} bytes, more than {MOST_BYTES}")
    sys.stdout.write(f"{path.relative_to(ROOT)}: {size} bytes\n")


if __name__ == "__main__":
    main()
