"""The page when people are faster than its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.service.page.conftest import MODEL, ORIGIN
from tests.service.page.test_tiles_on_the_page import ANSWER, BY_HAND, picture, send

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

# Examples come when the test resolves them, in the order of `held`.
HOLD_EXAMPLES = """() => {
  const ask = window.fetch;
  window.held = [];
  window.fetch = (url, options) =>
    String(url).includes("/examples/")
      ? new Promise((resolve) => window.held.push(() => resolve(new Response(new Blob(["x"])))))
      : ask(url, options);
}"""


@pytest.fixture
def by_hand(page: Page) -> Iterator[Page]:
    """The page, loaded again, with answers by hand."""
    page.route("**/model", lambda route: route.fulfill(json=MODEL))
    page.goto(ORIGIN)
    page.wait_for_selector("#model strong")
    page.evaluate(BY_HAND)
    yield page
    page.unroute("**/model")


def test_of_two_examples_the_one_clicked_last_is_shown(by_hand: Page) -> None:
    page = by_hand
    page.evaluate(HOLD_EXAMPLES)
    names = page.evaluate(
        """() => [...document.querySelectorAll("#examples a")].slice(0, 2).map((link) => {
          link.click();
          return link.href.split("/").pop();
        })"""
    )
    # The first one comes last.
    page.evaluate("() => { window.held[1](); window.held[0](); }")
    expect(page.locator("#busy-text")).to_contain_text(names[1])
    page.wait_for_timeout(50)
    expect(page.locator("#busy-text")).to_contain_text(names[1])


def test_an_example_does_not_replace_what_was_chosen_after_it(by_hand: Page) -> None:
    page = by_hand
    page.evaluate(HOLD_EXAMPLES)
    page.evaluate("""() => document.querySelector("#examples a").click()""")
    page.set_input_files("#file", files=picture())
    expect(page.locator("#busy-text")).to_contain_text("slide.png")
    page.evaluate("() => window.held[0]()")
    page.evaluate("(answer) => { window.line(answer); window.end(); }", ANSWER)
    expect(page.locator("#busy")).to_be_hidden()
    expect(page.locator("#readout")).to_contain_text("slide.png")


def test_a_camera_that_is_stopped_before_its_first_answer_leaves_nothing_waiting(by_hand: Page) -> None:
    page = by_hand
    page.click("#webcam")
    expect(page.locator("#film .stop")).to_be_visible()
    expect(page.locator("#busy")).to_be_visible()
    page.click("#film .stop")
    expect(page.locator("#busy")).to_be_hidden()
    # What is chosen next is shown as ever.
    page.set_input_files("#file", files=picture())
    send(page, ANSWER)
    page.evaluate("() => window.end()")
    expect(page.locator("#readout")).to_contain_text("slide.png")


def test_what_no_key_can_be_is_not_taken_for_one(page: Page) -> None:
    problem = {"title": "No key", "detail": "Give one.", "status": 401}
    page.route("**/model", lambda route: route.fulfill(status=401, json=problem))
    page.goto(ORIGIN)
    expect(page.locator("#key-form")).to_be_visible()
    page.fill("#key", "“secret”")
    page.press("#key", "Enter")
    assert page.evaluate("() => document.querySelector('#key').validationMessage").startswith(
        "A key has only"
    )
    page.unroute("**/model")
    page.route("**/model", lambda route: route.fulfill(json=MODEL))
    page.fill("#key", "secret")
    page.press("#key", "Enter")
    page.wait_for_selector("#model strong")
    expect(page.locator("#key-form")).to_be_hidden()
    page.click("#forget-key")
    page.unroute("**/model")
