"""The reference that knockouts are held against: Hugging Face in eager attention, a mask made by hand for each layer.

Slow and plain on purpose; no nnsight and no code of the package. `plain_llama` goes one step further: it does a
Llama's attention itself, so that the weights of every head can be looked at.
"""

import functools
from dataclasses import dataclass

import torch
from kit.tiny import tiny_model

CLOSED = torch.finfo(torch.float32).min
IMAGE = "<image>"


@dataclass(frozen=True)
class Cut:
    """In these layers (and heads) of one row of the batch no target (query) reads any source (key).

    With an amount it reads them: so much is added to the scores.
    """

    layers: tuple[int, ...]
    targets: tuple[int, ...]
    sources: tuple[int, ...]
    row: int = 0
    heads: tuple[int, ...] | None = None
    amount: float | None = None


@functools.cache
def twin(text="llama", tower="clip", *, n_layers=5, seed=0):
    """The model of `tiny_graph` with these arguments under eager attention, never seen by nnsight."""
    return tiny_model(text, tower, n_layers=n_layers, attention="eager", seed=seed)


def open_keys(attended, n_heads, layer, cuts):
    """(rows, heads, queries, keys), bool: which keys a layer may read; a padding query reads itself alone."""
    rows, length = attended.shape
    keys = torch.ones(length, length, dtype=torch.bool).tril()[None, None] & attended.bool()[:, None, None]
    keys = keys.repeat(1, n_heads, 1, 1)
    for cut in cuts:
        if layer not in cut.layers or cut.amount is not None:
            continue
        for head in range(n_heads) if cut.heads is None else cut.heads:
            for target in cut.targets:
                for source in cut.sources:
                    keys[cut.row, head, target, source] = False
    for row in range(rows):
        for place in range(length):
            if not attended[row, place]:
                keys[row, :, place, place] = True
    return keys


def added(attended, n_heads, layer, cuts):
    """(rows, heads, queries, keys): what the cuts that have an amount add to a layer's scores."""
    rows, length = attended.shape
    total = torch.zeros(rows, n_heads, length, length)
    for cut in cuts:
        if layer in cut.layers and cut.amount is not None:
            for head in range(n_heads) if cut.heads is None else cut.heads:
                for target in cut.targets:
                    total[cut.row, head, target, list(cut.sources)] += cut.amount
    return total


def gold_run(model, inputs, cuts=()):
    """(logits (rows, positions, words), [each layer's output (rows, positions, width)]) with the cuts."""
    assert model.config._attn_implementation == model.config.text_config._attn_implementation == "eager"
    layers, n_heads = model.get_decoder().layers, model.config.text_config.num_attention_heads
    states, hooks = [], []
    for number, layer in enumerate(layers):
        attended = inputs["attention_mask"]
        mask = torch.where(
            open_keys(attended, n_heads, number, cuts), added(attended, n_heads, number, cuts), torch.tensor(CLOSED)
        )

        def before(module, arguments, named, mask=mask):
            return arguments, {**named, "attention_mask": mask}

        hooks.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(layer.register_forward_hook(lambda module, arguments, output: states.append(output)))
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    assert len(states) == len(layers)
    return logits, states


def gold_logits(model, inputs, cuts=()):
    return gold_run(model, inputs, cuts)[0]


def gold_generate(model, inputs, cuts_at, n_tokens):
    """(tokens (rows, n), logits (rows, n, words)): greedy, every step a whole forward without a cache.

    `cuts_at(length)` gives the cuts for a sequence of that length, generated tokens being its last positions.
    """
    inputs, tokens, logits = dict(inputs), [], []
    for _ in range(n_tokens):
        last = gold_logits(model, inputs, cuts_at(inputs["input_ids"].shape[1]))[:, -1]
        token = last.argmax(-1, keepdim=True)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(token)], 1)
        tokens.append(token)
        logits.append(last)
    return torch.cat(tokens, 1), torch.stack(logits, 1)


def places(processor, inputs, row=0):
    """Positions of a row by name, found from the ids alone; the question is what stands between image and ASSISTANT."""
    ids = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][row])
    real = [place for place, token in enumerate(ids) if token != "<pad>"]
    image = [place for place in real if ids[place] == IMAGE]
    start = image[-1] + 2 if image else ids.index("USER") + 2  # after the newline, after the colon
    end = ids.index("ASSISTANT")
    return {
        "image": tuple(image),
        "question": tuple(range(start, end)),
        "suffix": tuple(range(end, len(ids))),
        "last": (len(ids) - 1,),
        "all": tuple(real),
        "prefix": tuple(place for place in real if place < start and place not in image),
    }


def plain_llama(model, inputs, cuts=()):
    """(logits, attention weights of each layer (rows, heads, queries, keys)), the decoder done by hand.

    Image features and embeddings come from the model; the rest is RMS norm, rotation, softmax and the gated MLP.
    """
    text, config = model.get_decoder(), model.config.text_config
    with torch.no_grad():
        hidden = model.get_input_embeddings()(inputs["input_ids"])
        is_image = inputs["input_ids"] == model.config.image_token_id
        features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
        hidden[is_image] = torch.cat(list(features))
        rows, length, width = hidden.shape
        size = width // config.num_attention_heads
        angles = torch.arange(length)[:, None] / 10000.0 ** (torch.arange(0, size, 2) / size)
        cosine, sine = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

        def norm(hidden, module):
            return hidden / (hidden.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * module.weight

        def heads(projected, rotated=True):
            split = projected.view(rows, length, -1, size).transpose(1, 2)
            if rotated:
                one, two = split.chunk(2, -1)
                split = split * cosine + torch.cat([-two, one], -1) * sine
            return split.repeat_interleave(config.num_attention_heads // split.shape[1], 1)

        weights = []
        for number, layer in enumerate(text.layers):
            attention, normed = layer.self_attn, norm(hidden, layer.input_layernorm)
            query, key = heads(attention.q_proj(normed)), heads(attention.k_proj(normed))
            scores = query @ key.transpose(-1, -2) / size**0.5
            keys = open_keys(inputs["attention_mask"], config.num_attention_heads, number, cuts)
            scores = scores + added(inputs["attention_mask"], config.num_attention_heads, number, cuts)
            weights.append(scores.masked_fill(~keys, float("-inf")).softmax(-1))
            read = weights[-1] @ heads(attention.v_proj(normed), rotated=False)
            hidden = hidden + attention.o_proj(read.transpose(1, 2).reshape(rows, length, width))
            normed, mlp = norm(hidden, layer.post_attention_layernorm), layer.mlp
            hidden = hidden + mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
        return model.lm_head(norm(hidden, text.norm)), weights
