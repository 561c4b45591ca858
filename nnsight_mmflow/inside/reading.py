"""What is read of a forward beside the first token: a whole answer, two options, what a function says. Ships by value.

A whole answer is teacher-forced: all its tokens but the last stand behind the prompt, so that the positions from the
prompt's last one on predict one of its tokens each. These are the last positions of the forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.rows import answer_numbers

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class Reading:
    """What is read of each copy of a prompt.

    Attributes:
        tokens: the answer's, one for each position that is read; () where one position is read and no token is named.
        against: the false option's token, where tokens[0] is the true one's: the score is their difference.
        mean: the mean over tokens instead of the sum.
        function: makes the score of the logits, (positions, vocabulary), and the prompt.
        prompt: what it is given.
    """

    tokens: tuple[int, ...] = ()
    against: int | None = None
    mean: bool = False
    function: Callable[[torch.Tensor, object], float] | None = None
    prompt: object = None

    @property
    def count(self) -> int:
        """How many positions are read, the last ones of each copy."""
        return max(1, len(self.tokens))


def read_positions(rows: int, tail: int, reading: Reading | None, device: torch.device) -> torch.Tensor:
    """Which positions of rows laid out one behind the other are read: of each row the last, or the last few."""
    count = 1 if reading is None else reading.count
    ends = torch.arange(1, rows + 1, device=device) * tail
    return (ends[:, None] + torch.arange(-count, 0, device=device)[None]).flatten()


def numbers_of(
    logits: Float[torch.Tensor, "read vocabulary"], token: Int[torch.Tensor, ""] | None, reading: Reading | None
) -> Float[torch.Tensor, "rows numbers"]:
    """(rows, numbers), in double precision. Without a reading those of `answer_numbers`, for the token.

    With one: the score, whether the model would say so (1 or 0: greedily each token of the answer; of two options the
    true one), and for a whole answer the log-probability of each token.
    """
    if reading is None:
        assert token is not None
        return answer_numbers(logits, token)
    rows = logits.detach().float().cpu().unflatten(0, (-1, reading.count))
    return torch.stack([_numbers(row, reading) for row in rows])  # one by one: in double precision all are large


def _numbers(row: torch.Tensor, reading: Reading) -> torch.Tensor:
    if reading.against is not None:
        score = score_of(row, reading)
        return torch.stack([score, (score > 0).double()])
    said = bool(reading.tokens) and row.argmax(-1).tolist() == list(reading.tokens)
    if reading.function is not None:
        return torch.tensor([value_of(row, reading), float(said)], dtype=torch.double)
    each = token_scores(row.double(), reading)
    score = each.mean() if reading.mean else each.sum()
    return torch.cat([torch.stack([score, torch.tensor(float(said), dtype=torch.double)]), each])


def token_scores(row: torch.Tensor, reading: Reading) -> torch.Tensor:
    """The log-probability of each token of the answer."""
    tokens = torch.tensor(reading.tokens, device=row.device)
    return row.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


def score_of(row: torch.Tensor, reading: Reading) -> torch.Tensor:
    """The score of an answer or of two options, from the logits where it is read; a gradient may pass."""
    if reading.against is not None:
        return (row[0, reading.tokens[0]] - row[0, reading.against]).double()
    each = token_scores(row.float(), reading)
    return each.mean() if reading.mean else each.sum()


def followed(logits: torch.Tensor, token: int, reading: Reading | None) -> torch.Tensor:
    """The number that a gradient is taken of: the token's log-probability, or the score of what is read.

    Args:
        logits: (positions, vocabulary), where it is read.
        token: whose log-probability it is, without a reading.
        reading: what is read.

    Raises:
        MMFlowError: a function of the user's that gives no tensor of the logits.
    """
    if reading is None:
        return logits[-1].float().log_softmax(-1)[token]
    if reading.function is None:
        return score_of(logits.float(), reading)
    value_of(logits.detach().float().cpu(), reading)  # what it gives is looked at
    found = reading.function(logits.float(), reading.prompt)
    if not (isinstance(found, torch.Tensor) and found.requires_grad):
        raise MMFlowError(
            f"attribution patching takes a gradient of the score, but the function gave {type(found).__name__}: return"
            " a tensor made of the logits, without float() or item()."
        )
    return found.reshape(())


def value_of(row: torch.Tensor, reading: Reading) -> float:
    """What the user's function makes of the logits where the answer is read.

    Raises:
        MMFlowError: it fails, or gives no finite number.
    """
    function = reading.function
    assert function is not None
    try:
        found = function(row, reading.prompt)
    except Exception as error:
        raise MMFlowError(f"{_given(function, row)}, and failed: {type(error).__name__}: {error}") from error
    value = number_given(found, function, row)
    if not math.isfinite(value):
        raise MMFlowError(
            f"{_given(function, row)}, and gave {value}: a finite number is expected, such as a log-probability."
        )
    return value


def number_given(found: object, function: Callable, row: torch.Tensor) -> float:
    """What the user's function gave, as a number.

    Raises:
        MMFlowError: it is none.
    """
    try:
        return float(found)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        told = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise MMFlowError(f"{_given(function, row)}, and gave {told}: one number is expected.") from None


def _given(function: Callable, row: torch.Tensor) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    return f"score {name!r} was given logits of {tuple(row.shape)} (positions, vocabulary) and the prompt"
