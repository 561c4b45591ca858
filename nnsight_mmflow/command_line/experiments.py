"""The experiments of the command line, in one table: which function each is, what it takes, and its own options.

A new experiment joins by an entry. `experiment.py` runs it and writes what it found, unless a module of the command's
own name does more.
"""

from __future__ import annotations

from dataclasses import dataclass

from nnsight_mmflow.command_line.common import at_least
from nnsight_mmflow.command_line.own_options import (
    AT_ONCE,
    ENGINE,
    SCOPE,
    SEED,
    SOURCE,
    STAGE,
    TARGET,
    Option,
    count,
    formerly,
    layers,
    one_of,
    option,
    span,
    spans,
)

PROMPTS, EACH, PAIRS, FACTS = "prompts", "each", "pairs", "facts"
FEW = 12  # of nano's own questions, where each takes many forwards: two of each scene type
METHODS = ("fastv", "himap", "pyramiddrop", "sparsevlm", "visionzip", "fastervlm")


@dataclass(frozen=True)
class Experiment:
    """An experiment that has a command.

    Attributes:
        function: its name in nnsight_mmflow.
        about: what it tells, for help.
        options: its own, each of which goes to the function under its own name.
        takes: PROMPTS, EACH (prompts, one run for each), PAIRS (clean and corrupt runs) or FACTS.
        nano: how many of nano's own questions are asked unless `--limit` says it.
        judged: whether prompts that are answered wrongly are left out unless `--all` is given.
        why_answer: why it needs the right answer; "" where it does not.
    """

    function: str
    about: str
    options: tuple[Option, ...]
    takes: str = PROMPTS
    nano: int = 120  # twenty of each scene type
    judged: bool = False
    why_answer: str = ""


EXPERIMENTS = {
    "flow": Experiment(
        "flow",
        "layer-by-layer knockout curves: figure, table, report",
        (
            option("--edges", "such as 'image->question' (quote them)", nargs="+", metavar="A->B"),
            option(
                "--window",
                f"{AT_ONCE}; several sizes may be given (9)",
                nargs="+",
                type=at_least(1),
                default=[9],
                metavar="N",
            ),
            ENGINE,
            count("--controls", "so many random spans of the same size for each edge", 0, 0),
            formerly("--control", "controls", type=at_least(0)),
        ),
        judged=True,
    ),
    "lens": Experiment(
        "lens",
        "what each layer would answer",
        (
            span("--at", "the span whose positions are read", "last"),
            option("--no-norm", "read without the final norm", action="store_false", dest="norm"),
            count("--top", "how many of the most likely words are kept", 10),
        ),
        judged=True,
        why_answer="follows the answer's probability",
    ),
    "trace": Experiment(
        "causal_trace",
        "causal tracing: which clean activations bring the answer back into a corrupt run",
        (
            spans("which are restored (what the corruption can reach of image, constraint, question and last)"),
            option("--sites", "of mlp, attn, resid (all three)", nargs="+", default=["mlp", "attn", "resid"]),
            count("--window", "consecutive layers around each centre", 1),
            formerly("--half-width", "window", type=lambda text: 2 * at_least(0)(text) + 1),
            option("--each-position", "restore each position of a span on its own", action="store_true"),
            ENGINE,
            count("--controls", "so many random spans of the same size for each span", 1, 0),
        ),
        PAIRS,
        nano=48,  # sixteen places, three relations each
        judged=True,
    ),
    "attribution-patching": Experiment(
        "attribution_patching",
        "what patching every head at every span would do, estimated with a gradient, some of it measured",
        (
            spans("at which heads are patched (as in trace)"),
            count("--exact", "in how many cells of each prompt the patch is really made", 24, 0),
            SEED,
        ),
        PAIRS,
        nano=FEW,
    ),
    "contributions": Experiment(
        "contributions",
        "what a position takes from each source token: attention weight times value",
        (
            span("--source", SOURCE, "image"),
            TARGET,
            option("--heads", "also a row for each head", action="store_true"),
        ),
    ),
    "skip-flow": Experiment(
        "skip_flow",
        "what each layer does for a span: the answer when the span passes it unchanged",
        (
            spans("which pass unchanged; all leaves the layer out (image question all)", ["image", "question", "all"]),
            count("--window", AT_ONCE, 1),
            one_of("--scope", "these layers, or every layer from that one on", "window", "from_layer"),
            one_of("--part", "what of a layer is left out", "layer", "attn", "mlp"),
        ),
        nano=FEW,
        judged=True,
    ),
    "word-overlap": Experiment(
        "word_overlap",
        "words at the question with attention or MLP silenced, against those without",
        (
            span("--at", "the span that is silenced and read", "question"),
            count("--window", AT_ONCE, 9),
            count("--top", "how many words are compared", 10),
        ),
        nano=FEW,
    ),
    "saliency": Experiment(
        "saliency",
        "attention times gradient by layer, and what cutting each flow does",
        (SCOPE, STAGE),
        why_answer="is of the answer's loss",
    ),
    "disruption": Experiment(
        "disruption",
        "what the model still answers when one kind of flow from the image is cut",
        (
            option(
                "--ways",
                "of img2txt, img2img, img2rnd, the control (all three)",
                nargs="+",
                choices=("img2txt", "img2img", "img2rnd"),
            ),
            SCOPE,
            STAGE,
            layers("which (all)"),
            SEED,
        ),
        nano=FEW,
    ),
    "knockout-by-patch": Experiment(
        "knockout_by_patch",
        "what each patch of the picture is worth to the answer",
        (
            span("--source", "the image span whose tokens are gone through", "image"),
            span("--target", "the span that may not read", "last"),
            layers("a stretch of layers (all)"),
            count("--window", "close so many layers around each of them in turn (all of them at once)", None),
            count("--size", "2 or more closes squares of so many patches a side", 1),
            count("--controls", "for squares: so many sets of as many random patches", 1, 0),
            SEED,
        ),
        EACH,
        nano=3,
    ),
    "knockout-by-token": Experiment(
        "knockout_by_token",
        "what each word of the question is worth to the answer",
        (
            span("--source", "the span whose tokens are knocked out, one at a time", "question"),
            span("--target", "the span that may not read them", "last"),
            count("--window", AT_ONCE, 1),
        ),
        EACH,
        nano=3,
    ),
    "lens-by-patch": Experiment(
        "lens_by_patch",
        "which word each patch of the picture would say after each layer",
        (
            span("--source", "the image span whose tokens are read", "image"),
            layers("which (all)"),
            count("--top", "how many words of each token are kept", 5),
        ),
        EACH,
        nano=3,
    ),
    "attention-and-effect": Experiment(
        "attention_and_effect",
        "how much a target looks at a source in each layer, and what happens when it may not",
        (
            span("--source", f"{SOURCE}: object is what the question's boxes show", "object"),
            TARGET,
            layers("which (all)"),
            count("--controls", "so many random spans of the same size", 5, 0),
            SEED,
        ),
        EACH,
        nano=3,
    ),
    "features": Experiment(
        "features",
        "activations of every question at a span, in shards beside an index, for probes and models of your own",
        (
            span("--at", "the span whose positions are read", "last"),
            layers("which (all)"),
            one_of("--site", "the residual stream, what attention or MLPs add to it", "resid", "attn", "mlp", "embed"),
            one_of("--pool", "over the span's positions", "mean", "last"),
            count("--batch-size", "how many questions go through the model together", 1),
        ),
    ),
    "edit": Experiment(
        "edit",
        "facts written into an MLP, and whether they hold",
        (
            layers("where the edit goes (nano: 4)"),
            option(
                "--control-layers",
                "single layers to compare with (nano: all; --data: none)",
                nargs="+",
                type=int,
                metavar="N",
            ),
            formerly("--controls", "control_layers", nargs="+", type=int, metavar="N"),
            count("--together", "also so many facts at once (nano: 10; --data: none)", None),
            option("--bound", "also fine-tune with numbers held this near", type=float, metavar="X"),
            one_of("--settings", "the paper's, or its released script's", "paper", "released"),
        ),
        FACTS,
        nano=20,
    ),
    "prune": Experiment(
        "prune_report",
        "what dropping image tokens costs and saves, controls beside it",
        (
            option(
                "--methods", f"of {', '.join(METHODS)} (all of them)", nargs="+", default=list(METHODS), metavar="NAME"
            ),
            option("--k1", "the layer of the (first) prune (a fifth of the depth)", type=int, metavar="N"),
            option("--k2", "the layer of the second (half the depth)", type=int, metavar="N"),
            one_of("--mode", "tokens leave, or their keys close", "drop", "mask"),
            count("--max-new-tokens", "how long an answer may get", 8),
            count("--timed", "how often times are measured, 0: never (3; with --workers 0)", None, 0),
            count("--controls", "so many random thinnings beside each method, and a regular one; 0: none", 1, 0),
        ),
        why_answer="counts right answers",
    ),
}
