"""A notebook that was run and exported: pages, results and prompts are drawn there as in the notebook itself."""

import nbformat
import pytest
from kit.browsing import opened
from nbclient import NotebookClient
from nbconvert import HTMLExporter

CELLS = (
    """
import nnsight_mmflow as mmf
graph = mmf.load("nano")
prompts = mmf.nano.prompts(graph, 6)
prompts[0]
""",
    "mmf.explore(mmf.attention(graph, prompts[0], layers=[4]))",
    """
result = mmf.flow(graph, prompts, window=1, progress=False, report=str)
result
""",
    "result.explore()",
    "mmf.show.attention(mmf.attention(graph, prompts[0], layers=[4]), layer=4)",
    "mmf.Knockout(source='image', target='last', layers=[4])",
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The notebook's HTML, in nbconvert's form without a viewer's own scripts, which would be fetched."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    file = tmp_path_factory.mktemp("exported") / "notebook.html"
    file.write_text(f"<!doctype html><html data-ready='yes'><meta charset='utf-8'><body>{body}</body></html>")
    return file


@pytest.mark.slow
@pytest.mark.browser
def test_an_exported_notebook_draws_everything(chromium, exported):
    with opened(chromium, exported, height=1200) as tab:
        frames = [tab.frame_locator("iframe").nth(number) for number in range(3)]
        assert tab.locator("iframe").count() == 3
        explorer, diagram, shown = frames
        explorer.locator("html[data-ready=yes]").wait_for()
        assert explorer.locator("canvas").count() >= 3
        before = explorer.locator("#state").inner_text()
        explorer.locator(".frame").click(position={"x": 5, "y": 5})
        assert explorer.locator("#state").inner_text() != before
        diagram.locator("html[data-ready=yes]").wait_for()
        assert diagram.locator("svg path").count() > 3
        shown.locator("html[data-ready=yes]").wait_for()
        shown.locator("canvas").first.wait_for()
        for frame in tab.locator("iframe").all():
            assert frame.bounding_box()["height"] > 200  # each as high as it needs to be
        text = tab.locator("body").inner_text()
        assert "Prompt:" in text
        assert "Knockout" in text
        assert tab.locator("img").count() >= 2  # the prompt's picture, and the result's figure
