"""A headless Chromium for tests of pages: it notes page errors and requests, and there must be none."""

import contextlib
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def chromium():
    """A browser for a test module's pages."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as made:
        browser = made.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(chromium, file, width=900, height=700):
    """The file in a tab of the browser, drawn; on leaving: no page error, no console error, no other address asked."""
    tab = chromium.new_page(viewport={"width": width, "height": height})
    wrong = []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    own = file.resolve().as_uri()
    tab.on("request", lambda asked: None if asked.url.startswith((own, "data:", "blob:")) else wrong.append(asked.url))
    tab.goto(own)
    # by selector: a string to evaluate would be refused by the page's own policy whenever it is not ready at once
    tab.locator("html[data-ready=yes]").wait_for(state="attached", timeout=20_000)
    yield tab
    assert not wrong, wrong
    tab.close()
