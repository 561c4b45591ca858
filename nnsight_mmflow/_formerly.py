"""Names of earlier versions, which still work: each tells its new one in a DeprecationWarning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

OURS = ("nnsight_mmflow", "jaxtyping", "beartype")  # whose frames are no user's
NAMES = {
    "TraceResult": "results.CausalTraceResult",
    "LensByPatch": "results.LensByPatchResult",
    "KnockoutByPatch": "results.KnockoutByPatchResult",
    "EffectResult": "results.AttentionAndEffectResult",
    "SkipResult": "results.SkipFlowResult",
    "Zeroed": "ZeroWeights",
    "attribution": "attribution_patching",
    "AttributionResult": "results.AttributionPatchingResult",
    "AttentionMaps": "results.AttentionResult",
    "KeptTokens": "results.KeptTokensResult",
    "RemoteFailure": "ServerError",
    "Edit": "results.EditResult",
    "on_image": "show.on_image",
    "show_tokens": "show.tokens",
    "show_attention": "show.attention",
    "FlowResult": "results.FlowResult",
    "FlowJob": "results.FlowJob",
    "LensResult": "results.LensResult",
    "ContributionsResult": "results.ContributionsResult",
    "SaliencyResult": "results.SaliencyResult",
    "DisruptionResult": "results.DisruptionResult",
    "WordOverlapResult": "results.WordOverlapResult",
    "PooledAttention": "results.PooledAttention",
    "EditReport": "results.EditReport",
    "PruneReport": "results.PruneReport",
    "from_run": "values.from_run",
    "mean_of": "values.mean_of",
    "zeros": "values.zeros",
    "noise": "values.noise",
    "Prune": "prune.Prune",
    "Stage": "prune.Stage",
    "Seen": "prune.Seen",
    "SparseVLM": "prune.SparseVLM",
    "VisiPruner": "prune.VisiPruner",
    "VisionZip": "prune.VisionZip",
    "FasterVLM": "prune.FasterVLM",
    "Grid": "prune.Grid",
    "Keep": "prune.Keep",
    "Question": "data.Question",
    "prompts_of": "data.prompts_of",
    "read_questions": "data.read_questions",
    "Benchmark": "data.Benchmark",
    "read_benchmark": "data.read_benchmark",
    "Constraint": "data.Constraint",
    "ConstraintQuestion": "data.ConstraintQuestion",
    "read_constraint_questions": "data.read_constraint_questions",
    "write_constraint_questions": "data.write_constraint_questions",
    "BoundBridge": "bridge.BoundBridge",
    "SpanCache": "bridge.SpanCache",
    "cache_by_span": "bridge.cache_by_span",
    "patch_by_span": "bridge.patch_by_span",
    "attribution_by_span": "bridge.attribution_by_span",
    "Report": "checks.CheckReport",
}


# By experiment the arguments that are called otherwise now, and what becomes of their values.
ARGUMENTS: dict[str, dict[str, tuple[str, Callable[[Any], object]]]] = {
    "flow": {"control": ("controls", int)},
    "causal_trace": {
        "control": ("controls", int),
        "width": ("window", lambda width: width),
        "half_width": ("window", lambda half: 2 * half + 1),
    },
    "knockout_by_patch": {"control": ("controls", int)},
    "edit_report": {"controls": ("control_layers", lambda layers: layers)},
    "attention": {"targets": ("target", lambda span: span), "sources": ("source", lambda span: span)},
}


class FormerNameWarning(DeprecationWarning):
    """A name of an earlier version was used."""


def renamed(name: str) -> object:
    """What an earlier name stands for now.

    Raises:
        AttributeError: there never was such a name.
    """
    package = sys.modules["nnsight_mmflow"]
    if name == "flow_on_workers":
        return import_module("nnsight_mmflow.patterns.flow.on_workers").flow_on_workers
    if name not in NAMES:
        raise AttributeError(f"nnsight_mmflow has no {name!r}; it has {', '.join(package.__all__)}.")
    group, _, new = NAMES[name].rpartition(".")
    deprecated(f"mmf.{name}", f"mmf.{NAMES[name]}")
    holder = import_module("nnsight_mmflow.checks") if group == "checks" else package
    return getattr(getattr(holder, group) if group and group != "checks" else holder, new)


def deprecated(old: str, new: str) -> None:
    """Tells the new name, at the user's line that uses the old one."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in OURS:
        frame = frame.f_back
    warning = f"{old} is now {new}; the old name goes away in 0.4."
    warnings.warn_explicit(warning, FormerNameWarning, frame.f_code.co_filename, frame.f_lineno)


def with_new_names(run: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment's keyword arguments by their names of now; the earlier ones are told."""
    renamed = dict(given)
    for old, (new, value_of) in ARGUMENTS.get(run, {}).items():
        if renamed.get(old) is not None and new not in renamed:
            deprecated(f"{old}= of mmf.{run}", f"{new}=")
            renamed[new] = value_of(renamed[old])
        if new in renamed:
            renamed.pop(old, None)
    if run in ("prune_report", "causal_trace", "knockout_by_patch") and isinstance(renamed.get("controls"), bool):
        deprecated(f"controls={renamed['controls']} of mmf.{run}", f"controls={int(renamed['controls'])}")
        renamed["controls"] = int(renamed["controls"])
    return renamed
