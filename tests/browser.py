"""A headless Chromium for tests of pages, and what a page must never do in one."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


def installed() -> str | None:
    """Why there is no browser to test in; None where there is one."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        return (
            f"{' and '.join(missing)} not installed (Debian: apt-get install chromium"
            " chromium-driver)"
        )
    return None


@contextmanager
def browser(
    profile: Path, *, width: int = 1280, height: int = 900, dark: bool = False
) -> Iterator[Any]:
    """A driver with a profile of its own; `profile`/downloads is where files go."""
    reason = installed()
    if reason:
        pytest.skip(reason)
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    downloads = {
        "download.default_directory": str(profile / "downloads"),
        "download.prompt_for_download": False,
    }
    options.add_experimental_option("prefs", downloads)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
    )
    try:
        media = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce",
        }
        features = [{"name": name, "value": value} for name, value in media.items()]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        # What it asked for on its own, for the page it starts with, is of no interest.
        driver.get("about:blank")
        driver.get_log("performance")
        yield driver
    finally:
        driver.quit()


def requests_of(driver: Any) -> list[str]:
    """The addresses that pages asked for since the last call, but for what is inside of them or of
    the browser.
    """
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in urls if not url.startswith(("data:", "blob:", "chrome://"))]


def assert_harmless(driver: Any, *pages: Path) -> None:
    """Nothing foreign ran, nothing was complained about, and nothing but the pages themselves was
    asked for.
    """
    assert driver.execute_script("return window.pwned") is None
    assert driver.get_log("browser") == []
    asked = {url.partition("#")[0] for url in requests_of(driver)} - {
        page.as_uri() for page in pages
    }
    assert not asked, asked


def assert_no_sideways_scroll(driver: Any) -> None:
    wide, seen = driver.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= seen, f"the page is {wide} px wide and {seen} are seen"
