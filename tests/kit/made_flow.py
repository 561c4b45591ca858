"""FlowResults made in code: any depth, with what each edge costs planted."""

import numpy as np
import pandas as pd

import nnsight_mmflow as mmf


def made_flow(effects, n_layers, prompts=20, windows=(1,), control=0, noise=2.0, seed=0):
    """A result with effects[edge](layer) percent on average; `noise` is the spread over prompts."""
    random = np.random.default_rng(seed)
    rows = []
    for window in windows:
        names = {edge: effect for edge, effect in effects.items()}
        names |= {f"control {draw}: {edge}": lambda layer: 0.0 for edge in effects for draw in range(1, control + 1)}
        for edge, effect in names.items():
            for prompt in range(prompts):
                for layer in range(n_layers):
                    change = effect(layer) + random.normal() * noise
                    rows.append((str(prompt), "", edge, window, layer, "q", "a", "a", True, 0.5, change))
    columns = "prompt kind edge window layer question answer prediction correct base_probability change_percent"
    table = pd.DataFrame(rows, columns=columns.split())
    table["probability"] = table["base_probability"] * (1 + table["change_percent"] / 100)
    table["log_probability_change"] = np.log1p(np.maximum(table["change_percent"], -99.9) / 100)
    table["answer_changed"] = False
    header = {
        "model": "made-up-7b",
        "edges": list(effects),
        "windows": list(windows),
        "engine": "rows",
        "attention": "sdpa",
        "n_layers": n_layers,
        "n_prompts": prompts,
        "n_counted": prompts,
        "left_out": {},
        "plan": "",
        "seed": 0,
        **({"controls": control} if control else {}),
    }
    return mmf.results.FlowResult(table, header)


def bump(height, centre, width):
    """A drop (negative) or gain around a layer."""
    return lambda layer: height * np.exp(-(((layer - centre) / width) ** 2))


def like_the_paper():
    """Thirty-two layers as the first paper tells it: image to question then its object, then question to last."""
    return made_flow(
        {
            "image->last": bump(-4, 18, 3),
            "question->last": bump(-80, 19, 3.5),
            "last->last": bump(-2, 28, 2),
            "image->question": lambda layer: bump(-60, 1, 2)(layer) + bump(-21, 10, 2)(layer),
            "object->question": bump(-40, 10, 2.5),
            "other->question": bump(-50, 1, 2),
            "true_option->last": bump(-30, 20, 2),
            "false_option->last": bump(25, 20, 2),
            "question_without_options->last": bump(-50, 18, 3),
        },
        32,
        windows=(7,),
        control=2,
    )
