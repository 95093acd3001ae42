"""A page in headless Chromium, for tests."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
]  # fmt: skip


class Browser:
    """A page in Chromium; every call waits until the view it leads to is complete."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 900) -> None:
        webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
        if CHROMIUM is None or DRIVER is None:
            pytest.skip("chromium and chromedriver are not installed")
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in [*FLAGS, f"--user-data-dir={folder}", f"--window-size={width},{height}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
        self.size(width, height)

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def scheme(self, value: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": value}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, page: Path, fragment: str = "#/") -> None:
        self.driver.get("about:blank")
        self.driver.get(page.as_uri() + fragment)
        self.wait(fragment)

    def anew(self, page: Path) -> "Browser":
        """The page as somebody sees it who opens it for the first time, on a screen of the usual size."""
        self.size(1280, 900)
        self.scheme("light")
        self.errors()
        self.requests()
        self.open(page)
        self.run("localStorage.clear()")
        return self

    def go(self, fragment: str) -> None:
        self.run("location.hash = arguments[0]", fragment)
        self.wait(fragment)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, fragment: str) -> None:
        ready = """return document.documentElement.dataset.ready !== undefined
            && document.getElementById("main").dataset.finished === arguments[0]"""
        self.until(lambda: self.run(ready, fragment), f"the view {fragment}")

    def until(self, condition: Any, what: str) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, f"{what} did not come; the page shows {self.text()[:500]!r}"
            time.sleep(0.02)

    def text(self) -> str:
        return self.run("return document.getElementById('main').innerText")

    def fragment(self) -> str:
        return self.run("return location.hash")

    def keys(self, *keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(*keys)

    def choose(self, id_: str, value: str) -> None:
        """Choose from a list, or write into a field."""
        change = """const field = document.getElementById(arguments[0]);
            field.value = arguments[1];
            field.dispatchEvent(new Event(field.tagName === "SELECT" ? "change" : "input"));"""
        self.run(change, id_, value)

    def texts(self, selector: str) -> list[str]:
        """What the elements that a selector finds say, in their order."""
        return self.run("return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)", selector)

    def overflow(self, element: str) -> int:
        """Pixels by which the content is wider than its element, ``html`` for the page."""
        script = "const own = document.querySelector(arguments[0]); return own.scrollWidth - own.clientWidth"
        return self.run(script, element)

    def active_row(self) -> str:
        return self.run("""const tree = document.getElementById("tree");
            return document.getElementById(tree.getAttribute("aria-activedescendant")).innerText""")

    def rows(self) -> list[str]:
        return self.run("""return Array.from(document.querySelectorAll("[role=treeitem]"),
            (row) => row.querySelector(".id")?.textContent ?? row.querySelector(".name").textContent)""")

    def requests(self) -> set[str]:
        """What pages asked for since the last call, and the policy let through; the browser's own pages left out."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        events = [(m["method"], m["params"]) for m in messages]
        blocked = {
            event["requestId"]
            for method, event in events
            if method == "Network.loadingFailed" and event.get("blockedReason") == "csp"
        }
        urls = {
            event["request"]["url"]
            for method, event in events
            if method == "Network.requestWillBeSent" and event["requestId"] not in blocked
        }
        return {url for url in urls if not url.startswith(("about:", "chrome:"))}

    def errors(self) -> list[Any]:
        return [entry for entry in self.driver.get_log("browser") if entry["level"] != "INFO"]
