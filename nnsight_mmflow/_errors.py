"""What the package raises: one base error, and a child where a caller may want to catch just that."""

from __future__ import annotations


class MMFlowError(ValueError):
    """Something cannot be done as asked: says what was expected, what came, the likely cause, what to type."""


class NoEffectError(MMFlowError):
    """An intervention would change nothing, so its result would be the clean run under another name."""


class SpanError(MMFlowError):
    """A span that does not exist, is ambiguous, or holds no position."""


class PromptError(MMFlowError):
    """Text, images and tokens that do not fit together."""


class ModelError(MMFlowError):
    """A model that no adapter covers, or a setting of it that its adapter does not handle."""


class DataError(MMFlowError):
    """A question file, an image or a saved result that cannot be read."""


class ServerError(MMFlowError):
    """A run on a server could not be made, or failed there."""


class OutputError(MMFlowError):
    """Something cannot be written: a full or read-only disk, a folder that is gone or a file; what is kept is said."""
