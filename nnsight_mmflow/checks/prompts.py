"""Checks of roles and spans."""

from __future__ import annotations

import torch

from nnsight_mmflow._errors import PromptError
from nnsight_mmflow.checks.subject import QUESTION, Failed, NotApplicable, Subject

PARTS = ("prefix", "image", "question", "suffix")


def roles(subject: Subject) -> str:
    """Each role is a module of the model, and the last layer through norm and unembedding gives the logits."""
    graph = subject.graph
    with torch.no_grad(), graph.trace(subject.prompt, use_cache=False):
        for layer in range(graph.n_layers):
            module, is_tuple = graph.joining("attn", layer)
            added = module.output[0] if is_tuple else module.output
        stream = graph.layers[graph.n_layers - 1].output.save()
        logits = graph.model.output.logits.save()
        width = nnsight_shape(added).save()
    if tuple(width) != tuple(stream.shape):
        raise Failed(f"the attention's output has shape {tuple(width)}, the residual stream {tuple(stream.shape)}")
    with torch.no_grad():
        read = graph.unembed._module(graph.norm._module(stream))
    if graph.logit_cap is not None:
        read = torch.tanh(read / graph.logit_cap) * graph.logit_cap
    subject.agree("logits by role and the model's", read.float().cpu(), logits.float().cpu())
    tower, projector = (type(module._module).__name__ for module in (graph.tower, graph.projector))
    return f"{graph.n_layers} layers of width {graph.d_model}, {tower}, {projector}"


def nnsight_shape(value: torch.Tensor) -> torch.Tensor:
    """The shape of a value inside a trace, as a tensor that can be saved."""
    return torch.tensor(value.shape)


def pixels_matter(subject: Subject) -> str:
    """Without this, every other check could pass on a model that never looks."""
    other = subject.graph.prompt(subject.picture(7), QUESTION)
    change = float((subject.logits(subject.prompt) - subject.logits(other)).abs().max())
    if change < 1e-3:
        raise Failed(f"another picture changes the logits by {change:.1e} only: the model does not look")
    return f"by {change:.3g}"


def partition(subject: Subject) -> str:
    """Prefix, image, question and suffix hold every position once, and the image's ids are where the span says."""
    sums = []
    for prompt in (subject.prompt, subject.other):
        spans = prompt.spans
        held = sorted(position for part in PARTS for position in spans[part])
        if held != list(range(len(prompt))):
            raise Failed(f"{len(held)} positions in the parts of a prompt of {len(prompt)}")
        ids = (prompt.inputs["input_ids"][0] == subject.graph.image_token_id).nonzero().flatten().tolist()
        if ids != list(spans["image"]):
            raise Failed(f"{len(ids)} image ids, {len(spans['image'])} positions in the image span")
        sums.append(" + ".join(str(len(spans[part])) for part in PARTS))
    return " and ".join(sums)


def several_images(subject: Subject) -> str:
    """Two pictures of different shapes: each has its own tokens, the span `image` all of them."""
    pictures = [subject.picture(2), subject.picture(3, (0.5, 1.5))]
    image = subject.graph.prompt(pictures, QUESTION).spans["image"]  # type: ignore[arg-type]
    first, second = image[0], image[1]
    if set(first) & set(second) or set(first) | set(second) != set(image):
        raise Failed(f"{len(first)} and {len(second)} tokens of two pictures do not make up {len(image)}")
    return f"{len(first)} + {len(second)} tokens"


def text_alone(subject: Subject) -> str:
    """A question without a picture has an empty image span, and runs."""
    try:
        prompt = subject.graph.prompt(None, QUESTION)
    except PromptError as error:
        raise NotApplicable(str(error)) from None
    if len(prompt.spans["image"]):
        raise Failed(f"{len(prompt.spans['image'])} image tokens without an image")
    subject.logits(prompt)
    return f"{len(prompt)} positions"
