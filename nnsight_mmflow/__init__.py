"""How vision and language mix inside LLaVA-type models: labelled image tokens and reusable interventions for nnsight.

The names below load when they are first used, so that importing the package stays quick. Names that belong together
stand in groups: `mmf.prune`, `mmf.values`, `mmf.corruption`, `mmf.results`, `mmf.data`, `mmf.bridge`, `mmf.show`,
`mmf.nano`. Those of earlier versions still work, and tell their new name.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnsight_mmflow import bridge as bridge
    from nnsight_mmflow import data as data
    from nnsight_mmflow import nano as nano
    from nnsight_mmflow import show as show
    from nnsight_mmflow._errors import DataError as DataError
    from nnsight_mmflow._errors import MMFlowError as MMFlowError
    from nnsight_mmflow._errors import ModelError as ModelError
    from nnsight_mmflow._errors import NoEffectError as NoEffectError
    from nnsight_mmflow._errors import OutputError as OutputError
    from nnsight_mmflow._errors import PromptError as PromptError
    from nnsight_mmflow._errors import ServerError as ServerError
    from nnsight_mmflow._errors import SpanError as SpanError
    from nnsight_mmflow.checks import check as check
    from nnsight_mmflow.model.graph import Graph as Graph
    from nnsight_mmflow.model.load import adapt as adapt
    from nnsight_mmflow.model.load import load as load
    from nnsight_mmflow.model.pattern import Pattern as Pattern
    from nnsight_mmflow.patterns import prune as prune
    from nnsight_mmflow.patterns import results as results
    from nnsight_mmflow.patterns import values as values
    from nnsight_mmflow.patterns.attention.attention import attention as attention
    from nnsight_mmflow.patterns.attention_and_effect import attention_and_effect as attention_and_effect
    from nnsight_mmflow.patterns.bias import Bias as Bias
    from nnsight_mmflow.patterns.change import Add as Add
    from nnsight_mmflow.patterns.change import Change as Change
    from nnsight_mmflow.patterns.change import Scale as Scale
    from nnsight_mmflow.patterns.contributions.contributions import contributions as contributions
    from nnsight_mmflow.patterns.disruption import disruption as disruption
    from nnsight_mmflow.patterns.edit.edit import edit as edit
    from nnsight_mmflow.patterns.edit.report import edit_report as edit_report
    from nnsight_mmflow.patterns.edit.value import EditSettings as EditSettings
    from nnsight_mmflow.patterns.edit.value import Fact as Fact
    from nnsight_mmflow.patterns.features.features import features as features
    from nnsight_mmflow.patterns.features.probe import probe as probe
    from nnsight_mmflow.patterns.flow.flow import flow as flow
    from nnsight_mmflow.patterns.knockout import Knockout as Knockout
    from nnsight_mmflow.patterns.knockout_by_patch import knockout_by_patch as knockout_by_patch
    from nnsight_mmflow.patterns.knockout_by_token import knockout_by_token as knockout_by_token
    from nnsight_mmflow.patterns.lens import lens as lens
    from nnsight_mmflow.patterns.lens_by_patch import lens_by_patch as lens_by_patch
    from nnsight_mmflow.patterns.patch import Patch as Patch
    from nnsight_mmflow.patterns.prune.controls import DropAll as DropAll
    from nnsight_mmflow.patterns.prune.controls import Random as Random
    from nnsight_mmflow.patterns.prune.kept_tokens import kept_tokens as kept_tokens
    from nnsight_mmflow.patterns.prune.methods import FastV as FastV
    from nnsight_mmflow.patterns.prune.methods import HiMAP as HiMAP
    from nnsight_mmflow.patterns.prune.methods import PyramidDrop as PyramidDrop
    from nnsight_mmflow.patterns.prune.report import prune_report as prune_report
    from nnsight_mmflow.patterns.saliency import saliency as saliency
    from nnsight_mmflow.patterns.skip import Skip as Skip
    from nnsight_mmflow.patterns.skip_flow import skip_flow as skip_flow
    from nnsight_mmflow.patterns.trace import corruption as corruption
    from nnsight_mmflow.patterns.trace.attribution import attribution_patching as attribution_patching
    from nnsight_mmflow.patterns.trace.causal_trace import causal_trace as causal_trace
    from nnsight_mmflow.patterns.word_overlap import word_overlap as word_overlap
    from nnsight_mmflow.patterns.zero_weights import ZeroWeights as ZeroWeights
    from nnsight_mmflow.prompts.prompt import Batch as Batch
    from nnsight_mmflow.prompts.prompt import Prompt as Prompt
    from nnsight_mmflow.runs.job import Job as Job
    from nnsight_mmflow.runs.workers import Workers as Workers
    from nnsight_mmflow.show.explorer import explore as explore
    from nnsight_mmflow.spans.row_spans import Spans as Spans
    from nnsight_mmflow.spans.span import Span as Span

__version__: str  # written in pyproject.toml alone; read from what is installed

_WHERE = {
    "load": "model.load",
    "adapt": "model.load",
    "Graph": "model.graph",
    "Prompt": "prompts.prompt",
    "Batch": "prompts.prompt",
    "Span": "spans.span",
    "Spans": "spans.row_spans",
    "Pattern": "model.pattern",
    "Bias": "patterns.bias",
    "Knockout": "patterns.knockout",
    "Patch": "patterns.patch",
    "Change": "patterns.change",
    "Add": "patterns.change",
    "Scale": "patterns.change",
    "Skip": "patterns.skip",
    "ZeroWeights": "patterns.zero_weights",
    "HiMAP": "patterns.prune.methods",
    "FastV": "patterns.prune.methods",
    "PyramidDrop": "patterns.prune.methods",
    "Random": "patterns.prune.controls",
    "DropAll": "patterns.prune.controls",
    "flow": "patterns.flow.flow",
    "lens": "patterns.lens",
    "lens_by_patch": "patterns.lens_by_patch",
    "knockout_by_patch": "patterns.knockout_by_patch",
    "knockout_by_token": "patterns.knockout_by_token",
    "causal_trace": "patterns.trace.causal_trace",
    "attribution_patching": "patterns.trace.attribution",
    "contributions": "patterns.contributions.contributions",
    "saliency": "patterns.saliency",
    "disruption": "patterns.disruption",
    "skip_flow": "patterns.skip_flow",
    "word_overlap": "patterns.word_overlap",
    "attention": "patterns.attention.attention",
    "attention_and_effect": "patterns.attention_and_effect",
    "edit": "patterns.edit.edit",
    "edit_report": "patterns.edit.report",
    "Fact": "patterns.edit.value",
    "EditSettings": "patterns.edit.value",
    "prune_report": "patterns.prune.report",
    "kept_tokens": "patterns.prune.kept_tokens",
    "features": "patterns.features.features",
    "probe": "patterns.features.probe",
    "Workers": "runs.workers",
    "Job": "runs.job",
    "check": "checks",
    "explore": "show.explorer",
    "MMFlowError": "_errors",
    "NoEffectError": "_errors",
    "SpanError": "_errors",
    "PromptError": "_errors",
    "ModelError": "_errors",
    "DataError": "_errors",
    "OutputError": "_errors",
    "ServerError": "_errors",
}
_GROUPS = {
    "nano": "nano",
    "corruption": "patterns.trace.corruption",
    "values": "patterns.values",
    "prune": "patterns.prune",
    "results": "patterns.results",
    "data": "data",
    "bridge": "bridge",
    "show": "show",
}

__all__ = sorted([*_WHERE, *_GROUPS])


def __getattr__(name: str) -> object:
    """Loads a public name when it is first used."""
    if name == "__version__":
        return import_module("importlib.metadata").version("nnsight-mmflow")
    if name in _GROUPS:
        value: object = import_module(f"nnsight_mmflow.{_GROUPS[name]}")
    elif name in _WHERE:
        value = getattr(import_module(f"nnsight_mmflow.{_WHERE[name]}"), name)
    else:
        return import_module("nnsight_mmflow._formerly").renamed(name)
    globals()[name] = value
    import_module("nnsight_mmflow._type_hints").resolve_when_asked()
    return value


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
