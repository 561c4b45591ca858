"""Every experiment of the package, a row each: how it is called on nano, and what it returns.

The table's tests (test_experiments.py, remote/table.py) put each row to all that an experiment promises; the smoke test
and the run on NDIF's own server go by it too (catalogue.py). A new experiment joins by one row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import nnsight_mmflow as mmf

COMMON = ("folder", "remote", "workers", "blocking", "progress", "report")  # what every experiment takes
LOOSE = {"only_correct": False}
TRACE = {"min_clean": 0.0, "max_corrupt": float("inf"), **LOOSE}
SHORT = mmf.EditSettings(steps=4)


@dataclass(frozen=True)
class Row:
    """One way to call one experiment.

    Attributes:
        name: of the function; " by ..." behind it where another way of it has a row of its own.
        result: the class of what it returns, in mmf.results.
        given: from a graph that is here and two prompts to what stands behind the graph.
        settings: by keyword.
        gradients: it needs them, so that an ordinary key on NDIF is refused.
        finishes: forwards that it runs once all is measured, such as the edited model's: these are not kept.
    """

    name: str
    result: str
    given: Callable[..., tuple]
    settings: dict = field(default_factory=dict)
    gradients: bool = False
    finishes: bool = False

    @property
    def function(self) -> str:
        """Its name in mmf."""
        return self.name.split(" by ")[0]

    def run(self, graph, given: tuple, **common):
        """Its result on a graph."""
        return getattr(mmf, self.function)(graph, *given, **self.settings, **common)


def prompts_of(graph) -> list[mmf.Prompt]:
    """Two of nano's; the first has a span more, "corner": a quarter of its image."""
    one, two = mmf.nano.prompts(graph, 2)
    width, height = one.images[0].size
    corner = one.spans["image"].box((0, 0, width / 2, height / 2))
    return [replace(one, spans=one.spans.having(corner=corner)), two]


def both(here, one, two) -> tuple:
    return ([one, two],)


def first(here, one, two) -> tuple:
    return (one,)


def pairs(here, one, two) -> tuple:
    return mmf.nano.trace_pairs(here, 2, "flag")


def other_pictures(here, one, two) -> tuple:
    prompts = [one, two]
    pictures = [two.images[0], one.images[0]]
    swapped = [mmf.corruption.other_image(here, *pair) for pair in zip(prompts, pictures, strict=True)]
    return prompts, swapped


def noise(here, one, two) -> tuple:
    return one, mmf.corruption.noisy_image(one)


def facts(here, one, two) -> tuple:
    return (mmf.nano.edits(here, 2),)


def facts_and_others(here, one, two) -> tuple:
    return mmf.nano.edits(here, 2), mmf.nano.prompts(here, 4)[2:]


def blocked(layer):
    return mmf.Knockout(source="text('the', 0)", target="last", layers=layer)


def skipped(layer, at):
    return mmf.Skip(layers=layer, at=at)


# A score of one's own: how sure the model is where the answer is read. It has no name, so that it travels by value.
SUREST = lambda logits, prompt: logits.log_softmax(-1).max(-1).values.mean() + len(prompt.question)  # noqa: E731

ROWS = (
    Row("flow", "FlowResult", both, {"window": 3, **LOOSE}),
    Row("flow by forwards", "FlowResult", first, {"edges": ["image->last"], "window": 9, "engine": "forward", **LOOSE}),
    Row("skip_flow", "SkipFlowResult", both, {"spans": ["image"], **LOOSE}),
    Row("flow by answers", "FlowResult", both, {"edges": ["image->last"], "window": 9, "score": "answer", **LOOSE}),
    Row("flow by captions", "FlowResult", first, {"edges": ["image->last"], "window": 9, "score": "caption"}),
    Row("flow by a function", "FlowResult", first, {"edges": ["image->last"], "window": 9, "score": SUREST, **LOOSE}),
    Row("sweep", "SweepResult", lambda *given: (*both(*given), blocked, range(3)), {"controls": 1, **LOOSE}),
    Row(
        "sweep by forwards",
        "SweepResult",
        lambda *given: (*first(*given), skipped, {"layer": [3, 4], "at": ["image", "corner"]}, "answer"),
        LOOSE,
    ),
    Row(
        "accuracy",
        "AccuracyResult",
        lambda *given: (*both(*given), mmf.Knockout(source="image", target="last", layers=range(6), when="all")),
        {"max_new_tokens": 2},
    ),
    Row("lens", "LensResult", both, LOOSE),
    Row("word_overlap", "WordOverlapResult", both, {"window": 9}),
    Row("contributions", "ContributionsResult", both),
    Row("causal_trace", "CausalTraceResult", other_pictures, {"sites": ("mlp",), **TRACE}),
    Row("causal_trace by noise", "CausalTraceResult", noise, TRACE),
    Row("saliency", "SaliencyResult", both, gradients=True),
    Row("saliency by released code", "SaliencyResult", first, {"mode": "released"}, gradients=True),
    Row("disruption", "DisruptionResult", both, {"layers": (1,)}),
    Row("attribution_patching", "AttributionPatchingResult", pairs, {"exact": 0}, gradients=True),
    Row(
        "prune_report",
        "PruneReport",
        lambda *given: (*both(*given), [mmf.FastV(k=2)]),
        {"max_new_tokens": 2, "timed": 0},
    ),
    Row("kept_tokens", "KeptTokensResult", lambda *given: (*first(*given), mmf.HiMAP(k1=2, k2=4))),
    Row("edit", "EditResult", facts, {"layers": 4, "settings": SHORT}, gradients=True, finishes=True),
    Row(
        "edit_report",
        "EditReport",
        facts_and_others,
        {"layers": 4, "settings": SHORT, "fine_tuning": False},
        gradients=True,
    ),
    Row("knockout_by_token", "FlowResult", first),
    Row("knockout_by_patch", "KnockoutByPatchResult", first, {"size": 4, "window": 3}),
    Row("lens_by_patch", "LensByPatchResult", first),
    Row("features", "FeaturesResult", both, {"at": "question", "layers": [2, 5]}),
    Row("features by positions", "FeaturesResult", both, {"at": "image", "site": "mlp", "layers": 3, "pool": None}),
    Row("attention", "AttentionResult", first, {"layers": [2, 5], "target": "question"}),
    Row("attention by generation", "AttentionResult", first, {"layers": [2], "target": "generated[0]", "generated": 2}),
    Row("lens by generation", "LensResult", both, {"generated": 2, **LOOSE}),
    Row(
        "attention_and_effect",
        "AttentionAndEffectResult",
        first,
        {"source": "image", "layers": [4], "controls": 0},
    ),
)
