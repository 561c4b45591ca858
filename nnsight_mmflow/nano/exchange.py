"""Makes nano recall its facts at the question's constraint: interchange intervention training (Geiger et al., 2022).

Left alone, nano reads the flag and recalls the fact at the last position. Models of real size do it at the constraint
("this place"), which is what the second paper is about. So pairs of questions after one fact, one by flag and one by
name, are trained in three ways at once:

- states of the constraint's last token are exchanged after layer EARLY within a pair, and drawn together: flag and name
  must be the same there;
- they are exchanged after layer LATE between facts: whose state it is decides the answer;
- only that token reads the picture, up to EARLY, and only behind LATE is it read: the way that the others rely on.

In between, at layers KEYED, its MLP neurons (the keys of the output projection) are drawn together within pairs and
apart between facts: each fact gets a key of its own. All this is planted, so that there is a model on which tracing and
editing must find what is there; it says nothing about models of real size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import LlavaForConditionalGeneration

from nnsight_mmflow.nano import facts, world
from nnsight_mmflow.nano.build import words

EARLY, LATE, KEYED = 2, 4, (3, 4)
N_TOKENS = (world.SIZE // world.PATCH) ** 2
FIRST_TOKEN = 3  # of the image, behind "<s> USER :"


@dataclass
class Pairs:
    """Questions after facts: rows 2i and 2i+1 ask the same, by flag and by name; padded on the right."""

    input_ids: torch.Tensor  # (rows, positions)
    pixel_values: torch.Tensor  # (rows, 3, 64, 64)
    constraint: torch.Tensor  # (rows,): the last token of "this place", or the name
    last: torch.Tensor  # (rows,): the prompt's last position
    answer: torch.Tensor  # (rows,): the answer's id


def draw_pairs(random: np.random.Generator, pairs: int) -> Pairs:
    """That many pairs about different facts, each question in words of its own."""
    ids = {word: i for i, word in enumerate(words())}
    rows, pictures, places, answers = [], [], [], []
    chosen = random.permutation(len(facts.PLACES) * len(facts.RELATIONS))[:pairs]
    for number in chosen:
        place, relation = facts.PLACES[number // 3], facts.RELATIONS[number % 3]
        for by_name in (False, True):
            form, titled = int(random.integers(len(facts.FORMS))), random.random() < 0.3
            asked = facts.ask_place(place, relation, by_name, form, titled)
            shown = facts.PLACES[int(random.integers(len(facts.PLACES)))] if by_name else place
            tokens = ["<s>", "USER", ":", *["<image>"] * N_TOKENS, "\n", *asked.text.split(), "ASSISTANT", ":"]
            rows.append([ids[token] for token in tokens])
            pictures.append(facts.paint_flag(shown, random))
            places.append(tokens.index(place.name if by_name else "place"))
            answers.append(ids[asked.answer])
    length = max(map(len, rows))
    pixels = np.stack(pictures).astype(np.float32) / 127.5 - 1
    return Pairs(
        torch.tensor([row + [ids["<pad>"]] * (length - len(row)) for row in rows]),
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
        torch.tensor(places),
        torch.tensor([len(row) - 1 for row in rows]),
        torch.tensor(answers),
    )


def exchange_loss(model: LlavaForConditionalGeneration, pairs: Pairs) -> torch.Tensor:
    """The mean loss of the answers, in one forward over three copies of the rows, one for each way.

    To it are added the mean squared differences of a pair's states after EARLY and after LATE, over their mean square,
    and that of the keys' cosines from one (the same fact) and zero (another).
    """
    count = len(pairs.last)
    rows = torch.arange(count, device=pairs.last.device)
    within, between = rows ^ 1, rows.roll(3)
    constraint, layers = pairs.constraint, model.model.language_model.layers

    def exchange(first: int, giver: torch.Tensor):  # type: ignore[no-untyped-def]
        def run(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
            changed = output.clone()
            changed[first + rows, constraint] = output[first + giver, constraint[giver]]
            return changed

        return run

    states: list[torch.Tensor] = []
    keys: list[torch.Tensor] = []
    hooks = [
        *(
            layers[layer].mlp.down_proj.register_forward_pre_hook(
                lambda module, inputs: keys.append(inputs[0][count + rows, constraint].float())
            )
            for layer in KEYED
        ),
        *(
            layers[layer].register_forward_hook(
                lambda module, inputs, output: states.append(output[count + rows, constraint].float())
            )
            for layer in (EARLY, LATE)
        ),
        layers[EARLY].register_forward_hook(exchange(0, within)),
        layers[LATE].register_forward_hook(exchange(count, between)),
    ]
    masks = _masks(pairs)
    for number, layer in enumerate(layers):
        mask = masks[0 if number <= EARLY else 1 if number <= LATE else 2]
        hooks.append(
            layer.register_forward_pre_hook(
                lambda module, inputs, named, mask=mask: (inputs, {**named, "attention_mask": mask}), with_kwargs=True
            )
        )
    try:
        hidden = model.model(
            input_ids=pairs.input_ids.repeat(3, 1),
            pixel_values=pairs.pixel_values.repeat(3, 1, 1, 1),
            use_cache=False,
        ).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    everyone = torch.arange(3 * count, device=rows.device)
    wanted = torch.cat([pairs.answer, pairs.answer[between], pairs.answer])
    answers = cross_entropy(model.lm_head(hidden[everyone, pairs.last.repeat(3)]).float(), wanted)
    fact = rows // 2
    same = (fact[:, None] == fact[None, :]).float()
    apart = [(cosine_similarity(key[:, None], key[None], dim=-1) - same).pow(2).mean() for key in keys]
    alike = [(state[0::2] - state[1::2]).pow(2).mean() / state.detach().pow(2).mean() for state in states]
    return answers + 2 * torch.stack(alike).mean() + 4 * torch.stack(apart).mean()


def _masks(pairs: Pairs) -> list[torch.Tensor]:
    """For layers up to EARLY, up to LATE, and behind it: (3 * rows, 1, positions, positions), True where open."""
    count, length = pairs.input_ids.shape
    places = torch.arange(length, device=pairs.input_ids.device)
    causal = (places[:, None] >= places[None, :]).expand(count, -1, -1)
    text, image = places >= FIRST_TOKEN + N_TOKENS, (places >= FIRST_TOKEN) & (places < FIRST_TOKEN + N_TOKENS)
    here = places == pairs.constraint[:, None]
    looks = text[:, None] & image[None, :]
    asks = (places > pairs.constraint[:, None])[:, :, None] & here[:, None, :]
    barred = [(looks & ~here[:, :, None]) | asks, looks | asks, looks.expand(count, -1, -1)]
    return [torch.cat([causal, causal, causal & ~closed])[:, None] for closed in barred]
