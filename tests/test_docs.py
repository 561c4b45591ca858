"""The README and the notebooks run as they stand, and CI runs the README's own command."""

import os
import re
import runpy
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
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


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path):
    notebook = nbformat.read(path, 4)
    # The kernel is another process: what it warns of does not fail this test, what it raises does.
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 3
    assert not [output for output in shown if output.get("name") == "stderr" and "Warning" in output.get("text", "")]
