"""Pages: one document each, safe against any token, and nothing is fetched."""

import numpy as np
import pytest
from kit.browsing import opened

from nnsight_mmflow._page import Page

EVIL = "</script><script>document.title = 'taken'</script>"
SCRIPT = """
told.textContent = page.data.word
sum.textContent = (await page.bytes("numbers")).reduce((a, b) => a + b, 0)
"""
BODY = "<p id='told'></p><p id='sum'></p>"


@pytest.fixture
def page():
    return Page("a page", BODY, SCRIPT, data={"word": EVIL}, arrays={"numbers": np.arange(200, dtype=np.uint8)})


@pytest.mark.browser
def test_a_page_draws_itself_and_holds_any_token(chromium, page, tmp_path):
    with opened(chromium, page.save(tmp_path / "page.html")) as tab:
        assert tab.title() == "a page"
        assert tab.text_content("#told") == EVIL
        assert tab.text_content("#sum") == str(sum(range(200)))


@pytest.mark.browser
def test_a_notebook_shows_it_in_a_frame_of_its_height(chromium, page, tmp_path):
    shown = "<!doctype html><html data-ready='yes'><body>" + page._repr_html_() + "</body></html>"
    (tmp_path / "notebook.html").write_text(shown)
    with opened(chromium, tmp_path / "notebook.html") as tab:
        frame = tab.frame_locator("iframe")
        frame.locator("#sum", has_text="19900").wait_for()
        assert 40 < tab.locator("iframe").bounding_box()["height"] < 300


@pytest.mark.browser
def test_a_page_that_fetches_is_noticed(chromium, tmp_path):
    """Planted: the document's own policy refuses it, and the test's net sees it."""
    fetching = Page("fetches", "", "await fetch('http://127.0.0.1:9/x').catch(() => 0)").save(tmp_path / "page.html")
    with pytest.raises(AssertionError, match="Content Security Policy"):
        with opened(chromium, fetching):
            pass


def test_what_a_terminal_shows(page):
    assert repr(page).startswith("Page('a page', ")
    assert len(page.html()) < 5000
