"""The page on a phone, on paper and with pictures at full size, in a real browser."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import chromium
from tests.support.report_stage import add_stage
from tests.support.report_world import make_finished_run

pytest.importorskip("plotly", reason="plotly is not installed (pip install '.[report]')")

from sophia_mcore.launch.phases import PHASES
from sophia_mcore.report.build import write_report

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as session:
        yield session


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a stage; its pictures are 900 x 600."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.effect_noise((900, 600), 60).save(buffer, "PNG")
    run, config = make_finished_run(
        tmp_path_factory.mktemp("reading") / "run", questions=12, images=[buffer.getvalue()]
    )
    add_stage(run)
    return write_report(config, run, PHASES)


def wait(browser: Any, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60, poll_frequency=0.05).until(lambda b: b.execute_script(script))


def open_page(browser: Any, page: Path) -> None:
    browser.get(page.as_uri())
    wait(browser, "return document.body.dataset.drawn === 'all' && document.querySelectorAll('article').length > 0")


def test_every_chart_is_drawn_without_scrolling(browser: Any, page: Path) -> None:
    open_page(browser, page)
    charts = "document.querySelectorAll('.chart')"
    empty = f"return [{charts}.length, [...{charts}].filter(c => !c.querySelector('.main-svg')).length]"
    count, without = browser.execute_script(empty)
    assert count >= 15 and without == 0


def test_on_a_phone_no_cell_and_no_bar_is_cut_off(browser: Any, page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    try:
        open_page(browser, page)
        cut = browser.execute_script(
            "return [...document.querySelectorAll('td, .bar-row, .chart, section, article')].filter(e => "
            "e.getClientRects().length && "
            "(e.getBoundingClientRect().right > innerWidth + 1 || e.scrollWidth > innerWidth))"
            ".map(e => e.outerHTML.slice(0, 80))"
        )
        assert cut == []
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        label = "return getComputedStyle(document.querySelector('#evaluation td:nth-child(5)'), '::before').content"
        assert browser.execute_script(label) == '"95% interval"'
        top = browser.execute_script("return document.querySelector('svg.bar').getBoundingClientRect().top")
        assert top < 844, "the answer's chart is on the first screen"
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_picture_opens_at_full_size_and_closes(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page)
    thumbnail = browser.find_element("css selector", "article button.picture")
    thumbnail.click()
    width = "return document.querySelector('dialog[open] img').naturalWidth"
    assert browser.execute_script(width) == 900
    assert "900 x 600" in browser.find_element("css selector", "dialog").text
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait(browser, "return document.querySelector('dialog') === null")
    assert browser.execute_script("return document.activeElement.className") == "picture"


def test_paper_has_every_chart_within_its_width_and_what_was_folded(browser: Any, page: Path) -> None:
    open_page(browser, page)
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        widths = browser.execute_script(
            "return [...document.querySelectorAll('.chart .main-svg')].map(s => s.getBoundingClientRect().width)"
        )
        assert widths and max(widths) <= 680
        folded = browser.execute_script(
            "return [...document.querySelectorAll('details:not([open])')].filter(d => "
            "!d.closest('.browser') && !d.parentElement.closest('details')).length"
        )
        assert folded == 0
        colour = "return getComputedStyle(document.body).backgroundColor"
        assert browser.execute_script(colour) == "rgb(255, 255, 255)"
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"])
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") >= 5


def test_groups_are_browsed_apart_from_examples(browser: Any, page: Path) -> None:
    open_page(browser, page)
    browser.execute_script(
        "const f = document.getElementById('groups-filter'); f.value = 'mixed'; f.dispatchEvent(new Event('change'))"
    )
    wait(browser, "return document.getElementById('groups-count').textContent === '12 of 24 groups'")
    shown = "return [...document.querySelectorAll('#groups-examples article')].map(a => a.dataset.id)"
    assert set(browser.execute_script(shown)) == {"q2", "q3"}
    assert browser.execute_script("return document.getElementById('count').textContent") == "12 of 12 questions"
    text = browser.execute_script("return document.querySelector('#groups-examples article').textContent")
    assert "2 of 4 answers correct" in text and "<script>window.hacked = 1</script>" in text
    assert browser.execute_script("return window.hacked") is None
