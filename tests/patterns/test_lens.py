"""Lens and word overlap against plain Hugging Face forwards."""

import pytest
import torch
from kit.tiny import TEXTS, picture, tiny_graph, tiny_model, tiny_processor

import nnsight_mmflow as mmf
from nnsight_mmflow.patterns.lens import first_token

QUESTION = "is the circle red or blue ?"


def one(graph, **kwargs):
    return graph.prompt(picture(0), QUESTION, "red", options=("red", "blue"), **kwargs)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_residual_stream_equals_hidden_states(text, norm):
    graph = tiny_graph(text)
    prompt, model = one(graph), graph.adapter.model
    table = mmf.lens(graph, prompt, norm=norm, only_correct=False, progress=False).to_frame()
    stream = table[table["site"] == "resid"].set_index("point")
    assert len(stream) == graph.n_layers + 1  # L+1 points
    with torch.no_grad():
        hidden = model(**prompt.inputs, output_hidden_states=True).hidden_states
    final = graph.norm._module
    for point, state in enumerate(hidden):
        last = state[0, -1]
        # Hugging Face returns the last state normed already
        normed = final(last) if norm and point < graph.n_layers else last
        probabilities = model.lm_head(normed).softmax(-1).detach()
        for name, word in (("answer_lower", "red"), ("false_lower", "blue")):
            expected = float(probabilities[first_token(graph, word)])
            assert stream.loc[point, name] == pytest.approx(expected, abs=1e-6)  # float32 softmax
        top = graph.processor.tokenizer.decode([int(probabilities.argmax())])
        assert stream.loc[point, "top_tokens"][0] == top


def test_attention_and_mlp_outputs_equal_those_of_hooks(graph):
    prompt, model = one(graph), graph.adapter.model
    caught, handles = {}, []
    for layer, module in enumerate(model.get_decoder().layers):
        for site, part in (("attn", module.self_attn), ("mlp", module.mlp)):

            def keep(_module, _inputs, output, key=(site, layer)):
                caught[key] = output[0] if isinstance(output, tuple) else output

            handles.append(part.register_forward_hook(keep))
    with torch.no_grad():
        model(**prompt.inputs)
    for handle in handles:
        handle.remove()
    table = mmf.lens(graph, prompt, only_correct=False, progress=False).to_frame().set_index(["site", "layer"])
    red = first_token(graph, "red")
    for (site, layer), output in caught.items():
        expected = float(model.lm_head(graph.norm._module(output[0, -1])).softmax(-1)[red].detach())
        assert table.loc[(site, layer), "answer_lower"] == pytest.approx(expected, abs=1e-6)


def test_a_word_the_tokenizer_lacks_is_nan(graph):
    table = mmf.lens(graph, one(graph), only_correct=False, progress=False).to_frame()
    assert table["answer_capitalized"].isna().all()
    assert table["answer_lower"].notna().all()


def test_any_span_gives_a_row_per_position(graph):
    prompt = one(graph)
    table = mmf.lens(graph, prompt, "question - text('red')", only_correct=False, progress=False).to_frame()
    wanted = list(prompt.spans["question"] - prompt.spans.text("red"))
    assert sorted(set(table["position"])) == wanted


def test_lens_errors(graph):
    with pytest.raises(mmf.MMFlowError, match="lens: 1 of 1 prompts have no answer"):
        mmf.lens(graph, graph.prompt(picture(0), QUESTION))
    with pytest.raises(mmf.SpanError, match="There are: prefix, image"):
        mmf.lens(graph, one(graph), "picture", progress=False)
    with pytest.raises(mmf.MMFlowError, match="none of 1 prompts"):
        mmf.lens(graph, graph.prompt(picture(0), QUESTION, "nonsense"), progress=False)


@pytest.mark.parametrize("site", ["attn", "mlp"])
@pytest.mark.parametrize("text", ["llama", "phi"])
def test_word_overlap_equals_silencing_by_hooks(text, site):
    graph = tiny_graph(text, n_layers=4)
    prompt, model = one(graph), graph.adapter.model
    positions = list(prompt.spans["question"])
    table = mmf.word_overlap(graph, prompt, window=3, top=5, progress=False).to_frame()

    def words(layers):
        def silence(_module, _inputs, output):
            values = (output[0] if isinstance(output, tuple) else output).clone()
            values[:, positions] = 0
            return (values, *output[1:]) if isinstance(output, tuple) else values

        parts = [module.self_attn if site == "attn" else module.mlp for module in model.get_decoder().layers]
        handles = [parts[layer].register_forward_hook(silence) for layer in layers]
        with torch.no_grad():
            logits = model(**prompt.inputs).logits[0, positions]
        for handle in handles:
            handle.remove()
        return [set(row) for row in logits.topk(5, -1).indices.tolist()]

    clean = words([])
    found = table[table["site"] == site].set_index("layer")["jaccard"]
    assert found.min() < 1, "silencing must change some word, or equality means nothing"
    for layer in range(4):
        changed = words(range(max(0, layer - 1), min(4, layer + 2)))
        expected = sum(len(a & b) / len(a | b) for a, b in zip(clean, changed, strict=True)) / len(clean)
        assert found[layer] == pytest.approx(expected)


def test_silencing_what_is_silent_is_refused():
    """A planted no-op: the MLPs' last matrices are zero, so their outputs are."""
    model = tiny_model(n_layers=3)
    with torch.no_grad():
        for module in model.get_decoder().layers:
            module.mlp.down_proj.weight.zero_()
    graph = mmf.adapt(model, tiny_processor())
    with pytest.raises(mmf.NoEffectError, match="zero at these positions already"):
        mmf.word_overlap(graph, one(graph), progress=False)


def test_figures_and_summaries(graph):
    lens = mmf.lens(graph, one(graph), only_correct=False, progress=False)
    assert "answer_lower: highest after layer" in lens.summary()
    assert len(lens.plot().axes) == 3
    overlap = mmf.word_overlap(graph, one(graph), window=1, progress=False)
    assert "mlp: lowest overlap" in overlap.summary()
    assert overlap.plot().axes
