"""Every experiment on every family: rows equal forwards, and the lens reads what the model itself would say."""

import pytest
import torch
from kit.families import EAGER_ONLY, FAMILIES, family
from kit.tiny import picture

import nnsight_mmflow as mmf

QUESTION = "is the circle red or blue ?"
QUIET = {"progress": False, "report": str}


def graph_of(name):
    return family(name, "eager" if name in EAGER_ONLY else "sdpa")


def asked(graph):
    boxes = ((10, 10, 40, 40),)
    return graph.prompt(picture(0, 96, 64), QUESTION, "red", options=("red", "blue"), boxes=boxes)


@pytest.mark.parametrize("name", FAMILIES)
def test_flow_with_boxes_and_options(name):
    graph = graph_of(name)
    rows, forward = (
        mmf.flow(graph, asked(graph), window=3, only_correct=False, engine=engine, **QUIET).to_frame()
        for engine in ("rows", "forward")
    )
    assert rows["edge"].nunique() == 9  # the paper's four, two of the box, three of the options
    assert (rows["log_probability_change"] - forward["log_probability_change"]).abs().max() < 1e-5
    assert rows["log_probability_change"].abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_lens_reads_the_models_own_words(name):
    graph = graph_of(name)
    model, prompt = graph.adapter.model, asked(graph)
    table = mmf.lens(graph, prompt, only_correct=False, progress=False).to_frame().query("site == 'resid'")
    (token,) = graph.processor.tokenizer("red", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        out = model(**prompt.inputs, output_hidden_states=True)
        decoder = model.get_decoder()
        norm = getattr(decoder, "final_layernorm", None) or decoder.norm
        middle = model.get_output_embeddings()(norm(out.hidden_states[2][0, -1]))
    if graph.logit_cap is not None:
        middle = torch.tanh(middle / graph.logit_cap) * graph.logit_cap
    for layer, logits in ((1, middle), (graph.n_layers - 1, out.logits[0, -1])):
        found = float(table[table["layer"] == layer]["answer_lower"].iloc[0])
        assert abs(found - float(logits.float().softmax(-1)[token])) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_word_overlap_and_causal_trace(name):
    graph = graph_of(name)
    prompt = asked(graph)
    overlap = mmf.word_overlap(graph, prompt, window=2, progress=False).to_frame()["jaccard"]
    assert 0 <= overlap.min() < 1
    corrupt = mmf.corruption.other_image(graph, prompt, picture(1, 96, 64))
    loose = {"only_correct": False, "min_clean": 0.0, "max_corrupt": float("inf"), **QUIET}
    rows, forward = (
        mmf.causal_trace(graph, prompt, corrupt, window=3, engine=engine, **loose).to_frame()
        for engine in ("rows", "forward")
    )
    # in float64 they are equal; these weights are blown up, and rounding with them
    assert (rows["log_probability_change"] - forward["log_probability_change"]).abs().max() < 2e-5
    assert rows["effect"].abs().max() > 1e-6


@pytest.mark.parametrize("name", ["llava_next", "qwen3_vl", "gemma3", "internvl"])
def test_knockout_in_each_step_of_a_padded_batch(name):
    """Row by row the same tokens as each prompt alone, a knockout in every step."""
    graph = graph_of(name)
    prompts = [asked(graph), graph.prompt(picture(3, 64, 64), "what color is the ring ?")]
    pattern = mmf.Knockout(source="image", target="question | last", layers=range(1, 3), when="all")
    given = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    with torch.no_grad(), graph.generate(graph.batch(prompts), pattern, **given) as tracer:
        together = tracer.result.save()
    for row, prompt in enumerate(prompts):
        with torch.no_grad(), graph.generate(prompt, pattern, **given) as tracer:
            alone = tracer.result.save()
        assert together[row, -4:].tolist() == alone[0, -4:].tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "gemma3"])
def test_half_precision(name, dtype):
    model, processor = FAMILIES[name]()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0, 0.05)
    graph = mmf.adapt(model.eval().to(dtype), processor)
    rows, forward = (
        mmf.flow(graph, asked(graph), window=3, only_correct=False, engine=engine, **QUIET).to_frame()
        for engine in ("rows", "forward")
    )
    assert (rows["log_probability_change"] - forward["log_probability_change"]).abs().max() < 0.05
