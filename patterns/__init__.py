"""Interventions (one file each) and experiments (a file, or a folder for a family). No pattern knows a family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._later import group
from nnsight_mmflow.patterns.prune import _WHERE as _PRUNE

if TYPE_CHECKING:
    from nnsight_mmflow.inside.pruning import Seen as Seen
    from nnsight_mmflow.inside.pruning import Stage as Stage
    from nnsight_mmflow.model.pattern import Pattern as Pattern
    from nnsight_mmflow.patterns.bias import Bias as Bias
    from nnsight_mmflow.patterns.change import Add as Add
    from nnsight_mmflow.patterns.change import Change as Change
    from nnsight_mmflow.patterns.change import Scale as Scale
    from nnsight_mmflow.patterns.knockout import Knockout as Knockout
    from nnsight_mmflow.patterns.patch import Patch as Patch
    from nnsight_mmflow.patterns.prune.controls import DropAll as DropAll
    from nnsight_mmflow.patterns.prune.controls import Grid as Grid
    from nnsight_mmflow.patterns.prune.controls import Keep as Keep
    from nnsight_mmflow.patterns.prune.controls import Random as Random
    from nnsight_mmflow.patterns.prune.methods import FastV as FastV
    from nnsight_mmflow.patterns.prune.methods import HiMAP as HiMAP
    from nnsight_mmflow.patterns.prune.methods import PyramidDrop as PyramidDrop
    from nnsight_mmflow.patterns.prune.prune import Prune as Prune
    from nnsight_mmflow.patterns.prune.sparse_vlm import SparseVLM as SparseVLM
    from nnsight_mmflow.patterns.prune.visi_pruner import VisiPruner as VisiPruner
    from nnsight_mmflow.patterns.prune.vision_zip import FasterVLM as FasterVLM
    from nnsight_mmflow.patterns.prune.vision_zip import VisionZip as VisionZip
    from nnsight_mmflow.patterns.skip import Skip as Skip
    from nnsight_mmflow.patterns.through import through as through
    from nnsight_mmflow.patterns.values import from_run as from_run
    from nnsight_mmflow.patterns.values import mean_of as mean_of
    from nnsight_mmflow.patterns.values import noise as noise
    from nnsight_mmflow.patterns.values import zeros as zeros
    from nnsight_mmflow.patterns.zero_weights import ZeroWeights as ZeroWeights

_WHERE = {
    "Pattern": "model.pattern",
    "Bias": "patterns.bias",
    "Knockout": "patterns.knockout",
    "Patch": "patterns.patch",
    "Change": "patterns.change",
    "Add": "patterns.change",
    "Scale": "patterns.change",
    "Skip": "patterns.skip",
    "ZeroWeights": "patterns.zero_weights",
    **_PRUNE,
    "from_run": "patterns.values",
    "mean_of": "patterns.values",
    "zeros": "patterns.values",
    "noise": "patterns.values",
    "through": "patterns.through",
}

__all__ = sorted(_WHERE)
__getattr__, __dir__ = group(__name__, _WHERE)
