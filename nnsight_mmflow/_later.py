"""What a lower room asks of a higher one, by name: results and prompts show themselves, graphs reach TransformerLens.

One table instead of imports upwards: `later("flow_figure")` is the function of that name, imported when it is called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

ROOMS = {
    "model.together": ("edited",),
    "patterns.flow.flow": ("flow",),
    "patterns.prune.kept_tokens": ("closed_keys",),
    "bridge.bound": ("bound_to",),
    "bridge.bridge": ("graph_for", "to_bridge"),
    "bridge.hooks": ("hooked", "hooks_of"),
    "show.answer_tokens": ("tokens_figure",),
    "show.attention_heat": ("attention_figure",),
    "show.contributions": (
        "contributions_figure",
        "contributions_on_image",
        "correctness_figure",
    ),
    "show.curves": ("flow_figure", "lens_figure", "overlap_figure", "skip_figure"),
    "show.diagram": ("diagram_figure",),
    "show.edits": ("edit_figure", "report_figure"),
    "show.effect": ("effect_figure",),
    "show.features": ("features_figure", "probe_figure"),
    "show.heat": ("heat_figure",),
    "show.heat_on_image": ("on_image",),
    "show.pages.flow": ("flow_page",),
    "show.patches": ("patch_panels", "words_figure"),
    "show.patterns": ("pattern_html", "plan_html"),
    "show.prompts": ("batch_html", "prompt_html", "span_html", "spans_html"),
    "show.pruning": ("kept_panels", "prune_figure"),
    "show.results": ("job_html", "result_html", "told"),
    "show.saliency": ("disruption_figure", "saliency_figure", "saliency_on_image"),
    "workers.run": ("crew_of",),
    "show.sweeps": ("accuracy_figure", "sweep_figure"),
    "data.scoring": ("answer_rules",),
    "show.traces": ("attribution_figure", "trace_figure"),
}
WHERE = {name: room for room, names in ROOMS.items() for name in names}


def later(name: str) -> Callable:
    """The function of that name, from the room that holds it."""
    return getattr(import_module(f"nnsight_mmflow.{WHERE[name]}"), name)


def lazily(name: str, package: str, where: dict[str, str]) -> object:
    """A name of a group, loaded when it is first used.

    Args:
        name: what is asked for.
        package: the group.
        where: by name the module that holds it, without the package's own name.

    Raises:
        AttributeError: the group has no such name.
    """
    if name not in where:
        raise AttributeError(f"{package} has no {name!r}; it has {', '.join(sorted(where))}.")
    value = getattr(import_module(f"nnsight_mmflow.{where[name]}"), name)
    import_module("nnsight_mmflow._type_hints").resolve_when_asked()
    setattr(sys.modules[package], name, value)
    return value


def group(package: str, where: dict[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """(`__getattr__`, `__dir__`) of a module that is a group of names, each loaded when it is first used."""
    return lambda name: lazily(name, package, where), lambda: sorted(where)
