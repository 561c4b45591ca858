"""Checks of geometry: where a token's feature comes from, measured on the model and not read off a formula."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from nnsight_mmflow.checks.subject import QUESTION, Failed, Subject

if TYPE_CHECKING:
    from torch import nn

    from nnsight_mmflow.spans.geometry import ImageGeometry, Place
    from nnsight_mmflow.spans.views import Box, View


def merged(subject: Subject) -> str:
    """What stands at the image's positions are the features that the model itself makes, in its order."""
    graph, model = subject.graph, subject.graph.adapter.model
    shapes = []
    for prompt in (subject.prompt, subject.other):
        inputs = graph.checked(prompt)
        taken = {name: value for name, value in inputs.items() if name in graph.adapter.image_names}
        with torch.no_grad():
            features = model.get_image_features(**taken, return_dict=True).pooler_output
        parts = features if isinstance(features, list | tuple) else [features]
        made = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]).float().cpu()
        held = subject.merged(prompt)[list(prompt.spans["image"])]
        if made.shape != held.shape:
            raise Failed(f"the model makes features of shape {tuple(made.shape)}, the span holds {tuple(held.shape)}")
        ratio = float((held / made).nanmedian())  # some families scale what they merge
        subject.agree("features and what stands at the image's positions", held, made * ratio)
        shapes.append(str(len(made)))
    return f"{' and '.join(shapes)} features"


def round_trip(subject: Subject) -> str:
    """The box of each token, mapped back, gives that token and no other of its view."""
    count = 0
    for prompt in (subject.prompt, subject.other):
        for image in prompt.spans["image"].images:
            geometry = image.geometry
            for token in range(len(geometry.cells)):
                place = geometry.place(token)
                if place.box is None:
                    continue
                back = [other for other in geometry.tokens([place.box], "meets") if _same_view(geometry, other, token)]
                if back != [token]:
                    raise Failed(f"token {token} shows {place.box}, which gives tokens {back[:5]}")
                count += 1
    return f"{count} tokens"


def perturbed(subject: Subject) -> str:
    """With the tower's attention silenced, so that patches do not mix: paint a token's box, see which tokens change."""
    tried = 0
    with _silenced(subject.graph.tower._module):
        for seed, shape in ((0, (1.25, 0.75)), (1, (0.75, 1.25))):
            picture = subject.picture(seed, shape)
            prompt = subject.graph.prompt(picture, QUESTION)
            image = prompt.spans["image"].images[0]
            geometry, before = image.geometry, subject.merged(prompt)[list(image.positions)]
            for token in _sample(geometry):
                region = _inside(geometry.token_box(token))
                if region is None:
                    continue
                painted = np.array(picture)
                left, top, right, bottom = region
                painted[top:bottom, left:right] = 255 - painted[top:bottom, left:right] // 2
                after = subject.merged(subject.graph.prompt(painted, QUESTION))[list(image.positions)]
                moved = (after - before).abs().amax(1)
                changed = {i for i, by in enumerate(moved.tolist()) if by > 1e-6 + 1e-5 * float(moved.max())}
                allowed = {i for i in range(len(geometry.cells)) if _near(geometry, i, region)}
                if token not in changed or not changed <= allowed:
                    raise Failed(
                        f"painting {region}, shown by token {token}, changed tokens {sorted(changed)[:8]};"
                        f" those whose boxes meet it are {sorted(allowed)[:8]}"
                    )
                tried += 1
    if not tried:
        raise Failed("no token shows as much as one whole pixel of the test pictures")
    return f"{tried} regions"


def _same_view(geometry: ImageGeometry, first: int, second: int) -> bool:
    return _view(geometry, first) is _view(geometry, second)


def _view(geometry: ImageGeometry, token: int) -> View:
    cell = geometry.cells[token]
    assert not isinstance(cell, str)
    return geometry.views[cell.view]


def _sample(geometry: ImageGeometry) -> list[int]:
    """A few tokens of each view: its first, its last, and two between."""
    chosen = []
    for number in range(len(geometry.views)):
        shown = [
            i
            for i, cell in enumerate(geometry.cells)
            if not isinstance(cell, str) and cell.view == number and geometry.token_box(i)
        ]
        chosen += [shown[round(part * (len(shown) - 1))] for part in (0, 0.3, 0.7, 1)]
    return sorted(set(chosen))


def _inside(box: Box | None) -> tuple[int, int, int, int] | None:
    """The whole pixels inside a box; None where there is none."""
    if box is None:
        return None
    left, top, right, bottom = int(np.ceil(box[0])), int(np.ceil(box[1])), int(box[2]), int(box[3])
    return (left, top, right, bottom) if left < right and top < bottom else None


def _near(geometry: ImageGeometry, token: int, region: tuple[int, int, int, int]) -> bool:
    """Whether the region can reach the token: its box, grown by what resizing smears."""
    place: Place = geometry.place(token)
    if place.box is None:
        return place.kind == "patch"  # a patch of padding may hold the smeared edge
    view = _view(geometry, token)
    scale_x, scale_y, *_ = view._map
    resizes = sum(step.name == "resize" for step in view.steps)
    # Lanczos reaches three pixels of the smaller picture; features that were shrunk reach one of them besides.
    shrunk = max(end - start for stretches in (view.rows, view.columns) for start, end in stretches or ()) - view.patch
    reach = 4 * resizes + (view.patch if shrunk > 0 else 0)
    grow_x, grow_y = reach * max(1.0, 1 / scale_x), reach * max(1.0, 1 / scale_y)
    left, top, right, bottom = place.box
    return (
        left - grow_x < region[2]
        and region[0] < right + grow_x
        and top - grow_y < region[3]
        and region[1] < bottom + grow_y
    )


@contextmanager
def _silenced(tower: nn.Module) -> Iterator[None]:
    """The tower's attention modules give zeros while this lasts."""

    def zero(_module: nn.Module, _inputs: object, output: object) -> object:
        if isinstance(output, tuple):
            return (torch.zeros_like(output[0]), *output[1:])
        return torch.zeros_like(output)  # type: ignore[call-overload]

    attentions = [module for module in tower.modules() if type(module).__name__.endswith("Attention")]
    if not attentions:
        raise Failed(f"no attention module was found in {type(tower).__name__}")
    handles = [module.register_forward_hook(zero) for module in attentions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
