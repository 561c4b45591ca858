"""The names by which classes of the package count in fingerprints: those of 0.2, whose files lay elsewhere.

Random spans are drawn by fingerprints of prompts, and folders are known by them. Neither may change because a file has
moved. A class that is new needs no line here.
"""

MODULES = {
    "data.benchmarks": "_benchmarks",
    "data.constraints": "_constraints",
    "data.questions": "_questions",
    "inside.pruning": "_prune",
    "model.graph": "_graph",
    "patterns.edit.result": "patterns.edit_result",
    "patterns.edit.update": "patterns.edit_update",
    "patterns.edit.value": "patterns.edit_value",
    "patterns.prune.controls": "patterns.prune_controls",
    "patterns.prune.methods": "patterns.prune_methods",
    "patterns.prune.prune": "patterns.prune",
    "patterns.prune.sparse_vlm": "patterns.sparse_vlm",
    "patterns.prune.visi_pruner": "patterns.visi_pruner",
    "patterns.prune.vision_zip": "patterns.vision_zip",
    "patterns.trace.corruption": "patterns.corruption",
    "prompts.prompt": "_prompt",
    "spans.geometry": "_geometry",
    "spans.groups": "_span_groups",
    "spans.regions": "_patch_regions",
    "spans.row_spans": "_row_spans",
    "spans.span": "_spans",
    "spans.views": "_views",
}
PACKAGE = "nnsight_mmflow."


def full_name(cls: type) -> str:
    """Module and name of a class, as a fingerprint holds it."""
    module = cls.__module__
    if module.startswith(PACKAGE):
        module = PACKAGE + MODULES.get(module.removeprefix(PACKAGE), module.removeprefix(PACKAGE))
    return f"{module}.{cls.__qualname__}"
