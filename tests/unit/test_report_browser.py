"""The report in a real browser: filters, search, pages, keys, charts, dark and light, hostile texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import chromium
from tests.support.report_world import make_finished_run

pytest.importorskip("plotly", reason="plotly is not installed (pip install '.[report]')")

from sophia_mcore.launch.phases import PHASES
from sophia_mcore.records import Caption, Question
from sophia_mcore.report.build import write_report
from sophia_mcore.report.compare import write_comparison
from sophia_mcore.store.shards import read_shard, write_shard

QUESTIONS = 130  # three blocks


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as session:
        yield session


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    run, config = make_finished_run(tmp_path_factory.mktemp("report") / "run", questions=QUESTIONS)
    return run, config, write_report(config, run, PHASES)


@pytest.fixture
def page(browser: Any, made: tuple[Any, Any, Path]) -> Any:
    browser.get_log("browser")  # forget what an earlier test provoked
    browser.get(made[2].as_uri())
    wait(browser, "return document.querySelectorAll('article').length > 0 && document.readyState === 'complete'")
    return browser


def wait(browser: Any, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 30, poll_frequency=0.05).until(lambda b: b.execute_script(script))


def shown(browser: Any) -> list[str]:
    return browser.execute_script("return [...document.querySelectorAll('article')].map(a => a.dataset.id)")


def choose(browser: Any, value: str, expected: int) -> list[str]:
    browser.execute_script(
        "const f = document.getElementById('filter'); f.value = arguments[0]; f.dispatchEvent(new Event('change'))",
        value,
    )
    wait_count(browser, expected)
    return shown(browser)


def wait_count(browser: Any, expected: int) -> None:
    text = f"{expected} of {QUESTIONS} questions"
    ready = f"return document.getElementById('count').textContent === {text!r}"
    articles = f"&& document.querySelectorAll('article').length === {min(expected, 10)}"
    wait(browser, ready + articles)


def press(browser: Any, key: str) -> None:
    browser.switch_to.active_element.send_keys(key)


def test_filters_choose_examples(page: Any) -> None:
    assert choose(page, "wrong", 1) == ["q2"]
    assert choose(page, "none", 1) == ["q2"]
    assert "q2" not in choose(page, "kept", QUESTIONS - 1)
    assert choose(page, "broken", 0) == choose(page, "peer", 0) == []
    assert len(choose(page, "", QUESTIONS)) == 10


def test_search_looks_into_blocks_not_yet_unpacked(page: Any) -> None:
    field = page.find_element("id", "search")
    field.send_keys("NUMBER 121")
    wait_count(page, 1)
    assert shown(page) == ["q121"]
    field.clear()
    field.send_keys("boxed{77}")
    wait(page, "return document.querySelector('article')?.dataset.id === 'q77'")
    assert shown(page) == ["q77"]


def test_pages_turn_by_button_and_by_key(page: Any) -> None:
    page.find_element("id", "next").click()
    wait(page, "return document.getElementById('examples').dataset.page === '2'")
    assert shown(page)[0] == "q10"
    page.find_element("tag name", "body").click()
    press(page, "\ue012")  # left
    wait(page, "return document.getElementById('examples').dataset.page === '1'")
    assert shown(page)[0] == "q0" and not page.find_element("id", "previous").is_enabled()
    press(page, "j")
    press(page, "j")
    assert page.switch_to.active_element.get_attribute("data-id") == "q1"
    opened = "return [...document.activeElement.querySelectorAll('details')].map(d => d.open)"
    assert not all(page.execute_script(opened))
    press(page, "o")
    assert all(page.execute_script(opened))
    press(page, "/")
    assert page.switch_to.active_element.get_attribute("id") == "search"


def test_thinking_is_folded_and_the_kept_one_is_marked(page: Any) -> None:
    article = page.find_element("css selector", "article[data-id=q5]")
    (kept,) = article.find_elements("css selector", ".trajectory.kept")
    assert "The answer is \\boxed{5}." in kept.text and "I look at it again" not in kept.text
    kept.find_element("css selector", "details.thinking summary").click()
    assert "I look at it again" in kept.text


def test_hostile_texts_are_shown_and_not_run(page: Any) -> None:
    article = page.find_element("css selector", "article[data-id=q3]")
    text = page.execute_script("return arguments[0].textContent", article)
    assert "<script>window.hacked = 1</script>" in text and "\u27e8U+202E\u27e9" in text and "{{ 7 * 7 }}" in text
    assert page.execute_script("return window.hacked") is None
    page.execute_script("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 3\">')")
    page.execute_async_script("setTimeout(arguments[0], 200)")
    assert page.execute_script("return window.hacked") is None  # the policy refuses what textContent did not


def test_charts_are_drawn_when_they_come_into_view(page: Any) -> None:
    assert page.execute_script("return document.querySelectorAll('.chart').length") >= 10
    page.execute_script("document.getElementById('charts-section').scrollIntoView()")
    wait(page, "return document.querySelectorAll('.chart .main-svg').length > 0")
    severe = [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []


def test_dark_and_light_differ(page: Any, made: tuple[Any, Any, Path]) -> None:
    ask = "return getComputedStyle(document.body).backgroundColor"
    light = page.execute_script(ask)
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    dark = page.execute_script(ask)
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert (light, dark) == ("rgb(251, 251, 250)", "rgb(21, 23, 26)")


def test_the_comparison_opens(browser: Any, made: tuple[Any, Any, Path], tmp_path: Path) -> None:
    run, config, _ = made
    browser.get(write_comparison((run, config), (run, config), PHASES, tmp_path / "c.html").as_uri())
    wait(browser, "return document.querySelectorAll('.chart .main-svg').length > 0")
    assert "+0.0" in browser.find_element("id", "pairs").text


def test_long_names_and_texts_neither_widen_nor_lengthen_the_page(browser: Any, tmp_path: Path) -> None:
    run, config = make_finished_run(tmp_path / "run", questions=3)
    for path, kind in ((run.questions_file, Question), (run.round(0).captions / "000000-a.parquet", Caption)):
        text = "line\n" * 3_000
        changed = [
            replace(r, source="d" * 4_000, question=text) if isinstance(r, Question) else replace(r, text=text)
            for r in read_shard(path, kind)
        ]
        path.unlink()
        write_shard(path, changed, kind)
    browser.get(write_report(config, run, PHASES).as_uri())
    wait(browser, "return document.querySelectorAll('article').length === 3")
    width, room = browser.execute_script(
        "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
    )
    assert width <= room
    heights = browser.execute_script("return [...document.querySelectorAll('article')].map(a => a.offsetHeight)")
    assert max(heights) < 4_000, heights
