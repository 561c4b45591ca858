"""What an adapter says of a model is what the model does; what it does not know, it refuses."""

import pytest
import torch
from kit.tiny import TEXTS, TOWERS, picture, tiny_graph, tiny_model, tiny_processor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import nnsight_mmflow as mmf

QUESTION = "what color is the circle ?"


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("text", TEXTS)
def test_roles_and_merged_features(text, tower):
    graph = tiny_graph(text, tower)
    model = graph.adapter.model
    prompt = graph.prompt([picture(0), picture(1)], QUESTION)
    with torch.no_grad(), graph.trace(prompt):
        features = graph.projector.output.save()
        merged = graph.layers[0].inputs[0][0].save()
        attended = graph.attention(2).output[0].save()
        added = graph.mlp(2).output.save()
        normed = graph.norm.output.save()
        logits = graph.unembed.output.save()
    for image in (0, 1):  # what stands at position i is the feature of that token
        assert torch.equal(merged[0, list(prompt.spans[f"image[{image}]"])], features[image])
    assert attended.shape == added.shape == merged.shape
    assert torch.equal(model.lm_head(normed), logits)
    assert graph.tower._module is model.model.vision_tower
    assert graph.embed._module is model.get_input_embeddings()
    assert (graph.n_layers, graph.n_heads, graph.d_model) == (5, 4, 64)
    assert graph.attention(-1)._module is graph.layers[4].self_attn._module
    with pytest.raises(mmf.ModelError, match="layer 5 was asked for, but there are 5"):
        graph.attention(5)


@pytest.mark.parametrize("tower", TOWERS)
def test_a_token_shows_the_pixels_of_its_box(tower):
    """Change one token's pixels: in the tower's patch embedding only that token changes."""
    graph = tiny_graph("llama", tower)
    image = picture(0)
    prompt = graph.prompt(image, QUESTION)
    geometry = prompt.spans["image"].images[0].geometry
    embedding = next(m for m in graph.adapter.model.model.vision_tower.modules() if isinstance(m, torch.nn.Conv2d))
    for token in (0, 13, 63):
        left, top, right, bottom = map(int, geometry.token_box(token))
        changed = image.copy()
        changed.paste((255, 255, 255), (left, top, right, bottom))
        pixels = [graph.prompt(one, QUESTION).inputs["pixel_values"] for one in (image, changed)]
        with torch.no_grad():
            moved = (embedding(pixels[0]) - embedding(pixels[1])).abs().amax(1).flatten()
        assert moved.nonzero().flatten().tolist() == [geometry.cells[token].patch]


def test_the_class_token_and_a_dropped_patch():
    model = tiny_model()
    model.config.vision_feature_select_strategy = "full"
    processor = tiny_processor()
    processor.vision_feature_select_strategy = "full"
    image = mmf.adapt(model, processor).prompt(picture(0), QUESTION).spans["image"]
    assert len(image) == 65
    assert image.boxes()[0] is None
    model = tiny_model(tower="siglip")
    model.config.vision_feature_select_strategy = "default"  # transformers then drops SigLIP's first patch
    processor = tiny_processor("siglip")
    processor.vision_feature_select_strategy = "default"
    graph = mmf.adapt(model, processor)
    prompt = graph.prompt(picture(0), QUESTION)
    assert len(prompt.spans["image"]) == 63
    assert prompt.spans["image"].boxes()[0] == (8, 0, 16, 8)
    with torch.no_grad():
        model(**prompt.inputs)  # and the model agrees on the number


def test_several_feature_layers_are_handled():
    from transformers import LlavaForConditionalGeneration

    config = tiny_model().config
    config.vision_feature_layer = [-2, -1]
    graph = mmf.adapt(LlavaForConditionalGeneration(config).eval(), tiny_processor())
    prompt = graph.prompt(picture(0), QUESTION)
    with torch.no_grad(), graph.trace(prompt):
        features = graph.projector.output.save()
        merged = graph.layers[0].inputs[0][0].save()
    assert torch.equal(merged[0, list(prompt.spans["image"])], features[0])


def test_unknown_models_are_refused_with_the_way_out():
    small = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    text = LlamaForCausalLM(LlamaConfig(**small, num_attention_heads=2))
    with pytest.raises(mmf.ModelError, match="no adapter for LlamaForCausalLM; there are adapters for Llava"):
        mmf.adapt(text.eval(), tiny_processor())
    with pytest.raises(mmf.ModelError, match="the processor is missing"):
        mmf.adapt(tiny_model())
    with pytest.raises(mmf.ModelError, match="not dict"):
        mmf.adapt({}, tiny_processor())


def test_a_setting_that_nobody_knows_is_listed():
    model = tiny_model()
    model.config.text_config.attention_twist = 3
    model.config.vision_config.model_type = "clip_vision_model"
    with pytest.raises(mmf.ModelError, match=r"does not handle: text_config.attention_twist = 3"):
        mmf.adapt(model, tiny_processor())
    model = tiny_model()
    model.config.vision_config.model_type = "dinov3"
    with pytest.raises(mmf.ModelError, match="the vision tower is 'dinov3'; llava is handled with clip_vision_model"):
        mmf.adapt(model, tiny_processor())
    model = tiny_model()
    model.config.text_config.model_type = "gemma"
    with pytest.raises(mmf.ModelError, match="the text model is 'gemma'; llava is handled with llama, mistral"):
        mmf.adapt(model, tiny_processor())


def test_dropout_in_training_mode_is_refused():
    model = tiny_model("phi").train()
    mmf.adapt(model, tiny_processor())  # no dropout is on: training mode changes nothing
    model.config.text_config.resid_pdrop = 0.1
    with pytest.raises(mmf.ModelError, match="training mode with resid_pdrop on: call model.eval"):
        mmf.adapt(model, tiny_processor())


def test_a_processor_of_another_size_is_refused():
    processor = tiny_processor()
    processor.image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128}
    )
    with pytest.raises(mmf.ModelError, match="makes pictures of 128x128 pixels, the tower reads 64x64"):
        mmf.adapt(tiny_model(), processor).prompt(picture(0), QUESTION)


def test_loading_from_a_folder_and_what_is_not_there(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(mmf.ModelError, match="no processor can be loaded from"):
        mmf.load(str(tmp_path))
    tiny_processor().save_pretrained(tmp_path)
    graph, same = mmf.load(str(tmp_path)), tiny_graph()
    prompts = [one.prompt(picture(0), QUESTION) for one in (graph, same)]
    with torch.no_grad():
        logits = [one.adapter.model(**p.inputs).logits for one, p in zip((graph, same), prompts, strict=True)]
    assert torch.equal(*logits)
    assert mmf.load(str(tmp_path), attn_implementation="eager").backend == "eager"
    assert mmf.load(str(tmp_path), dtype=torch.float16).unembed._module.weight.dtype == torch.float16


def test_an_nnsight_model_is_taken_as_it_is(graph):
    again = mmf.adapt(graph.model)
    assert again.model is graph.model
