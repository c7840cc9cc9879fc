"""The page in a real browser, where there is one: all parts drawn, no message, no overflow."""

import itertools
import json
import shutil

import pytest

from report.conftest import write_metrics
from simmim.report.html import write_report
from simmim.report.sweep import write_sweep_report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
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


@pytest.mark.parametrize("width", [390, 1280, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_parts_show_without_a_message(browser, run_dir, width, scheme):
    page, complaints = open_page(browser, write_report(run_dir), width, scheme)
    assert page.locator(".plot canvas").count() == 7
    for part in ("#curves", "#reconstructions", "#attention", "#configuration", "#environment"):
        assert page.locator(part).is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    broken = "[...document.images].filter((image) => !image.naturalWidth).length"
    assert page.evaluate(broken) == 0
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate(CONTRASTS) == []
    assert complaints == []


# Cards out of which something runs.
OVERFLOWING = """() => [...document.querySelectorAll(".figures div, .card")]
  .filter((card) => card.scrollWidth > card.clientWidth + 1)
  .map((card) => card.textContent.trim().slice(0, 60))"""


@pytest.mark.parametrize("width", [320, 390, 700, 1024, 1280, 1440, 1920])
def test_no_figure_runs_out_of_its_card(browser, run_dir, width):
    facts = {"stage": "finetune", "state": "finished", "total_steps": 300, "classes": 12}
    (run_dir / "run.json").write_text(json.dumps(facts))
    write_metrics(run_dir, **{"val/top1": 0.421, "train/top1": 0.987})
    steps = [json.dumps({"step": step, "event": "skipped"}) for step in range(100_000, 100_009)]
    (run_dir / "unusual_steps.jsonl").write_text("\n".join(steps))
    page, _ = open_page(browser, write_report(run_dir), width, "light")
    assert "without augmentation" in page.inner_text(".figures")
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


# Draws lines between two values each and gives their vertical axes' ticks, with their labels.
TICKS = """async (ranges) => {
  const plots = ranges.map(([low, high, logarithmic, share]) => {
    const element = document.createElement("div");
    element.style.width = "500px";
    document.body.append(element);
    return window.simmim.draw(element, {
      name: "x", title: "x", unit: "", logarithmic, share, zero: false, horizontal: "step",
      marks: [], series: [{ name: "y", reference: false }], data: [[1, 2], [low, high]],
    });
  });
  await new Promise((resolve) => setTimeout(resolve));  // uPlot draws once the script is through
  return plots.map((plot) => plot.axes[1]).map((axis) => axis._splits
    .map((tick, at) => [tick, axis._values[at]]).filter(([, label]) => label !== ""));
}"""


def test_ticks_are_distinct_and_right(browser, run_dir):
    """Over ranges of a learning rate's size, and of all others."""
    page, _ = open_page(browser, write_report(run_dir), 1280, "light")
    ends = [(0, 1e-4), (0, 1.25e-4), (0, 2e-3), (9e-4, 1.1e-3), (-3e-4, 3e-4), (1.25e-3, 1.25e-3)]
    widths = ((0, 1), (1, 3), (1.9, 2.4), (1.001, 1.002), (-1, 1))
    ends += [
        (low * 10.0**power, high * 10.0**power) for power in range(-9, 9, 2) for low, high in widths
    ]
    ranges = [(low, high, False, is_share) for low, high in ends for is_share in (False, True)]
    ranges += [(low, high, True, False) for low, high in ends if low > 0]
    for (*_, is_share), shown in zip(ranges, page.evaluate(TICKS, ranges), strict=True):
        check_ticks(shown, is_share)


def check_ticks(shown, is_share):
    labels = [label for _, label in shown]
    assert len(set(labels)) == len(labels) >= 1, labels
    values = [tick for tick, _ in shown]
    apart = min((b - a for a, b in itertools.pairwise(values)), default=1)
    for tick, label in shown:
        told = float(label.replace(",", "").rstrip("%")) / (100 if is_share else 1)
        assert told == pytest.approx(tick, rel=1e-9, abs=1e-6 * apart), labels
        assert len(label) <= 12, labels


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
