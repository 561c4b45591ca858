"""Generation settings: where they come from, what is refused before any forward, and that planted faults are seen."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from kit import plain_forms as plain
from kit.forms import (
    FORMS,
    IMAGE_ID,
    LENGTH,
    OLDER,
    PATTERNS,
    SAME,
    Case,
    distance,
    made,
    ours,
    reference,
    refused,
    remembered,
    told,
)
from kit.gold import twin
from kit.tiny import tiny_graph, tiny_model, tiny_processor
from transformers import DynamicCache, GenerationConfig

import nnsight_mmflow as mmf
from nnsight_mmflow import MMFlowError, NoEffectError
from nnsight_mmflow.inside import forwards
from nnsight_mmflow.model.forms import form_of
from nnsight_mmflow.nano.questions import FOLDER

KNOCKOUT = mmf.Knockout(source="image", target="last", layers=(1, 2), when="all")
QUIET = {"progress": False, "report": lambda text: None}
CHUNKS = {"prefill_chunk_size": 5}
LOOKUP = {"prompt_lookup_num_tokens": 3, "suppress_tokens": [IMAGE_ID]}

# (settings, what the refusal names): all with a pattern, none of them runs a forward
REFUSED = [
    ({"guidance_scale": 1.5}, "guidance_scale=1.5 runs the model a second time"),
    ({"negative_prompt_ids": torch.ones(1, 3, dtype=torch.long)}, "negative_prompt_ids=.* runs the model"),
    ({"custom_generate": "someone/loop"}, "custom_generate='someone/loop' runs code of its own"),
    ({"custom_generate": lambda model, **_: None}, "custom_generate=.* runs code of its own"),
    ({"assistant_early_exit": 2}, "assistant_early_exit=2 runs this model's first layers"),
    ({"dola_layers": "high"}, "dola_layers='high' runs code that is no longer"),
    ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha=0.6 runs code"),
    ({"num_beam_groups": 2, "num_beams": 4}, "num_beam_groups=2 runs code"),
    ({"force_words_ids": [[5]], "num_beams": 2}, r"force_words_ids=\[\[5\]\] runs code"),
    ({"token_healing": True}, "token_healing=True changes the prompt's last token"),
    ({"cache_implementation": "quantized"}, "cache_implementation='quantized' keeps keys elsewhere"),
    ({"cache_implementation": "offloaded"}, "cache_implementation='offloaded' keeps keys elsewhere"),
    ({"cache_implementation": "sliding_window"}, "cache_implementation='sliding_window' keeps keys elsewhere"),
    ({"cache_implementation": "other"}, "transformers refuses .*Invalid `cache_implementation`"),
    ({"num_beams": 0}, "num_beams=0: expected a whole number"),
    ({"num_beams": "3"}, "num_beams='3': expected a whole number"),
    ({"num_beams": True}, "num_beams=True: expected a whole number"),
    ({"num_return_sequences": 2.0}, "num_return_sequences=2.0: expected a whole number"),
    ({"num_return_sequences": 3}, "transformers refuses .*Greedy methods"),
    ({"num_beams": 2, "num_return_sequences": 3}, "transformers refuses .*num_return_sequences"),
    ({"use_cache": "no"}, "use_cache='no': expected True or False"),
    ({"use_cache": None}, "use_cache=None: expected True or False"),
    ({"do_sample": 1}, "do_sample=1: expected True or False"),
    ({"beams": 3}, r"transformers refuses .*\['beams'\]"),
    ({"max_new_tokens": 0}, "max_new_tokens=0: expected a whole number"),
    ({"max_new_tokens": None, "max_length": 5}, "max_length=5 counts the prompt's"),
    ({"prefill_chunk_size": 0}, "prefill_chunk_size=0: expected a whole number"),
    (
        {"past_key_values": ((torch.ones(1), torch.ones(1)),)},
        "past_key_values is a tuple; expected a transformers Cache",
    ),
    ({"generation_config": {"num_beams": 2}}, "generation_config is a dict; expected"),
    ({"assistant_model": "tiny"}, "assistant_model is a str; expected"),
    ({"prompt_lookup_num_tokens": 3}, r"Add suppress_tokens=\[graph.image_token_id\]"),
    ({**LOOKUP, "use_cache": False}, "needs a cache that can shrink"),
    (
        {"prefill_chunk_size": 5, "use_cache": False},
        "prefill_chunk_size=5 with a picture" if OLDER else "needs a cache, which use_cache=False takes away",
    ),
    ({"past_key_values": DynamicCache(), "use_cache": False}, "came with use_cache=False"),
    ({**LOOKUP, "cache_implementation": "static"}, "needs a cache that can shrink"),
    ({"stop_strings": "red"}, "stop_strings needs the tokenizer too"),
    ({"input_ids": torch.ones(1, 3, dtype=torch.long)}, "input_ids came beside the prompt"),
    ({"inputs": torch.ones(1, 3, dtype=torch.long)}, "inputs came beside the prompt"),
    ({"inputs_embeds": torch.ones(1, 3, 8)}, "inputs_embeds came beside the prompt"),
    ({"attention_mask": torch.ones(1, 3)}, "attention_mask came beside the prompt"),
    ({"pixel_values": torch.ones(1, 3)}, "pixel_values came beside the prompt"),
    ({"position_ids": torch.ones(1, 3)}, "position_ids came beside the prompt"),
]


@pytest.fixture
def graph():
    return tiny_graph()


def test_what_cannot_be_followed_is_refused_before_any_forward(graph, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a forward ran")

    prompt, wrong = made(graph, False), []
    monkeypatch.setattr(graph.adapter.model, "forward", never)
    for settings, told_so in REFUSED:
        try:
            graph.generate(prompt, KNOCKOUT, **{**LENGTH, **settings})
            wrong.append((settings, "was taken"))
        except MMFlowError as error:
            with_it = pytest.raises(MMFlowError, match=told_so)
            try:
                with with_it:
                    raise error
            except AssertionError as other:
                wrong.append((settings, str(other)))
    assert not wrong
    with pytest.raises(MMFlowError, match="for one prompt at a time, but 3 came"):
        graph.generate(made(graph, True), KNOCKOUT, **LENGTH, **LOOKUP)


def test_neutral_settings_are_taken(graph):
    prompt = made(graph, False)
    for settings in ({"guidance_scale": 1.0}, {"cache_implementation": "dynamic"}, {"past_key_values": DynamicCache()}):
        found = ours(graph, prompt, (KNOCKOUT,), do_sample=False, **settings)
        assert distance(found, ours(graph, prompt, (KNOCKOUT,), do_sample=False)) == (0.0, True)


WHERE = ["argument", "generation_config=", "generation_config.json", "config.json"]
SETTINGS = [{"use_cache": False}, {"num_beams": 3}, {"cache_implementation": "static"}, {"repetition_penalty": 1.5}]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda one: next(iter(one)))
@pytest.mark.parametrize("where", WHERE)
def test_wherever_a_setting_comes_from(where, settings, tmp_path):
    """Patching all of the image equals plain transformers on the other picture, with the same settings."""
    if where == "config.json" and settings != {"use_cache": False}:
        pytest.skip("transformers takes this from no model config")
    shutil.copytree(FOLDER, tmp_path / "nano")
    file = tmp_path / "nano" / ("config.json" if where == "config.json" else "generation_config.json")
    if where.endswith("json"):
        held = json.loads(file.read_text())
        for part in (held, held.get("text_config", {})):
            part.update(settings)
        if where == "config.json":
            (tmp_path / "nano" / "generation_config.json").unlink()
        file.write_text(json.dumps(held))
    given = settings if where == "argument" else {}
    if where == "generation_config=":
        given = {"generation_config": GenerationConfig(**settings)}
    graph = mmf.load(str(tmp_path / "nano"))
    one, other = mmf.nano.prompts(graph, 6)[3:5]
    other = graph.prompt(other.images[0], one.question)
    patch = mmf.Patch(at="image", site="embed", value=mmf.values.from_run(other))
    found = ours(graph, one, (patch,), **given)
    with torch.no_grad():
        wanted = graph.adapter.model.generate(**other.inputs, **told(given))
        clean = graph.adapter.model.generate(**one.inputs, **told(given))
    off, same = distance(found, wanted)
    assert same
    assert off <= 1e-4  # of logits near 20
    assert distance(found, clean)[0] > 1
    used = graph.generation_settings(**given)
    assert used.items() >= settings.items()


def test_a_report_takes_nothing_from_a_checkpoint(tmp_path):
    """The same answers whatever the checkpoint says; what was used stands in the header."""
    shutil.copytree(FOLDER, tmp_path / "nano")
    file = tmp_path / "nano" / "generation_config.json"
    odd = {
        "num_beams": 3,
        "use_cache": False,
        "repetition_penalty": 5.0,
        "min_new_tokens": 4,
        "no_repeat_ngram_size": 1,
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), **odd}))
    plain_one, other = mmf.load("nano"), mmf.load(str(tmp_path / "nano"))
    written = []
    for graph in (plain_one, other):
        prompts = mmf.nano.prompts(graph, 4)
        report = mmf.prune_report(graph, prompts, [mmf.FastV(k=5)], controls=0, timed=0, max_new_tokens=3, **QUIET)
        written.append(report.to_frame()["written"].tolist())
        used = report.header["generation"]
        assert (used["num_beams"], used["use_cache"], used["do_sample"]) == (1, True, False)
        assert used.get("repetition_penalty", 1.0) == 1.0
        assert used["eos_token_id"] == graph.adapter.model.generation_config.eos_token_id
        assert json.loads(json.dumps(used)) == used
    assert written[0] == written[1]
    chosen = mmf.prune_report(
        other, prompts, [mmf.FastV(k=5)], controls=0, timed=0, generation={"num_beams": 2}, **QUIET
    )
    assert chosen.header["generation"]["num_beams"] == 2
    for wrong, named in (({"num_return_sequences": 2, "num_beams": 2}, "one answer"), ({"max_new_tokens": 3}, "there")):
        with pytest.raises(MMFlowError, match=named):
            mmf.prune_report(other, prompts, [mmf.FastV(k=5)], generation=wrong, **QUIET)


def test_a_server_is_told_what_a_checkpoint_says(graph):
    """The server's copy of a checkpoint may say other things than what was checked here."""
    form = form_of(graph.at("local"), {"num_beams": 2}, (1, 30))
    assert form.fixed.items() >= {"use_cache": True, "num_return_sequences": 1}.items()
    assert "num_beams" not in form.fixed  # the call says it
    assert form_of(graph, {"num_beams": 2}, (1, 30)).fixed == {}


# Methods that merge, renumber or look at the tower, and edits: against each form's own plain relatives.


@pytest.mark.parametrize(
    "pattern",
    [
        mmf.prune.VisionZip(dominant=4, contextual=2),
        mmf.prune.VisionZip(dominant=4, contextual=2, mode="mask"),
        mmf.prune.SparseVLM(layers=(1, 3), keep=(0.5, 0.25)),
        mmf.FastV(k=2, r=0.5, positions="renumbered"),
        mmf.FastV(k=2, r=0.5, positions="renumbered", mode="mask"),
        mmf.HiMAP(k1=1, k2=3),
        mmf.Random(k=2, r=0.5),
    ],
    ids=lambda pattern: f"{type(pattern).__name__} {pattern.mode} {pattern.positions}",
)
def test_methods_that_merge_or_count_anew(pattern, graph):
    """Without a cache as with one (held against references in test_prune*.py); each sample as its prompt alone."""
    batch = made(graph, True)
    one = ours(graph, batch, (pattern,), do_sample=False)
    for settings in ({"do_sample": False}, FORMS["beams"]):
        kept = one if settings == {"do_sample": False} else ours(graph, batch, (pattern,), **settings)
        off, same = distance(kept, ours(graph, batch, (pattern,), use_cache=False, **settings))
        assert same
        assert off <= SAME
    many = ours(graph, batch, (pattern,), **FORMS["samples"])
    assert (many.logits[0].unflatten(0, (3, 3)) - one.logits[0][:, None]).abs().max() <= SAME


@pytest.mark.parametrize("form", [form for form in FORMS if form != "lookup"])
def test_edits(form):
    import copy

    from nnsight_mmflow.patterns.edit.there import edited_there

    graph = mmf.load("nano")
    fact, other = mmf.nano.edits(graph, 1)[0], mmf.nano.prompts(graph, 3)[1]
    edit = mmf.edit(graph, fact, layers=4, settings=mmf.EditSettings(steps=20), **QUIET)
    changed = copy.deepcopy(graph.adapter.model)
    matrix = plain.layers_of(changed)[4].mlp.down_proj.weight
    update = edit.updates[4]
    with torch.no_grad():
        matrix += update.left @ update.right
    batch = graph.batch([fact.prompt, other])
    wanted, clean = (
        reference(changed, batch, (), **FORMS[form]),
        reference(graph.adapter.model, batch, (), **FORMS[form]),
    )
    assert distance(wanted, clean)[0] > 0.1
    for view in (edit.graph, edited_there(graph, edit.updates, "there")):
        for cache in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
            off, same = distance(ours(view, batch, (), **FORMS[form], **cache), wanted)
            assert same
            assert off <= 2e-4  # of logits near 20


@pytest.mark.parametrize("form", ["greedy", "samples", "beams"])
@pytest.mark.parametrize("kept", [True, False], ids=["cache", "no cache"])
def test_on_a_bridge(form, kept):
    graph = mmf.adapt(tiny_model(), tiny_processor())
    prompt, bridge = made(graph, False), graph.to_transformer_lens()
    for pattern in ("knockout, all", "patch resid", "patch embed", "skip at", "zeroed", "prune mask"):
        case = Case(graph, prompt, pattern)
        case.factor = 1 if form == "greedy" else 3
        chosen, hook = PATTERNS[pattern](case)
        torch.manual_seed(0)
        with torch.no_grad(), graph.hooks(bridge, prompt, chosen) as bound:
            found = bound.hf_generate(**told(FORMS[form]), use_past_kv_cache=kept)
        off, same = distance(found, remembered(twin(), case, (hook,), pattern, FORMS[form]))
        assert same, pattern
        assert off <= SAME, pattern


def test_what_a_bridge_cannot_follow_is_refused():
    graph = mmf.adapt(tiny_model(), tiny_processor())
    prompt, bridge = made(graph, False), graph.to_transformer_lens()
    bound = graph.bound(bridge, prompt)
    cannot = "which positions such a forward holds"
    chunked = "prefill_chunk_size=5 with a picture" if OLDER else cannot
    for settings, why in (({"cache_implementation": "static"}, cannot), (LOOKUP, cannot), (CHUNKS, chunked)):
        with pytest.raises(MMFlowError, match=why):
            bound.hf_generate(do_sample=False, **settings)
    with pytest.raises(MMFlowError, match="takes no num_beams"):
        bound.generate(num_beams=2)
    with pytest.raises(MMFlowError, match="shows the image in the first step alone"):
        bound.generate(use_past_kv_cache=False)
    with pytest.raises(MMFlowError, match="takes no image"):
        bound.generate_stream()
    with graph.hooks(bridge, prompt, mmf.Patch(at="image", layers=1, value=mmf.values.zeros())) as hooked:
        with pytest.raises(MMFlowError, match="holds 5 positions, the prompt"), torch.no_grad():
            hooked.bridge(prompt.inputs["input_ids"][:, -5:])
        hooked()


# Planted: each assumption that was made once is seen by the table.


def plant(monkeypatch, **changed):
    whole = forwards.held_now

    def held(decoder, prompts, length):
        found = whole(decoder, prompts, length)
        return forwards.Held(**{**vars(found), **{name: value(found) for name, value in changed.items()}})

    monkeypatch.setattr(forwards, "held_now", held)


@pytest.mark.parametrize(
    ("pattern", "settings", "changed"),
    [
        # the prompt is held once
        ("knockout", {"use_cache": False}, {"cached": lambda held: True}),
        ("patch resid", {"use_cache": False}, {"cached": lambda held: True}),
        ("skip at", {"use_cache": False}, {"cached": lambda held: True}),
        ("zeroed", {"use_cache": False}, {"cached": lambda held: True}),
        # every forward starts at the prompt's first position
        ("knockout, all", {"prefill_chunk_size": 7}, {"first": lambda held: 0}),
        ("patch resid", {"prefill_chunk_size": 7}, {"first": lambda held: 0}),
    ],
)
def test_planted_assumptions_are_seen(pattern, settings, changed, graph, monkeypatch):
    if OLDER and "prefill_chunk_size" in settings:
        pytest.skip("older transformers write wrong tokens for a picture in chunks, so that it is refused")
    prompt = made(graph, False)
    chosen, hook = PATTERNS[pattern](Case(graph, prompt, pattern))
    wanted = reference(twin(), prompt, (hook,), do_sample=False)
    assert distance(ours(graph, prompt, (chosen,), do_sample=False, **settings), wanted)[0] <= SAME
    plant(monkeypatch, **changed)
    try:
        off, _ = distance(ours(graph, prompt, (chosen,), do_sample=False, **settings), wanted)
    except (MMFlowError, IndexError, RuntimeError):
        return
    assert off > 1e-3


def test_rows_of_a_prompt_are_told_apart(graph, monkeypatch):
    """Planted: row r of an expanded batch is taken for prompt r."""
    batch = made(graph, True)
    chosen, hook = PATTERNS["patch resid"](Case(graph, batch, "patch resid"))
    case = Case(graph, batch, "patch resid")
    case.factor = 3
    chosen, hook = PATTERNS["patch resid"](case)
    wanted = reference(twin(), batch, (hook,), **FORMS["beams"])
    monkeypatch.setattr(forwards.Held, "by_row", lambda held, parts: [*parts, *parts, *parts])
    assert distance(ours(graph, batch, (chosen,), **FORMS["beams"]), wanted)[0] > 1e-3


@pytest.mark.parametrize("cache", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("form", ["greedy", "beams"])
def test_what_changes_nothing_is_told_in_every_form(form, cache, graph):
    prompt = made(graph, False)
    same_run = mmf.Patch(at="image", site="embed", value=mmf.values.from_run(prompt))
    closed_twice = (KNOCKOUT, KNOCKOUT)
    keeps_all = mmf.prune.Prune(
        own=[mmf.prune.Stage(layer=2, keep=0, rank=lambda seen: torch.ones(len(seen.image)), reads="", exact=True)],
        mode="mask",
    )
    for patterns in ((same_run,), closed_twice, (keeps_all,)):
        if OLDER and form == "beams" and patterns == (same_run,):  # a picture a beam: other rounding is a change
            settings = {**FORMS[form], **cache}
            off, same = distance(ours(graph, prompt, patterns, **settings), ours(graph, prompt, (), **settings))
            assert same
            assert 0 < off <= SAME
            continue
        with pytest.raises(NoEffectError):
            ours(graph, prompt, patterns, **FORMS[form], **cache)
    decode = mmf.Knockout(source="image", target="last", layers=1, when="decode")
    with pytest.raises(NoEffectError, match="before a step came"), torch.no_grad():
        with graph.generate(prompt, decode, max_new_tokens=1, **FORMS[form], **cache) as tracer:
            tracer.result.save()


def test_by_hand_in_a_trace_of_ones_own(graph):
    """apply() looks at what the forward holds: in a step of one's own generation it closes the step's edges."""
    prompt = made(graph, False)
    late = mmf.Knockout(source="image", target="question", layers=1)
    with pytest.raises(NoEffectError, match="none of its targets is among them"):
        closed_late(graph, prompt, late)


def closed_late(graph, prompt, pattern):
    with (
        torch.no_grad(),
        graph.model.trace(fn=graph.model.generate, **prompt.inputs, **LENGTH, do_sample=False) as tracer,
    ):
        for _step in tracer.iter[:2]:
            pattern.apply(graph, prompt.spans)


# The table of docs/generation.md, cell by cell: what it calls refused is, what it calls exact (test_forms.py) is taken.

COLUMNS = {
    "cache": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "beams": {"num_beams": 3},
    "samples": {"do_sample": True, "num_return_sequences": 3},
    "given cache": {},
    "chunks": {"prefill_chunk_size": 7},
    "several a step": LOOKUP,
}
ROWS = {
    'Knockout, `when="prefill"`': "knockout",
    'Knockout, `when="decode"`': "knockout, decode",
    'Knockout, `when="all"`, with or without `heads`': "knockout, heads",
    "Bias, every `when`, with or without `heads`": "bias, heads, decode",
    "Patch, every site, with or without `heads`": "patch resid",
    'Patch, `when="decode"` or `"all"`': "patch, all",
    "Change, and patterns with a `change` of their own (docs/own_patterns.md)": "change",
    "Add, Scale": "add",
    "Patch with `mmf.values.noise`": "patch noise",
    "ZeroWeights": "zeroed",
    "Skip with `at`": "skip at",
    "Skip of whole layers": "skip",
    'pruning, `mode="drop"`': "prune drop",
    'pruning, `mode="mask"`': "prune mask",
}


def test_the_documented_table_is_true(graph):
    page = (Path(__file__).parents[2] / "docs" / "generation.md").read_text()
    lines = page.split("<!-- table -->\n")[1].split("\n\n")[0].split("\n")
    head, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]
    assert head[1:] == list(COLUMNS)
    assert [row[0] for row in rows] == list(ROWS)
    prompt, wrong = made(graph, False), []
    for name, *cells in rows:
        chosen, _ = PATTERNS[ROWS[name]](Case(graph, prompt, name))
        for column, cell in zip(COLUMNS, cells, strict=True):
            given = dict(COLUMNS[column])
            if column == "given cache":
                given["past_key_values"] = DynamicCache(config=graph.text_config)
                start = {part: prompt.inputs[part][:, :3] for part in ("input_ids", "attention_mask")}
                with torch.no_grad():
                    twin()(**start, **plain.kept(twin(), given["past_key_values"]))
            try:
                graph.generate(prompt, chosen, **LENGTH, **given)
                came = "exact"
            except MMFlowError:
                came = "refused"
            form = {"beams": "beams", "several a step": "lookup"}.get(column, "")
            here = cell if cell == "refused" or not refused(ROWS[name], form, column) else "refused"  # by this release
            if came != here:
                wrong.append((name, column, cell, came))
    assert not wrong
