"""Plain torch hooks at the sites where patterns change activations."""

import torch


def module_of(graph, site, layer, heads):
    """The torch module, and whether its input (not its output) is the site."""
    block = graph.adapter.model.get_decoder().layers[layer]
    normed = graph.family == "gemma3"  # its norms stand between a module and the residual stream
    if heads is not None:
        return getattr(block.self_attn, "dense", None) or block.self_attn.o_proj, True
    if site == "attn":
        return (block.post_attention_layernorm if normed else block.self_attn), False
    if site == "mlp":
        return (block.post_feedforward_layernorm if normed else block.mlp), False
    return block, site == "embed"


def with_hooks(graph, prompt, site, layers, heads, change):
    """The logits of a plain forward in which change(number, tensor) replaces what stands at each layer's site."""
    handles = []
    for number, layer in enumerate(layers):
        module, is_input = module_of(graph, site, layer, heads)

        def before(_module, given, number=number):
            return (change(number, given[0]), *given[1:])

        def after(_module, _given, output, number=number):
            if isinstance(output, tuple):
                return (change(number, output[0]), *output[1:])
            return change(number, output)

        handles.append(module.register_forward_pre_hook(before) if is_input else module.register_forward_hook(after))
    with torch.no_grad():
        logits = graph.adapter.model(**prompt.inputs, use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    return logits
