"""Pruning methods, their controls, and what a method of your own is made of; and the report on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._later import group

if TYPE_CHECKING:
    from nnsight_mmflow.inside.pruning import Seen as Seen
    from nnsight_mmflow.inside.pruning import Stage as Stage
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

_WHERE = {
    "Prune": "patterns.prune.prune",
    "Stage": "inside.pruning",
    "Seen": "inside.pruning",
    "HiMAP": "patterns.prune.methods",
    "FastV": "patterns.prune.methods",
    "PyramidDrop": "patterns.prune.methods",
    "SparseVLM": "patterns.prune.sparse_vlm",
    "VisiPruner": "patterns.prune.visi_pruner",
    "VisionZip": "patterns.prune.vision_zip",
    "FasterVLM": "patterns.prune.vision_zip",
    "Random": "patterns.prune.controls",
    "Grid": "patterns.prune.controls",
    "DropAll": "patterns.prune.controls",
    "Keep": "patterns.prune.controls",
}

__all__ = sorted(_WHERE)
__getattr__, __dir__ = group(__name__, _WHERE)
