"""Values changed in the features of an autoencoder: encoded, edited, decoded, with what it does not explain kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._kinds import came, flag, whole
from nnsight_mmflow.inside.own_functions import call, changed_by, layer_argument

if TYPE_CHECKING:
    from jaxtyping import Float

    from nnsight_mmflow.inside.places import Place


@dataclass(frozen=True)
class Through:
    """What `mmf.values.through` returns: a value for Change and Patch.

    Attributes:
        encoder: from values (positions, width) to features (positions, any number).
        decoder: from features back to values.
        edit: from features to features; for Patch also a value (of another run, a mean, zeros), whose features are
            written.
        features: the numbers of those that are edited; None for all.
        error: whether what the autoencoder does not explain is kept.
    """

    encoder: Callable[..., torch.Tensor]
    decoder: Callable[..., torch.Tensor]
    edit: object = field(repr=False)
    features: tuple[int, ...] | None = None
    error: bool = True
    like: torch.Tensor | None = field(default=None, repr=False)

    def __call__(self, values: Float[torch.Tensor, "positions width"], layer: int) -> torch.Tensor:
        """The values with their features edited; the layer goes to an edit that takes one."""
        edit = self.edit
        if not callable(edit):
            raise MMFlowError("these features come from another run: hand them to mmf.Patch.")
        return self.with_features(values, lambda encoded: call(edit, encoded, layer))  # type: ignore[return-value]

    def at(self, values: Float[torch.Tensor, "positions width"], place: Place, what: str) -> torch.Tensor:
        """Inside a trace: the values of a place with their features edited, or those of other values in them.

        Args:
            values: what stands there.
            place: where that is.
            what: the pattern, for messages.
        """
        some = values if place.columns is None else values[:, place.columns]

        def written(old: torch.Tensor) -> torch.Tensor:
            return self.with_features(old, lambda encoded: self.others(encoded, place, old))

        edited = changed_by(self if callable(self.edit) else written, some, place.layer, place.prompt, what)
        if place.columns is None:
            return edited
        whole_width = values.clone()
        whole_width[:, place.columns] = edited
        return whole_width

    def others(self, encoded: torch.Tensor, place: Place, old: torch.Tensor) -> torch.Tensor:
        """The features of the other values at a place; zero features for mmf.values.zeros()."""
        if not isinstance(self.edit, list):
            return torch.zeros_like(encoded)
        other = self.edit[place.number][place.prompt].to(old)[place.there]
        if place.columns is not None and other.shape != old.shape:
            other = other[:, place.columns]
        return self.encoder(self.as_encoded(other))

    def with_features(self, values: torch.Tensor, edit: Callable[[torch.Tensor], object]) -> torch.Tensor:
        """The values once their features are edited.

        With `error`, what is added is the difference that the edit makes to the reconstruction, so that an edit which
        changes nothing changes no number.
        """
        encoded = self.encoder(self.as_encoded(values))
        if not isinstance(encoded, torch.Tensor) or encoded.ndim != 2 or len(encoded) != len(values):
            raise MMFlowError(
                f"the encoder gave {_shown(encoded)} for values of shape {tuple(values.shape)}; expected (positions,"
                " features)."
            )
        edited = edit(encoded.clone())
        if not isinstance(edited, torch.Tensor) or edited.shape != encoded.shape:
            raise MMFlowError(f"the edit gave {_shown(edited)} for {tuple(encoded.shape)} features; expected as many.")
        if self.features is not None:
            wrong = [one for one in self.features if one >= encoded.shape[1]]
            if wrong:
                raise MMFlowError(f"features {wrong[:5]} do not exist: the encoder gives {encoded.shape[1]}, from 0.")
            kept = encoded.clone()
            kept[:, list(self.features)] = edited[:, list(self.features)].to(kept)
            edited = kept
        decoded = self.decoder(edited)
        if not isinstance(decoded, torch.Tensor) or decoded.shape != values.shape:
            raise MMFlowError(f"the decoder gave {_shown(decoded)}; expected values of shape {tuple(values.shape)}.")
        if not self.error:
            return decoded.to(values)
        added = decoded - self.decoder(encoded)
        return (values.to(added) + added).to(values)

    def as_encoded(self, values: torch.Tensor) -> torch.Tensor:
        """The values in the type and on the device of an encoder that has weights."""
        return values if self.like is None else values.to(self.like)


def through(
    encoder: Callable[..., torch.Tensor],
    decoder: Callable[..., torch.Tensor],
    edit: object,
    features: int | Sequence[int] | None = None,
    error: bool = True,
) -> Through:
    """A value for Change and Patch: values changed in the features that an autoencoder finds in them.

    Args:
        encoder: from values (positions, width) to features: a sparse autoencoder's, as a module or function.
        decoder: from features back to values.
        edit: a function from features (positions, number of features) to as many, or of features and the layer's
            number. For Patch also `mmf.values.from_run(prompt)`, `mean_of(prompts)` or `zeros()`: the features that the
            encoder finds there (for zeros: none) are written.
        features: the numbers of those that are written; None for all.
        error: keep what the autoencoder does not explain, the difference between values and reconstruction: then the
            edit alone changes the model. False: values are the decoder's own.

    Raises:
        MMFlowError: something that cannot be called so; features that are no numbers.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> encoder, decoder = torch.nn.Linear(graph.d_model, 64), torch.nn.Linear(64, graph.d_model)
        >>> off = mmf.values.through(encoder, decoder, lambda encoded: encoded * 0, features=[3])
        >>> prompt = mmf.nano.prompts(graph, 1)[0]
        >>> with torch.no_grad(), graph.trace(prompt, mmf.Change(at="image", layers=4, value=off)):
        ...     logits = graph.unembed.output.save()
    """
    for name, function in (("encoder", encoder), ("decoder", decoder)):
        if layer_argument(name, function):
            raise MMFlowError(f"{name} is called with one tensor, but it needs a layer too: give one for this layer.")
    if callable(edit):
        layer_argument("edit", edit)
    elif type(edit).__name__ not in ("FromRun", "MeanOf", "Zeros"):
        raise MMFlowError(
            f"edit is a function of features, or mmf.values.from_run(prompt), mean_of(prompts) or zeros(), but"
            f" {came(edit)} came."
        )
    chosen = None
    if features is not None:
        several = features if isinstance(features, list | tuple | range) else [features]
        chosen = tuple(whole("each of features", one, 0) for one in several)
        if not chosen:
            raise MMFlowError("features=[] names none: leave it out for all.")
    weights = list(encoder.parameters()) if isinstance(encoder, torch.nn.Module) else []
    like = next((one for one in weights if one.is_floating_point()), None)
    return Through(encoder, decoder, edit, chosen, flag("error", error), like)


def _shown(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else came(value)
