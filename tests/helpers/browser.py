"""A page in a headless Chromium, where there is one."""

import shutil
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def opened(address, width=1200, height=900):
    """Yields the page at `address` and a list of its messages and failed requests."""
    sync_api = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            messages = []
            page.on("console", lambda message: messages.append(message.text))
            page.on("pageerror", lambda error: messages.append(str(error)))
            page.on("requestfailed", lambda request: messages.append(request.url[:200]))
            page.goto(address)
            yield page, messages
        finally:
            browser.close()


def overflow(page) -> list[str]:
    """Elements that make the page wider than its window."""
    return page.evaluate(
        """() => document.documentElement.scrollWidth <= innerWidth ? [] :
        [...document.querySelectorAll("body *")].filter(
            (e) => e.getBoundingClientRect().right > innerWidth + 1
        ).map((e) => e.outerHTML.slice(0, 120))"""
    )


def broken_pictures(page) -> list[str]:
    """Pictures that did not load; those further down are loaded first."""
    return page.evaluate(
        """async () => {
        const images = [...document.images];
        for (const image of images) image.loading = "eager";
        const loaded = (image) => image.decode().then(() => "", () => image.src.slice(0, 100));
        return (await Promise.all(images.map(loaded))).filter(Boolean);
        }"""
    )
