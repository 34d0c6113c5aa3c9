"""Debian's Chromium through selenium; tests that need it skip loudly where it is not installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

HOW = "install Debian's chromium and chromium-driver (.ci/run does, as root) and selenium (make env)"

ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1200,1000",
    "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip


@contextmanager
def chromium(dark: bool = False) -> Iterator[Any]:
    """A headless browser without network. Skips the test when there is none."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip(f"no Chromium here, the page is not clicked through: {HOW}")
    webdriver = pytest.importorskip("selenium.webdriver", reason=f"no selenium: {HOW}")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(options, Service(driver))
    if dark:
        media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        session.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        yield session
    finally:
        session.quit()
