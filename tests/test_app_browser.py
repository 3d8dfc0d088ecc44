"""`examples/app.py` in a browser, as people use it: click, send, type, read; on desktop and phone; two at once."""

import os
import shutil
import sys

import pytest
from page_server import APP, page_server, write_run
from PIL import Image

from rtd_hf.search import ComposedImageRetriever


pytest.importorskip("gradio_client")
pytestmark = pytest.mark.slow
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
BROWSER = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
sys.path.insert(0, str(APP.parent))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "rtd_small")


@pytest.fixture(scope="module")
def retrievers(run_folder, tmp_path_factory):
    from utils.page_search import draw_world

    folder = tmp_path_factory.mktemp("pictures")
    draw_world(folder)
    made = {}
    for name, original in (("before", True), ("after", False)):
        made[name] = ComposedImageRetriever.from_pretrained(run_folder, original=original)
        made[name].index(folder)
    return made


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no browser: `apt-get install chromium`, or name one in the environment variable CHROMIUM")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(run_folder, tmp_path_factory):
    with page_server("--model", str(run_folder), files=tmp_path_factory.mktemp("files")) as server:
        yield server.address


class Visitor:
    """Somebody at the page, with a list of what the page asked other hosts for, and of what went wrong in it."""

    def __init__(self, browser, address: str, size: str):
        width, height = SIZES[size]
        small = size == "phone"
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, is_mobile=small, has_touch=small
        )
        self.page, self.width, self.outside, self.faults = self.context.new_page(), width, [], []
        self.page.on("request", lambda asked: self._note(asked.url, address))
        self.page.on("pageerror", lambda fault: self.faults.append(str(fault)))
        self.page.set_default_timeout(60_000)
        self.page.goto(address)
        self.page.wait_for_selector("#after .hits li")
        self.page.wait_for_selector("#pictures img")

    def _note(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.outside.append(url)

    def results(self, side: str) -> list[str]:
        return self.page.eval_on_selector_all(f"#{side} .hits li", "rows => rows.map(row => row.dataset.id)")

    def words(self, side: str) -> list[str]:
        marks = self.page.locator(f"#{side} .words span").all_inner_texts()
        return [mark.split("\n")[0] for mark in marks]

    def search(self, text: str) -> None:
        """Types and clicks, and waits until the page shows the words."""
        self.page.get_by_label("What should be different?").fill(text)
        self.page.get_by_role("button", name="Search", exact=True).click()
        wanted = text.split()
        self.page.wait_for_function(
            "words => ['before', 'after'].every(side => JSON.stringify([...document.querySelectorAll(`#${side} .words "
            "span`)].map(mark => mark.firstChild.textContent)) === JSON.stringify(words))",
            arg=wanted,
        )

    def refused(self, text: str, message: str) -> None:
        self.page.get_by_label("What should be different?").fill(text)
        self.page.get_by_role("button", name="Search", exact=True).click()
        self.told(message)

    def told(self, message: str) -> None:
        self.page.get_by_role("alert").filter(has_text=message).wait_for()

    def reference(self, label: str) -> None:
        self.page.wait_for_function(
            "label => document.querySelector('#reference figcaption b')?.textContent === label", arg=label
        )

    def send(self, path) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name="Send a picture").click()
        chooser.value.set_files(path)

    def fits(self) -> bool:
        wide = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
        return self.page.evaluate(wide) <= self.width


@pytest.fixture
def visit(browser, address):
    visitors = []

    def come(size: str) -> Visitor:
        visitors.append(Visitor(browser, address, size))
        return visitors[-1]

    yield come
    for visitor in visitors:
        visitor.context.close()
        assert visitor.outside == [] and visitor.faults == []


def ids(hits) -> list[str]:
    return [hit.id for hit in hits]


@pytest.mark.parametrize("size", SIZES)
def test_click_type_send_and_compare(visit, retrievers, tmp_path, size):
    visitor = visit(size)
    assert visitor.fits()
    visitor.page.locator("#pictures button").nth(3).click()
    visitor.reference("00003.png")
    visitor.search("has a white background")
    for side, retriever in retrievers.items():
        wanted = retriever.search(retriever.folder / "00003.png", "has a white background", 6)
        assert visitor.results(side) == ids(wanted)
    assert visitor.results("before") != visitor.results("after")

    mine = tmp_path / "mine.png"
    drawn = Image.new("RGB", (400, 300), "navy")
    drawn.paste((250, 120, 0), (90, 90, 240, 240))
    drawn.save(mine)
    visitor.send(mine)
    visitor.reference("your picture")
    visitor.search("${document.title='gone'} <b>red</b> {{1+1}}")  # shown as it is, never run
    text = "${document.title='gone'} <b>red</b> {{1+1}}"
    for side, retriever in retrievers.items():
        assert visitor.results(side) == ids(retriever.search(mine, text, 6))
    assert visitor.page.title() == "Composed image retrieval"
    assert visitor.fits()

    boxes = [visitor.page.locator(f"#{side}").bounding_box() for side in ("before", "after")]
    beside = boxes[1]["x"] > boxes[0]["x"] + boxes[0]["width"] - 1
    assert beside == (size == "desktop")
    visitor.page.locator("#examples button").nth(1).click()
    visitor.page.wait_for_function(
        "() => document.querySelector('#change textarea').value === 'is without the square'"
    )
    assert visitor.fits()


@pytest.mark.parametrize("size", SIZES)
def test_bad_input_is_answered_on_the_page(visit, tmp_path, size):
    visitor = visit(size)
    shown = visitor.results("after")
    visitor.refused("", "Say what should be different")
    visitor.refused("red " * 2500, "10,000 characters")
    assert visitor.results("after") == shown and visitor.fits()
    words = tmp_path / "words.png"
    words.write_text("no picture")
    visitor.send(words)
    visitor.told("not a picture")
    visitor.search("is red")
    assert visitor.page.get_by_role("alert").count() == 0


def test_a_file_that_is_too_large_is_answered(visit, tmp_path):
    visitor = visit("phone")
    huge = tmp_path / "huge.png"
    huge.write_bytes(bytes(21 * 2**20))
    visitor.send(huge)
    visitor.page.get_by_text("exceed the maximum allowed size of 20").first.wait_for()
    visitor.search("is red")


def test_two_visitors_at_once(visit, retrievers):
    first, second = visit("desktop"), visit("phone")
    for visitor, place in ((first, 2), (second, 7)):
        visitor.page.locator("#pictures button").nth(place).click()
    for visitor, text in ((first, "is red"), (second, "are larger")):
        visitor.page.get_by_label("What should be different?").fill(text)
    first.reference("00002.png")
    second.reference("00007.png")
    for visitor in (first, second):
        visitor.page.get_by_role("button", name="Search", exact=True).click()
    for visitor, name, text in ((first, "00002.png", "is red"), (second, "00007.png", "are larger")):
        visitor.search(text)
        for side, retriever in retrievers.items():
            assert visitor.results(side) == ids(retriever.search(retriever.folder / name, text, 6))


def test_everything_has_a_name_and_works_by_keyboard(visit):
    visitor = visit("desktop")
    unnamed = visitor.page.evaluate(
        "() => [...document.querySelectorAll('button, input, textarea')].filter(one => one.offsetParent && !("
        "one.innerText?.trim() || one.ariaLabel || one.labels?.length || one.closest('label') || one.title))"
        ".map(one => one.outerHTML.slice(0, 200))"
    )
    assert unnamed == []
    assert visitor.page.evaluate("() => [...document.images].every(one => one.alt)")
    box = visitor.page.get_by_label("What should be different?")
    box.fill("is red")
    box.press("Enter")
    visitor.page.wait_for_function(
        "() => document.querySelector('#after .words span')?.firstChild.textContent === 'is' && "
        "document.querySelectorAll('#after .words span')[1]?.firstChild.textContent === 'red'"
    )
