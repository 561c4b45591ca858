"""The checks of one key in one type, on a server that runs: `python checks.py MODEL TYPE KEY [CHECK ...]`.

main.py starts it with the environment that it needs. Each check compares what came back with a local run of the same
model in the same type. The server holds nnsight_mmflow nowhere, so all that runs there has travelled.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as on the server: sums are taken in the same order
sys.path.insert(0, str(Path(__file__).parent.parent))

import nnsight  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from kit.catalogue import BY_GRADIENTS, UNTOLD, experiments, patterns, prompts  # noqa: E402
from nnsight.schema.config import CONFIG  # noqa: E402
from PIL import Image  # noqa: E402

import nnsight_mmflow as mmf  # noqa: E402
from nnsight_mmflow.remote.ready import READY  # noqa: E402

nnsight.register("catalogue")  # as a user's own module would: it does not lie on the server's path
torch.set_num_threads(1)
CONFIG.APP.REMOTE_LOGGING = False
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
WHOLE = {**GREEDY, "output_logits": True, "return_dict_in_generate": True}
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.0}  # of logits, probabilities, shares and changes in percent
PICTURES = 64
EDITED = {
    "float32": 1e-5,
    "bfloat16": 1e-2,
}  # here an edited weight is rounded, there its change is added to the output


def apart_by(one, other):
    """The largest difference of two results; what is no number must be the same."""
    assert one.keys() == other.keys(), f"{sorted(one)} here, {sorted(other)} there"
    largest = 0.0
    for name in one:
        here, there = (torch.as_tensor(value).double() for value in (one[name], other[name]))
        assert here.shape == there.shape, f"{name}: {tuple(here.shape)} here, {tuple(there.shape)} there"
        assert torch.equal(here.isfinite(), there.isfinite()), f"{name}: other numbers are not finite"
        finite = here.isfinite()
        if finite.any():
            largest = max(largest, float((here - there)[finite].abs().max()))
    return largest


def numbers(result):
    """All the numbers that a result holds, by name; its words become numbers too."""
    if isinstance(result, list):  # the tokens that a method kept, by layer
        return {f"layer {layer}": kept for layer, kept in enumerate(result)}
    frame, found = result.to_frame(), {}
    for name in frame:
        column = frame[name]
        words = column.dtype.kind not in "fiub"
        found[name] = [word_number(one) for one in column] if words else column.to_numpy(dtype=float, copy=True)
    return found


def word_number(word):
    """A number that tells words apart, and is the same in every process."""
    return float(int.from_bytes(str(word).encode()) % 1_000_003)


class Checks:
    """Of one key in one type."""

    def __init__(self, model, kind, key, folder):
        self.key, self.model, self.folder = key, model, Path(folder)
        self.here = mmf.load("nano", dtype=getattr(torch, kind))
        self.there = mmf.load(model, remote=True).at(True, trusted=key == "trusted")
        self.prompts = prompts(self.here)

    def all(self):
        """The checks by name, each a function that returns a largest difference or nothing."""
        found = {}
        every = patterns(self.prompts[1])
        for name, pattern in every.items():
            if getattr(pattern, "when", "prefill") == "prefill":  # a trace is one forward
                found[f"traces: {name}"] = partial(self.trace, pattern)
        for name, pattern in every.items():
            found[f"generations: {name}"] = partial(self.generation, pattern)
        on = (self.here, self.there)
        here, there = (experiments(graph, self.here, self.prompts) for graph in on)
        for name in there:
            if self.key == "ordinary" and name.split(" by ")[0] in BY_GRADIENTS:
                found[f"refused: {name}"] = partial(self.refused, there[name])
            else:
                found[f"experiments: {name}"] = partial(self.experiment, here[name], there[name])
        found["client: it has travelled"] = self.travelled
        found["client: mmflow check --remote"] = self.command
        found["client: a job, fetched later"] = self.job
        found["client: a result of 48 MB"] = self.large
        found[f"client: {PICTURES} pictures at once"] = self.pictures
        for name, key in {"unknown": "0d1f0000-0000-4000-8000-00000000dead", "malformed": "abc", "no": None}.items():
            found[f"client: {name} key"] = partial(self.bad_key, key)
        return found

    def trace(self, pattern):
        found = []
        for graph in (self.here, self.there):
            with torch.no_grad(), graph.trace(self.prompts[0], pattern, use_cache=False):
                logits = graph.unembed.output[0, -1].detach().save()
            found.append({"logits": logits.float()})
        return apart_by(*found)

    def generation(self, pattern):
        found = []
        for graph in (self.here, self.there):
            with torch.no_grad(), graph.generate(self.prompts[0], pattern, **WHOLE) as tracer:
                ids = tracer.result.sequences.save()
                logits = torch.stack(tracer.result.logits).save()
            found.append({"ids": ids[:, -4:], "logits": logits.float()})
        return apart_by(*found)

    def experiment(self, here, there):
        sent = self.there.traffic.requests
        one, other = numbers(here()), numbers(there())
        assert self.there.traffic.requests > sent, "nothing was sent to the server"
        return apart_by(one, other)

    def refused(self, there):
        sent = self.there.traffic.requests
        told = raised(mmf.ModelError, there)
        assert "found by gradients" in told, told
        assert self.there.traffic.requests == sent, "it was refused after something had been sent"

    def travelled(self):
        """Neither the model's process nor the one beside it can import what runs there."""
        graph = self.there
        with torch.no_grad(), graph.trace(self.prompts[0], use_cache=False):
            from importlib.util import find_spec  # here: modules do not travel

            found = []
            for name in ("nnsight_mmflow", "jaxtyping", "catalogue"):
                if find_spec(name) is not None:
                    found.append(name)
            can_import = nnsight.save(found)
            graph.unembed.output.save()
        assert can_import == [], f"the server can import {can_import}"

    def command(self):
        from nnsight_mmflow.command_line import main

        with contextlib.redirect_stdout(io.StringIO()) as said:
            code = main(["check", self.model, "--remote"])
        assert code == 0, said.getvalue()

    def job(self):
        asked = {"prompts": self.prompts, "window": 3, "only_correct": False, **UNTOLD}
        job = mmf.flow(self.there, folder=self.folder, blocking=False, **asked)
        return apart_by(numbers(mmf.flow(self.here, **asked)), numbers(job.result(every=0.5, timeout=300)))

    def large(self):
        found = []
        for graph in (self.here, self.there):
            with torch.no_grad(), graph.trace(self.prompts[0], use_cache=False):
                one = graph.layers[3].output[0, -1, 0].float()
                many = torch.randn(12_000_000, generator=torch.Generator().manual_seed(0))  # packs badly
                values = (one * many).save()
            found.append({"values": values})
        return apart_by(*found)

    def pictures(self):
        """Pictures that pack badly: in their smallest exact form under 1 MiB, as floats 3 MB."""
        drawn = np.random.default_rng(0).integers(0, 256, (PICTURES, 64, 64, 3), dtype=np.uint8)
        batch = self.here.batch([self.here.prompt(Image.fromarray(one), "what is this ?") for one in drawn])
        found = []
        for graph in (self.here, self.there):
            with torch.no_grad(), graph.trace(batch, use_cache=False):
                logits = graph.unembed.output[:, -1].detach().save()
            found.append({"logits": logits.float()})
        return apart_by(*found)

    def bad_key(self, key):
        kept, CONFIG.API.APIKEY = CONFIG.API.APIKEY, key
        try:
            told = raised(mmf.ServerError, lambda: mmf.lens(self.there, self.prompts, **UNTOLD))
        finally:
            CONFIG.API.APIKEY = kept
            READY.clear()
        assert "API key" in told, told
        assert key is None or key not in told, "the error holds the key"


def raised(kind, run):
    """The words of the error that `run` must end with."""
    try:
        run()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__} was raised")


def one_check(check, tolerance):
    """What came of a check: why it failed ("" where it did not), the difference, seconds."""
    before, difference = time.time(), None
    try:
        difference = check()
        failed = "" if difference is None or difference <= tolerance else f"differs by {difference:.1e}"
    except Exception as error:  # the table wants all of them
        traceback.print_exc()
        failed = f"{type(error).__name__}: {error}"
    return {"failed": failed[:1500], "difference": difference, "seconds": round(time.time() - before, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("kind", choices=TOLERANCES)
    parser.add_argument("key", choices=("ordinary", "trusted"))
    parser.add_argument("only", nargs="*", metavar="CHECK")
    parser.add_argument("--write", type=Path, help="a file for what was found, as JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checks = Checks(given.model, given.kind, given.key, folder).all()
        chosen = [name for name in checks if not given.only or any(part in name for part in given.only)]
        found = {name: {"failed": "was not run", "seconds": 0} for name in chosen}
        for name, check in ((name, checks[name]) for name in chosen):
            row = found[name] = one_check(check, (EDITED if ": edit" in name else TOLERANCES)[given.kind])
            said = row["failed"].replace("\n", " ")[:300] or (
                "" if row["difference"] is None else f"largest difference {row['difference']:.1e}"
            )
            outcome = "failed" if row["failed"] else "passed"
            print(f"{outcome}  {given.kind:8} {given.key:8} {name:45} {row['seconds']:6.1f} s  {said}", flush=True)
            if given.write:
                given.write.write_text(json.dumps(found))
    return int(any(row["failed"] for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
