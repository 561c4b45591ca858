"""The conformance suite: is what the package says of a model what the model does?

`check(graph)` runs on any model, yours too, and so does `mmflow check MODEL`; the tests run it on a tiny random model
of every family. Each check is a function that returns what it found, raises Failed with the numbers, or NotApplicable
with the reason. A new one is a line in CHECKS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import progress_bar
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.checks import bridge, forwards, knockouts, patches, places, prompts, pruning
from nnsight_mmflow.checks.report import CheckReport, Line
from nnsight_mmflow.checks.subject import Failed, NotApplicable, Subject

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph

CHECKS: dict[str, Callable[[Subject], str]] = {
    "roles are found, and make the logits": prompts.roles,
    "another picture gives other logits": prompts.pixels_matter,
    "spans partition the sequence": prompts.partition,
    "several images in one prompt": prompts.several_images,
    "a prompt without an image": prompts.text_alone,
    "features stand where the model merges them": places.merged,
    "a token's box gives that token": places.round_trip,
    "changed pixels change the tokens that show them, and no others": places.perturbed,
    "eager equals sdpa": forwards.eager_and_sdpa,
    "a batch equals its prompts alone": forwards.batched,
    "knockout equals hand-made masks": knockouts.by_hand,
    "knockout in a padded batch equals it alone": knockouts.padded,
    "knockout in generation equals computing each token anew": knockouts.generated,
    "rows equal one forward per window": knockouts.rows,
    "a knockout of nothing is an error": knockouts.no_op,
    "a patch from another run gives that run": patches.another_run,
    "contributions sum up to the attention's output": patches.contributions,
    "dropping image tokens equals closing their keys": pruning.dropped,
    "a layer left out equals its input handed on": pruning.skipped,
    "weights set to zero give nothing": pruning.zeroed,
    "TransformerLens gives the same, plain and under a knockout": bridge.parity,
}


@checked
def check(graph: Graph, *, progress: bool = True) -> CheckReport:
    """A CheckReport of the conformance suite: each line pass, fail with the numbers, or why it does not apply.

    Args:
        graph: the model; it is left as it was. One that runs on a server has its own checks, without weights here.
        progress: show a progress bar.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> mmf.check(mmf.load("nano"), progress=False).ok
        True
    """
    subject, checks = Subject(graph), CHECKS
    lines = []
    if graph.remote:
        from nnsight_mmflow.checks.remote import REMOTE_CHECKS as checks
    for name, run in progress_bar(list(checks.items()), "check", shown=progress, unit="check"):
        try:
            lines.append(Line(name, "pass", run(subject)))
        except NotApplicable as reason:
            lines.append(Line(name, "not applicable", str(reason)))
        except (Failed, MMFlowError) as error:
            lines.append(Line(name, "fail", str(error)))
        except Exception as error:  # a user's model may break anywhere: say where, and go on with the next check
            lines.append(Line(name, "fail", f"{type(error).__name__}: {error}"))
    return CheckReport(f"{graph.name} ({graph.family}, {graph.backend})", tuple(lines))
