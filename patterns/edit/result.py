"""What an edit returns: the updates, a graph with them, and ways to write them into the weights and to undo that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._errors import DataError, MMFlowError
from nnsight_mmflow._kinds import folder_of
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.patterns.edit.update import Update
from nnsight_mmflow.runs.results import Result

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt

FILE = "edit.safetensors"


@dataclass(frozen=True, repr=False)
class EditResult(Result):
    """An edit. One table row per fact and layer.

    Columns: fact, question, target, position, layer, steps, before, optimised and after (probability of the target: of
    the model as it was, with the found changes added, with the edited matrices), answered (whether the edited model
    writes the target), change_norm, change_over_output (the change's norm over that of the clean MLP output), key_norm,
    reached (the share k.k / (lambda + k.k) of the change that one fact alone would reach).

    Attributes:
        updates: for each layer the change of its matrix.
        original: the model that was edited; None where the edit was loaded without one.
        edited: the model with the edit, a second view that shares all other weights.
    """

    kind: ClassVar[str] = "edit"
    drawn_by: ClassVar[str] = "edit_figure"  # P(new answer) before, with the change, after: by fact
    updates: dict[int, Update] = field(default_factory=dict, repr=False)
    original: Graph | None = field(default=None, repr=False)
    edited: Graph | None = field(default=None, repr=False)
    kept: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def graph(self) -> Graph:
        """The edited view."""
        return self._both()[1]

    def apply(self) -> None:
        """Writes the edit into the user's own weights; `undo` restores them bit for bit.

        Raises:
            MMFlowError: it is written already, or the edit was loaded without a model.
        """
        original, edited = self._here("apply()")
        if self.kept:
            raise MMFlowError("this edit is in the weights already; undo() takes it out.")
        for layer in self.updates:
            weight, new = (graph.mlp_out(layer)._module.weight for graph in (original, edited))
            self.kept[layer] = weight.detach().clone()
            weight.data.copy_(new.data)

    def undo(self) -> None:
        """Restores the weights as they were before `apply`, bit for bit.

        Raises:
            MMFlowError: it was not applied, or something else has changed these weights since.
        """
        import torch

        original, edited = self._here("undo()")
        if not self.kept:
            raise MMFlowError("this edit is not in the weights; apply() puts it there.")
        for layer in self.updates:
            weight, new = (graph.mlp_out(layer)._module.weight for graph in (original, edited))
            if not torch.equal(weight.data, new.data):
                raise MMFlowError(
                    f"the weights of layer {layer} have been changed since apply(), by another edit? Undo that first:"
                    " edits are undone in reverse order."
                )
        for layer in self.updates:
            original.mlp_out(layer)._module.weight.data.copy_(self.kept[layer])
        self.kept.clear()

    @checked
    def bleed(self, prompts: Sequence[Prompt], at: str = "all") -> pd.DataFrame:
        """What the edit adds to the MLP output at other positions: predicted from their keys, and measured.

        Returns a row per prompt, layer and position: prompt, layer, position, token, predicted and measured (norm of
        what is added, over the mean norm of the facts' changes). Predicted uses the keys of the unedited model,
        measured is the edited layer's output less what the old matrix gives for the same input: in the lowest edited
        layer both must agree, above it the keys have moved.
        """
        import nnsight
        import pandas as pd
        import torch

        if not prompts:
            raise MMFlowError("bleed needs at least one prompt, but got none.")
        (original, edited), rows = self._here("bleed()"), []
        scale = self.table.groupby("layer")["change_norm"].mean()
        for number, prompt in enumerate(prompts):
            positions = list(prompt.spans[at])
            before, after = ([graph.mlp_out(layer) for layer in self.updates] for graph in (original, edited))
            old = [out._module for out in before]
            with torch.no_grad(), original.trace(prompt, use_cache=False, logits_to_keep=1):
                keys = nnsight.save([out.inputs[0][0][0, positions] for out in before])
            with torch.no_grad(), edited.trace(prompt, use_cache=False, logits_to_keep=1):
                outputs = nnsight.save([(out.inputs[0][0][0, positions], out.output[0, positions]) for out in after])
            for (layer, update), key, (came, gave), was in zip(self.updates.items(), keys, outputs, old, strict=True):
                with torch.no_grad():
                    added = gave - was(came)
                predicted, measured = update.change(key).norm(dim=-1), added.float().norm(dim=-1)
                rows += [
                    {
                        "prompt": prompt.key or str(number),
                        "layer": layer,
                        "position": position,
                        "token": prompt.spans.tokens[position],
                        "predicted": float(predicted[i]) / scale[layer],
                        "measured": float(measured[i]) / scale[layer],
                    }
                    for i, position in enumerate(positions)
                ]
        return pd.DataFrame(rows)

    def _more_files(self) -> Mapping[str, bytes]:
        """The updates, as edit.safetensors."""
        from safetensors.torch import save

        tensors = {}
        for layer, update in self.updates.items():
            tensors[f"{layer}.left"] = update.left.contiguous().cpu()
            tensors[f"{layer}.right"] = update.right.contiguous().cpu()
        return {FILE: save(tensors, {"model": self.header["model"]})}

    @classmethod
    def load(cls, folder: str | PathLike[str], graph: Graph | None = None) -> EditResult:
        """The edit that was saved in the folder, on a model if one is given.

        Raises:
            DataError: the folder holds no edit, a damaged one, or one that was made on other weights.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        read = super().load(folder)
        folder_of("folder", folder)
        file = Path(folder) / FILE
        try:
            tensors, layers = load(file.read_bytes()), read.header["layers"]
            updates = {layer: Update(tensors[f"{layer}.left"], tensors[f"{layer}.right"]) for layer in layers}
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise DataError(f"{file} does not hold the updates of this edit ({error}): save the edit again.") from error
        if graph is None:
            return replace(read, updates=updates)
        for layer, (path, here) in zip(layers, weight_digests(graph, layers).items(), strict=True):
            kept = read.header["weights"].get(path)
            if kept != here:
                raise DataError(
                    f"the edit in {folder} was made on other weights of layer {layer} ({path}: {kept}, here {here}):"
                    f" on {read.header['model']!r}. Load that model, and undo edits that were applied since."
                )
        return replace(read, updates=updates, original=graph, edited=edited_view(graph, updates))

    def summary(self) -> str:
        """How many facts took, and how large the change was."""
        facts = self.table.drop_duplicates("fact")
        return (
            f"{self.header['model']}: {int(facts['answered'].sum())} of {len(facts)} facts answered anew after editing"
            f" layer(s) {', '.join(map(str, self.header['layers']))}; mean probability of the new answer"
            f" {facts['before'].mean():.2f} before, {facts['after'].mean():.2f} after; changes"
            f" {self.table['change_over_output'].median():.1f} times the clean MLP output (median)"
        )

    def _here(self, what: str) -> tuple[Graph, Graph]:
        """The same, where the weights are here."""
        original, edited = self._both()
        if original.remote:
            raise MMFlowError(
                f"{what} needs the weights, and they are on a server, shared with others: edit.graph has the edit in"
                " its traces. To write it, load the model here and read the saved edit:"
                " mmf.results.EditResult.load(folder, graph)."
            )
        return original, edited

    def _both(self) -> tuple[Graph, Graph]:
        """The model as it was, and with the edit."""
        if self.original is None or self.edited is None:
            raise MMFlowError("this edit was loaded without a model: mmf.results.EditResult.load(folder, graph).")
        return self.original, self.edited


def edited_view(graph: Graph, updates: dict[int, Update]) -> Graph:
    """The model with the updates: matrices of its own here, added products where the weights are on a server."""
    import torch

    from nnsight_mmflow.model.twin import twin_graph
    from nnsight_mmflow.patterns.edit.there import edited_there

    for layer, update in updates.items():
        if not bool(torch.isfinite(update.left).all() & torch.isfinite(update.right).all()):
            raise MMFlowError(
                f"the edit of layer {layer} holds NaN or infinite numbers: a learning_rate that is too large, or a"
                " damaged file?"
            )
    name = f"{graph.name}, edited"
    if graph.remote:
        return edited_there(graph, updates, name)
    weights = {
        weight_path(graph, layer): update.added_to(graph.mlp_out(layer)._module.weight)
        for layer, update in updates.items()
    }
    for path, weight in weights.items():
        if not bool(torch.isfinite(weight).all()):
            raise MMFlowError(
                f"with the edit {path} is larger than {weight.dtype} can hold: load the model in float32."
            )
    return twin_graph(graph, weights, name)


def weight_digests(graph: Graph, layers: Sequence[int]) -> dict[str, str]:
    """By where the matrix lies in the model, a short fingerprint of it, made where the weights are."""
    from nnsight_mmflow.inside.updates import digest_of
    from nnsight_mmflow.patterns.edit.there import digests_there

    if graph.remote:
        digests = digests_there(graph, layers)
    else:
        digests = {layer: digest_of(graph.mlp_out(layer)._module.weight) for layer in layers}
    return {weight_path(graph, layer): digest for layer, digest in digests.items()}


def weight_path(graph: Graph, layer: int) -> str:
    """Where the edited matrix lies in the model."""
    module = graph.mlp_out(layer)._module
    return next(name for name, submodule in graph.adapter.model.named_modules() if submodule is module) + ".weight"
