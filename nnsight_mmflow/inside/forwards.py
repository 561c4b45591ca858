"""What one forward of the language model holds: rows of which prompts, and which of their positions. Ships by value.

A generation may run a prompt whole, again and again (no cache), once for several rows (beams, samples), in parts, or a
few new tokens at a time. So a pattern never counts forwards: it asks what this one holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.names import cache_in

if TYPE_CHECKING:
    from nnsight import Envoy
    from transformers import Cache

Part = TypeVar("Part")


@dataclass(frozen=True)
class Held:
    """What a forward holds.

    Attributes:
        first: the position of its first query, counted as the (padded) prompt's are.
        count: how many queries it has in each row.
        length: positions of the padded prompt; what comes behind them was generated.
        factor: rows for each prompt: row r belongs to prompt r // factor.
        cached: whether what it computes is kept, so that no later forward holds it again.
    """

    first: int
    count: int
    length: int
    factor: int = 1
    cached: bool = False

    @property
    def end(self) -> int:
        """One behind its last position."""
        return self.first + self.count

    @property
    def past_prompt(self) -> bool:
        """Whether no later forward holds a position of the prompt."""
        return self.cached and self.end >= self.length

    def has(self, position: int) -> bool:
        """Whether a position is among its queries."""
        return self.first <= position < self.end

    def local(self, positions: Sequence[int]) -> list[int]:
        """Those of the positions that are among its queries, as numbers of queries."""
        return [position - self.first for position in positions if self.has(position)]

    def generated(self) -> list[int]:
        """Its queries that were generated, as numbers of queries."""
        return list(range(max(self.first, self.length) - self.first, self.count))

    def keys(self, positions: Sequence[int]) -> list[int]:
        """Those of the positions that its queries can have as keys: they are there already."""
        return [position for position in positions if position < self.end]

    def by_row(self, parts: Sequence[Part]) -> list[Part]:
        """A thing per prompt as one per row."""
        return [part for part in parts for _ in range(self.factor)]


def factor_of(rows: int, prompts: int) -> int:
    """How many rows stand for each prompt.

    Raises:
        MMFlowError: the rows cannot be shared out among the prompts.
    """
    if not rows or rows % prompts:
        raise MMFlowError(
            f"this forward has {rows} row(s) for {prompts} prompt(s), so it is not known which row belongs to which"
            " prompt. Run the prompts that the pattern's spans come from, without others beside them."
        )
    return rows // prompts


def cached_positions(cache: Cache | None) -> int:
    """How many positions a cache holds before this forward."""
    return 0 if cache is None else int(cache.get_seq_length())


def held_now(decoder: Envoy, prompts: int, length: int) -> Held:
    """Inside a trace or generation, before the layers: what this forward holds.

    Args:
        decoder: the language model around the layers.
        prompts: how many the batch has.
        length: positions of the padded prompt.
    """
    named = decoder.inputs[1]
    rows, count = named["inputs_embeds"].shape[:2]
    cache = cache_in(named)
    return Held(cached_positions(cache), count, length, factor_of(rows, prompts), cache is not None)


def held_whole(shape: Sequence[int], prompts: int, length: int) -> Held:
    """What a forward holds that is told by the shape of a tensor (rows, positions, ...): at least the whole prompt.

    Raises:
        MMFlowError: it holds less.
    """
    rows, count = shape[0], shape[1]
    if count < length:
        raise MMFlowError(
            f"this forward has {count} position(s), the prompt {length}: what acts on the prompt acts in a forward that"
            " holds all of it. In a generation hand the pattern to graph.generate, which finds its place."
        )
    return Held(0, count, length, factor_of(rows, prompts))


def each_forward(
    decoder: Envoy,
    prompts: int,
    length: int,
    act: Callable[[Held], bool],
    before: Callable[[], None] | None = None,
) -> None:
    """Inside an edit: calls `act` in each forward of a generation, until it says that nothing is left to do.

    Args:
        decoder: the language model around the layers.
        prompts: how many the batch has.
        length: positions of the padded prompt.
        act: what to do, given what the forward holds; returns whether it is done.
        before: what to do once, before the first forward reaches the language model.
    """
    from nnsight.intervention.interleaver import OutOfOrderError
    from nnsight.intervention.iterator import Iterations

    for number in Iterations()[0:]:
        if not number and before is not None:
            before()
        try:  # around the wait alone, so that no error of `act` is taken for the end
            held = held_now(decoder, prompts, length)
        except OutOfOrderError:  # the generation has ended
            return
        if act(held):
            return


def check_given(inputs: dict, given: dict, patterns: tuple, steps: bool) -> None:
    """Refuses keyword arguments that would replace the prompt's own tensors, or move it in a trace.

    Raises:
        MMFlowError: there are such.
    """
    twice = sorted(set(inputs) & set(given))
    instead = [name for name in ("inputs", "input_ids", "inputs_embeds") if name in given]
    if twice or instead:
        raise MMFlowError(
            f"{', '.join(twice or instead)} came beside the prompt, which holds the tensors that belong together. Leave"
            " it out; to run tensors of your own, use graph.model.trace(...) and graph.model.generate(...)."
        )
    moved = [name for name in ("attention_mask", "position_ids") if given.get(name) is not None]
    cache = cache_in(given)
    if cache is not None and not hasattr(cache, "get_seq_length"):
        raise MMFlowError(
            f"past_key_values is a {type(cache).__name__}; expected a transformers Cache, such as DynamicCache()."
        )
    past = cached_positions(cache)
    if patterns and not steps and past:
        raise MMFlowError(
            f"past_key_values holds {past} positions, so in this trace the prompt would stand behind them and its spans"
            " would mean other positions. Leave it out, or use graph.generate, where a cache holds the first positions"
            " of the same prompt."
        )
    if patterns and moved:
        raise MMFlowError(
            f"{moved[0]} came beside the prompt: patterns count positions as the prompt's own tensors do. Leave it out."
        )
