"""Text and pictures to tensors and spans: runs the processor, finds each token in the text, checks that all fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from transformers import BatchFeature

from nnsight_mmflow._errors import PromptError
from nnsight_mmflow._kinds import came
from nnsight_mmflow.prompts.pictures import as_square
from nnsight_mmflow.prompts.prompt import Batch, Prompt
from nnsight_mmflow.spans.geometry import ImageGeometry
from nnsight_mmflow.spans.row_spans import Spans
from nnsight_mmflow.spans.span import ImageTokens, Span

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from PIL.Image import Image as Picture

    from nnsight_mmflow.adapters.base import Adapter


def encode(
    adapter: Adapter,
    text: str,
    question: tuple[int, int],
    pictures: Sequence[Picture],
    squared: bool,
) -> tuple[dict[str, torch.Tensor], Spans]:
    """What the model takes for one prompt, and its spans.

    Args:
        adapter: knows the family.
        text: the prompt with one placeholder per picture.
        question: where the question starts and ends in `text`.
        pictures: upright and in RGB.
        squared: whether each is padded to a square before the processor sees it.

    Raises:
        DataError: a square above the limit of pixels.
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
    mean = processor.image_processor.image_mean
    seen = [as_square(picture, mean) for picture in pictures] if squared else list(pictures)
    encoded = _processed(adapter, text, seen, special)
    replaced: list[dict] = next(iter(encoded.pop("text_replacement_offsets", None) or []), [])
    taken = {name: value for name, value in encoded.items() if name in adapter.input_names}
    inputs = dict(BatchFeature(taken, tensor_type="pt"))
    geometries = adapter.images(inputs, [picture.size for picture in pictures], squared) if pictures else []
    ids = inputs["input_ids"][0].tolist()
    check_counts(ids.count(adapter.image_token_id), [len(geometry.cells) for geometry in geometries])
    text, question = adapter.prepared(text, question)
    offsets = _offsets(adapter, text, ids, replaced, special)
    _check_words(processor, text, ids, offsets)
    tokens = tuple(processor.tokenizer.convert_ids_to_tokens(ids))
    images = _images(ids, adapter.image_token_id, offsets, [entry["span"][0] for entry in replaced], geometries)
    return inputs, spans_of(tokens, offsets, text, question, placeholder, images)


def _processed(adapter: Adapter, text: str, pictures: list[Picture], special: dict[str, bool]) -> dict:
    """What the processor returns, as lists and arrays, and where it put what in place of each placeholder."""
    images = adapter.nested(pictures) if pictures else None
    try:
        return dict(adapter.processor(text=text, images=images, return_text_replacement_offsets=True, **special))
    except (ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        raise PromptError(f"the processor refuses this prompt: {error}") from error


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
        f"{image_tokens} image tokens in the prompt, {expected} features from {len(features)} image(s) or tiles"
        f" ({', '.join(map(str, features)) or 'none'}). Likely cause: {cause}."
    )


def _offsets(
    adapter: Adapter, text: str, ids: list[int], replaced: list[dict], special: dict[str, bool]
) -> tuple[tuple[int, int], ...]:
    """Where each token lies in `text`, whose placeholders stand for many tokens in `ids`.

    Every token that came in place of a placeholder has that placeholder's first character.
    """
    expanded, origins, done = "", [], 0
    for entry in replaced:
        start, end = entry["span"]
        expanded += text[done:start] + entry["replacement"]
        origins += [*range(done, start), *[start] * len(entry["replacement"])]
        done = end
    expanded += text[done:]
    origins += range(done, len(text))
    again = adapter.processor.tokenizer(expanded, return_offsets_mapping=True, **special)
    if again["input_ids"] != ids:
        raise PromptError(
            f"the processor made {len(ids)} tokens of {text!r}, its tokenizer {len(again['input_ids'])}: it changes the"
            " text in a way this package does not know, so tokens cannot be traced back to characters."
        )
    origins.append(len(text))
    return tuple((origins[a], origins[b - 1] + 1 if b > a else origins[a]) for a, b in again["offset_mapping"])


def _images(
    ids: list[int],
    image_token_id: int,
    offsets: tuple[tuple[int, int], ...],
    placeholders: list[int],
    geometries: list[ImageGeometry],
) -> tuple[ImageTokens, ...]:
    """The tokens of each image: those that came in place of its placeholder."""
    images = []
    for number, (start, geometry) in enumerate(zip(placeholders, geometries, strict=True)):
        came = [position for position, where in enumerate(offsets) if where == (start, start + 1)]
        features = tuple(position for position in came if ids[position] == image_token_id)
        if len(features) != len(geometry.cells):
            raise PromptError(
                f"image {number} has {len(features)} tokens in the prompt, but its picture gives"
                f" {len(geometry.cells)} features: are the pictures in the order of the placeholders?"
            )
        others = tuple(position for position in came if ids[position] != image_token_id)
        images.append(ImageTokens(features, geometry, others, number))
    return tuple(images)


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
    tokens: tuple[str, ...],
    offsets: tuple[tuple[int, int], ...],
    text: str,
    question: tuple[int, int],
    placeholder: str,
    images: tuple[ImageTokens, ...],
) -> Spans:
    """The spans of an unpadded row, from the characters of its tokens and the tokens of its images."""
    row = (0, len(tokens))
    shown = {position for image in images for position in image.positions}
    put_in = shown | {position for image in images for position in image.separators}
    start, end = question
    asked = tuple(
        position for position, (a, b) in enumerate(offsets) if max(start, a) < min(end, b) and position not in put_in
    )
    if not asked:
        raise PromptError(f"no token of the prompt covers the question {text[start:end]!r}.")
    rest = [position for position in range(len(tokens)) if position not in set(asked) | shown]
    named = {
        "prefix": Span("prefix", tuple(position for position in rest if position < asked[-1]), row),
        "image": Span("image", tuple(sorted(shown)), row, images),
        "question": Span("question", asked, row),
        "suffix": Span("suffix", tuple(position for position in rest if position > asked[-1]), row),
        "last": Span("last", (len(tokens) - 1,), row),
        "all": Span("all", tuple(range(len(tokens))), row, images),
    }
    after = text.rfind(placeholder)
    return Spans(named, tokens, offsets, text, question, after + len(placeholder) if after >= 0 else 0)


def check_made_for(adapter: Adapter, prompt: Prompt) -> None:
    """Refuses a prompt that another model's graph made: its ids would stand for other words here.

    Raises:
        PromptError: its tokens are not those that this model's tokenizer has for its ids, or its image is not read.
    """
    ids = prompt.inputs["input_ids"][0].tolist()
    here, there = tuple(adapter.processor.tokenizer.convert_ids_to_tokens(ids)), prompt.spans.tokens
    at = next((at for at, (mine, theirs) in enumerate(zip(here, there, strict=False)) if mine != theirs), None)
    if len(here) != len(there):
        at = min(len(here), len(there))
    why = (
        ""
        if at is None
        else f"at position {at} it has {there[at : at + 1]}, this model's tokenizer {here[at : at + 1]}"
    )
    image = [ids[position] for position in prompt.spans["image"]]
    if not why and set(image) - {adapter.image_token_id}:
        why = f"its image tokens have the id {image[0]}, this model's {adapter.image_token_id}"
    unread = [name for name in prompt.inputs if name not in adapter.input_names]
    if not why and unread:
        why = f"{type(adapter.model).__name__} takes no {', '.join(unread)}"
    if why:
        raise PromptError(
            f"the prompt {prompt.question!r} was made by another model's graph: {why}. Make it with this graph.prompt."
        )


def checked_inputs(adapter: Adapter, prompt: Prompt | Batch | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a prompt on the model's device.

    Raises:
        PromptError: image tokens and pictures that do not agree, or padding without an attention mask.
    """
    if not isinstance(prompt, Prompt | Batch | Mapping):
        raise PromptError(
            f"a prompt, a batch or a mapping of tensors is expected, as graph.prompt returns it; {came(prompt)} came."
        )
    for single in prompt.prompts if isinstance(prompt, Batch) else [prompt]:
        if isinstance(single, Prompt):
            check_made_for(adapter, single)
    inputs = dict(prompt.inputs if isinstance(prompt, Prompt | Batch) else prompt)
    if "input_ids" not in inputs:
        raise PromptError(f"the inputs hold {', '.join(inputs) or 'nothing'}; input_ids are missing.")
    ids = inputs["input_ids"]
    if not isinstance(prompt, Prompt):
        pad = adapter.processor.tokenizer.pad_token_id
        ends = (ids[:, 0] == pad) | (ids[:, -1] == pad) if pad is not None else ids[:, 0] < 0
        if "attention_mask" not in inputs and len(ids) > 1 and bool(ends.any()):
            padded = ends.nonzero().flatten().tolist()
            raise PromptError(
                f"row(s) {padded} start or end with padding, but there is no attention_mask: the model would"
                " read the padding as text. Pass the attention_mask that the processor or graph.batch returned."
            )
        pixels = inputs.get("pixel_values")
        features = [] if pixels is None else adapter.feature_counts(inputs)
        check_counts(int((ids == adapter.image_token_id).sum()), features)
    weights = adapter.model.get_input_embeddings().weight
    if weights.is_meta:  # a remote run: the server places them
        return inputs
    return {
        name: tensor.to(weights.device, weights.dtype if tensor.is_floating_point() else None)
        for name, tensor in inputs.items()
    }
