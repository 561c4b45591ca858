"""README's first lines as they stand there, and a generation under HiMAP: their numbers (`-m kit.ten_lines README.md`).

It needs the package, the README and recorded.py beside it, so it runs where the repository is not.
"""

import contextlib
import json
import runpy
import sys
import tempfile
from pathlib import Path

from kit.recorded import recorded


def ten_lines(readme):
    """The numbers that the lines leave behind, and the ids that nano writes under HiMAP."""
    code = readme.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # the lines write a figure
        script = Path(folder) / "readme.py"  # nnsight reads the lines of a trace from their file
        script.write_text(code, encoding="utf-8")
        lines = runpy.run_path(str(script))
        assert Path("flow.png").stat().st_size > 10_000
    mmf, graph, prompt = lines["mmf"], lines["graph"], lines["prompt"]
    flow = lines["result"].to_frame()
    means = flow.groupby(["edge", "window", "layer"], as_index=False)[["probability", "log_probability_change"]].mean()
    length = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    written = {}
    for name, patterns in {"plain": (), "HiMAP": (mmf.HiMAP(k1=2, k2=4),)}.items():
        with graph.generate(prompt, *patterns, **length, return_dict_in_generate=True, output_logits=True) as tracer:
            result = tracer.result.save()
        written[name] = {"ids": result.sequences[0], "logits": [one[0] for one in result.logits]}
    return {
        "spans": str(prompt.spans).splitlines(),
        "logits": lines["logits"][0, -1],
        "answers": flow.drop_duplicates("prompt")[["prompt", "prediction", "base_probability"]],
        "flow": means,
        "generation": written,
    }


if __name__ == "__main__":
    print(json.dumps(recorded(ten_lines(Path(sys.argv[1])))))  # noqa: T201
