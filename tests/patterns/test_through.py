"""Values through an autoencoder, as a value for Change and for Patch, against hooks that do it by hand."""

import pytest
import torch
from kit.sites import with_hooks
from kit.tiny import picture, tiny_graph
from torch import nn

import nnsight_mmflow as mmf

QUESTION = "what color is the circle ?"
FEATURES = [1, 5, 30]


@pytest.fixture(scope="module")
def graph():
    return tiny_graph()


@pytest.fixture(scope="module")
def prompts(graph):
    return [graph.prompt(picture(number), QUESTION) for number in range(2)]


def autoencoder(width, dtype=torch.float32):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(width, 40), nn.ReLU()).to(dtype).requires_grad_(False)
    return encoder, nn.Linear(40, width).to(dtype).requires_grad_(False)


def logits_of(graph, prompt, *patterns):
    with torch.no_grad(), graph.trace(prompt, *patterns, use_cache=False):
        logits = graph.model.output.logits[0, -1].save()
    return logits


def by_hooks(graph, prompt, change, heads=None):
    """The logits where `change(values)` stands at the image behind layer 2, or in some heads there."""
    positions, width = list(prompt.spans["image"]), graph.head_width
    columns = [head * width + i for head in heads or () for i in range(width)] or slice(None)

    def write(_number, whole):
        whole = whole.clone()
        part = whole[0, positions]
        part[:, columns] = change(part[:, columns])
        whole[0, positions] = part
        return whole

    return with_hooks(graph, prompt, "attn" if heads else "resid", [2], heads, write)


def doubled(features):
    return features * 2


@pytest.mark.parametrize("error", [True, False])
@pytest.mark.parametrize("features", [None, FEATURES])
@pytest.mark.parametrize("heads", [None, (2, 0)])
def test_an_edit_of_features(graph, prompts, error, features, heads):
    encoder, decoder = autoencoder(graph.d_model if heads is None else 2 * graph.head_width)

    def by_hand(values):
        found = encoder(values)
        edited = found.clone()
        some = slice(None) if features is None else features
        edited[:, some] = edited[:, some] * 2
        rest = values - decoder(found) if error else 0
        return decoder(edited) + rest

    at = {"at": "image", "layers": 2, "site": "attn" if heads else "resid", "heads": heads}
    value = mmf.values.through(encoder, decoder, doubled, features=features, error=error)
    gold, clean = by_hooks(graph, prompts[0], by_hand, heads), logits_of(graph, prompts[0])
    for pattern in (mmf.Change(**at, value=value), mmf.Patch(**at, value=value)):
        assert (logits_of(graph, prompts[0], pattern) - gold).abs().max() < 1e-5
    assert (gold - clean).abs().max() > 1e-4


@pytest.mark.parametrize("features", [None, FEATURES])
def test_features_of_another_run(graph, prompts, features):
    encoder, decoder = autoencoder(graph.d_model)
    one, other = prompts
    with torch.no_grad(), graph.trace(other, use_cache=False):
        theirs = graph.layers[2].output[0, list(other.spans["image"])].save()

    def by_hand(values):
        found, edited = encoder(values), encoder(values)
        some = slice(None) if features is None else features
        edited[:, some] = encoder(theirs)[:, some]
        return values + decoder(edited) - decoder(found)

    value = mmf.values.through(encoder, decoder, mmf.values.from_run(other), features=features)
    gold = by_hooks(graph, one, by_hand)
    assert (logits_of(graph, one, mmf.Patch(at="image", layers=2, value=value)) - gold).abs().max() < 1e-5
    assert (gold - logits_of(graph, one)).abs().max() > 1e-4
    off = mmf.values.through(encoder, decoder, mmf.values.zeros(), features=features)
    same = mmf.values.through(encoder, decoder, torch.zeros_like, features=features)
    found = [logits_of(graph, one, mmf.Patch(at="image", layers=2, value=each)) for each in (off, same)]
    assert torch.equal(*found)


def test_an_edit_that_changes_nothing_is_told_to_the_bit(graph, prompts):
    """Reconstruction and its error are not added up, which would round: what is added is the difference, zero."""
    encoder, decoder = autoencoder(graph.d_model)
    at = {"at": "image", "layers": 2}
    for edit in (torch.clone, mmf.values.from_run(prompts[0])):
        value = mmf.values.through(encoder, decoder, edit)
        with pytest.raises(mmf.NoEffectError, match="would change nothing"):
            logits_of(graph, prompts[0], mmf.Patch(**at, value=value))
    value = mmf.values.through(encoder, decoder, torch.clone, error=False)  # the reconstruction itself is a change
    logits_of(graph, prompts[0], mmf.Change(**at, value=value))


def test_an_autoencoder_of_another_type_than_the_model(graph, prompts):
    """Values go to it in its own type, and come back in theirs; an edit may take the layer."""
    encoder, decoder = autoencoder(graph.d_model, torch.float64)
    seen = []

    def edit(features, layer):
        seen.append((features.dtype, layer))
        return features * 0

    change = mmf.Change(at="image", layers=2, value=mmf.values.through(encoder, decoder, edit))
    found = logits_of(graph, prompts[0], change)
    single = mmf.values.through(*autoencoder(graph.d_model), torch.zeros_like)
    assert seen == [(torch.float64, 2)]
    assert (found - logits_of(graph, prompts[0], mmf.Change(at="image", layers=2, value=single))).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"edit": lambda found: found[:, 1:]}, r"the edit gave shape \(64, 39\) for \(64, 40\) features"),
        ({"edit": lambda found: None}, "the edit gave None"),
        ({"features": [40]}, r"features \[40\] do not exist: the encoder gives 40"),
        ({"decoder": lambda found: found}, r"the decoder gave shape \(64, 40\)"),
        ({"encoder": lambda values: values.mean()}, r"the encoder gave shape \(\)"),
        ({"encoder": nn.Linear(7, 3)}, "failed, given a tensor of shape .*RuntimeError"),
        ({"edit": lambda found: found * float("nan")}, "NaN or infinite"),
    ],
)
def test_what_does_not_fit_is_told(graph, prompts, given, text):
    encoder, decoder = autoencoder(graph.d_model)
    value = mmf.values.through(**{"encoder": encoder, "decoder": decoder, "edit": doubled, **given})
    for kind in (mmf.Change, mmf.Patch):
        with pytest.raises(mmf.MMFlowError, match=text):
            logits_of(graph, prompts[0], kind(at="image", layers=2, value=value))


def test_features_of_another_run_are_for_patch(graph, prompts):
    value = mmf.values.through(*autoencoder(graph.d_model), mmf.values.from_run(prompts[1]))
    with pytest.raises(mmf.MMFlowError, match="which Patch does"):
        mmf.Change(at="image", layers=2, value=value)


def test_a_notebook_shows_them_in_a_few_words(graph):
    shown = mmf.Add(at="image", layers=2, vector={2: torch.ones(64), 3: torch.ones(64)})._repr_html_()
    assert "2: a tensor of (64,); 3: a tensor of (64,)" in shown
    assert "the function doubled" in mmf.Change(at="image", layers=2, value=doubled)._repr_html_()
