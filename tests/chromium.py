"""Headless Chromium as Debian packages it (chromium, chromium-driver); nothing is downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests may run as root in a container, where there is no sandbox to be had
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--lang=en",
)


@contextmanager
def chromium(width: int = 1280, height: int = 860) -> Iterator[webdriver.Chrome]:
    """A browser whose log of the page is kept; closed at the end."""
    driver, browser = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    assert driver and browser, "expected chromium and chromedriver on PATH: apt-get install chromium chromium-driver"
    options = Options()
    options.binary_location = browser
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    page = webdriver.Chrome(options=options, service=Service(driver))
    try:
        page.set_page_load_timeout(20)
        resize(page, width, height)
        yield page
    finally:
        page.quit()


def resize(page: webdriver.Chrome, width: int, height: int, scale: float = 1) -> None:
    """Give the page so many CSS pixels, a phone's if it is narrow."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def prefer(page: webdriver.Chrome, **features: str) -> None:
    """Emulate what the person prefers, such as ``prefers_color_scheme="dark"``."""
    media = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
