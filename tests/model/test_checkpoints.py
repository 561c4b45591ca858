"""Checkpoints that are not whole, of no known family, or not of their processor are refused in words."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from kit import families
from kit.tiny import tiny_model, tiny_processor
from safetensors.torch import load_file, save_file

import nnsight_mmflow as mmf
from nnsight_mmflow.model import checkpoints, load
from nnsight_mmflow.model.token_counts import check_counts_of

WEIGHTS = "model.safetensors"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n"
ANNEX = b"/annex/objects/MD5E-s858440--4d7a2146.safetensors\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The same model in one file, in shards, and as torch's own file."""
    base = tmp_path_factory.mktemp("checkpoints")
    model, processor = tiny_model(n_layers=2), tiny_processor()
    for name, size in (("whole", "5GB"), ("shards", "100kB")):
        model.save_pretrained(base / name, max_shard_size=size)
        processor.save_pretrained(base / name)
    shutil.copytree(base / "whole", base / "torch")
    (base / "torch" / WEIGHTS).unlink()
    torch.save(model.state_dict(), base / "torch" / "pytorch_model.bin")
    return base


def tensors(change):
    """Changes the tensors of the file."""

    def made(folder):
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file(held, folder / WEIGHTS, {"format": "pt"})

    return made


def written(file, content):
    return lambda folder: (folder / file).write_bytes(content(folder) if callable(content) else content)


def cut(file, by):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:by])


def fields(file, **changed):
    """Changes fields of a JSON file."""

    def made(folder):
        (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **changed}))

    return made


def linked(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("../.git/annex/objects/aa/bb/x.safetensors")


def first_shard(folder):
    return sorted(folder.glob("model-*.safetensors"))[0]


def only(*kept):
    def made(folder):
        for path in folder.iterdir():
            if path.name not in kept:
                path.unlink()

    return made


def renamed_in_index(folder):
    """An index that names a tensor which no shard holds, and does not name the one that it replaces."""
    shard = first_shard(folder)
    held = load_file(shard)
    held.pop(next(iter(held)))
    save_file(held, shard, {"format": "pt"})


GATE = "language_model.model.layers.0.mlp.gate_proj.weight"
FIRST = "language_model.model.embed_tokens.weight"
BROKEN = {  # name: (which checkpoint, what happens to it, what load is given, what is said)
    "lacks one tensor": (
        "whole",
        tensors(lambda held: held.pop(GATE)),
        {},
        "lacks 1 tensor.*would be random.*gate_proj",
    ),
    "lacks the embedding": ("whole", tensors(lambda held: held.pop(FIRST)), {}, "lacks 1 tensor.*embed_tokens"),
    "lacks the unembedding": ("whole", tensors(lambda held: held.pop("language_model.lm_head.weight")), {}, "lm_head"),
    "lacks the tower": (
        "whole",
        tensors(lambda held: [held.pop(name) for name in list(held) if name.startswith("vision")]),
        {},
        "lacks .*vision_tower.* and [0-9]+ more",
    ),
    "lacks everything": ("whole", tensors(lambda held: held.clear()), {}, "lacks [0-9]+ tensor"),
    "another shape": (
        "whole",
        tensors(lambda held: held.update({GATE: torch.zeros(3, 3)})),
        {},
        r"gate_proj.*\(3, 3\)",
    ),
    "NaN": ("whole", tensors(lambda held: held[GATE][0].fill_(float("nan"))), {}, "hold NaN or infinite.*gate_proj"),
    "one NaN": ("whole", tensors(lambda held: held[FIRST].view(-1)[-1].fill_(float("nan"))), {}, "NaN.*embed_tokens"),
    "infinity": ("whole", tensors(lambda held: held[GATE][0].fill_(float("-inf"))), {}, "NaN or infinite.*gate_proj"),
    "empty": ("whole", written(WEIGHTS, b""), {}, f"{WEIGHTS} is empty"),
    "seven bytes": ("whole", written(WEIGHTS, b"\x08\0\0\0\0\0\0"), {}, "is no safetensors file"),
    "no safetensors": (
        "whole",
        written(WEIGHTS, b"hello, this is a text of some length"),
        {},
        "is no safetensors file",
    ),
    "header of another": ("whole", written(WEIGHTS, b"\x05\0\0\0\0\0\0\0hello"), {}, "has no readable header"),
    "cut at the end": ("whole", cut(WEIGHTS, -1), {}, r"is cut: \d+ bytes of \d+"),
    "cut in the middle": ("whole", cut(WEIGHTS, 100_000), {}, "is cut: 100000 bytes of"),
    "cut in the header": ("whole", cut(WEIGHTS, 100), {}, "is cut: 100 bytes of at least"),
    "too long": ("whole", written(WEIGHTS, lambda at: (at / WEIGHTS).read_bytes() + b"xx"), {}, "2 bytes too many"),
    "git LFS": ("whole", written(WEIGHTS, LFS), {}, "is a pointer of .*git lfs pull"),
    "git-annex": ("whole", written(WEIGHTS, ANNEX), {}, "is a pointer of .*git annex get"),
    "git-annex link": ("whole", linked, {}, "is a pointer, not the file .*git annex get"),
    "no weights": ("whole", lambda at: (at / WEIGHTS).unlink(), {}, "holds no weights"),
    "a shard is missing": ("shards", lambda at: first_shard(at).unlink(), {}, "model-00001-.* missing, which .*index"),
    "a shard is cut": ("shards", lambda at: cut(first_shard(at).name, -8)(at), {}, "model-00001-.* is cut"),
    "a shard is a pointer": ("shards", lambda at: first_shard(at).write_bytes(LFS), {}, "model-00001-.* is a pointer"),
    "an index names what is not there": ("shards", renamed_in_index, {}, "lacks 1 tensor"),
    "the index is cut": ("shards", written("model.safetensors.index.json", b"{"), {}, "index.json cannot be read"),
    "the index is a pointer": ("shards", written("model.safetensors.index.json", LFS), {}, "index.json is a pointer"),
    "torch: empty": ("torch", written("pytorch_model.bin", b""), {}, "pytorch_model.bin is empty"),
    "torch: pointer": ("torch", written("pytorch_model.bin", LFS), {}, "pytorch_model.bin is a pointer"),
    "torch: cut": ("torch", cut("pytorch_model.bin", 5000), {}, "no model can be loaded"),
    "torch: a program": (
        "torch",
        written("pytorch_model.bin", b"\x80\x04cos\nsystem\n."),
        {},
        "no model can be loaded",
    ),
    "config is no JSON": ("whole", written("config.json", b"{"), {}, "configuration of .* cannot be read"),
    "config is a pointer": ("whole", written("config.json", LFS), {}, "config.json is a pointer"),
    "config is empty": ("whole", written("config.json", b""), {}, "config.json is empty"),
    "config of nothing": ("whole", written("config.json", b"{}"), {}, "configuration of .* cannot be read"),
    "config is gone": ("whole", lambda at: (at / "config.json").unlink(), {}, "config.json"),
    "no processor": ("whole", only("config.json", WEIGHTS), {}, "no processor can be loaded"),
    "processor is no JSON": ("whole", written("processor_config.json", b"{"), {}, "no processor can be loaded"),
    "tokenizer is a pointer": ("whole", written("tokenizer.json", LFS), {}, "tokenizer.json is a pointer"),
    "tokenizer is cut": ("whole", cut("tokenizer.json", 500), {}, "no processor can be loaded"),
    "number type": ("whole", lambda at: None, {"dtype": "float99"}, "dtype='float99' .* is no number type"),
    "no CUDA": ("whole", lambda at: None, {"device": "cuda"}, "device='cuda': there is no CUDA here"),
    "no CUDA by map": ("whole", lambda at: None, {"device_map": "cuda:0"}, "there is no CUDA here"),
    "no CUDA by layers": ("whole", lambda at: None, {"device_map": {"": "cuda:0"}}, "CUDA"),
    "no GPU of that number": ("whole", lambda at: None, {"device": 3}, "device=3: numbers name GPUs"),
    "no device": ("whole", lambda at: None, {"device": "gpu"}, "device='gpu' is no device"),
    "no attention": ("whole", lambda at: None, {"attn_implementation": "fast"}, "no model can be loaded"),
    "no setting": ("whole", lambda at: None, {"nosuch": 1}, "nosuch"),
    "no bitsandbytes": ("whole", lambda at: None, {"dtype": "nf4"}, "bitsandbytes"),
    "patch size": ("whole", fields("processor_config.json", patch_size=16), {}, "does not fit.*larger patch_size"),
    "class token": (
        "whole",
        fields("processor_config.json", vision_feature_select_strategy="full"),
        {},
        "does not fit the model: 65 image tokens in the prompt, 64 features .*class token",
    ),
    "additional tokens": ("whole", fields("processor_config.json", num_additional_image_tokens=4), {}, "does not fit"),
}
CUDA = [name for name in BROKEN if "CUDA" in name or "GPU" in name]


def refused(saved, tmp_path, name):
    """None if it is refused in the words that are wanted, else what came."""
    which, change, given, wanted = BROKEN[name]
    folder = tmp_path / name.replace(" ", "_").replace(":", "")
    shutil.copytree(saved / which, folder)
    change(folder)
    try:
        mmf.load(str(folder), **given)
    except mmf.ModelError as error:
        return None if re.search(wanted, str(error), re.DOTALL) else f"{name}: {error!s:.300}"
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error!s:.200}"
    return f"{name}: was loaded"


def test_broken_checkpoints_are_refused_in_words(saved, tmp_path):
    rows = [name for name in BROKEN if not (name in CUDA and torch.cuda.is_available())]
    failed = [told for name in rows if (told := refused(saved, tmp_path, name))]
    assert len(rows) > 45
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("which", ["whole", "shards", "torch"])
def test_whole_ones_are_loaded_and_are_the_model(saved, which):
    graph = mmf.load(str(saved / which))
    held = tiny_model(n_layers=2).state_dict()
    for name, weight in graph.adapter.model.state_dict().items():
        assert torch.equal(weight, held[name]), name


def test_the_table_can_fail(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(load, "check_loaded", lambda *given: None)
    monkeypatch.setattr(load, "check_files", lambda *given: None)
    monkeypatch.setattr(load, "check_counts_of", lambda *given: None)
    monkeypatch.setattr(checkpoints, "damage", lambda files: "")
    names = ["lacks one tensor", "lacks the tower", "NaN", "infinity", "empty", "git LFS", "patch size", "class token"]
    failed = [told for name in names if (told := refused(saved, tmp_path, name))]
    assert len(failed) == len(names)
    assert sum("was loaded" in one for one in failed) == 6


NO_ADAPTER = [
    ("llama", "LlamaForCausalLM"),
    ("gpt2", "GPT2LMHeadModel"),
    ("blip-2", "Blip2ForConditionalGeneration"),
    ("instructblip", "InstructBlipForConditionalGeneration"),
    ("clip", "CLIPModel"),
]


@pytest.mark.parametrize(("kind", "name"), NO_ADAPTER)
@pytest.mark.parametrize("given", [{}, {"dispatch": False}, {"remote": True}], ids=["here", "empty", "remote"])
def test_a_family_without_adapter_is_refused_by_its_config_alone(tmp_path, kind, name, given):
    """No weights are there to be read, nor a processor."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "architectures": [name]}))
    with pytest.raises(mmf.ModelError, match=f"there is no adapter for {name}; there are adapters for Llava"):
        mmf.load(str(tmp_path), **given)


@pytest.mark.parametrize("given", [{}, {"dispatch": False}, {"remote": True}], ids=["here", "empty", "remote"])
def test_settings_that_no_adapter_handles_are_told_before_weights_are_read(saved, tmp_path, given):
    folder = tmp_path / "odd"
    shutil.copytree(saved / "whole", folder)
    (folder / WEIGHTS).unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_interleaving_of_somebody": 3}))
    with pytest.raises(mmf.ModelError, match="rope_interleaving_of_somebody = 3"):
        mmf.load(str(folder), **given)


def test_a_broken_checkpoint_is_no_obstacle_where_its_weights_are_not_read(saved, tmp_path):
    shutil.copytree(saved / "whole", tmp_path / "empty")
    (tmp_path / "empty" / WEIGHTS).unlink()
    assert mmf.load(str(tmp_path / "empty"), dispatch=False).n_layers == 2


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_takes_its_own_processor_and_no_others(name):
    model, processor = families.FAMILIES[name]()
    graph = mmf.adapt(model, processor)
    check_counts_of(graph.adapter)
    subclass = type("MyOwn", (type(processor),), {})
    mine = object.__new__(subclass)
    vars(mine).update(vars(processor))
    assert mmf.adapt(model, mine).processor is mine
    kind = next(cls.__name__ for cls in type(processor).__mro__ if cls.__module__.startswith("transformers"))
    others = [families.llava_next()[1], families.qwen2_vl()[1], families.idefics3()[1], tiny_processor()]
    for other in others:
        wrong = next(cls.__name__ for cls in type(other).__mro__ if cls.__module__.startswith("transformers"))
        if wrong != kind:
            told = f"the processor is a {wrong}, but .* are read with a .*{kind}|the processor's image token"
            with pytest.raises(mmf.ModelError, match=told):
                mmf.adapt(model, other)


def test_a_processor_with_another_image_token_is_refused():
    model, processor = tiny_model(n_layers=2), tiny_processor()
    model.config.image_token_index = model.config.image_token_id = 3
    with pytest.raises(mmf.ModelError, match=r"image token '<image>' has the id \d+, the model puts .* at the id 3"):
        mmf.adapt(model, processor)


def test_weights_of_ones_own_that_are_nan_are_refused():
    model = tiny_model(n_layers=2)
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(mmf.ModelError, match="hold NaN or infinite numbers: .*layers.1.mlp.up_proj.weight"):
        mmf.adapt(model, tiny_processor())


def test_the_report_of_transformers_is_where_it_is_listened_to():
    """Fails when transformers moves it: then `weights_of` hears nothing."""
    from transformers import modeling_utils

    assert "log_state_dict_report(" in Path(modeling_utils.__file__).read_text()
    before = modeling_utils.log_state_dict_report
    with checkpoints.weights_of("nowhere"):
        assert modeling_utils.log_state_dict_report is not before
    assert modeling_utils.log_state_dict_report is before
