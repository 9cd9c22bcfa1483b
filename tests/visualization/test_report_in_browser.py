"""The report in a real browser: it opens without errors, draws, filters, slides and fits.

Needs Chromium (any of the names below on the PATH, or $CHROMIUM) and the package playwright, which
drives it; skipped where one of them is missing.
"""

import os
import re
import shutil
from contextlib import contextmanager

import pytest
from test_report import evil_page  # noqa: F401  (a fixture)

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    binary = os.getenv("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if binary is None:
        names = ", ".join(NAMES)
        pytest.skip(f"needs Chromium: set CHROMIUM=FILE, or put one of {names} on the PATH")
    with playwright.sync_playwright() as driver:
        # Containers run tests as root, where Chromium's sandbox does not start.
        launched = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield launched
        launched.close()


@contextmanager
def opened(browser, report, width: int, height: int):
    """The page in a window of this size; nothing may have gone wrong at the end."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(120_000)  # a busy machine is no fault of the page
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_selector("#iou .bars .point path", state="attached")
    yield page
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [report.as_uri()]
    page.close()


@pytest.fixture(scope="module")
def desktop(browser, report_of_runs):
    with opened(browser, report_of_runs, 1280, 900) as page:
        yield page


@pytest.fixture
def page(desktop):
    """The page with all its controls as they were at first."""
    desktop.evaluate(
        """() => {
          const unchecked = "#run-filter input:not(:checked)";
          for (const box of document.querySelectorAll(unchecked)) box.click();
          if (document.querySelector("#class-filter input:not(:checked)"))
            document.getElementById("all-classes").click();
          for (const control of document.querySelectorAll("#pictures input")) {
            control.checked = control.defaultChecked;
            control.value = control.defaultValue;
          }
          document.getElementById("errors").dispatchEvent(new Event("change"));
        }"""
    )
    return desktop


def folded(page) -> list[bool]:
    return page.evaluate("[...document.querySelectorAll('.fold')].map((part) => !part.open)")


def sticks_out(page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > window.innerWidth")


def test_a_phone_gets_the_page_folded_up_and_nothing_sticks_out_of_it(browser, report_of_runs):
    with opened(browser, report_of_runs, 390, 844) as page:
        assert len(folded(page)) > 3 and all(folded(page))
        assert page.evaluate("document.documentElement.scrollHeight") < 6000
        page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
        assert not sticks_out(page)


def test_charts_are_drawn_and_nothing_sticks_out(page):
    assert not any(folded(page)) and not sticks_out(page)
    for chart in page.query_selector_all("[data-chart]"):
        name = chart.get_attribute("data-chart")
        assert chart.query_selector_all(".scatterlayer .trace"), name
    assert page.query_selector("#confusion .heatmaplayer image, #confusion .heatmaplayer .hm")


def test_a_lowest_tick_at_the_border_leaves_the_margins_alone(browser, report_of_runs):
    """Seconds of a step whose scale plotly once gave up on: "Too many auto-margin redraws"."""
    with opened(browser, report_of_runs, 1280, 900) as page:
        ticks = page.evaluate(
            """async () => {
              const place = document.querySelector('[data-chart="time"]');
              const traces = [[0.060819, 0.057343], [0.15272, 0.13651]];
              const data = place.data.map((trace, i) => ({ ...trace, y: traces[i] }));
              const layout = structuredClone(place.layout);
              for (const axis of [layout.xaxis, layout.yaxis]) delete axis.range;
              Plotly.purge(place);
              await Plotly.newPlot(place, data, layout, { responsive: true });
              return [...place.querySelectorAll(".ytick text")].map((text) => text.textContent);
            }"""
        )
        assert ticks[0] == "0.06"


def test_names_from_outside_become_no_links_in_charts(browser, evil_page):  # noqa: F811
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(evil_page.as_uri())
    page.wait_for_selector("#iou .yaxislayer-above text", state="attached")
    drawn = page.content()
    page.close()
    assert "example.org" in drawn and not re.search(r"<a [^>]*example", drawn)


def test_class_filter_acts_on_bars_confusion_pictures_and_prototypes(page):
    ticks = "#iou .ytick text"
    assert sorted(texts(page, ticks)) == ["box", "ground", "hedge", "sky"]
    painted = covered(page)
    page.get_by_label("sky", exact=True).uncheck()
    assert sorted(texts(page, ticks)) == ["box", "ground", "hedge"]
    assert sorted(texts(page, "#confusion .ytick text")) == ["box", "ground", "hedge"]
    assert page.locator('.prototypes[data-class="sky"]:visible').count() == 0
    assert page.locator('.prototypes[data-class="ground"]:visible').count() == 1
    assert 0 < covered(page) < painted
    page.get_by_role("button", name="none").click()
    assert covered(page) == 0 and page.locator(".prototypes:visible").count() == 0
    page.get_by_role("button", name="all").click()
    assert covered(page) == painted and len(texts(page, ticks)) == 4


def texts(page, selector: str) -> list[str]:
    return [place.text_content() for place in page.query_selector_all(selector)]


def covered(page) -> int:
    """Pixels of the ground truth that have a colour."""
    return page.evaluate(
        """() => {
          const canvas = document.querySelector("#pictures-grid canvas");
          const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return pixels.data.filter((value, i) => i % 4 === 3 && value > 0).length;
        }"""
    )


def test_image_slider_shows_another_image_and_works_by_keyboard(page):
    first = page.get_attribute("#pictures-grid img", "src")
    assert texts(page, "#image-name")[0].startswith("1 of 3")
    page.focus("#image-slider")
    page.keyboard.press("ArrowRight")
    assert texts(page, "#image-name")[0].startswith("2 of 3")
    assert page.get_attribute("#pictures-grid img", "src") != first
    page.keyboard.press("End")
    assert texts(page, "#image-name")[0].startswith("3 of 3")


def test_errors_only_paints_only_what_is_wrong_and_opacity_hides(page):
    alone = """() => [...document.querySelectorAll("#pictures-grid canvas")].map((canvas) => {
      const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      return pixels.filter((value, i) => i % 4 === 3 && value > 0).length;
    })"""
    data = page.evaluate("JSON.parse(document.getElementById('data').textContent).samples")
    page.check("#errors")
    counts = page.evaluate(alone)[1:]  # the first is the ground truth
    image = data["images"][0]
    known = image["width"] * image["height"] - 16  # the ignored corner of the tiny world
    expected = [round(one["wrong"] * known) for one in image["predictions"]]
    assert counts == pytest.approx(expected, abs=2)
    page.uncheck("#errors")
    page.evaluate("document.getElementById('opacity').value = 0")
    page.dispatch_event("#opacity", "input")
    assert set(page.evaluate(alone)) == {0}


def test_run_filter_takes_a_run_out_of_charts_and_pictures(page):
    traces = '[data-chart="total_loss"] .scatterlayer .trace'
    assert page.locator(traces).count() == 2 and page.locator("#pictures-grid figure").count() == 4
    page.get_by_label("daformer_gauss", exact=True).uncheck()
    assert page.locator(traces).count() == 1 and page.locator("#pictures-grid figure").count() == 3
    assert page.locator(".gallery:visible").count() == 0


def test_classes_under_the_pointer_are_read_out(page):
    page.locator("#pictures-grid canvas").first.hover()
    assert "ground truth: " in texts(page, "#under-pointer")[0]
