"""The README and the notebooks run as they stand, and CI runs the README's own command."""

import os
import re
import runpy
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_readme_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # One script, since the second block goes on from the first; a file, since nnsight reads a trace's source.
    (tmp_path / "readme.py").write_text("\n".join(blocks("python")))
    runpy.run_path(str(tmp_path / "readme.py"))
    assert (tmp_path / "flow.png").stat().st_size > 10_000


def test_readme_figure_is_there():
    for image in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / image).is_file(), image


def test_ci_runs_the_printed_test_command():
    """The line that .ci/run takes out of the README is the one a reader copies."""
    script = (ROOT / ".ci" / "run").read_text()
    found = re.search(r"command=\$\((.*)\)\n", script)
    assert found
    taken = subprocess.run(["bash", "-c", found.group(1)], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert taken.strip() == blocks("bash")[1].strip()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    for command in blocks("bash")[:2]:
        assert "-c constraints.txt" in command


def test_the_page_on_own_patterns_runs(tmp_path, monkeypatch):
    """As one script, since its blocks go on from one another; they hold their own assertions."""
    monkeypatch.chdir(tmp_path)
    page = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own_patterns.md").read_text(), re.DOTALL)
    assert len(page) == 4
    (tmp_path / "own_patterns.py").write_text("\n".join(page))
    runpy.run_path(str(tmp_path / "own_patterns.py"))


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WITHOUT_FIGURES = ("07_your_own_model",)
LARGEST = 500_000  # bytes of a committed notebook, outputs and all
SECONDS = 120  # for a cell


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def texts(notebook):
    return "".join(output.get("text", "") for output in outputs(notebook))


def figures(notebook):
    return [output for output in outputs(notebook) if "image/png" in output.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_there_and_small(path):
    assert path.stat().st_size < LARGEST
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run once, from top to bottom"
    assert figures(notebook) or path.stem in WITHOUT_FIGURES
    assert "Warning" not in texts(notebook)
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert not notebook.metadata.get("widgets")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_numbers_in_prose_are_printed_by_a_cell(path):
    """Percentages and decimals, apart from those that a sign of the text marks as somebody else's."""
    notebook = nbformat.read(path, 4)
    shown = texts(notebook) + "".join(
        "".join(output["data"].get(kind, "") for kind in ("text/plain", "text/html"))
        for output in outputs(notebook)
        if "data" in output
    )
    # As they are printed: 31.7, or .317 for 31.7%.
    printed = {float(found) for found in re.findall(r"\d+\.?\d*", shown)}
    allowed = {round(value * scale, places) for value in printed for scale in (1, 100) for places in range(5)}
    prose = re.sub(
        r"arXiv [\d.]+|`[^`]*`|\]\([^)]*\)|LLaVA-1\.5",
        "",
        "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"),
    )
    told = re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", prose) + re.findall(r"(?<![\w.])(\d+)%", prose)
    assert [number for number in told if float(number) not in allowed] == []


def test_readme_names_every_notebook():
    assert {path.name for path in NOTEBOOKS} == set(re.findall(r"notebooks/(\w+\.ipynb)", README))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path):
    notebook = nbformat.read(path, 4)
    committed = len(figures(notebook))
    # The kernel is another process: what it warns of does not fail this test, what it raises does.
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=where).execute()
    assert len(figures(notebook)) == committed
    assert "Warning" not in texts(notebook)
