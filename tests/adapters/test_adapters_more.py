"""Roles by identity, tokens against the tower's own hidden states, and settings refused at every level."""

import pytest
import torch
from kit.tiny import TEXTS, TOWERS, picture, tiny_graph, tiny_model, tiny_processor

import nnsight_mmflow as mmf

QUESTION = "what color is the circle ?"


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("text", TEXTS)
def test_roles_are_the_models_own_modules(text, tower):
    graph = tiny_graph(text, tower)
    inner = graph.adapter.model.model
    decoder = inner.language_model
    assert graph.projector._module is inner.multi_modal_projector
    assert graph.layers._module is decoder.layers
    assert graph.norm._module is (decoder.final_layernorm if text == "phi" else decoder.norm)
    assert graph.unembed._module is graph.adapter.model.lm_head
    for layer in range(5):
        assert graph.attention(layer)._module is decoder.layers[layer].self_attn
        assert graph.mlp(layer)._module is decoder.layers[layer].mlp


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("tower", TOWERS)
def test_a_token_is_the_projected_patch_of_its_cell(tower, strategy):
    """What the first layer reads at each image position is the projected tower state of that token's cell."""
    model, processor = tiny_model(tower=tower), tiny_processor(tower)
    model.config.vision_feature_select_strategy = processor.vision_feature_select_strategy = strategy
    graph = mmf.adapt(model, processor)
    prompt = graph.prompt(picture(0), QUESTION)
    image = prompt.spans["image"].images[0]
    classes = 1 if tower == "clip" else 0
    expected = {
        ("clip", "default"): list(range(64)),
        ("clip", "full"): ["class", *range(64)],
        ("siglip", "full"): list(range(64)),
        ("siglip", "default"): list(range(1, 64)),  # transformers drops a patch here
    }
    cells = [getattr(cell, "patch", cell) for cell in image.geometry.cells]
    assert cells == expected[tower, strategy]
    assert [box is None for box in prompt.spans["image"].boxes()] == [cell == "class" for cell in cells]
    read = []
    hook = model.model.language_model.layers[0].register_forward_pre_hook(lambda _, given: read.append(given[0]))
    with torch.no_grad():
        model(**prompt.inputs)
        tower_out = model.model.vision_tower(prompt.inputs["pixel_values"], output_hidden_states=True)
        places = [0 if cell == "class" else cell + classes for cell in cells]
        projected = model.model.multi_modal_projector(tower_out.hidden_states[-2][0, places])
    hook.remove()
    # the same weights on other batch shapes: equal up to float32 rounding
    torch.testing.assert_close(read[0][0, list(image.positions)], projected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("level", "name"),
    [("", "merge_kind"), ("text_config.", "attention_twist"), ("vision_config.", "window_shift")],
)
def test_a_setting_nobody_knows_is_refused_at_every_level(level, name):
    model = tiny_model()
    config = getattr(model.config, level[:-1]) if level else model.config
    setattr(config, name, 3)
    with pytest.raises(mmf.ModelError, match=f"does not handle: {level}{name} = 3. The result could be wrong"):
        mmf.adapt(model, tiny_processor())


def test_all_unknown_settings_are_listed_at_once():
    model = tiny_model()
    model.config.text_config.attention_twist = 3
    model.config.vision_config.window_shift = "left"
    with pytest.raises(mmf.ModelError, match=r"text_config.attention_twist = 3, vision_config.window_shift = 'left'"):
        mmf.adapt(model, tiny_processor())


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_dropout_in_any_part_is_refused_while_training(part):
    model = tiny_model()
    getattr(model.config, part).attention_dropout = 0.1
    mmf.adapt(model, tiny_processor())  # evaluation mode: dropout is off
    model.train()
    with pytest.raises(mmf.ModelError, match="training mode with attention_dropout on"):
        mmf.adapt(model, tiny_processor())
