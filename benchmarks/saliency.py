"""The peak memory of saliency against one forward and backward, each in a process of its own.

Run: python benchmarks/saliency.py [--shape small] [--dtype float32] [--attention sdpa] [--json FILE]

A forward and backward here is what training does: the loss of the last position, gradients of all weights not kept.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

from processes import each_in_a_process

WHAT = ("model", "forward and backward", "saliency")


def peak(given: argparse.Namespace) -> None:
    """Prints the peak size of this process, in MB, and the seconds of the second run."""
    import numpy as np
    import torch
    from shapes import SHAPES, build, question

    import nnsight_mmflow as mmf

    torch.set_num_threads(given.threads)
    model, processor = build(SHAPES[given.shape], getattr(torch, given.dtype), "cpu", given.attention)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    graph = mmf.adapt(model, processor)
    image = np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    prompt = graph.prompt(image, question(), "w7")
    started = time.perf_counter()
    for _ in range(2 if given.only != "model" else 0):
        started = time.perf_counter()
        if given.only == "saliency":
            mmf.saliency(graph, prompt, progress=False)
        else:
            hidden = []

            def leaf(module, inputs, hidden=hidden):
                hidden.append(inputs[0].detach().requires_grad_(True))
                return (hidden[-1], *inputs[1:])

            hook = graph.layers[0]._module.register_forward_pre_hook(leaf)
            loss = -model(**graph.checked(prompt), use_cache=False, logits_to_keep=1).logits[0, -1].log_softmax(-1)[7]
            torch.autograd.grad(loss, hidden)
            hook.remove()
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({"peak_mb": size, "seconds": time.perf_counter() - started}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="small")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=WHAT)
    parser.add_argument("--json")
    given = parser.parse_args()
    if given.only:
        peak(given)
        return
    found = each_in_a_process(__file__, WHAT)
    base = found["model"]["peak_mb"]
    one, other = (found[what]["peak_mb"] - base for what in WHAT[1:])
    found["ratio"] = {
        "memory beside the model": other / one,
        "seconds": found[WHAT[2]]["seconds"] / found[WHAT[1]]["seconds"],
    }
    print(json.dumps({"date": time.strftime("%Y-%m-%d"), **vars(given), **found}, indent=2))
    if given.json:
        with open(given.json, "w") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
