"""Attention on the image as a page: weights as bytes, one array for each layer.

A weight w of a head whose largest is m is kept as round(255 * (w / m) ** p). With p = 1/2, the square root, most bytes
go to small weights, of which attention mostly consists. Where a layer would then take more than 1.75 MB and 0.3 bytes
per weight, p is the smallest with which it does not: small weights get coarser, large ones no worse. With
a = (w / m) ** p, what is read back differs from w by at most m * ((a + 1/510) ** (1 / p) - a ** (1 / p)), and nowhere
by more than m / 255.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._page import Page, pack
from nnsight_mmflow.show.pages.explore_parts import LEGEND, check_picture, names_of, palette, pictures_of, script, shown

if TYPE_CHECKING:
    import numpy as np

    from nnsight_mmflow.patterns.attention.result import AttentionResult
    from nnsight_mmflow.prompts.prompt import Prompt

STEPS = 255
POWERS = tuple(number / 100 for number in range(50, 102, 2))
LAYER_BYTES, BYTES_PER_WEIGHT = 1_750_000, 0.3  # as text in the page; the picture and the script come on top
BODY = f"""
<h1 id="title"></h1>
<div class="controls">
<label id="layers">layer <input type="range" id="layer" min="0" step="1"><output id="layer-name"></output></label>
<label>head <select id="head"></select></label>
<label id="tokens">generated token <input type="range" id="token" min="0" step="1" value="0">
<output id="token-name"></output></label>
<label>picture and words show <select id="direction"><option value="receives">what the selected position reads</option>
<option value="sends">who reads the selected position</option></select></label>
<label>position <input type="number" id="position" min="0" step="1"></label>
<label id="views">view <select id="view"></select></label>
<label>overlay <input type="range" id="opacity" min="0" max="100" value="65"></label>
<label><input type="checkbox" id="sinks" checked>
leave attention sinks, and the position itself, out of the colour scales</label>
</div>
<p id="state" role="status"></p>
<div class="figures">
<section aria-label="pictures"><div id="pictures"></div><div id="picture-bar">{LEGEND}</div></section>
<section aria-label="whole matrix"><div id="matrix" tabindex="0" role="application">
<span class="axis">sources: what is read →</span>
<div id="cells"><canvas id="across" height="1"></canvas><canvas id="down" width="1"></canvas>
<canvas id="weights"></canvas>
<i id="row-line"></i><i id="column-line"></i><i id="cell-mark"></i></div>
<span class="axis">targets: who reads ↓; dark edge: image tokens</span></div>
<div id="matrix-bar">{LEGEND}</div></section>
</div>
<p id="reading" aria-live="polite">&nbsp;</p>
<div id="words" role="group" aria-label="the prompt, word by word"></div><div id="words-bar">{LEGEND}</div>
<div class="lists"><section><h2 id="receives-title"></h2><ol id="receives"></ol></section>
<section><h2 id="sends-title"></h2><ol id="sends"></ol></section></div>
<p class="note">Click a patch or a word to select it. Keys: Tab goes from part to part; arrows move the selected patch
on a picture, the selected word among the words, and a cell on the matrix (Enter selects its target). In brackets: the
position in the prompt.
A ring, and the word “sink”, mark attention sinks: positions that most later ones read, whatever is asked.</p>
<p class="note" id="kept"></p>
"""


def attention_page(maps: AttentionResult, most_bytes: int, layer: int | None = None) -> Page:
    """The page of attention maps; `layer` is shown first.

    Raises:
        PromptError: the prompt has no image.
        MMFlowError: the page would be larger than `most_bytes`.
    """
    prompt = maps.shown_prompt()
    check_picture(prompt)
    if not bool(maps.weights.isfinite().all()):
        raise MMFlowError("the maps hold weights that are not finite: there is no colour for them.")
    lower = maps.targets == maps.sources and not bool(maps.weights.triu(1).any())
    arrays: dict[str, np.ndarray | str] = {"palette": palette(signed=False)}
    powers: list[float] = []
    scales: list[list[float]] = []
    size = 0
    for shown_layer in maps.layers:
        packed, power, largest = packed_weights(maps.at(shown_layer).float().numpy(), lower)
        arrays |= {f"layer {shown_layer}": packed, f"mass {shown_layer}": _picture_mass(maps, shown_layer)}
        powers.append(power)
        scales.append(largest)
        size += len(packed)
        if size > most_bytes:
            _refuse(maps, size, len(powers), most_bytes)
    under = "".join(f", under {pattern}" for pattern in maps.patterns)
    count = len(maps.heads)
    data = {
        "title": f"Attention{f' of {maps.model}' if maps.model else ''}{under}: {prompt.question}",
        "layers": list(maps.layers),
        "first": maps.layers.index(layer) if layer is not None else len(maps.layers) // 2,
        "heads": list(maps.heads),
        "targets": list(maps.targets),
        "sources": list(maps.sources),
        "generated": [position for position in maps.generated if position in set(maps.targets)],
        "lower": lower,
        "powers": powers,
        "scales": scales,
        "sinks": [list(maps.sinks(layer)) for layer in maps.layers],
        "names": names_of(prompt),
        "chips": chips_of(prompt),
        "pictures": pictures_of(prompt),
        "kept": _told(powers, scales),
    }
    shape = f"{len(maps.layers)} layers, {count} head{'s' if count > 1 else ''}, {len(maps.targets)} targets"
    return Page(
        "attention on the image",
        BODY,
        script("explore.js", "explore_attention.js", "explore_attention_start.js"),
        script("explore.css"),
        data,
        arrays,
        f"{data['title']}\n{shape}, {len(maps.sources)} sources: page.save('attention.html'), or show it in a notebook",
    )


def packed_weights(weights: np.ndarray, lower: bool) -> tuple[str, float, list[float]]:
    """(the bytes as text, p, the largest weight of each head) of (heads, targets, sources); see above.

    Args:
        weights: 0 or more.
        lower: keep the lower triangle alone, row by row.
    """
    import numpy as np

    if lower:
        down, across = np.tril_indices(weights.shape[1])
        weights = weights[:, down, across]
    weights = weights.reshape(len(weights), -1)
    largest = weights.max(1)
    shares = weights / np.where(largest > 0, largest, 1)[:, None]
    most = max(LAYER_BYTES, BYTES_PER_WEIGHT * weights.size)
    for power in POWERS:
        held = np.rint(shares**power * STEPS).astype(np.uint8)
        if power < POWERS[-1] and _expected(held) > 1.05 * most:
            continue  # not worth packing
        packed = pack(held, runs=True)
        if len(packed) <= most:
            break
    return packed, power, [float(peak) for peak in largest]


def furthest(weight: float, largest: float, power: float) -> float:
    """How far a weight that is read back may differ from the exact one."""
    root = min(1.0, weight / largest) ** power if largest else 0.0
    return largest * (min(1.0, root + 0.5 / STEPS) ** (1 / power) - min(root, 1 - 0.5 / STEPS) ** (1 / power))


def chips_of(prompt: Prompt) -> list[dict]:
    """The words of the prompt in order, each image as one."""
    owner = {
        p: picture.number for picture in prompt.spans["image"].images for p in (*picture.positions, *picture.separators)
    }
    chips: list[dict] = []
    for position in prompt.spans["all"]:
        image = owner.get(position)
        if image is None:
            chips.append({"position": position, "text": shown(prompt.spans.tokens[position])})
        elif chips and chips[-1].get("image") == image:
            chips[-1]["positions"].append(position)
        else:
            chips.append({"image": image, "positions": [position]})
    return chips


def _picture_mass(maps: AttentionResult, layer: int) -> np.ndarray:
    """(images, heads, targets): how much of all that a target reads is an image's, in 255 steps.

    Summed here: small weights that are rounded one by one would add up to too little.
    """
    import numpy as np

    weights = maps.at(layer).float().numpy()
    sums = []
    for image in maps.shown_prompt().spans["image"].images:
        held = {*image.positions, *image.separators}
        sums.append(weights[:, :, [position in held for position in maps.sources]].sum(-1))
    return np.rint(np.clip(np.stack(sums), 0, 1) * STEPS).astype(np.uint8)


def _told(powers: list[float], scales: list[list[float]]) -> str:
    """How exact the page is."""
    pairs = [(max(largest), power) for largest, power in zip(scales, powers, strict=True)]
    large, small = (max(furthest(weight, *pair) for pair in pairs) for weight in (1.0, 0.01))
    text = (
        f"Each weight is kept as one byte: what is shown is off by at most {large:.2g}, of a weight of 0.01 by at most"
    )
    finer = " With fewer heads (heads=) small weights are kept finer." if max(powers) > POWERS[0] else ""
    return f"{text} {small:.2g}.{finer}"


def _expected(held: np.ndarray) -> float:
    """How long the text of these bytes will be: their entropy, head by head, in base64."""
    import numpy as np

    shares = np.stack([np.bincount(head, minlength=256) for head in held]) / held.shape[1]
    bits = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum()
    return float(bits * held.shape[1] / 8 * 4 / 3)


def _refuse(maps: AttentionResult, size: int, done: int, most_bytes: int) -> None:
    layers, heads = len(maps.layers), len(maps.heads)
    expected = size / done * layers
    raise MMFlowError(
        f"a page of {layers} layers x {heads} heads x {len(maps.targets)} targets x {len(maps.sources)} sources would"
        f" take about {expected / 1e6:.0f} MB, more than {most_bytes / 1e6:.3g} MB, and open slowly. Show less:"
        f" mmf.explore(maps, layers=[{maps.layers[layers // 2]}]), heads=[{maps.heads[0]}]; or read less:"
        " mmf.attention(graph, prompt, target='question', source='image'); or raise most_bytes."
    )
