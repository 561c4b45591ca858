"""What experiments return, by the names of their functions: `mmf.results.FlowResult.load(folder)` reads one again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._later import group

if TYPE_CHECKING:
    from nnsight_mmflow.patterns.accuracy_result import AccuracyResult as AccuracyResult
    from nnsight_mmflow.patterns.attention.pooled import PooledAttention as PooledAttention
    from nnsight_mmflow.patterns.attention.result import AttentionResult as AttentionResult
    from nnsight_mmflow.patterns.attention_and_effect import AttentionAndEffectResult as AttentionAndEffectResult
    from nnsight_mmflow.patterns.contributions.result import ContributionsResult as ContributionsResult
    from nnsight_mmflow.patterns.disruption import DisruptionResult as DisruptionResult
    from nnsight_mmflow.patterns.edit.report import EditReport as EditReport
    from nnsight_mmflow.patterns.edit.result import EditResult as EditResult
    from nnsight_mmflow.patterns.features.probe_result import ProbeResult as ProbeResult
    from nnsight_mmflow.patterns.features.result import FeaturesResult as FeaturesResult
    from nnsight_mmflow.patterns.flow.job import FlowJob as FlowJob
    from nnsight_mmflow.patterns.flow.result import FlowResult as FlowResult
    from nnsight_mmflow.patterns.knockout_by_patch_result import KnockoutByPatchResult as KnockoutByPatchResult
    from nnsight_mmflow.patterns.lens import LensResult as LensResult
    from nnsight_mmflow.patterns.lens_by_patch import LensByPatchResult as LensByPatchResult
    from nnsight_mmflow.patterns.prune.kept_tokens import KeptTokensResult as KeptTokensResult
    from nnsight_mmflow.patterns.prune.report import PruneReport as PruneReport
    from nnsight_mmflow.patterns.saliency import SaliencyResult as SaliencyResult
    from nnsight_mmflow.patterns.skip_flow import SkipFlowResult as SkipFlowResult
    from nnsight_mmflow.patterns.sweep.result import SweepResult as SweepResult
    from nnsight_mmflow.patterns.trace.attribution import AttributionPatchingResult as AttributionPatchingResult
    from nnsight_mmflow.patterns.trace.result import CausalTraceResult as CausalTraceResult
    from nnsight_mmflow.patterns.word_overlap import WordOverlapResult as WordOverlapResult

_WHERE = {
    "FlowResult": "patterns.flow.result",
    "FlowJob": "patterns.flow.job",
    "LensResult": "patterns.lens",
    "LensByPatchResult": "patterns.lens_by_patch",
    "KnockoutByPatchResult": "patterns.knockout_by_patch",
    "CausalTraceResult": "patterns.trace.result",
    "AttributionPatchingResult": "patterns.trace.attribution",
    "ContributionsResult": "patterns.contributions.result",
    "SaliencyResult": "patterns.saliency",
    "DisruptionResult": "patterns.disruption",
    "SkipFlowResult": "patterns.skip_flow",
    "SweepResult": "patterns.sweep.result",
    "AccuracyResult": "patterns.accuracy_result",
    "WordOverlapResult": "patterns.word_overlap",
    "AttentionResult": "patterns.attention.result",
    "PooledAttention": "patterns.attention.pooled",
    "AttentionAndEffectResult": "patterns.attention_and_effect",
    "EditResult": "patterns.edit.result",
    "EditReport": "patterns.edit.report",
    "PruneReport": "patterns.prune.report",
    "KeptTokensResult": "patterns.prune.kept_tokens",
    "FeaturesResult": "patterns.features.result",
    "ProbeResult": "patterns.features.probe_result",
}

__all__ = sorted(_WHERE)
__getattr__, __dir__ = group(__name__, _WHERE)
