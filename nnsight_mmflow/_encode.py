"""Text and pictures to tensors and spans: runs the processor, finds each token in the text, checks that all fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._errors import PromptError
from nnsight_mmflow._geometry import ImageGeometry
from nnsight_mmflow._row_spans import Spans
from nnsight_mmflow._spans import ImageTokens, Span

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as Picture

    from nnsight_mmflow.adapters._base import Adapter


def encode(
    adapter: Adapter,
    text: str,
    question: tuple[int, int],
    pictures: list[Picture],
    sizes: list[tuple[int, int]],
    squared: bool,
) -> tuple[dict[str, torch.Tensor], Spans]:
    """What the model takes for one prompt, and its spans.

    Args:
        adapter: knows the family.
        text: the prompt with one placeholder per picture.
        question: where the question starts and ends in `text`.
        pictures: as the processor is to see them.
        sizes: (width, height) of the pictures as given.
        squared: whether they were padded to squares.

    Raises:
        PromptError: pictures and placeholders, or image tokens and features, do not agree; an unknown word.
    """
    processor = adapter.processor
    placeholder = processor.image_token
    if text.count(placeholder) != len(pictures):
        raise PromptError(
            f"the text names {text.count(placeholder)} image(s) by {placeholder!r}, but {len(pictures)} came: {text!r}."
            " Pass as many pictures as the text has placeholders."
        )
    if pictures and getattr(processor, "patch_size", 1) is None:
        raise PromptError(
            "the processor's patch_size is None, so it cannot expand the image token: set processor.patch_size to the"
            " tower's, and vision_feature_select_strategy to the model's."
        )
    bos = processor.tokenizer.bos_token
    special = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
    encoded = processor(text=text, images=pictures or None, return_tensors="pt", **special)
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask", "pixel_values") if name in encoded}
    geometries = adapter.images(inputs, sizes, squared) if pictures else []
    ids = inputs["input_ids"][0].tolist()
    check_counts(ids.count(adapter.image_token_id), [len(geometry.cells) for geometry in geometries])
    offsets = _offsets(adapter, text, ids, geometries, special)
    _check_words(processor, text, ids, offsets)
    tokens = tuple(processor.tokenizer.convert_ids_to_tokens(ids))
    return inputs, spans_of(ids, adapter.image_token_id, tokens, offsets, text, question, placeholder, geometries)


def check_counts(image_tokens: int, features: list[int]) -> None:
    """Refuses a prompt whose image tokens are not as many as the features that the model will put there.

    Raises:
        PromptError: with the three numbers, and the likely cause.
    """
    expected = sum(features)
    if image_tokens == expected:
        return
    if image_tokens == 0:
        cause = "an image came, but the ids hold no image token: the image is missing from the text"
    elif expected == 0:
        cause = "the ids hold image tokens, but no pixel_values came: pass the image"
    elif image_tokens == len(features):
        cause = "the placeholder was not expanded: set patch_size and vision_feature_select_strategy on the processor"
    elif abs(image_tokens - expected) == len(features):
        cause = (
            "one token an image: the class token. The processor's vision_feature_select_strategy or"
            " num_additional_image_tokens does not fit the model's"
        )
    elif image_tokens < expected:
        cause = "truncation, or a processor with a larger patch_size than the tower's"
    else:
        cause = "a processor with a smaller patch_size than the tower's"
    raise PromptError(
        f"{image_tokens} image tokens in the prompt, {expected} features from {len(features)} image(s)"
        f" ({', '.join(map(str, features)) or 'none'}). Likely cause: {cause}."
    )


def _offsets(
    adapter: Adapter, text: str, ids: list[int], geometries: list[ImageGeometry], special: dict[str, bool]
) -> tuple[tuple[int, int], ...]:
    """Where each token lies in `text`, whose placeholders stand for many tokens in `ids`."""
    processor = adapter.processor
    placeholder = processor.image_token
    parts = text.split(placeholder)
    expanded, origins = parts[0], list(range(len(parts[0])))
    for part, geometry in zip(parts[1:], geometries, strict=True):
        start = origins[-1] + 1 if origins else 0
        expanded += placeholder * len(geometry.cells) + part
        origins += [start] * (len(placeholder) * len(geometry.cells))
        origins += range(start + len(placeholder), start + len(placeholder) + len(part))
    origins.append(len(text))
    again = processor.tokenizer(expanded, return_offsets_mapping=True, **special)
    if again["input_ids"] != ids:
        raise PromptError(
            f"the processor made {len(ids)} tokens of {text!r}, its tokenizer {len(again['input_ids'])}: it changes the"
            " text in a way this package does not know, so tokens cannot be traced back to characters."
        )
    return tuple((origins[a], origins[b - 1] + 1 if b > a else origins[a]) for a, b in again["offset_mapping"])


def _check_words(processor: object, text: str, ids: list[int], offsets: tuple[tuple[int, int], ...]) -> None:
    tokenizer = processor.tokenizer  # type: ignore[attr-defined]
    unknown = [
        text[slice(*offsets[i])]
        for i, token in enumerate(ids)
        if token == tokenizer.unk_token_id and offsets[i][0] < offsets[i][1]
    ]
    if not unknown:
        return
    words = sorted(word for word in tokenizer.get_vocab() if word.strip() and not word.startswith("<"))
    known = f" It knows {len(words)} words: {' '.join(words)}." if len(words) <= 1000 else ""
    raise PromptError(f"the tokenizer does not know {', '.join(map(repr, dict.fromkeys(unknown)))}.{known}")


def spans_of(
    ids: list[int],
    image_token_id: int,
    tokens: tuple[str, ...],
    offsets: tuple[tuple[int, int], ...],
    text: str,
    question: tuple[int, int],
    placeholder: str,
    geometries: list[ImageGeometry],
) -> Spans:
    """The spans of an unpadded row, from its ids and the characters of its tokens."""
    row = (0, len(ids))
    image_positions = [position for position, token in enumerate(ids) if token == image_token_id]
    images, taken = [], 0
    for geometry in geometries:
        images.append(ImageTokens(tuple(image_positions[taken : taken + len(geometry.cells)]), geometry))
        taken += len(geometry.cells)
    image = Span("image", tuple(image_positions), row, tuple(images))
    start, end = question
    asked = tuple(
        position
        for position, (a, b) in enumerate(offsets)
        if max(start, a) < min(end, b) and ids[position] != image_token_id
    )
    if not asked:
        raise PromptError(f"no token of the prompt covers the question {text[start:end]!r}.")
    rest = [position for position in range(len(ids)) if position not in set(asked) | set(image_positions)]
    named = {
        "prefix": Span("prefix", tuple(position for position in rest if position < asked[-1]), row),
        "image": image,
        "question": Span("question", asked, row),
        "suffix": Span("suffix", tuple(position for position in rest if position > asked[-1]), row),
        "last": Span("last", (len(ids) - 1,), row),
        "all": Span("all", tuple(range(len(ids))), row, tuple(images)),
    }
    after = text.rfind(placeholder)
    return Spans(named, tokens, offsets, text, question, after + len(placeholder) if after >= 0 else 0)
