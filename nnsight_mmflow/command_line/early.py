"""What a command can say before its model is loaded: pictures, spans, layers and numbers that cannot be."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._kinds import edges_of
from nnsight_mmflow.command_line.experiments import METHODS
from nnsight_mmflow.model.pattern import layer_list
from nnsight_mmflow.model.site_names import SITE_OF
from nnsight_mmflow.prompts.pictures import open_pictures
from nnsight_mmflow.prompts.templates import PAPER_TEMPLATES
from nnsight_mmflow.spans.grammar import NAMES, check_expression
from nnsight_mmflow.spans.row_spans import NEEDS
from nnsight_mmflow.workers.ray import import_ray

SPANS = (*NAMES, *NEEDS)


def check_early(given: argparse.Namespace) -> None:
    """Refuses what is wrong whatever the model says.

    Raises:
        MMFlowError: naming the option.
    """
    bound = getattr(given, "bound", None)
    if bound is not None and not 0 < bound < float("inf"):
        raise MMFlowError(f"--bound {bound}: how far a number may move, above 0.")
    _spans(given)
    template = getattr(given, "template", None)
    if template not in (None, "chat", *PAPER_TEMPLATES):
        raise MMFlowError(f"--template {template}: chat, {' or '.join(PAPER_TEMPLATES)}.")
    if getattr(given, "workers", None) and find_spec("ray") is None:
        import_ray()  # which says what to install
    for name in ("image", "other_image"):
        open_pictures(getattr(given, name, None))
    _methods(given)
    depth = _depth(given)
    if depth is not None:
        _layers(given, depth)


def _spans(given: argparse.Namespace) -> None:
    for edge in edges_of("--edges", given.edges) if getattr(given, "edges", None) else ():
        for end in edge.split("->"):
            check_expression(end.strip(), SPANS)
    named = ("at", "spans", "source", "target") if given.command != "edit" else ()  # whose target is an answer
    for name in named:
        asked = getattr(given, name, None) or ()
        for expression in [asked] if isinstance(asked, str) else asked:
            check_expression(expression, SPANS)
    for site in getattr(given, "sites", None) or ():
        if site not in ("mlp", "attn", "resid") and site not in SITE_OF:
            raise MMFlowError(f"--sites {site}: of mlp, attn, resid.")


def _methods(given: argparse.Namespace) -> None:
    if getattr(given, "methods", None):
        unknown = [name for name in given.methods if name not in METHODS]
        if unknown:
            raise MMFlowError(f"there is no method {unknown[0]!r}; there are {', '.join(METHODS)}.")


def _layers(given: argparse.Namespace, depth: int) -> None:
    for name in ("layers", "control_layers"):
        if getattr(given, name, None):
            layer_list(getattr(given, name), depth)
    k1, k2 = getattr(given, "k1", None), getattr(given, "k2", None)
    for name, layer in (("--k1", k1), ("--k2", k2)):
        if layer is not None and not 1 <= layer < depth:
            raise MMFlowError(f"{name} {layer}: tokens can leave before layers 1 to {depth - 1} of this model.")
    if k1 is not None and k2 is not None and k2 <= k1:
        raise MMFlowError(f"--k2 {k2} is not behind --k1 {k1}.")


def _depth(given: argparse.Namespace) -> int | None:
    """How many layers the model has, by its configuration; None where that cannot be had, which loading tells."""
    from nnsight_mmflow.model.checkpoints import read_config

    if not any(getattr(given, name, None) is not None for name in ("layers", "control_layers", "k1", "k2")):
        return None
    name = given.model
    if name == "nano":
        from nnsight_mmflow.nano.questions import FOLDER

        name = str(FOLDER)
    config = read_config(name, {}, {})
    return getattr(config.get_text_config(), "num_hidden_layers", None) if config is not None else None
