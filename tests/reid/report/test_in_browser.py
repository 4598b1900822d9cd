"""The pages in a browser: they render, their pictures load, their tables sort and filter."""

import pytest
from browser import broken_pictures, opened, overflow
from small_runs import run

pytestmark = pytest.mark.slow
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

QUERIES = "table.queries"


def column(page, number):
    cells = page.locator(f"{QUERIES} tbody tr:visible td:nth-child({number})")
    return cells.all_inner_texts()


def test_report(trained):
    target = trained / "browser.html"
    assert not run("report", trained / "rga-sc", trained / "none", "--out", target)
    with opened(target.as_uri()) as (page, messages):
        assert broken_pictures(page) == []
        assert page.locator("figure.chart img").count() >= 12
        before = column(page, 1)

        heads = page.locator(f"{QUERIES} th button")
        assert heads.nth(5).inner_text() == "AP rga-sc"
        heads.nth(5).click()
        values = [float(text) for text in column(page, 6)]
        assert values == sorted(values)
        assert page.locator(f"{QUERIES} th").nth(5).get_attribute("aria-sort") == "ascending"
        heads.nth(5).press("Enter")
        assert [float(text) for text in column(page, 6)] == sorted(values, reverse=True)
        heads.nth(0).click()
        assert column(page, 1) == sorted(before)

        box = page.locator(".tablebox", has=page.locator(QUERIES))
        box.locator("input").fill("0021_ C3")
        assert column(page, 1) == [name for name in before if "0021_c3" in name]
        assert box.locator(".count").inner_text() == f"1 of {len(before)} rows"
        box.locator("input").fill("")
        assert sorted(column(page, 1)) == sorted(before)

        overlay = page.locator(".items .s3").first
        assert not overlay.is_visible()
        page.check(".stages input[value='3']")
        assert overlay.is_visible()
        assert not page.locator(".items .s2").first.is_visible()

        page.set_viewport_size({"width": 375, "height": 800})
        assert overflow(page) == []
        assert messages == []
