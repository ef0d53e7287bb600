"""Debian's Chromium, without a window, for tests of pages."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")


class Browser:
    """One window, and what its console said."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Loads a page."""
        self.driver.get(url)

    def text(self, selector: str = "body") -> str:
        """What a person reads there."""
        return self.driver.find_element(By.CSS_SELECTOR, selector).text

    def content(self) -> str:
        """All text of the page, also what is folded away."""
        return str(self.run("return document.body.textContent"))

    def texts(self, selector: str) -> list[str]:
        """The same of each element."""
        return [element.text for element in self.driver.find_elements(By.CSS_SELECTOR, selector)]

    def click(self, selector: str) -> None:
        """Clicks at an element."""
        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def run(self, script: str) -> object:
        """What a script returns."""
        return self.driver.execute_script(script)

    def complaints(self) -> list[str]:
        """What the console has said since this was last asked, but for mere information."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def is_wider_than_its_window(self) -> bool:
        """Whether one has to scroll sideways."""
        return bool(self.run("return document.documentElement.scrollWidth > window.innerWidth"))

    def narrow(self, width: int = 390, height: int = 844) -> None:
        """Makes the window a phone's."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def photograph(self, file: Path) -> None:
        """Saves the whole page as PNG."""
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        file.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def a_browser(folder: Path) -> Iterator[Browser]:
    """A fresh Chromium, which finds nothing but this machine."""
    options = Options()
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"),
        *("--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
        f"--user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
