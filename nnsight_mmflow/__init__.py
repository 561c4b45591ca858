"""How vision and language mix inside LLaVA-type models: labelled image tokens and reusable interventions for nnsight.

The names below load when they are first used, so that importing the package stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnsight_mmflow import nano as nano
    from nnsight_mmflow._attention_maps import AttentionMaps as AttentionMaps
    from nnsight_mmflow._attention_maps import PooledAttention as PooledAttention
    from nnsight_mmflow._attention_maps import attention as attention
    from nnsight_mmflow._benchmarks import Benchmark as Benchmark
    from nnsight_mmflow._benchmarks import read_benchmark as read_benchmark
    from nnsight_mmflow._beside import EffectResult as EffectResult
    from nnsight_mmflow._beside import attention_and_effect as attention_and_effect
    from nnsight_mmflow._bound import BoundBridge as BoundBridge
    from nnsight_mmflow._constraint_files import read_constraint_questions as read_constraint_questions
    from nnsight_mmflow._constraints import Constraint as Constraint
    from nnsight_mmflow._constraints import ConstraintQuestion as ConstraintQuestion
    from nnsight_mmflow._constraints import write_constraint_questions as write_constraint_questions
    from nnsight_mmflow._errors import DataError as DataError
    from nnsight_mmflow._errors import MMFlowError as MMFlowError
    from nnsight_mmflow._errors import ModelError as ModelError
    from nnsight_mmflow._errors import NoEffectError as NoEffectError
    from nnsight_mmflow._errors import OutputError as OutputError
    from nnsight_mmflow._errors import PromptError as PromptError
    from nnsight_mmflow._errors import RemoteFailure as RemoteFailure
    from nnsight_mmflow._errors import SpanError as SpanError
    from nnsight_mmflow._explore import explore as explore
    from nnsight_mmflow._graph import Graph as Graph
    from nnsight_mmflow._load import adapt as adapt
    from nnsight_mmflow._load import load as load
    from nnsight_mmflow._on_image import on_image as on_image
    from nnsight_mmflow._prompt import Batch as Batch
    from nnsight_mmflow._prompt import Prompt as Prompt
    from nnsight_mmflow._prune import Seen as Seen
    from nnsight_mmflow._prune import Stage as Stage
    from nnsight_mmflow._question_files import read_questions as read_questions
    from nnsight_mmflow._questions import Question as Question
    from nnsight_mmflow._questions import prompts_of as prompts_of
    from nnsight_mmflow._row_spans import Spans as Spans
    from nnsight_mmflow._show_attention import show_attention as show_attention
    from nnsight_mmflow._show_tokens import knockout_by_token as knockout_by_token
    from nnsight_mmflow._show_tokens import show_tokens as show_tokens
    from nnsight_mmflow._span_cache import SpanCache as SpanCache
    from nnsight_mmflow._span_cache import cache_by_span as cache_by_span
    from nnsight_mmflow._spans import Span as Span
    from nnsight_mmflow.checks import Report as Report
    from nnsight_mmflow.checks import check as check
    from nnsight_mmflow.patterns import corruption as corruption
    from nnsight_mmflow.patterns.attribution import AttributionResult as AttributionResult
    from nnsight_mmflow.patterns.attribution import attribution as attribution
    from nnsight_mmflow.patterns.causal_trace import causal_trace as causal_trace
    from nnsight_mmflow.patterns.contributions import contributions as contributions
    from nnsight_mmflow.patterns.contributions_result import ContributionsResult as ContributionsResult
    from nnsight_mmflow.patterns.disruption import DisruptionResult as DisruptionResult
    from nnsight_mmflow.patterns.disruption import disruption as disruption
    from nnsight_mmflow.patterns.edit import edit as edit
    from nnsight_mmflow.patterns.edit_report import EditReport as EditReport
    from nnsight_mmflow.patterns.edit_report import edit_report as edit_report
    from nnsight_mmflow.patterns.edit_result import Edit as Edit
    from nnsight_mmflow.patterns.edit_value import EditSettings as EditSettings
    from nnsight_mmflow.patterns.edit_value import Fact as Fact
    from nnsight_mmflow.patterns.flow import flow as flow
    from nnsight_mmflow.patterns.flow_job import FlowJob as FlowJob
    from nnsight_mmflow.patterns.flow_result import FlowResult as FlowResult
    from nnsight_mmflow.patterns.flow_workers import flow_on_workers as flow_on_workers
    from nnsight_mmflow.patterns.kept_tokens import KeptTokens as KeptTokens
    from nnsight_mmflow.patterns.kept_tokens import kept_tokens as kept_tokens
    from nnsight_mmflow.patterns.knockout import Knockout as Knockout
    from nnsight_mmflow.patterns.knockout_by_patch import KnockoutByPatch as KnockoutByPatch
    from nnsight_mmflow.patterns.knockout_by_patch import knockout_by_patch as knockout_by_patch
    from nnsight_mmflow.patterns.lens import LensResult as LensResult
    from nnsight_mmflow.patterns.lens import lens as lens
    from nnsight_mmflow.patterns.lens_by_patch import LensByPatch as LensByPatch
    from nnsight_mmflow.patterns.lens_by_patch import lens_by_patch as lens_by_patch
    from nnsight_mmflow.patterns.patch import Patch as Patch
    from nnsight_mmflow.patterns.prune import Prune as Prune
    from nnsight_mmflow.patterns.prune_controls import DropAll as DropAll
    from nnsight_mmflow.patterns.prune_controls import Grid as Grid
    from nnsight_mmflow.patterns.prune_controls import Keep as Keep
    from nnsight_mmflow.patterns.prune_controls import Random as Random
    from nnsight_mmflow.patterns.prune_methods import FastV as FastV
    from nnsight_mmflow.patterns.prune_methods import HiMAP as HiMAP
    from nnsight_mmflow.patterns.prune_methods import PyramidDrop as PyramidDrop
    from nnsight_mmflow.patterns.prune_report import PruneReport as PruneReport
    from nnsight_mmflow.patterns.prune_report import prune_report as prune_report
    from nnsight_mmflow.patterns.saliency import SaliencyResult as SaliencyResult
    from nnsight_mmflow.patterns.saliency import saliency as saliency
    from nnsight_mmflow.patterns.skip import Skip as Skip
    from nnsight_mmflow.patterns.skip_flow import SkipResult as SkipResult
    from nnsight_mmflow.patterns.skip_flow import skip_flow as skip_flow
    from nnsight_mmflow.patterns.span_patching import attribution_by_span as attribution_by_span
    from nnsight_mmflow.patterns.span_patching import patch_by_span as patch_by_span
    from nnsight_mmflow.patterns.sparse_vlm import SparseVLM as SparseVLM
    from nnsight_mmflow.patterns.trace_result import TraceResult as TraceResult
    from nnsight_mmflow.patterns.values import from_run as from_run
    from nnsight_mmflow.patterns.values import mean_of as mean_of
    from nnsight_mmflow.patterns.values import noise as noise
    from nnsight_mmflow.patterns.values import zeros as zeros
    from nnsight_mmflow.patterns.visi_pruner import VisiPruner as VisiPruner
    from nnsight_mmflow.patterns.vision_zip import FasterVLM as FasterVLM
    from nnsight_mmflow.patterns.vision_zip import VisionZip as VisionZip
    from nnsight_mmflow.patterns.word_overlap import WordOverlapResult as WordOverlapResult
    from nnsight_mmflow.patterns.word_overlap import word_overlap as word_overlap
    from nnsight_mmflow.patterns.zeroed import Zeroed as Zeroed

__version__: str  # written in pyproject.toml alone; read from what is installed

_WHERE = {
    "load": "_load",
    "adapt": "_load",
    "Graph": "_graph",
    "Prompt": "_prompt",
    "Batch": "_prompt",
    "Spans": "_row_spans",
    "Span": "_spans",
    "attention": "_attention_maps",
    "AttentionMaps": "_attention_maps",
    "PooledAttention": "_attention_maps",
    "attention_and_effect": "_beside",
    "EffectResult": "_beside",
    "on_image": "_on_image",
    "knockout_by_patch": "patterns.knockout_by_patch",
    "KnockoutByPatch": "patterns.knockout_by_patch",
    "lens_by_patch": "patterns.lens_by_patch",
    "LensByPatch": "patterns.lens_by_patch",
    "explore": "_explore",
    "show_attention": "_show_attention",
    "show_tokens": "_show_tokens",
    "knockout_by_token": "_show_tokens",
    "Knockout": "patterns.knockout",
    "Patch": "patterns.patch",
    "from_run": "patterns.values",
    "mean_of": "patterns.values",
    "zeros": "patterns.values",
    "noise": "patterns.values",
    "flow": "patterns.flow",
    "flow_on_workers": "patterns.flow_workers",
    "FlowResult": "patterns.flow_result",
    "FlowJob": "patterns.flow_job",
    "causal_trace": "patterns.causal_trace",
    "TraceResult": "patterns.trace_result",
    "attribution": "patterns.attribution",
    "AttributionResult": "patterns.attribution",
    "contributions": "patterns.contributions",
    "ContributionsResult": "patterns.contributions_result",
    "edit": "patterns.edit",
    "Edit": "patterns.edit_result",
    "edit_report": "patterns.edit_report",
    "EditReport": "patterns.edit_report",
    "EditSettings": "patterns.edit_value",
    "Fact": "patterns.edit_value",
    "lens": "patterns.lens",
    "LensResult": "patterns.lens",
    "word_overlap": "patterns.word_overlap",
    "WordOverlapResult": "patterns.word_overlap",
    "Prune": "patterns.prune",
    "HiMAP": "patterns.prune_methods",
    "FastV": "patterns.prune_methods",
    "PyramidDrop": "patterns.prune_methods",
    "Random": "patterns.prune_controls",
    "Grid": "patterns.prune_controls",
    "DropAll": "patterns.prune_controls",
    "Keep": "patterns.prune_controls",
    "SparseVLM": "patterns.sparse_vlm",
    "VisionZip": "patterns.vision_zip",
    "FasterVLM": "patterns.vision_zip",
    "VisiPruner": "patterns.visi_pruner",
    "kept_tokens": "patterns.kept_tokens",
    "BoundBridge": "_bound",
    "SpanCache": "_span_cache",
    "cache_by_span": "_span_cache",
    "patch_by_span": "patterns.span_patching",
    "attribution_by_span": "patterns.span_patching",
    "KeptTokens": "patterns.kept_tokens",
    "prune_report": "patterns.prune_report",
    "PruneReport": "patterns.prune_report",
    "Zeroed": "patterns.zeroed",
    "disruption": "patterns.disruption",
    "DisruptionResult": "patterns.disruption",
    "skip_flow": "patterns.skip_flow",
    "SkipResult": "patterns.skip_flow",
    "Skip": "patterns.skip",
    "saliency": "patterns.saliency",
    "SaliencyResult": "patterns.saliency",
    "Stage": "_prune",
    "Seen": "_prune",
    "Question": "_questions",
    "read_questions": "_question_files",
    "prompts_of": "_questions",
    "Benchmark": "_benchmarks",
    "read_benchmark": "_benchmarks",
    "Constraint": "_constraints",
    "ConstraintQuestion": "_constraints",
    "read_constraint_questions": "_constraint_files",
    "write_constraint_questions": "_constraints",
    "MMFlowError": "_errors",
    "NoEffectError": "_errors",
    "OutputError": "_errors",
    "RemoteFailure": "_errors",
    "SpanError": "_errors",
    "PromptError": "_errors",
    "ModelError": "_errors",
    "DataError": "_errors",
    "check": "checks",
    "Report": "checks",
    "corruption": "patterns.corruption",
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
