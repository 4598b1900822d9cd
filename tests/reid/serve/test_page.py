"""The page in a browser."""

import socket
import threading
import time

import browser
import pytest

from rga_fast.reid.serve.app import make_app
from rga_fast.reid.serve.searcher import Searcher

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(served):
    uvicorn = pytest.importorskip("uvicorn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = make_app(Searcher(served, device="cpu"))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def wait_for_matches(page, count):
    """The page forbids `eval`, which Playwright's own waiting for a function needs."""
    deadline = time.monotonic() + 20
    while page.locator("#matches figure").count() != count:
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)


def test_the_page_searches_filters_and_explains(address, market, tmp_path):
    text = tmp_path / "letter.jpg"
    text.write_text("dear")
    query = market / "bounding_box_test" / "0020_c1s1_000017_00.jpg"
    with browser.opened(address) as (page, messages):
        page.set_input_files("#file", query)
        page.wait_for_selector("#matches figure")
        assert page.locator("#matches figure").count() == 13
        assert page.locator("#query figure").count() == 5
        assert "In the gallery" in page.inner_text("#verdict")
        assert page.locator("#matches figure.same").count() >= 1
        shown = page.locator("#matches img[src*='0020_c1']")
        assert shown.evaluate(
            "async (image) => { await image.decode(); return image.naturalWidth; }"
        )
        for camera in ("1", "3", "4"):
            page.uncheck(f"input[name=camera][value='{camera}']")
        wait_for_matches(page, 4)
        assert browser.broken_pictures(page) == []
        page.uncheck("input[name=camera][value='2']")
        assert page.inner_text("#error") == "No camera is chosen."
        page.check("input[name=camera][value='2']")
        page.wait_for_selector("#matches figure")
        # The picture of the link out of the gallery is refused, which the browser reports.
        assert [message for message in messages if "404" not in message] == []
        messages.clear()
        page.set_input_files("#file", text)
        page.wait_for_selector("#error:not([hidden])")
        assert "not an image of a type" in page.inner_text("#error")
        assert not page.is_visible("#result")
        page.set_viewport_size({"width": 360, "height": 700})
        assert browser.overflow(page) == []
