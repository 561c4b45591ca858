"""Nothing of ours unpickles or evaluates what comes from a disk or a net; results are parquet, JSON and safetensors."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("nnsight_mmflow", "adapters", "patterns") for path in (ROOT / folder).rglob("*.py")]
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "torch.load", "np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle", "compile"}
KEYS = {"APIKEY", "api_key"}
READY = ROOT / "nnsight_mmflow" / "remote" / "ready.py"


def dangers(text: str) -> list[str]:
    """What of a source unpickles, evaluates, or hands an API key on."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [f"imports {alias.name}" for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(f"imports {node.module}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
            if any(given.arg == "weights_only" and ast.unparse(given.value) == "True" for given in node.keywords):
                continue  # torch's own loader of tensors and plain numbers
            found.append(f"calls {ast.unparse(node.func)}")
        elif isinstance(node, ast.Attribute) and node.attr in KEYS:
            found.append(f"reads {node.attr}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_unpickles_nothing(path):
    allowed = ["reads APIKEY"] * 2 if path == READY else []  # whether there is one; never its value
    assert dangers(path.read_text()) == allowed


@pytest.mark.parametrize(
    "text", ["import pickle", "from joblib import load", "torch.load('x')", "eval(text)", "print(CONFIG.API.APIKEY)"]
)
def test_what_would_is_found(text):
    assert dangers(text)


def test_the_key_is_only_asked_for():
    """In both places the key is turned into whether there is one."""
    text = READY.read_text()
    assert text.count("CONFIG.API.APIKEY") == 2
    assert "if not CONFIG.API.APIKEY:" in text
    assert "return bool(CONFIG.API.APIKEY)" in text


def test_the_stand_in_listens_on_loopback_alone():
    assert 'uvicorn.run(app, host="127.0.0.1"' in (ROOT / "tests" / "kit" / "ndif_server.py").read_text()
