"""The reference for every form of generation: plain transformers without a cache, changed by torch hooks.

Without a cache each forward holds every position from 0 on, so a hook needs no bookkeeping: it changes absolute
positions, in every row of a prompt, in every forward. Slow and plain on purpose; no nnsight, no code of the package.
"""

import contextlib
import inspect

import torch

CLOSED = torch.finfo(torch.float32).min


def kept(model, cache):
    """The keyword argument that hands a model its cache, by its own signature."""
    names = inspect.signature(type(model).forward).parameters
    return {"cache" if "cache" in names else "past_key_values": cache}


def layers_of(model):
    return model.get_decoder().layers


def generate(model, inputs, hooks=(), **settings):
    """What transformers writes, without a cache, with the hooks on: functions of the model that return handles."""
    with contextlib.ExitStack() as stack, torch.no_grad():
        for hook in hooks:
            for handle in hook(model):
                stack.callback(handle.remove)
        inputs = {name: part.clone() for name, part in inputs.items()}
        return model.generate(
            **inputs, **settings, use_cache=False, return_dict_in_generate=True, output_logits=True, output_scores=True
        )


def closed(layers, edges, heads=None, amount=None):
    """Attention edges that are closed, or with an amount: to whose scores it is added; `edges(row, length)` gives
    (targets, sources) of a row."""

    def hook(model):
        n_heads = model.config.get_text_config().num_attention_heads

        def before(_module, arguments, named):
            hidden, mask = arguments[0], named["attention_mask"]
            rows, length = hidden.shape[:2]
            if mask.dtype == torch.bool:
                mask = torch.where(mask, 0.0, CLOSED)
            mask = mask.to(hidden.dtype).expand(rows, n_heads, length, length).clone()
            for row in range(rows):
                targets, sources = edges(row, length)
                for head in range(n_heads) if heads is None else heads:
                    for target in targets:
                        if amount is None:
                            mask[row, head, target, list(sources)] = CLOSED
                        else:
                            mask[row, head, target, list(sources)] += amount
            return arguments, {**named, "attention_mask": mask}

        return [layers_of(model)[layer].register_forward_pre_hook(before, with_kwargs=True) for layer in layers]

    return hook


def written(find, values, kind="output"):
    """Values written at positions of a module's output (or first input); `values(row)` gives (positions, tensor)."""

    def hook(model):
        def change(whole):
            whole = whole.clone()
            for row in range(len(whole)):
                positions, value = values(row, whole)
                whole[row, positions] = value.to(whole)
            return whole

        def after(_module, _arguments, output):
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        def before(_module, arguments):
            return (change(arguments[0]), *arguments[1:])

        found = find(model)
        return [
            one.register_forward_hook(after) if kind == "output" else one.register_forward_pre_hook(before)
            for one in found
        ]

    return hook


def embedded(values):
    """Values written into the merged embedding; `values(row, whole)` gives (positions, tensor)."""

    def hook(model):
        def before(_module, arguments, named):
            whole = named["inputs_embeds"].clone()
            for row in range(len(whole)):
                positions, value = values(row, whole)
                whole[row, positions] = value.to(whole)
            return arguments, {**named, "inputs_embeds": whole}

        return [model.get_decoder().register_forward_pre_hook(before, with_kwargs=True)]

    return hook


def passed(layers, positions=None):
    """Layers left out: for all positions, or for those of each row (`positions(row)`)."""

    def hook(model):
        def after(_module, arguments, output):
            if positions is None:
                return arguments[0]
            output = output.clone()
            for row in range(len(output)):
                output[row, positions(row)] = arguments[0][row, positions(row)]
            return output

        return [layers_of(model)[layer].register_forward_hook(after) for layer in layers]

    return hook


def zeroed(layers, edges):
    """Weights set to zero after an eager softmax; `edges(row)` gives (targets, sources)."""

    def hook(model):
        attentions = [layers_of(model)[layer].self_attn for layer in layers]

        def around(module):
            plain = torch.nn.functional.softmax

            def before(_module, _arguments):
                def softmax(scores, *arguments, **named):
                    weights = plain(scores, *arguments, **named)
                    for row in range(len(weights)):
                        targets, sources = edges(row)
                        weights[row, :, torch.tensor(targets)[:, None], torch.tensor(sources)] = 0
                    return weights

                torch.nn.functional.softmax = softmax

            def after(_module, _arguments, _output):
                torch.nn.functional.softmax = plain

            return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

        return [handle for attention in attentions for handle in around(attention)]

    return hook
