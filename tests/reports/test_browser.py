"""The page in a real browser, where there is one: all parts drawn, no message, no overflow."""

import os
import shutil

import pytest

from simmim.reports import write_report, write_sweep_report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        if os.environ.get("SIMMIM_BROWSER") == "required":
            pytest.fail("SIMMIM_BROWSER=required, and there is no chromium")
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def open_page(browser, path, width, scheme):
    """The page, and what it complained of or asked the network for."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            complaints.append(request.url)
            if not request.url.startswith(("data:", "file:"))
            else None
        ),
    )
    page.goto(path.as_uri())
    page.wait_for_timeout(200)
    return page, complaints


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_parts_show_without_a_message(browser, run_dir, width, scheme):
    page, complaints = open_page(browser, write_report(run_dir), width, scheme)
    assert page.locator(".plot canvas").count() == 7
    for part in ("#curves", "#reconstructions", "#attention", "#configuration", "#environment"):
        assert page.locator(part).is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    broken = "[...document.images].filter((image) => !image.naturalWidth).length"
    assert page.evaluate(broken) == 0
    assert page.evaluate(CONTRASTS) == []
    assert complaints == []


# Texts whose contrast with what is behind them is less than 4.5 (WCAG 2, AA), with their contrast.
CONTRASTS = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => {
    const [r, g, b] = colour.map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = channels(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("body *")]
    .filter((element) => [...element.childNodes].some((node) =>
      node.nodeType === 3 && node.textContent.trim()) && element.checkVisibility()
      && !element.closest("script, :disabled"))
    .map((element) => {
      const text = luminance(channels(getComputedStyle(element).color).slice(0, 3));
      const page = luminance(behind(element));
      const contrast = (Math.max(text, page) + 0.05) / (Math.min(text, page) + 0.05);
      return [element.textContent.trim().slice(0, 40), contrast];
    })
    .filter(([, contrast]) => contrast < 4.5);
}"""


def test_the_legend_tells_the_newest_values_and_those_pointed_at(browser, run_dir):
    page, _ = open_page(browser, write_report(run_dir), 1440, "light")
    loss = page.locator("#chart-masked-loss")
    legend = loss.locator(".u-value")
    assert legend.all_inner_texts()[:3] == ["300", "0.401", "0.3678"]
    loss.locator(".u-over").hover(position={"x": 2, "y": 50})
    assert legend.all_inner_texts()[:2] == ["1", "0.691"]


def test_the_slider_and_the_switch_work(browser, run_dir):
    page, complaints = open_page(browser, write_report(run_dir), 1440, "light")
    picture = page.locator("[data-steps]").first
    newest = picture.get_attribute("src")
    page.locator("#step").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#step-shown").inner_text() == "200"
    assert picture.get_attribute("src") != newest
    colour = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(colour)
    page.locator("#theme").click()
    assert page.evaluate(colour) != before
    assert complaints == []


def test_a_sweep_fits_a_phone(browser, run_dir):
    page, complaints = open_page(browser, write_sweep_report(run_dir.parent), 390, "dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator(".plot canvas").count() == 2
    assert complaints == []
