"""A number per image token, from what a user or a result has, in panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from nnsight_mmflow._errors import MMFlowError, SpanError
from nnsight_mmflow._kinds import came
from nnsight_mmflow.patterns.attention.result import AttentionResult
from nnsight_mmflow.runs.results import Result
from nnsight_mmflow.show.boxes import image_tokens
from nnsight_mmflow.show.panels import Panels, by_position

if TYPE_CHECKING:
    import numpy as np
    import torch

    from nnsight_mmflow.prompts.prompt import Prompt

    ImageValues: TypeAlias = (
        Mapping[int, float] | Sequence[float] | Sequence[Sequence[float]] | np.ndarray | torch.Tensor
    )
    Drawable: TypeAlias = ImageValues | AttentionResult | Result

MOST_PANELS = 40


def panels_of(
    prompt: Prompt, image: int, values: Drawable, label: str = "", titles: Sequence[str] | None = None
) -> Panels:
    """The panels of values.

    Args:
        prompt: the prompt that the values are of.
        image: which image of it.
        values: a number per token of that image or of all images, (panels, tokens), a mapping from position, or a
            result that holds them.
        label: what they are; told by a result.
        titles: what stands above each panel.

    Raises:
        MMFlowError: numbers that do not fit the image's tokens, or are not finite, or too many panels.
    """
    import numpy as np

    if isinstance(values, AttentionResult):
        panels = _of_maps(prompt, image, values)
    elif isinstance(values, Result):
        panels = _of_result(prompt, image, values)
    else:
        numbers = _of_mapping(prompt, image, values) if isinstance(values, Mapping) else _as_array(values)
        panels = Panels(_cut(prompt, image, np.atleast_2d(numbers)), ("",) * len(np.atleast_2d(numbers)), "value")
    if titles is not None and len(titles) != len(panels.titles):
        raise MMFlowError(f"{len(titles)} titles came for {len(panels.titles)} panels: give one for each.")
    if len(panels.titles) > MOST_PANELS:
        raise MMFlowError(
            f"{len(panels.titles)} panels were asked for; {MOST_PANELS} are as many as can be read. Choose layers:"
            " values[[0, 8, 16]], or layers= where the result was made."
        )
    if np.isinf(panels.numbers).any() or np.isnan(panels.numbers).all():
        raise MMFlowError(
            f"{int(np.isinf(panels.numbers).sum())} values are infinite and {int(np.isnan(panels.numbers).sum())} of"
            f" {panels.numbers.size} are none: there is no colour for them."
        )
    return Panels(panels.numbers, panels.titles if titles is None else tuple(titles), label or panels.label)


def _of_mapping(prompt: Prompt, image: int, values: Mapping[int, float]) -> np.ndarray:
    held = image_tokens(prompt, image).positions
    strange = sorted(set(values) - set(prompt.spans["image"].positions))
    if strange or not set(values) & set(held):
        raise MMFlowError(
            f"the mapping has values at positions {strange[:5] or sorted(values)[:5]}, which hold no token of this"
            f" image; its tokens stand at {held[0]} to {held[-1]}: prompt.spans['image']."
        )
    return by_position(prompt, image, values)


def _as_array(values: ImageValues) -> np.ndarray:
    import numpy as np
    import torch

    if isinstance(values, torch.Tensor):
        values = values.detach().float().cpu().numpy()
    try:
        numbers = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise MMFlowError(f"values are numbers, one per image token, but {came(values)} came.") from None
    if numbers.ndim not in (1, 2) or not numbers.size:
        raise MMFlowError(
            f"values must be (tokens,) or (panels, tokens), but have the shape {tuple(numbers.shape)}. Take the mean"
            " over the other axes, heads for example, first."
        )
    return numbers


def _cut(prompt: Prompt, image: int, numbers: np.ndarray) -> np.ndarray:
    """The columns of this image, of numbers for it alone or for all images."""
    images = prompt.spans["image"].images
    held, count = [len(picture.positions) for picture in images], numbers.shape[1]
    tokens = image_tokens(prompt, image)
    if count == len(tokens.positions):
        return numbers
    if count == sum(held):
        where = {position: index for index, position in enumerate(prompt.spans["image"])}
        return numbers[:, [where[position] for position in tokens.positions]]
    raise MMFlowError(
        f"{count} values came for the {len(tokens.positions)} tokens of image {image}: give one for each, in their"
        " order (prompt.spans['image']), tokens that end a row included; or a mapping of position to value."
    )


def _of_maps(prompt: Prompt, image: int, maps: AttentionResult) -> Panels:
    """The attention of the maps' targets (their mean) to each token, mean over heads, a panel per layer."""
    import numpy as np

    if not maps.is_of(prompt):
        raise MMFlowError("these attention maps are of another prompt: mmf.attention(graph, prompt, ...) again.")
    mean = maps.weights.mean((1, 2)).numpy()
    numbers = np.stack([by_position(prompt, image, dict(zip(maps.sources, row.tolist(), strict=True))) for row in mean])
    if np.isnan(numbers).all():
        raise SpanError(
            f"the attention maps hold no token of image {image} among their {len(maps.sources)} sources:"
            ' mmf.attention(graph, prompt, source="image").'
        )
    held = f"{len(maps.targets)} target{'s' if len(maps.targets) > 1 else ''}"
    if len(maps.targets) == 1:
        held = repr(maps.header["tokens"][maps.targets[0]])
    return Panels(
        numbers,
        tuple(f"layer {layer}" for layer in maps.layers),
        f"attention weight from {held}, mean over {len(maps.heads)} heads",
    )


def _of_result(prompt: Prompt, image: int, result: Result) -> Panels:
    from nnsight_mmflow.patterns.contributions.result import ContributionsResult
    from nnsight_mmflow.patterns.knockout_by_patch_result import KnockoutByPatchResult
    from nnsight_mmflow.patterns.saliency import SaliencyResult
    from nnsight_mmflow.show.contributions import contribution_panels
    from nnsight_mmflow.show.patches import patch_panels
    from nnsight_mmflow.show.saliency import saliency_panels

    if isinstance(result, ContributionsResult):
        return contribution_panels(result, prompt, image, [None])
    if isinstance(result, SaliencyResult):
        return saliency_panels(result, prompt, image, [None])
    if isinstance(result, KnockoutByPatchResult):
        return patch_panels(result, prompt, image)
    raise MMFlowError(
        f"a {type(result).__name__} holds no number per image token; AttentionResult, contributions, saliency and"
        " knockout_by_patch do. Words on patches: mmf.lens_by_patch(...).plot(layer)."
    )
