"""Chromium for tests of pages: one per test process, driven by playwright."""

import contextlib
import os
import shutil

import pytest

REQUIRED = "ALIGNDISTIL_CHROMIUM"
"""Environment variable: `required` makes tests fail, not skip, where there is no Chromium."""
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 400, "height": 800}


@contextlib.contextmanager
def chromium():
    """A headless Chromium. Skips the test where there is none, unless it is required."""
    path = shutil.which("chromium")
    if path is None:
        (pytest.fail if os.environ.get(REQUIRED) == "required" else pytest.skip)("there is no chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page that is open and ready: `page` of playwright, and what went wrong or over the network since."""

    def __init__(self, browser, file, fragment="", *, size=WIDE, scheme="light"):
        self.context = browser.new_context(viewport=size, color_scheme=scheme)
        self.page = self.context.new_page()
        self.errors, self.requests = [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"file://{file}{fragment}")
        self.page.wait_for_function("document.documentElement.dataset.ready === 'true'")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def evaluate(self, code, *arguments):
        return self.page.evaluate(code, *arguments)
