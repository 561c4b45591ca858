"""Every pattern in every form of generation equals plain transformers without a cache, changed by torch hooks.

The reference (plain_forms.py) knows no cache, no steps and nothing of the package: in each of its forwards it changes
absolute positions of the rows of each prompt. Tolerance 2e-5 of logits of size 2 to 3: other kernels, other order.
"""

import inspect

import plain_forms as plain
import pytest
import torch
from apart import apart
from families import FAMILIES, QUESTION, family
from gold import twin
from tiny import picture, tiny_graph, tiny_model, tiny_processor
from transformers import DynamicCache, StaticCache

import nnsight_mmflow as mmf
from nnsight_mmflow import MMFlowError
from nnsight_mmflow.model.forms import form_of
from nnsight_mmflow.model.older_generation import empty_caches_shrink

SAME, VISIBLE = 2e-5, 1e-3
N_TOKENS = 4
QUESTIONS = ("what color is the circle ?", "is there a red circle ?", "what is to the left of the blue circle ?")
LENGTH = {"min_new_tokens": N_TOKENS, "max_new_tokens": N_TOKENS}

KINDS = sorted(name for name in FAMILIES if not name.endswith(("_strips", "_shrunk", "_undivided", "_scan")))
OLDER = "mm_encoder_outputs" not in inspect.signature(type(tiny_model()).forward).parameters  # see _older_generation
IMAGE_ID = tiny_processor().image_token_id

# Each form: the settings that transformers takes. "cache" is what only ours is given: the reference has none.
FORMS = {
    "greedy": {"do_sample": False},
    "samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"do_sample": False, "num_beams": 3},
    "beams, all returned": {"do_sample": False, "num_beams": 4, "num_return_sequences": 4},
    "beams, sampled": {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
    "lookup": {"do_sample": False, "prompt_lookup_num_tokens": 3, "suppress_tokens": [IMAGE_ID]},
}
CACHES = {
    "dynamic": {},
    "none": {"use_cache": False},
    "static": {"cache_implementation": "static"},
    "chunks": {"prefill_chunk_size": 7},
}


def by_place(seen):
    """Every other image token stays."""
    return torch.tensor([float(number % 2) for number in seen.original])


def half(mode, **more):
    return mmf.prune.Prune(
        own=[mmf.prune.Stage(layer=2, keep=0.5, rank=by_place, reads="", exact=True)], mode=mode, **more
    )


class Case:
    """A prompt or batch, a pattern on it, and the torch hooks that do the same."""

    def __init__(self, graph, prompt, name):
        self.graph, self.prompt, self.name = graph, prompt, name
        self.rows, self.length = prompt.rows(), prompt.inputs["input_ids"].shape[1]
        self.factor = 1

    def spans(self, row):
        return self.rows[row // self.factor]

    def edges(self, source, target, when):
        def found(row, length):
            spans = self.spans(row)
            targets = list(spans[target]) if when != "decode" else []
            if when != "prefill" and self.length - 1 in spans[target]:
                targets += range(self.length, length)
            return targets, list(spans[source])

        return found

    def gone(self, kept):
        """Keys of dropped image tokens, closed to all others; `kept(spans)` gives the positions that stay."""

        def found(row, length):
            spans = self.spans(row)
            dropped = set(spans["image"]) - set(kept(spans))
            return [query for query in range(spans["all"].row[0], length) if query not in dropped], sorted(dropped)

        return found

    def values(self, whole, at):
        """The other run's values of each row's prompt at a span."""
        return lambda row, _=None: (list(self.spans(row)[at]), whole[row // self.factor])


def other_run(graph, prompt, site, at, layer=0):
    """What the same questions about other pictures have at a span, read by a plain hook."""
    prompts = list(prompt) if isinstance(prompt, mmf.Batch) else [prompt]
    others = [graph.prompt(picture(90 + number), one.question) for number, one in enumerate(prompts)]
    other = graph.batch(others) if isinstance(prompt, mmf.Batch) else others[0]
    model, seen = graph.adapter.model, {}
    found = plain.layers_of(model)[layer]
    module = {"resid": found, "attn": found.self_attn, "heads": found.self_attn, "mlp": found.mlp}.get(site)
    if site == "embed":
        handle = model.get_decoder().register_forward_pre_hook(
            lambda _module, _arguments, named: seen.update(out=named["inputs_embeds"]), with_kwargs=True
        )
    elif site == "heads":
        handle = plain.layers_of(model)[layer].self_attn.o_proj.register_forward_pre_hook(
            lambda _module, arguments: seen.update(out=arguments[0])
        )
    else:
        handle = module.register_forward_hook(
            lambda _module, _arguments, out: seen.update(out=out[0] if isinstance(out, tuple) else out)
        )
    with torch.no_grad():
        model(**other.inputs, use_cache=False)
    handle.remove()
    return other, [seen["out"][row, list(spans[at])] for row, spans in enumerate(other.rows())]


def knockout(case, source, target, when="prefill", heads=None):
    pattern = mmf.Knockout(source=source, target=target, layers=(1, 2), when=when, heads=heads)
    return pattern, plain.closed((1, 2), case.edges(source, target, when), heads)


def patch(case, site, heads=None):
    at, layer = "image" if site in ("embed", "resid") else "question | suffix", 1
    other, values = other_run(case.graph, case.prompt, "heads" if heads else site, at, layer)
    layers = None if site == "embed" else layer
    pattern = mmf.Patch(at=at, site=site, layers=layers, value=mmf.values.from_run(other), heads=heads)
    write = case.values(values, at)
    if site == "embed":
        return pattern, plain.embedded(write)
    if heads:
        width = case.graph.head_width

        def some(row, whole):
            positions, value = write(row)
            columns = [head * width + i for head in heads for i in range(width)]
            mixed = whole[row, positions].clone()
            mixed[:, columns] = value[:, columns]
            return positions, mixed

        return pattern, plain.written(lambda model: [plain.layers_of(model)[layer].self_attn.o_proj], some, "input")
    names = {"resid": lambda one: one, "attn": lambda one: one.self_attn, "mlp": lambda one: one.mlp}
    return pattern, plain.written(lambda model: [names[site](plain.layers_of(model)[layer])], write)


def noise(case):
    pattern = mmf.Patch(at="image", site="embed", value=mmf.values.noise(2.0, seed=3))

    def write(row, whole=None):
        prompt = row // case.factor
        positions = list(case.spans(row)["image"])
        merged = other_of(case)[prompt][positions]
        drawn = torch.randn(merged.shape, generator=torch.Generator().manual_seed(3 + prompt))
        return positions, merged + drawn * 2.0 * merged.std()

    return pattern, plain.embedded(write)


def other_of(case):
    """The prompt's own merged embeddings."""
    seen = {}
    handle = case.graph.adapter.model.get_decoder().register_forward_pre_hook(
        lambda _module, _arguments, named: seen.update(out=named["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        case.graph.adapter.model(**case.prompt.inputs, use_cache=False)
    handle.remove()
    return seen["out"]


def skip(case, at):
    pattern = mmf.Skip(layers=(2, 3), at=at)
    return pattern, plain.passed((2, 3), None if at is None else lambda row: list(case.spans(row)[at]))


def zeroed(case):
    pattern = mmf.ZeroWeights(source="image", target="question | suffix", layers=(1, 2))
    edges = case.edges("image", "question | suffix", "prefill")
    return pattern, plain.zeroed((1, 2), lambda row: edges(row, case.length))


def pruned(case, mode, **more):
    kept = case.gone(lambda spans: [position for i, position in enumerate(spans["image"]) if i % 2])
    return half(mode, **more), plain.closed(range(2, case.graph.n_layers), kept)


def ranked(case, mode):
    """FastV: what stays is read off one prompt at a time (held against hand references in test_prune.py)."""
    pattern = mmf.FastV(k=2, r=0.5, mode=mode)
    prompts = list(case.prompt) if isinstance(case.prompt, mmf.Batch) else [case.prompt]
    numbers = {}
    for spans, one in zip(case.rows, prompts, strict=True):
        numbers[id(spans)] = mmf.kept_tokens(case.graph, one, pattern).layers[2]
    kept = case.gone(lambda spans: [list(spans["image"])[number] for number in numbers[id(spans)]])
    return pattern, plain.closed(range(2, case.graph.n_layers), kept)


PATTERNS = {
    "knockout": lambda case: knockout(case, "image", "question | last"),
    "knockout, decode": lambda case: knockout(case, "image", "last", "decode"),
    "knockout, all": lambda case: knockout(case, "image", "question | last", "all"),
    "knockout, heads": lambda case: knockout(case, "image", "last", "all", heads=(0, 2)),
    "patch embed": lambda case: patch(case, "embed"),
    "patch resid": lambda case: patch(case, "resid"),
    "patch attn": lambda case: patch(case, "attn"),
    "patch mlp": lambda case: patch(case, "mlp"),
    "patch heads": lambda case: patch(case, "attn", heads=[1, 3]),
    "patch noise": noise,
    "skip": lambda case: skip(case, None),
    "skip at": lambda case: skip(case, "image"),
    "zeroed": zeroed,
    "prune drop": lambda case: pruned(case, "drop"),
    "prune mask": lambda case: pruned(case, "mask"),
    "prune ranked drop": lambda case: ranked(case, "drop"),
    "prune ranked mask": lambda case: ranked(case, "mask"),
}
PLACES = {"drop": ("static", "lookup", "chunks"), "mask": ("chunks",)}


def refused(pattern, form, cache):
    """Whether the documentation's table says that a pattern does not go with a form, or older transformers fail it."""
    if cache == "chunks" and OLDER:
        return True
    if (pattern, form) == ("skip", "lookup") and not empty_caches_shrink():
        return True
    if pattern.startswith("prune"):
        return form in PLACES[pattern.split()[-1]] or cache in PLACES[pattern.split()[-1]]
    return cache == "chunks" and pattern in ("zeroed", "patch noise")


def made(graph, batched):
    prompts = [graph.prompt(picture(number), question) for number, question in enumerate(QUESTIONS)]
    return graph.batch(prompts[:2] + prompts[2:]) if batched else prompts[0]


def ours(graph, prompt, patterns, **settings):
    torch.manual_seed(0)
    with torch.no_grad(), graph.generate(prompt, *patterns, **told(settings)) as tracer:
        result = tracer.result.save()
    return result


def told(settings):
    return {**LENGTH, **settings, "return_dict_in_generate": True, "output_logits": True, "output_scores": True}


def reference(model, prompt, hooks, **settings):
    torch.manual_seed(0)
    lookup = {name: value for name, value in settings.items() if name != "prompt_lookup_num_tokens"}
    return plain.generate(model, prompt.inputs, hooks, **LENGTH, **lookup)


REMEMBERED = {}  # of this file's one model: the reference has no cache, so that it is the same whatever ours is given


def remembered(model, case, hooks, name, form):
    """The reference for a pattern ("" for none) on the prompts of `made`, run once for each form."""
    if model is not twin():
        return reference(model, case.prompt, hooks, **form)
    key = (name, str(form), len(case.rows))
    if key not in REMEMBERED:
        REMEMBERED[key] = reference(model, case.prompt, hooks, **form)
    return REMEMBERED[key]


def distance(one, other):
    """The largest difference of logits, and whether the same was written."""
    assert one.sequences.shape == other.sequences.shape
    ends = [torch.stack(result.logits, 1) for result in (one, other)]
    return float((ends[0] - ends[1]).abs().max()), one.sequences.equal(other.sequences)


def check(graph, model, prompt, name, form, cache=None):
    case = Case(graph, prompt, name)
    case.factor = max(form.get("num_beams", 1), form.get("num_return_sequences", 1))
    pattern, hook = PATTERNS[name](case)
    found = ours(graph, prompt, (pattern,), **form, **(cache or {}))
    wanted, clean = remembered(model, case, (hook,), name, form), remembered(model, case, (), "", form)
    off, same = distance(found, wanted)
    size = float(torch.stack(wanted.logits).abs().max())
    assert same, "other tokens were written"
    assert off <= SAME * max(1, size / 3), f"logits are off by {off:.2g}"
    moved = [(one - other).abs().amax() for one, other in zip(wanted.logits, clean.logits, strict=True)]
    assert max(moved[1:] if name == "knockout, decode" else moved) > VISIBLE, "the pattern must be seen"


# Forms that differ for one row are tried with one; what several rows change, with a batch of different lengths.
TABLE = [
    (pattern, form, cache, batched)
    for pattern in PATTERNS
    for form, caches, batches in (
        ("greedy", tuple(CACHES), (False, True)),
        ("samples", ("dynamic", "none"), (True,)),
        ("beams", tuple(CACHES), (True,)),
        ("beams, all returned", ("none",), (True,)),
        ("beams, sampled", ("dynamic",), (False,)),
        ("lookup", ("dynamic", "chunks"), (False,)),
    )
    for cache in caches
    for batched in batches
]


@pytest.mark.parametrize(("pattern", "form", "cache", "batched"), TABLE)
def test_table(pattern, form, cache, batched):
    graph = tiny_graph()
    prompt = made(graph, batched)
    if refused(pattern, form, cache):
        chosen, _ = PATTERNS[pattern](Case(graph, prompt, pattern))
        with pytest.raises(MMFlowError, match=r"Take mode='mask'|[Ll]eave .*out"):
            graph.generate(prompt, chosen, **LENGTH, **FORMS[form], **CACHES[cache])
        return
    check(graph, twin(), prompt, pattern, FORMS[form], CACHES[cache])


@pytest.mark.parametrize("form", ["greedy", "beams"])
@pytest.mark.parametrize("pattern", ["knockout, all", "zeroed", "prune drop"])
def test_eager(pattern, form):
    graph = tiny_graph(attention="eager")
    for cache in ("dynamic", "none", "static"):
        if not refused(pattern, form, cache):
            check(graph, twin(), made(graph, True), pattern, FORMS[form], CACHES[cache])


@pytest.mark.parametrize("name", KINDS)
def test_families(name):
    """Those whose attention, positions or pictures differ; no image token is ever written (random weights may)."""
    graph = family(name, "eager")  # the reference's attention: these weights are blown up, and rounding with them
    slow = graph.adapter.model
    prompt = graph.batch([graph.prompt(picture(i, 80, 48), QUESTION + " red" * i) for i in range(2)])
    for pattern, form, cache in (
        ("knockout, all", "beams", "dynamic"),
        ("knockout, all", "greedy", "none"),
        ("skip at", "greedy", "none"),
        ("zeroed", "beams", "none"),
        ("prune drop", "beams", "none"),
        ("prune mask", "greedy", "dynamic"),
    ):
        if pattern.startswith("prune") and graph.enters_after > 2:
            continue  # image features are added in every layer of this tiny model
        settings = {**FORMS[form], "suppress_tokens": [graph.image_token_id]}
        uncached, tiles = name == "paligemma" and cache == "none", name.startswith("internvl") and form == "beams"
        if OLDER and (uncached or tiles):
            chosen, _ = PATTERNS[pattern](Case(graph, prompt, pattern))
            with pytest.raises(MMFlowError, match="writes wrong tokens for"):
                graph.generate(prompt, chosen, **LENGTH, **settings, **CACHES[cache])
            continue
        if OLDER and name == "paligemma":
            continue  # the reference has no cache, with which these releases are wrong: test_families.py has another
        check(graph, slow, prompt, pattern, settings, CACHES[cache])


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("batched", [False, True], ids=["one", "mixed"])
def test_a_cache_of_the_first_positions(batched, kind):
    graph = tiny_graph()
    prompt, text = made(graph, batched), graph.text_config
    for pattern in PATTERNS:
        case = Case(graph, prompt, pattern)
        chosen, hook = PATTERNS[pattern](case)
        cache = DynamicCache(config=text) if kind == "dynamic" else StaticCache(config=text, max_cache_len=120)
        start = {name: prompt.inputs[name][:, :3] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            twin()(**start, **plain.kept(twin(), cache), use_cache=True)
        if pattern.startswith(("prune", "zeroed", "patch noise")) or pattern == "skip":
            with pytest.raises(MMFlowError, match=r"past_key_values"):
                graph.generate(prompt, chosen, past_key_values=cache, **LENGTH)
            continue
        found = ours(graph, prompt, (chosen,), do_sample=False, past_key_values=cache)
        off, same = distance(found, remembered(twin(), case, (hook,), pattern, FORMS["greedy"]))
        assert same, pattern
        assert off <= SAME, pattern


def test_positions_that_a_cache_holds_already_are_refused():
    graph = tiny_graph()
    prompt = made(graph, False)
    cache = DynamicCache(config=graph.text_config)
    with torch.no_grad():
        start = {name: part[:, :3] for name, part in prompt.inputs.items() if "pixel" not in name}
        twin()(**start, **plain.kept(twin(), cache))
    for pattern in (
        mmf.Knockout(source="image", target="all", layers=1),
        mmf.Patch(at="prefix", site="mlp", layers=1, value=mmf.values.zeros()),
        mmf.Skip(layers=2, at="prefix"),
    ):
        with pytest.raises(MMFlowError, match="holds the first 3 positions"):
            graph.generate(prompt, pattern, past_key_values=cache, **LENGTH)
    pattern = mmf.Knockout(source="image", target="last", layers=1)
    with pytest.raises(MMFlowError, match="would stand behind them"):
        graph.trace(prompt, pattern, past_key_values=cache)
    with pytest.raises(MMFlowError, match="has a row for each prompt"):
        graph.generate(prompt, pattern, past_key_values=cache, num_beams=2, **LENGTH)
    with pytest.raises(MMFlowError, match=r"holds 1 row\(s\), but 3 prompt\(s\) came"):
        graph.generate(made(graph, True), pattern, past_key_values=cache, **LENGTH)
    long = DynamicCache(config=graph.text_config)
    with torch.no_grad():
        twin()(**prompt.inputs, **plain.kept(twin(), long))
    with pytest.raises(MMFlowError, match="at least one must be left to run"):
        graph.generate(prompt, pattern, past_key_values=long, **LENGTH)


def test_an_assistant_that_guesses_several_tokens():
    graph, assistant = tiny_graph(), tiny_model(seed=0)
    prompt, blur = made(graph, False), torch.Generator().manual_seed(1)
    with torch.no_grad():  # right often, not always
        for part in assistant.parameters():
            part.add_(0.02 * part.std().nan_to_num(0) * torch.randn(part.shape, generator=blur))
    no_image = {"do_sample": False, "suppress_tokens": [IMAGE_ID]}
    for pattern in PATTERNS:
        chosen, hook = PATTERNS[pattern](Case(graph, prompt, pattern))
        if pattern.endswith("drop") or (pattern == "skip" and not empty_caches_shrink()):
            with pytest.raises(MMFlowError, match="assistant_model takes back tokens"):
                graph.generate(prompt, chosen, assistant_model=assistant, **no_image, **LENGTH)
            continue
        found = ours(graph, prompt, (chosen,), assistant_model=assistant, **no_image)
        off, same = distance(found, reference(twin(), prompt, (hook,), **no_image))
        assert same, pattern
        assert off <= SAME, pattern
    with pytest.raises(MMFlowError, match="holds modules of the model itself"):
        graph.generate(prompt, chosen, assistant_model=graph.adapter.model, **no_image, **LENGTH)


@pytest.mark.parametrize("form", ["greedy", "samples", "beams"])
@pytest.mark.parametrize("cache", ["dynamic", "none"])
def test_apart_from_the_models_process(form, cache, split, monkeypatch):
    graph, prepared = apart(tiny_graph()), mmf.Patch.prepared  # values come from runs, which need no server here
    monkeypatch.setattr(mmf.Patch, "prepared", lambda patch, _, rows: prepared(patch, tiny_graph(), rows))
    for pattern in PATTERNS:
        here = Case(tiny_graph(), made(graph, True), pattern)
        here.factor = max(FORMS[form].get("num_beams", 1), FORMS[form].get("num_return_sequences", 1))
        chosen, hook = PATTERNS[pattern](here)
        settings = told({**FORMS[form], **CACHES[cache]})
        model = graph.edited(here.prompt, (chosen,), form_of(graph, settings, here.prompt.inputs["input_ids"].shape))
        torch.manual_seed(0)
        with torch.no_grad(), model.trace(fn=model.generate, **graph.checked(here.prompt), **settings) as tracer:
            found = tracer.result.save()
        off, same = distance(found, remembered(twin(), here, (hook,), pattern, FORMS[form]))
        assert same, pattern
        assert off <= SAME, pattern


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"cache_implementation": "static"}, "a static cache cannot be followed"),
        ({"prefill_chunk_size": 5}, f"prefill_chunk_size=5 {'with a picture' if OLDER else 'cannot be followed'}"),
        ({"prompt_lookup_num_tokens": 3, "suppress_tokens": [IMAGE_ID]}, "prompt_lookup_num_tokens cannot be followed"),
    ],
)
def test_what_cannot_be_followed_apart_is_refused(settings, told):
    graph = apart(tiny_graph())
    with pytest.raises(MMFlowError, match=told):
        graph.generate(made(graph, False), mmf.Knockout(source="image", target="last", layers=1), **settings, **LENGTH)
