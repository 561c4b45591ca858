"""Numbers over layers and image tokens as a page: the picture, a slider over layers, and what each patch says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._page import Page
from nnsight_mmflow.show.pages.explore_parts import LEGEND, check_picture, names_of, palette, pictures_of, script

if TYPE_CHECKING:
    import numpy as np

    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.show.layer_values import LayerValues

CHANCES = 65535  # steps of a word's probability
BODY = f"""
<h1 id="title"></h1>
<div class="controls">
<label id="layers"><span id="layers-of">layer</span> <input type="range" id="layer" min="0" step="1">
<output id="layer-name"></output></label>
<label id="tokens">reading token <input type="range" id="token" min="0" step="1" value="0">
<output id="token-name"></output></label>
<label id="scales">colour scale <select id="scale"><option value="all">of all layers</option>
<option value="one">of this layer</option></select></label>
<label>position <input type="number" id="position" min="0" step="1"></label>
<label id="views">view <select id="view"></select></label>
<label>overlay <input type="range" id="opacity" min="0" max="100" value="65"></label>
</div>
<p id="state" role="status"></p>
<div class="figures">
<section aria-label="pictures"><div id="pictures"></div><div id="picture-bar">{LEGEND}</div></section>
<section class="lists"><section><h2>selected: <span id="selected-name"></span></h2>
<div id="words" role="group" aria-label="the selected patch, layer by layer"></div>
<ol id="said"></ol></section>
<section><h2 id="largest-title"></h2><ol id="largest"></ol></section></section>
</div>
<p id="reading" aria-live="polite">&nbsp;</p>
<p class="note">Click a patch to select it. Keys: Tab goes from part to part; arrows move the selected patch on a
picture, and the layer on the slider.</p>
"""


def values_page(
    prompt: Prompt, each: Sequence[tuple[str, LayerValues]], title: str, layer: int | str | None = None
) -> Page:
    """The page of values over layers and image tokens; `layer` is shown first.

    Args:
        prompt: what the values are of.
        each: (who reads, its values); several have a slider, and one colour scale.
        title: above the figure.
        layer: its label.

    Raises:
        PromptError: the prompt has no image.
        MMFlowError: there is no such layer.
    """
    import numpy as np

    check_picture(prompt)
    values = each[0][1]
    numbers: np.ndarray = np.stack([one.numbers for _, one in each]).astype("<f4")
    signed = bool(np.nanmin(numbers) < 0)
    arrays: dict[str, np.ndarray | str] = {"palette": palette(signed), "values": numbers}
    data = {
        "title": title or f"{values.what}: {prompt.question}",
        "what": values.what,
        "labels": list(values.labels),
        "tokens": [name for name, _ in each] if len(each) > 1 else [],
        "first": _first(values, layer),
        "kept": values.kept,
        "signed": signed,
        "positions": list(prompt.spans["image"].positions),
        "names": names_of(prompt),
        "pictures": pictures_of(prompt),
        "vocabulary": None,
    }
    if values.words is not None:
        ranks = max((len(words) for layer in values.words for words in layer), default=0)
        vocabulary: dict[str, int] = {}
        which = np.full((*numbers.shape[1:], ranks), -1, "<i4")
        chances = np.zeros((*numbers.shape[1:], ranks), "<u2")
        for index, tokens in enumerate(values.words):
            for token, words in enumerate(tokens):
                for rank, (word, probability) in enumerate(words):
                    which[index, token, rank] = vocabulary.setdefault(word, len(vocabulary))
                    chances[index, token, rank] = round(probability * CHANCES)
        arrays |= {"which": which, "chances": chances}
        data |= {"vocabulary": list(vocabulary), "ranks": ranks}
    shape = f"{len(values.labels)} layers, {numbers.shape[2]} image tokens"
    if len(each) > 1:
        shape += f", a slider over {len(each)} tokens that read them"
    return Page(
        "values on the image",
        BODY,
        script("explore.js", "explore_values.js"),
        script("explore.css"),
        data,
        arrays,
        f"{data['title']}\n{shape}: page.save('values.html'), or show it in a notebook",
    )


def _first(values: LayerValues, layer: int | str | None) -> int:
    """Which layer is shown first: of pruning the last, where most is gone; else the middle one."""
    if layer is None:
        return len(values.labels) - 1 if values.kept else len(values.labels) // 2
    if str(layer) not in values.labels:
        raise MMFlowError(f"layer {layer} is not among the values; they have {', '.join(values.labels)}.")
    return values.labels.index(str(layer))
