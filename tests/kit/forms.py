"""Every pattern with the torch hooks that do the same, every form of generation, and how they are compared."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from kit import plain_forms as plain
from kit.families import FAMILIES
from kit.tiny import picture, tiny_model, tiny_processor

import nnsight_mmflow as mmf
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


def bias(case, source, target, when, value, heads=None):
    pattern = mmf.Bias(source=source, target=target, layers=(1, 2), when=when, value=value, heads=heads)
    return pattern, plain.closed((1, 2), case.edges(source, target, when), heads, value)


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


def twisted(values, layer):
    """A change of one's own: positions hang on one another, and layers differ."""
    return values.flip(-1) - 0.5 * values.mean(0) + 0.01 * layer


@dataclass(frozen=True, kw_only=True)
class Twisted(mmf.Pattern):
    """A pattern of one's own, in one method."""

    at: str
    layers: int | Iterable[int]
    site: str = "resid"
    when: str = "prefill"

    def change(self, values, layer):
        return twisted(values, layer)


def change(case, site, when="prefill", heads=None, own=False):
    at, layers = "question | suffix", None if site == "embed" else (1, 2)
    given = {"at": at, "site": site, "layers": layers, "when": when}
    pattern = Twisted(**given) if own else mmf.Change(**given, heads=heads, value=twisted)
    width = case.graph.head_width
    columns = slice(None) if heads is None else [head * width + i for head in heads for i in range(width)]

    def write(layer):
        def found(row, whole):
            """The span's positions together, each new token by itself."""
            groups = [list(case.spans(row)[at])] if when != "decode" else []
            if when != "prefill":
                groups += [[position] for position in range(case.length, whole.shape[1])]
            after = whole[row].clone()
            for positions in groups:
                part = after[positions]
                part[:, columns] = twisted(part[:, columns], layer)
                after[positions] = part
            return list(range(whole.shape[1])), after

        return found

    if site == "embed":
        return pattern, plain.embedded(write(0))
    names = {"resid": lambda one: one, "attn": lambda one: one.self_attn, "mlp": lambda one: one.mlp}
    names["heads"], kind = lambda one: one.self_attn.o_proj, "input" if heads else "output"

    def at_layer(layer):
        where = names["heads" if heads else site]
        return plain.written(lambda model: [where(plain.layers_of(model)[layer])], write(layer), kind)

    hooks = [at_layer(layer) for layer in layers]
    return pattern, lambda model: [handle for hook in hooks for handle in hook(model)]


def added(case):
    """A vector added at the prompt's positions and at each new token, whatever comes together."""
    at, vector = "question | suffix", torch.linspace(-1, 1, case.graph.d_model)
    pattern = mmf.Add(at=at, layers=1, vector=vector, scale=0.5, when="all")

    def write(row, whole):
        positions = [*case.spans(row)[at], *range(case.length, whole.shape[1])]
        return positions, whole[row, positions] + 0.5 * vector

    return pattern, plain.written(lambda model: [plain.layers_of(model)[1]], write)


def patch_all(case):
    """Another run's values; each new token has those of the span's last position."""
    at = "question | suffix"
    other, values = other_run(case.graph, case.prompt, "resid", at, 1)
    pattern = mmf.Patch(at=at, layers=1, when="all", value=mmf.values.from_run(other))

    def write(row, whole):
        new = range(case.length, whole.shape[1])
        value = values[row // case.factor]
        return [*case.spans(row)[at], *new], torch.cat([value, value[-1:].expand(len(new), -1)])

    return pattern, plain.written(lambda model: [plain.layers_of(model)[1]], write)


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
    "bias, all": lambda case: bias(case, "image", "question | last", "all", 1.5),
    "bias, heads, decode": lambda case: bias(case, "image", "last", "decode", -3.0, heads=(0, 2)),
    "patch embed": lambda case: patch(case, "embed"),
    "patch resid": lambda case: patch(case, "resid"),
    "patch attn": lambda case: patch(case, "attn"),
    "patch mlp": lambda case: patch(case, "mlp"),
    "patch heads": lambda case: patch(case, "attn", heads=[1, 3]),
    "patch noise": noise,
    "patch, all": patch_all,
    "change": lambda case: change(case, "resid"),
    "change, decode": lambda case: change(case, "mlp", "decode"),
    "change heads, all": lambda case: change(case, "attn", "all", heads=(2, 0)),
    "change embed, all": lambda case: change(case, "embed", "all"),
    "add": added,
    "own": lambda case: change(case, "attn", "all", own=True),
    "skip": lambda case: skip(case, None),
    "skip at": lambda case: skip(case, "image"),
    "zeroed": zeroed,
    "prune drop": lambda case: pruned(case, "drop"),
    "prune mask": lambda case: pruned(case, "mask"),
    "prune ranked drop": lambda case: ranked(case, "drop"),
    "prune ranked mask": lambda case: ranked(case, "mask"),
}
WHOLE = ("zeroed", "patch noise", "change", "change heads, all", "change embed, all", "own")  # chunks cut their span
THIN = (
    "add",
    "patch, all",
    "change, decode",
    "change heads, all",
    "change embed, all",
)  # others stand for it
PLACES = {"drop": ("static", "lookup", "chunks"), "mask": ("chunks",)}


def refused(pattern, form, cache):
    """Whether the documentation's table says that a pattern does not go with a form, or older transformers fail it."""
    if cache == "chunks" and OLDER:
        return True
    if (pattern, form) == ("skip", "lookup") and not empty_caches_shrink():
        return True
    if pattern.startswith("prune"):
        return form in PLACES[pattern.split()[-1]] or cache in PLACES[pattern.split()[-1]]
    return cache == "chunks" and pattern in WHOLE


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


REMEMBERED = {}  # the reference has no cache, so that it is the same whatever ours is given


def remembered(model, case, hooks, name, form):
    """The reference for a pattern ("" for none) on a prompt, run once for each form."""
    inputs = case.prompt.inputs
    key = (model, name, str(form), str(inputs["input_ids"].tolist()), float(inputs["pixel_values"].double().sum()))
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
    assert max(moved[1:] if name.endswith("decode") else moved) > VISIBLE, "the pattern must be seen"
