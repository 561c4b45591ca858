"""Rebuilds nano from a seed: under two hours on two CPU cores, minutes on a GPU.

Captions teach binding in one hop; without them the two-hop questions stay at chance for thousands of steps. For the
first steps a linear readout of the projector's output must name each patch's content, row and column: without row and
column, left and right stay at chance. At the end the facts are moved to the question's constraint (`exchange`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from nnsight_mmflow._errors import DataError
from nnsight_mmflow.files.output import output_folder, writing, written
from nnsight_mmflow.nano import world
from nnsight_mmflow.nano.batches import IGNORED, N_TOKENS, Batch, Batches
from nnsight_mmflow.nano.build import N_LAYERS, WIDTH, build_model, build_processor
from nnsight_mmflow.nano.exchange import Pairs, draw_pairs, exchange_loss

LEARNING_RATE, WARM_UP, CLIP, STEPS = 1.5e-3, 200, 1.0, 14850
# First step and length of each cosine; a drill starts a new one.
CYCLES = ((0, 7000), (4000, 3000), (5400, 2100), (7500, 800), (8300, 750), (9050, 2000), (11050, 3800))


class PatchReadout(nn.Module):
    """Reads from each projected patch its shape, colour, row and column; used only while training starts."""

    def __init__(self) -> None:
        super().__init__()
        side = world.SIZE // world.PATCH
        self.sizes = [len(world.SHAPES) + 1, len(world.COLORS) + 1, side, side]
        self.linear = nn.Linear(WIDTH, sum(self.sizes))
        places = torch.arange(N_TOKENS)
        self.register_buffer("places", torch.stack([places // side, places % side], -1))

    def forward(self, features: torch.Tensor, patch_labels: torch.Tensor) -> torch.Tensor:
        """The sum of the four cross entropies; `features` is (batch, image tokens, width)."""
        places = self.places.expand(len(features), -1, -1)
        wanted = torch.cat([patch_labels, places], -1).flatten(0, 1)
        guesses = self.linear(features.float()).flatten(0, 1).split(self.sizes, -1)
        return sum(cross_entropy(guess, wanted[:, i], ignore_index=IGNORED) for i, guess in enumerate(guesses))


def answer_loss(model: LlavaForConditionalGeneration, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean loss of the trained tokens, and the share of them that the model gets right."""
    hidden = model.model(input_ids=batch.input_ids, pixel_values=batch.pixel_values, use_cache=False).last_hidden_state
    trained = batch.labels != IGNORED
    logits = model.lm_head(hidden[trained]).float()
    wanted = batch.labels[trained]
    return cross_entropy(logits, wanted), (logits.argmax(-1) == wanted).float().mean()


def learning_rate(step: int) -> float:
    """The rate of a step: in each cycle a short rise, then half a cosine down to zero."""
    first, length = [cycle for cycle in CYCLES if cycle[0] <= step][-1]
    rise = min(1.0, (step - first + 1) / WARM_UP)
    return LEARNING_RATE * rise * 0.5 * (1 + math.cos(math.pi * (step - first) / length))


def train(
    folder: str | Path,
    *,
    steps: int = STEPS,
    seed: int = 0,
    n_layers: int = N_LAYERS,
    readout_steps: int = 3000,
    device: str = "cpu",
    report: Callable[[str], None] = print,
    checkpoint_every: int = 500,
) -> LlavaForConditionalGeneration:
    """Returns nano, trained from `seed`; the state is kept in `folder`, so that a stopped run goes on where it was."""
    torch.manual_seed(seed)
    folder = output_folder(folder)
    run = {"seed": seed, "n_layers": n_layers, "readout_steps": readout_steps}
    model, readout = build_model(n_layers).to(device).train(), PatchReadout().to(device)
    caught: list[torch.Tensor] = []
    hook = model.model.multi_modal_projector.register_forward_hook(lambda *call: caught.append(call[-1]))
    parameters = [*model.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.05, betas=(0.9, 0.98))
    batches, first = Batches(seed), 0
    state = folder / "training.pt"
    if state.exists():
        kept = _kept(state, device, run, steps)
        model.load_state_dict(kept["model"])
        readout.load_state_dict(kept["readout"])
        optimizer.load_state_dict(kept["optimizer"])
        batches.random.bit_generator.state = kept["random"]
        first = kept["step"]
        report(f"going on from step {first}, kept in {state}")
    started, losses, exchange_losses = time.time(), [], []
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        batch = batches.draw(step)
        batch = Batch(*(tensor.to(device) for tensor in vars(batch).values()))
        caught.clear()
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            loss, right = answer_loss(model, batch)
        total = loss
        if step < readout_steps:
            total = loss + 0.5 * readout(caught[0].view(len(batch.input_ids), N_TOKENS, -1), batch.patch_labels)
        if batches.phase.exchanged:
            pairs = draw_pairs(batches.random, batches.phase.exchanged)
            pairs = Pairs(*(tensor.to(device) for tensor in vars(pairs).values()))
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                exchanged = exchange_loss(model, pairs)
            total = total + exchanged
            exchange_losses.append(exchanged.item())
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        losses.append((loss.item(), right.item()))
        if (step + 1) % 100 == 0:
            mean, accuracy = (sum(column) / len(losses) for column in zip(*losses, strict=True))
            moved = f", exchanged {sum(exchange_losses) / len(exchange_losses):.3f}" if exchange_losses else ""
            pace = (time.time() - started) / (step + 1 - first)
            report(
                f"step {step + 1}/{steps}: loss {mean:.3f}{moved}, {accuracy:.1%} of trained tokens right,"
                f" {pace:.2f} s a step, {(steps - step - 1) * pace / 60:.0f} minutes to go"
            )
            losses.clear()
            exchange_losses.clear()
        if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
            kept = {
                "model": model.state_dict(),
                "readout": readout.state_dict(),
                "optimizer": optimizer.state_dict(),
                "random": batches.random.bit_generator.state,
                "step": step + 1,
                "run": run,
            }
            with written(state) as beside:
                torch.save(kept, beside)
    hook.remove()
    return model.eval()


def _kept(state: Path, device: str, run: dict[str, int], steps: int) -> dict:
    """The state of a training that was stopped.

    Raises:
        DataError: it cannot be read, or is of another training.
    """
    try:
        kept = torch.load(state, map_location=device, weights_only=True)  # tensors and plain numbers alone
        before, step = kept.get("run"), kept["step"]
    except Exception as error:  # of many kinds, by how a file is damaged
        raise DataError(f"{state} cannot be read ({error}): remove it to train from the start.") from error
    if before != run or step > steps:
        raise DataError(
            f"{state} is of another training ({before}, {step} steps; asked for are {run}, {steps} steps). Give another"
            " folder."
        )
    return kept


def save(model: LlavaForConditionalGeneration, folder: str | Path) -> None:
    """Writes the model and its processor as from_pretrained reads them."""
    end, pad = model.config.text_config.eos_token_id, model.config.text_config.pad_token_id
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = end, pad
    model.config._name_or_path = "nano"
    folder = output_folder(folder)
    with writing(folder):
        model.to("cpu").save_pretrained(folder)
        build_processor().save_pretrained(folder)
