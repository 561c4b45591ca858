"""What each of two processes runs in the test of tensor parallelism (torchrun starts it), or one process alone."""

import json
import os
import sys
from pathlib import Path

import torch

import nnsight_mmflow as mmf

torch.set_num_threads(1)


def main():
    given = {}
    if "WORLD_SIZE" in os.environ:
        # LLaVA's configuration publishes no plan, its text model's does: nnsight refuses a distributed_config for it.
        text = mmf.load("nano", dispatch=False).text_config
        given["tp_plan"] = {f"model.language_model.{name}": side for name, side in text.base_model_tp_plan.items()}
    graph = mmf.load("nano", **given)
    prompt = mmf.nano.prompts(graph, 1)[0]
    blocked = mmf.Knockout(source="image", target="last", layers=range(3, 6))
    with torch.no_grad(), graph.trace(prompt):
        plain = graph.unembed.output[0, -1].save()
    with torch.no_grad(), graph.trace(prompt, blocked):
        closed = graph.unembed.output[0, -1].save()
    table = mmf.flow(graph, prompt, ["image->last"], 3, only_correct=False, progress=False, report=str).to_frame()
    found = {
        "plain": plain.tolist(),
        "closed": closed.tolist(),
        "flow": table["log_probability_change"].tolist(),
        "head_width": graph.head_width,
        "held": sum(
            one.to_local().numel() if hasattr(one, "to_local") else one.numel()
            for one in graph.layers._module.parameters()
        ),
    }
    refused = []
    for pattern in (
        mmf.Knockout(source="image", target="last", layers=4, heads=(0,)),
        mmf.HiMAP(k1=3, k2=5),
    ):
        try:
            with torch.no_grad(), graph.trace(prompt, pattern):
                graph.unembed.output.save()
        except mmf.ModelError as error:
            refused.append(str(error))
    if refused:
        try:
            mmf.contributions(graph, prompt, source="image", target="last")
        except mmf.ModelError as error:
            refused.append(str(error))
        found["refused"] = refused
    if os.environ.get("RANK", "0") == "0":
        Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
