"""What `mmf.load` is given reaches nnsight as it is: types, quantised weights, models split over processes."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kit import tensor_parallel
from kit.tiny import picture, tiny_graph, tiny_model, tiny_processor

import nnsight_mmflow as mmf
from nnsight_mmflow.model import load as _load
from nnsight_mmflow.runs.plan import sizes_of

HERE = Path(__file__).parents[1]
QUESTION = "is the circle red or blue ?"


@pytest.mark.parametrize(
    "given",
    [
        {"dtype": "nf4"},
        {"dtype": "int8", "device_map": "auto"},
        {"quantization_config": SimpleNamespace(load_in_4bit=True), "device_map": {"": "cuda:1"}},
        {"distributed_config": SimpleNamespace(tp_size=2)},
        {"tp_plan": {"model.language_model.layers.*.mlp.up_proj": "colwise"}},
    ],
    ids=lambda given: "+".join(given),
)
def test_settings_reach_nnsight_untouched(monkeypatch, given):
    came = {}

    def recorded(name, **kwargs):
        came.update(kwargs)
        raise OSError("recorded")

    monkeypatch.setattr(_load, "TransformersModel", recorded)
    with pytest.raises(mmf.ModelError, match="recorded"):
        mmf.load("nano", **given)
    assert {name: came[name] for name in given} == given
    assert all(came[name] is value for name, value in given.items())
    assert set(came) == {*given, "task", "processor", "dispatch"}


def test_a_model_in_bfloat16_is_one():
    graph = mmf.load("nano", dtype="bfloat16")
    assert {weight.dtype for weight in graph.adapter.model.parameters()} == {torch.bfloat16}
    prompt = mmf.nano.prompts(graph, 1)[0]
    result = mmf.flow(graph, prompt, ["image->last"], 3, only_correct=False, progress=False, report=str)
    assert result.to_frame()["change_percent"].abs().max() > 1


class Packed(torch.nn.Linear):
    """A linear module whose weight is kept as bitsandbytes keeps 4 bits: a column of bytes, two numbers each."""

    def __init__(self, whole):
        super().__init__(whole.in_features, whole.out_features, bias=whole.bias is not None, device="meta")
        self.bias = whole.bias
        self.scale = whole.weight.detach().abs().max() / 7
        numbers = (whole.weight.detach() / self.scale).round().to(torch.int8).flatten() + 8
        packed = (numbers[::2] * 16 + numbers[1::2]).to(torch.uint8)[:, None]
        self.weight = torch.nn.Parameter(packed, requires_grad=False)

    def unpacked(self):
        both = torch.stack([self.weight // 16, self.weight % 16], -1).flatten().float() - 8
        return both.view(self.out_features, self.in_features) * self.scale

    def forward(self, hidden):
        return torch.nn.functional.linear(hidden, self.unpacked(), self.bias)


def packed_and_unpacked():
    """The same model twice: weights packed, and the numbers that they stand for as ordinary weights."""
    packed, plain = tiny_model(), tiny_model()
    for name, module in list(packed.model.language_model.layers.named_modules()):
        if type(module) is torch.nn.Linear:
            small = Packed(module)
            packed.model.language_model.layers.set_submodule(name, small)
            plain.model.language_model.layers.get_submodule(name).weight.data.copy_(small.unpacked())
    return (mmf.adapt(model, tiny_processor()) for model in (packed, plain))


def test_packed_weights_change_no_size_and_no_knockout():
    packed, plain = packed_and_unpacked()
    assert packed.attention_out(0)._module.weight.shape == (64 * 64 // 2, 1)
    assert packed.head_width == plain.head_width == tiny_graph().head_width == 16
    prompts = [graph.prompt(picture(0), QUESTION, "red") for graph in (packed, plain)]
    assert sizes_of(packed, prompts[0]) == sizes_of(plain, prompts[1])
    blocked = mmf.Knockout(source="image", target="last", layers=range(5), heads=(0, 2))
    seen = []
    for graph, prompt in zip((packed, plain), prompts, strict=True):
        with torch.no_grad(), graph.trace(prompt, blocked):
            seen.append(graph.unembed.output[0, -1].save())
        with torch.no_grad(), graph.trace(prompt):
            base = graph.unembed.output[0, -1].save()
        assert (seen[-1] - base).abs().max() > 0.1
    assert torch.equal(*seen)
    asked = {"edges": ["image->last"], "window": 1, "only_correct": False, "progress": False, "report": str}
    tables = [
        mmf.flow(graph, prompt, **asked).to_frame() for graph, prompt in zip((packed, plain), prompts, strict=True)
    ]
    assert tables[0].equals(tables[1])


@pytest.mark.slow
def test_a_model_split_over_two_processes_gives_the_same_knockouts(tmp_path, monkeypatch):
    """Tensor parallel as nnsight has it, on CPU: two processes that talk by gloo; the whole model is in this one."""
    where = {**os.environ, "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    script = [str(HERE / "kit" / "tensor_parallel.py")]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    monkeypatch.setattr(sys, "argv", [*script, str(tmp_path / "whole")])
    tensor_parallel.main()
    command = [sys.executable, *launch, *script, str(tmp_path / "split")]
    done = subprocess.run(command, env=where, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    whole, split = (json.loads((tmp_path / name).read_text()) for name in ("whole", "split"))
    for what in ("plain", "closed", "flow"):
        # two processes add in another order
        assert torch.tensor(split[what]) == pytest.approx(torch.tensor(whole[what]), abs=1e-5), what
    assert (torch.tensor(whole["closed"]) - torch.tensor(whole["plain"])).abs().max() > 0.1
    assert split["held"] < 0.6 * whole["held"], "each process holds a part, or nothing was tested"
    assert split["head_width"] == whole["head_width"]
    assert "refused" not in whole
    assert all("the model is split over 2 processes" in text for text in split["refused"])
    assert len(split["refused"]) == 3


def test_the_shim_for_split_models_is_still_needed():
    """Fails when nnsight finds the function by itself: then `_split.make_ready` can go."""
    from nnsight.modeling.tp import fragments

    assert version("nnsight") == "0.8.1"
    assert (
        "from transformers.distributed.tensor_parallel import _get_parameter_plan"
        in Path(fragments.__file__).read_text()
    )
