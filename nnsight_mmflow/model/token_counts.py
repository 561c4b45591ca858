"""Does a processor make as many image tokens of a picture as the model makes features? Told at loading."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError, ModelError

if TYPE_CHECKING:
    from nnsight_mmflow.adapters.base import Adapter


def check_counts_of(adapter: Adapter) -> None:
    """Refuses a processor that makes of a picture another number of tokens than the model makes features.

    A processor without patch_size (old LLaVA checkpoints) is left alone: it can still be set.

    Raises:
        ModelError: with the numbers and the likely cause.
    """
    from PIL import Image

    from nnsight_mmflow.prompts.encode import encode

    processor = adapter.processor
    if getattr(processor, "patch_size", 1) is None:
        return
    picture = Image.new("RGB", (96, 64), (90, 120, 150))
    word = processor.tokenizer.bos_token or processor.tokenizer.eos_token or ""
    text = f"{processor.image_token}{word}"
    try:
        encode(adapter, text, (len(processor.image_token), len(text)), [picture], False)
    except ModelError:
        raise
    except MMFlowError as error:
        if "features" in str(error):
            raise ModelError(f"the processor does not fit the model: {error}") from None
    except Exception:  # what this picture or text cannot show is told with the first prompt
        return
