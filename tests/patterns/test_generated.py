"""Generated tokens: maps, contributions and lenses of what a model writes, against plain transformers."""

import pytest
import torch
from kit.families import QUESTION, family
from kit.tiny import picture

import nnsight_mmflow as mmf
from nnsight_mmflow.prompts.continued import continued
from nnsight_mmflow.runs.generated import generated_ids, with_generated

# One of each way to place, mask or mark what is written: rotary in three dimensions, blocks that read ahead, windows.
NAMES = ("llava", "qwen2_vl", "qwen3_vl", "gemma3", "paligemma", "idefics3")
COUNT = 4


def quiet(text: str) -> None:
    """No cost is told."""


@pytest.fixture(scope="module")
def graph():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def prompts(graph):
    return mmf.nano.prompts(graph, 3)


@pytest.fixture(scope="module")
def maps(graph, prompts):
    return mmf.attention(graph, prompts[0], generated=COUNT, report=quiet)


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_eagers_in_one_forward_and_step_by_step(name):
    """sdpa against eager: 1e-4, as for prompts; float sums of single steps differ in their order too."""
    prompt = family(name).prompt(picture(1, 96, 64), QUESTION, "red")
    found = mmf.attention(family(name), prompt, generated=COUNT, report=quiet)
    eager, length = family(name, "eager").adapter.model, len(prompt)
    with torch.no_grad():
        whole = torch.stack(eager(**found.prompt.inputs, output_attentions=True, use_cache=False).attentions)[:, 0]
        settings = {"max_new_tokens": COUNT, "do_sample": False, "return_dict_in_generate": True}
        steps = eager.generate(**prompt.inputs, **settings, output_attentions=True)
    assert steps.sequences[0, length:].tolist() == found.header["generated"] == generated_ids(found.prompt)
    assert found.weights.shape[-2:] == (length + COUNT, length + COUNT)
    assert (found.weights - whole).abs().max() < 1e-4
    for number, step in enumerate(steps.attentions[1:]):
        for layer, rows in enumerate(step):
            seen = rows.shape[-1]  # of a sliding layer the last ones alone
            mine = found.weights[layer, :, length + number, length + number + 1 - seen : length + number + 1]
            assert (mine - rows[0, :, 0]).abs().max() < 1e-4


def test_the_end_is_respected_and_counts(graph, prompts, maps):
    tokens = [maps.header["tokens"][position] for position in maps.generated]
    assert len(tokens) == 2 < COUNT
    assert tokens[-1] == "</s>"
    one = mmf.attention(graph, prompts[0], generated=1, target="generated", report=quiet)
    assert torch.allclose(one.weights[:, :, 0], maps.weights[:, :, 76, :77], atol=1e-6)


def test_the_prompts_maps_are_what_they_were(graph, prompts, maps):
    plain = mmf.attention(graph, prompts[0], report=quiet)
    assert torch.allclose(plain.weights, maps.weights[:, :, :76, :76], atol=1e-6)
    assert plain.header["generated"] == []
    assert plain.tokens_read == ()


def test_spans_name_them(graph, prompts, maps):
    spans = maps.prompt.spans
    assert spans["generated"].positions == (76, 77)
    assert spans["generated[1]"].positions == (77,)
    assert spans["last"].positions == (75,)
    assert spans["image | generated[0]"].positions == (*range(3, 67), 76)
    cut = mmf.attention(
        graph, prompts[0], generated=COUNT, target="generated[0]", source=prompts[0].spans["image"], report=quiet
    )
    assert torch.equal(cut.weights[:, :, 0], maps.weights[:, :, 76, 3:67])
    assert [row.name for row in maps.by_span().rows][-1] == "generated"
    with pytest.raises(mmf.SpanError, match=r"generated\[2\] was asked for, but generated holds 2 token"):
        spans["generated[2]"]
    with pytest.raises(mmf.SpanError, match=r"the model ended its answer after 2 token"):
        mmf.attention(graph, prompts[0], generated=COUNT, target="generated[3]", report=quiet)


def test_one_token_alone_and_loaded(prompts, maps, tmp_path):
    one = maps.token(1)
    assert torch.equal(one.weights[:, :, 0], maps.weights[:, :, 77])
    assert (one.tokens_read, maps.tokens_read) == ((), (0, 1))
    maps.save(tmp_path)
    again = mmf.results.AttentionResult.load(tmp_path, prompts[0])
    assert again.prompt.spans["generated"] == maps.prompt.spans["generated"]
    assert torch.equal(again.prompt.inputs["input_ids"], maps.prompt.inputs["input_ids"])
    assert mmf.results.AttentionResult.load(tmp_path, maps.prompt).is_of(prompts[0])
    with pytest.raises(mmf.DataError, match="of another prompt"):
        mmf.results.AttentionResult.load(tmp_path, prompts[1])
    with pytest.raises(mmf.MMFlowError, match="the generated tokens among the targets are 0, 1"):
        maps.token(2)


def test_contributions_of_each_token(graph, prompts):
    found = mmf.contributions(graph, prompts, generated=COUNT, progress=False, report=quiet)
    plain = mmf.contributions(graph, prompts, progress=False, report=quiet)
    asked = found.summed()
    for column in ("norm", "projection", "weight", "share"):
        assert asked[column].to_numpy() == pytest.approx(plain.table[column].to_numpy(), abs=2e-5)
    single = mmf.contributions(graph, prompts, target="generated[0]", generated=1, progress=False, report=quiet)
    assert found.token(0).table["norm"].to_numpy() == pytest.approx(single.summed()["norm"].to_numpy(), rel=1e-4)
    assert found.header["written"]["nano-0000"] == ["orange", "</s>"]
    weights = mmf.attention(graph, prompts[0], target="generated[0]", source="image", generated=1, report=quiet).weights
    mine = found.token(0).table.query("prompt == 'nano-0000' and layer == 6")["weight"].to_numpy()
    assert mine == pytest.approx(weights[6].mean((0, 1)).numpy(), abs=1e-6)
    assert "generated[0]" in str(found.token(0))
    with pytest.raises(mmf.MMFlowError, match="the generated tokens are 2, counted from 0"):
        found.token(2)


def test_lens_follows_what_is_written(graph, prompts):
    """The last layer's probability of the next token is the model's own; no answer need be given."""
    asked = graph.prompt(prompts[0].images[0], prompts[0].question)
    found = mmf.lens(graph, asked, generated=COUNT, only_correct=False, progress=False, report=quiet)
    whole = with_generated(graph, asked, COUNT)
    with torch.no_grad():
        logits = graph.adapter.model(**whole.inputs).logits[0, len(asked) - 1 :]
    sure = logits.softmax(-1).gather(1, torch.tensor(generated_ids(whole))[:, None])[:, 0]
    rows = found.table.query(f"site == 'resid' and layer == {graph.n_layers - 1}")
    assert rows["generated"].tolist() == [-1, 0, 1]
    assert rows["written"].tolist()[:2] == ["orange", "</s>"]
    assert rows["written_probability"].tolist()[:2] == pytest.approx(sure.tolist(), abs=1e-5)
    assert found.token(0).table["position"].unique().tolist() == [len(asked)]


def test_what_is_refused(graph, prompts, maps):
    pattern = mmf.Knockout(source="image", target="last", layers=[2])
    with pytest.raises(mmf.MMFlowError, match="generated= takes no patterns yet"):
        mmf.attention(graph, prompts[0], pattern, generated=2)
    with pytest.raises(mmf.MMFlowError, match="this one holds generated tokens already"):
        mmf.attention(graph, maps.prompt, generated=2)
    with pytest.raises(mmf.MMFlowError, match="generated=-1: a whole number of at least 0"):
        mmf.lens(graph, prompts[0], generated=-1)
    with pytest.raises(mmf.MMFlowError, match=r"GB, more than 0.0 GB"):
        mmf.attention(graph, prompts[0], generated=4, most_bytes=1000)
    small = family("llava_qwen2_siglip")
    with pytest.raises(mmf.MMFlowError, match="stands for an image .*generated=3 reads the tokens"):
        mmf.attention(small, small.prompt(picture(0, 96, 64), QUESTION), generated=4, report=quiet)


def test_a_forward_that_reads_something_else_is_noticed(graph, prompts, monkeypatch):
    """Planted: other tokens stand behind the prompt than the model wrote."""
    from nnsight_mmflow.patterns.attention import attention

    wrong = continued(prompts[0], [7, 7], graph.processor.tokenizer.convert_ids_to_tokens([7, 7]))
    monkeypatch.setattr(attention, "with_generated", lambda *given: wrong)
    with pytest.raises(mmf.MMFlowError, match="it does not read what was generated"):
        mmf.attention(graph, prompts[0], generated=2, report=quiet)
