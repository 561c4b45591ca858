"""Prompt texts: the processor's own chat template, the paper's two by name, or raw text.

Each gives the text before and after the question, so that the question is found by counting, not by searching.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._errors import PromptError

if TYPE_CHECKING:
    from transformers import ProcessorMixin

INSTRUCTION = "Answer the question using a single word or phrase."
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LLAMA_3_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_LLAMA_3_TURN = "<|start_header_id|>{role}<|end_header_id|>\n\n"

# Text before the question ({images}: the placeholders), between question and instruction, and after the instruction.
# Source: Cross-modal Information Flow; byte-equal, the space before the second newline included.
PAPER_TEMPLATES = {
    "vicuna_v1": (f"{_VICUNA_SYSTEM} USER: {{images}}", " \n", " ASSISTANT:"),
    "llava_llama_3": (
        "<|begin_of_text|>"
        + _LLAMA_3_TURN.format(role="system")
        + f"{_LLAMA_3_SYSTEM}<|eot_id|>"
        + _LLAMA_3_TURN.format(role="user")
        + "{images}",
        " \n",
        "<|eot_id|>" + _LLAMA_3_TURN.format(role="assistant") + " \n",
    ),
}
_MARK = "QUESTIONSTANDSHERE"


def render(
    processor: ProcessorMixin,
    question: str,
    n_images: int,
    image_token: str,
    *,
    template: str | None,
    raw: bool,
    instruction: str | None,
    plain: tuple[str, str] | None = None,
) -> tuple[str, int, int]:
    """The prompt text, and where the question starts and ends in it.

    Raises:
        PromptError: an unknown template, a processor without one, or arguments that contradict each other.
    """
    if raw:
        if template or instruction:
            raise PromptError("raw=True takes the text as it is: leave out template= and instruction=.")
        last = question.rfind(image_token)
        return question, last + len(image_token) if last >= 0 else 0, len(question)
    if not question.strip():
        raise PromptError("the question is empty; for a prompt without one, write the whole text with raw=True.")
    if image_token in question:
        raise PromptError(
            f"the question contains {image_token!r}, which the template places itself."
            " For full control of the text use raw=True."
        )
    if template in PAPER_TEMPLATES:
        before, between, after = PAPER_TEMPLATES[template]
        before = before.replace("{images}", f"{image_token}\n" * n_images)
        asked = INSTRUCTION if instruction is None else instruction
        after = f"{between}{asked}{after}" if asked else after
        return before + question + after, len(before), len(before) + len(question)
    if template not in (None, "chat"):
        raise PromptError(f'template must be "chat" or one of {", ".join(PAPER_TEMPLATES)}, not {template!r}.')
    end = f"\n{instruction}" if instruction else ""
    if plain and not getattr(processor, "chat_template", None):  # a family that was never trained to chat
        before, after = plain[0].replace("{images}", image_token * n_images), end + plain[1]
        return before + question + after, len(before), len(before) + len(question)
    if not getattr(processor, "chat_template", None):
        raise PromptError(
            "the processor has no chat template: name one of"
            f" {', '.join(PAPER_TEMPLATES)} with template=, or write the whole text with raw=True."
        )
    parts = _chat(processor, _MARK + end, n_images).split(_MARK)
    if len(parts) != 2:
        raise PromptError(
            f"the chat template writes the question {len(parts) - 1} times, so its tokens cannot be found by counting."
            " Write the whole text with raw=True."
        )
    before, after = parts
    text = _chat(processor, question + end, n_images)
    # A template may strip the text it is given: then the question is what is left of it.
    if not (
        text.startswith(before) and text.endswith(after) and text[len(before) : len(text) - len(after)] in question
    ):
        raise PromptError(
            f"the chat template changes the question {question!r} (it gave {text!r}), so its tokens cannot be found by"
            " counting. Write the whole text with raw=True."
        )
    return text, len(before), len(text) - len(after)


def _chat(processor: ProcessorMixin, text: str, n_images: int) -> str:
    content = [{"type": "image"}] * n_images + [{"type": "text", "text": text}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
