"""How vision and language mix inside LLaVA-type models: labelled image tokens and reusable interventions for nnsight.

The names below load when they are first used, so that importing the package stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnsight_mmflow import nano as nano
    from nnsight_mmflow._errors import DataError as DataError
    from nnsight_mmflow._errors import MMFlowError as MMFlowError
    from nnsight_mmflow._errors import ModelError as ModelError
    from nnsight_mmflow._errors import NoEffectError as NoEffectError
    from nnsight_mmflow._errors import OutputError as OutputError
    from nnsight_mmflow._errors import PromptError as PromptError
    from nnsight_mmflow._errors import RemoteFailure as RemoteFailure
    from nnsight_mmflow._errors import SpanError as SpanError
    from nnsight_mmflow._formerly import flow_on_workers as flow_on_workers
    from nnsight_mmflow.bridge.bound import BoundBridge as BoundBridge
    from nnsight_mmflow.bridge.by_span import cache_by_span as cache_by_span
    from nnsight_mmflow.bridge.patching import attribution_by_span as attribution_by_span
    from nnsight_mmflow.bridge.patching import patch_by_span as patch_by_span
    from nnsight_mmflow.bridge.span_cache import SpanCache as SpanCache
    from nnsight_mmflow.checks import check as check
    from nnsight_mmflow.checks.report import Report as Report
    from nnsight_mmflow.data.benchmarks import Benchmark as Benchmark
    from nnsight_mmflow.data.benchmarks import read_benchmark as read_benchmark
    from nnsight_mmflow.data.constraint_files import read_constraint_questions as read_constraint_questions
    from nnsight_mmflow.data.constraints import Constraint as Constraint
    from nnsight_mmflow.data.constraints import ConstraintQuestion as ConstraintQuestion
    from nnsight_mmflow.data.constraints import write_constraint_questions as write_constraint_questions
    from nnsight_mmflow.data.question_files import read_questions as read_questions
    from nnsight_mmflow.data.questions import Question as Question
    from nnsight_mmflow.data.questions import prompts_of as prompts_of
    from nnsight_mmflow.inside.pruning import Seen as Seen
    from nnsight_mmflow.inside.pruning import Stage as Stage
    from nnsight_mmflow.model.graph import Graph as Graph
    from nnsight_mmflow.model.load import adapt as adapt
    from nnsight_mmflow.model.load import load as load
    from nnsight_mmflow.model.pattern import Pattern as Pattern
    from nnsight_mmflow.patterns.attention import AttentionMaps as AttentionMaps
    from nnsight_mmflow.patterns.attention import PooledAttention as PooledAttention
    from nnsight_mmflow.patterns.attention import attention as attention
    from nnsight_mmflow.patterns.attention_and_effect import EffectResult as EffectResult
    from nnsight_mmflow.patterns.attention_and_effect import attention_and_effect as attention_and_effect
    from nnsight_mmflow.patterns.contributions.contributions import contributions as contributions
    from nnsight_mmflow.patterns.contributions.result import ContributionsResult as ContributionsResult
    from nnsight_mmflow.patterns.disruption import DisruptionResult as DisruptionResult
    from nnsight_mmflow.patterns.disruption import disruption as disruption
    from nnsight_mmflow.patterns.edit.edit import edit as edit
    from nnsight_mmflow.patterns.edit.report import EditReport as EditReport
    from nnsight_mmflow.patterns.edit.report import edit_report as edit_report
    from nnsight_mmflow.patterns.edit.result import Edit as Edit
    from nnsight_mmflow.patterns.edit.value import EditSettings as EditSettings
    from nnsight_mmflow.patterns.edit.value import Fact as Fact
    from nnsight_mmflow.patterns.flow.flow import flow as flow
    from nnsight_mmflow.patterns.flow.job import FlowJob as FlowJob
    from nnsight_mmflow.patterns.flow.result import FlowResult as FlowResult
    from nnsight_mmflow.patterns.knockout import Knockout as Knockout
    from nnsight_mmflow.patterns.knockout_by_patch import KnockoutByPatch as KnockoutByPatch
    from nnsight_mmflow.patterns.knockout_by_patch import knockout_by_patch as knockout_by_patch
    from nnsight_mmflow.patterns.knockout_by_token import knockout_by_token as knockout_by_token
    from nnsight_mmflow.patterns.lens import LensResult as LensResult
    from nnsight_mmflow.patterns.lens import lens as lens
    from nnsight_mmflow.patterns.lens_by_patch import LensByPatch as LensByPatch
    from nnsight_mmflow.patterns.lens_by_patch import lens_by_patch as lens_by_patch
    from nnsight_mmflow.patterns.patch import Patch as Patch
    from nnsight_mmflow.patterns.prune.controls import DropAll as DropAll
    from nnsight_mmflow.patterns.prune.controls import Grid as Grid
    from nnsight_mmflow.patterns.prune.controls import Keep as Keep
    from nnsight_mmflow.patterns.prune.controls import Random as Random
    from nnsight_mmflow.patterns.prune.kept_tokens import KeptTokens as KeptTokens
    from nnsight_mmflow.patterns.prune.kept_tokens import kept_tokens as kept_tokens
    from nnsight_mmflow.patterns.prune.methods import FastV as FastV
    from nnsight_mmflow.patterns.prune.methods import HiMAP as HiMAP
    from nnsight_mmflow.patterns.prune.methods import PyramidDrop as PyramidDrop
    from nnsight_mmflow.patterns.prune.prune import Prune as Prune
    from nnsight_mmflow.patterns.prune.report import PruneReport as PruneReport
    from nnsight_mmflow.patterns.prune.report import prune_report as prune_report
    from nnsight_mmflow.patterns.prune.sparse_vlm import SparseVLM as SparseVLM
    from nnsight_mmflow.patterns.prune.visi_pruner import VisiPruner as VisiPruner
    from nnsight_mmflow.patterns.prune.vision_zip import FasterVLM as FasterVLM
    from nnsight_mmflow.patterns.prune.vision_zip import VisionZip as VisionZip
    from nnsight_mmflow.patterns.saliency import SaliencyResult as SaliencyResult
    from nnsight_mmflow.patterns.saliency import saliency as saliency
    from nnsight_mmflow.patterns.skip import Skip as Skip
    from nnsight_mmflow.patterns.skip_flow import SkipResult as SkipResult
    from nnsight_mmflow.patterns.skip_flow import skip_flow as skip_flow
    from nnsight_mmflow.patterns.trace import corruption as corruption
    from nnsight_mmflow.patterns.trace.attribution import AttributionResult as AttributionResult
    from nnsight_mmflow.patterns.trace.attribution import attribution as attribution
    from nnsight_mmflow.patterns.trace.causal_trace import causal_trace as causal_trace
    from nnsight_mmflow.patterns.trace.result import TraceResult as TraceResult
    from nnsight_mmflow.patterns.values import from_run as from_run
    from nnsight_mmflow.patterns.values import mean_of as mean_of
    from nnsight_mmflow.patterns.values import noise as noise
    from nnsight_mmflow.patterns.values import zeros as zeros
    from nnsight_mmflow.patterns.word_overlap import WordOverlapResult as WordOverlapResult
    from nnsight_mmflow.patterns.word_overlap import word_overlap as word_overlap
    from nnsight_mmflow.patterns.zeroed import Zeroed as Zeroed
    from nnsight_mmflow.prompts.prompt import Batch as Batch
    from nnsight_mmflow.prompts.prompt import Prompt as Prompt
    from nnsight_mmflow.runs.job import Job as Job
    from nnsight_mmflow.runs.workers import Workers as Workers
    from nnsight_mmflow.show.attention import show_attention as show_attention
    from nnsight_mmflow.show.explore import explore as explore
    from nnsight_mmflow.show.on_image import on_image as on_image
    from nnsight_mmflow.show.tokens import show_tokens as show_tokens
    from nnsight_mmflow.spans.row_spans import Spans as Spans
    from nnsight_mmflow.spans.span import Span as Span

__version__: str  # written in pyproject.toml alone; read from what is installed

_WHERE = {
    "load": "model.load",
    "adapt": "model.load",
    "Graph": "model.graph",
    "Prompt": "prompts.prompt",
    "Batch": "prompts.prompt",
    "Spans": "spans.row_spans",
    "Span": "spans.span",
    "attention": "patterns.attention",
    "AttentionMaps": "patterns.attention",
    "PooledAttention": "patterns.attention",
    "attention_and_effect": "patterns.attention_and_effect",
    "EffectResult": "patterns.attention_and_effect",
    "on_image": "show.on_image",
    "knockout_by_patch": "patterns.knockout_by_patch",
    "KnockoutByPatch": "patterns.knockout_by_patch",
    "lens_by_patch": "patterns.lens_by_patch",
    "LensByPatch": "patterns.lens_by_patch",
    "explore": "show.explore",
    "show_attention": "show.attention",
    "show_tokens": "show.tokens",
    "knockout_by_token": "patterns.knockout_by_token",
    "Pattern": "model.pattern",
    "Knockout": "patterns.knockout",
    "Patch": "patterns.patch",
    "from_run": "patterns.values",
    "mean_of": "patterns.values",
    "zeros": "patterns.values",
    "noise": "patterns.values",
    "flow": "patterns.flow.flow",
    "flow_on_workers": "_formerly",
    "FlowResult": "patterns.flow.result",
    "FlowJob": "patterns.flow.job",
    "Job": "runs.job",
    "Workers": "runs.workers",
    "causal_trace": "patterns.trace.causal_trace",
    "TraceResult": "patterns.trace.result",
    "attribution": "patterns.trace.attribution",
    "AttributionResult": "patterns.trace.attribution",
    "contributions": "patterns.contributions.contributions",
    "ContributionsResult": "patterns.contributions.result",
    "edit": "patterns.edit.edit",
    "Edit": "patterns.edit.result",
    "edit_report": "patterns.edit.report",
    "EditReport": "patterns.edit.report",
    "EditSettings": "patterns.edit.value",
    "Fact": "patterns.edit.value",
    "lens": "patterns.lens",
    "LensResult": "patterns.lens",
    "word_overlap": "patterns.word_overlap",
    "WordOverlapResult": "patterns.word_overlap",
    "Prune": "patterns.prune.prune",
    "HiMAP": "patterns.prune.methods",
    "FastV": "patterns.prune.methods",
    "PyramidDrop": "patterns.prune.methods",
    "Random": "patterns.prune.controls",
    "Grid": "patterns.prune.controls",
    "DropAll": "patterns.prune.controls",
    "Keep": "patterns.prune.controls",
    "SparseVLM": "patterns.prune.sparse_vlm",
    "VisionZip": "patterns.prune.vision_zip",
    "FasterVLM": "patterns.prune.vision_zip",
    "VisiPruner": "patterns.prune.visi_pruner",
    "kept_tokens": "patterns.prune.kept_tokens",
    "BoundBridge": "bridge.bound",
    "SpanCache": "bridge.span_cache",
    "cache_by_span": "bridge.by_span",
    "patch_by_span": "bridge.patching",
    "attribution_by_span": "bridge.patching",
    "KeptTokens": "patterns.prune.kept_tokens",
    "prune_report": "patterns.prune.report",
    "PruneReport": "patterns.prune.report",
    "Zeroed": "patterns.zeroed",
    "disruption": "patterns.disruption",
    "DisruptionResult": "patterns.disruption",
    "skip_flow": "patterns.skip_flow",
    "SkipResult": "patterns.skip_flow",
    "Skip": "patterns.skip",
    "saliency": "patterns.saliency",
    "SaliencyResult": "patterns.saliency",
    "Stage": "inside.pruning",
    "Seen": "inside.pruning",
    "Question": "data.questions",
    "read_questions": "data.question_files",
    "prompts_of": "data.questions",
    "Benchmark": "data.benchmarks",
    "read_benchmark": "data.benchmarks",
    "Constraint": "data.constraints",
    "ConstraintQuestion": "data.constraints",
    "read_constraint_questions": "data.constraint_files",
    "write_constraint_questions": "data.constraints",
    "MMFlowError": "_errors",
    "NoEffectError": "_errors",
    "OutputError": "_errors",
    "RemoteFailure": "_errors",
    "SpanError": "_errors",
    "PromptError": "_errors",
    "ModelError": "_errors",
    "DataError": "_errors",
    "check": "checks",
    "Report": "checks.report",
    "corruption": "patterns.trace.corruption",
    "nano": "nano",
}
_MODULES = ("nano", "corruption")

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> object:
    """Loads a public name when it is first used."""
    if name == "__version__":
        return import_module("importlib.metadata").version("nnsight-mmflow")
    if name not in _WHERE:
        raise AttributeError(f"nnsight_mmflow has no {name!r}; it has {', '.join(__all__)}.")
    module = import_module(f"nnsight_mmflow.{_WHERE[name]}")
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    import_module("nnsight_mmflow._type_hints").resolve_when_asked()
    return value


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
