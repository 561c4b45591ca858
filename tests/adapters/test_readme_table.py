"""README's table of families is what this test measures: where it differs, the test rewrites it and fails."""

from importlib.metadata import version
from pathlib import Path

from kit.families import EAGER_ONLY, FAMILIES, conformance, family

README = Path(__file__).parents[2] / "README.md"
START, END = "<!-- families: written by tests/adapters/test_readme_table.py -->", "<!-- end of families -->"
COLUMNS = {
    "spans": ("spans partition the sequence", "several images in one prompt", "a token's box gives that token"),
    "geometry measured": (
        "features stand where the model merges them",
        "changed pixels change the tokens that show them, and no others",
    ),
    "eager = sdpa": ("eager equals sdpa",),
    "batch": ("a batch equals its prompts alone",),
    "Knockout": ("knockout equals hand-made masks", "knockout in a padded batch equals it alone"),
    "in generation": ("knockout in generation equals computing each token anew",),
    "flow by rows": ("rows equal one forward per window",),
    "Patch": ("a patch from another run gives that run",),
    "contributions": ("contributions sum up to the attention's output",),
    "pruning": ("dropping image tokens equals closing their keys",),
    "Skip": ("a layer left out equals its input handed on",),
    "saliency": ("weights set to zero give nothing",),
    f"TransformerLens {version('transformer-lens')}": ("TransformerLens gives the same, plain and under a knockout",),
}


def test_the_families_table_is_what_was_measured():
    text = README.read_text()
    before, rest = text.split(START)
    written, after = rest.split(END)
    measured = f"\n{table()}\n"
    if written != measured:
        README.write_text(before + START + measured + END + after)
    assert written == measured, "README's table of families was out of date; it has been rewritten: look and commit it"


def table():
    head = [f"transformers {version('transformers')}", "text, tower", *COLUMNS]
    rows = {}
    for name in FAMILIES:
        graph = family(name, "eager" if name in EAGER_ONLY else "sdpa")
        config = graph.adapter.config
        parts = f"{graph.text_config.model_type}, {config.vision_config.model_type}"
        outcomes = {line.name: line.outcome for line in conformance(name).lines}
        cells = [short({outcomes[check] for check in checks}) for checks in COLUMNS.values()]
        key = type(graph.adapter.model).__name__.removesuffix("ForConditionalGeneration"), parts
        rows.setdefault(key, cells)
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join([*key, *cells])} |" for key, cells in rows.items())])


def short(outcomes):
    if "fail" in outcomes:
        return "**no**"
    return "yes" if outcomes == {"pass"} else "-"
