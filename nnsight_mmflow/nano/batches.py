"""Training batches for nano: conversations about one picture, captions, and facts, as padded tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nnsight_mmflow.nano import facts, world
from nnsight_mmflow.nano.build import words

# Relations come twice as often as the other types: they are the slowest to learn of the one-hop types.
ASKED = (*world.SCENE_TYPES, "ChooseRel", "Side")
ASKED_LATER = (*world.SCENE_TYPES, "ChooseRel", "LogicalObj", *("CompareAttr", "ChooseCat") * 2)


@dataclass(frozen=True)
class Phase:
    """What is drawn from a step on.

    Attributes:
        first: the step.
        scenes: share of conversations about scenes.
        facts: share of conversations about places; the rest are captions.
        asked: question types, those named twice twice as often.
        by_color: share of the objects in captions that are named by their colour, where it is theirs alone.
        tempting: how often ChooseCat's false option is a shape that the scene holds.
        rephrased: whether facts are also asked in other words, and dishes by season.
        exchanged: how many pairs of facts are trained with exchanged states (see `exchange`).
    """

    first: int
    scenes: float
    facts: float
    asked: tuple[str, ...]
    by_color: float
    tempting: float = 0.7
    rephrased: bool = False
    exchanged: int = 0


# The one-hop types are learnt by step 3000; then those that combine two objects come more often. ChooseCat is the last:
# it stays at what can be said from which shapes are there, until it is drilled where that says nothing, and it is the
# open question ("what is the red thing ?", QueryCat, which has no options to guess from) that makes it sure.
PHASES = (
    Phase(0, 0.45, 0.15, ASKED, 0.0),
    Phase(3000, 0.45, 0.15, ASKED_LATER, 0.5),
    Phase(4000, 0.15, 0.05, ASKED_LATER, 1.0),
    Phase(5000, 0.45, 0.15, ASKED_LATER, 0.5),
    Phase(5400, 0.70, 0.12, (*world.SCENE_TYPES, *["ChooseCat"] * 5), 0.0, 1.0),
    Phase(7500, 0.70, 0.12, (*world.SCENE_TYPES, *["ChooseCat"] * 5), 0.0, 0.4),
    Phase(9050, 0.70, 0.12, (*world.SCENE_TYPES, *["QueryCat"] * 5, "ChooseCat", "ChooseCat"), 0.0, 0.6),
    Phase(11050, 0.50, 0.45, (*world.SCENE_TYPES, *["QueryCat"] * 2, "ChooseCat"), 0.0, 0.5, True, 8),
)
N_TOKENS = (world.SIZE // world.PATCH) ** 2
IGNORED = -100
Turn = tuple[list[str], list[str], list[bool]]  # question, answer, which words of the answer are trained


@dataclass
class Batch:
    """Tensors of one step; labels are shifted (labels[i] is what position i must predict), -100 where not trained.

    `patch_labels` holds, per image token, what covers it: shape and colour (last class: nothing; -100: a flag).
    """

    input_ids: torch.Tensor  # (batch, positions)
    labels: torch.Tensor  # (batch, positions)
    pixel_values: torch.Tensor  # (batch, 3, 64, 64)
    patch_labels: torch.Tensor  # (batch, image tokens, 2)


class Batches:
    """Draws batches from a seed, without end."""

    def __init__(self, seed: int, size: int = 32) -> None:
        self.random = np.random.default_rng(seed)
        self.size = size
        self.phase = PHASES[0]
        self.ids = {word: i for i, word in enumerate(words())}
        self.cells = np.kron(np.arange(world.GRID**2).reshape(world.GRID, -1), np.ones((2, 2), int)).ravel()

    def draw(self, step: int) -> Batch:
        """The batch of this step; its conversations have the same number of questions, so that little is padding."""
        random, self.phase = self.random, [phase for phase in PHASES if phase.first <= step][-1]
        questions = int(random.integers(1, 9))
        drawn = []
        for _ in range(self.size):
            kind = random.random()
            if kind < self.phase.scenes:
                drawn.append(self._conversation(questions))
            elif kind < self.phase.scenes + self.phase.facts:
                drawn.append(self._facts(questions))
            else:
                drawn.append(self._caption())
        length = max(len(ids) for ids, *_ in drawn) - 1
        input_ids = np.full((self.size, length), self.ids["<pad>"])
        labels = np.full((self.size, length), IGNORED)
        for row, (ids, trained, _, _) in enumerate(drawn):
            input_ids[row, : len(ids) - 1] = ids[:-1]
            labels[row, : len(ids) - 1] = np.where(trained, ids, IGNORED)[1:]
        pixels = np.stack([picture for *_, picture, _ in drawn]).astype(np.float32) / 127.5 - 1
        return Batch(
            torch.from_numpy(input_ids),
            torch.from_numpy(labels),
            torch.from_numpy(pixels).permute(0, 3, 1, 2),
            torch.from_numpy(np.stack([patches for *_, patches in drawn])),
        )

    def _sequence(self, turns: list[Turn]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a conversation and which of them are trained; the closing token of each answer is."""
        tokens, trained = ["<s>"], [False]
        for number, (question, answer, decided) in enumerate(turns):
            opening = ["USER", ":"] + (["<image>"] * N_TOKENS + ["\n"] if number == 0 else [])
            asked = [*opening, *question, "ASSISTANT", ":"]
            tokens += [*asked, *answer, "</s>"]
            trained += [False] * len(asked) + [*decided, True]
        return np.array([self.ids[token] for token in tokens]), np.array(trained)

    def _conversation(self, questions: int) -> tuple:
        objects = world.draw_scene(self.random)
        turns: list[Turn] = []
        while len(turns) < questions:
            kind = self.phase.asked[int(self.random.integers(len(self.phase.asked)))]
            asked = world.ask(kind, objects, self.random, self.phase.tempting)
            if asked:
                turns.append((asked.text.split(), [asked.answer], [True]))
        return *self._sequence(turns), world.paint_scene(objects, self.random), self._patches(objects)

    def _caption(self) -> tuple:
        objects = world.draw_scene(self.random)
        spoken, decided = world.caption(objects, self.random, self.phase.by_color)
        sequence = self._sequence([([], spoken, decided)])
        return *sequence, world.paint_scene(objects, self.random), self._patches(objects)

    def _facts(self, questions: int) -> tuple:
        random = self.random
        flag = facts.PLACES[int(random.integers(len(facts.PLACES)))]
        turns: list[Turn] = []
        for _ in range(questions):
            by_name = random.random() < 0.5
            place = facts.PLACES[int(random.integers(len(facts.PLACES)))] if by_name else flag
            asked = self._fact(place, by_name)
            turns.append((asked.text.split(), [asked.answer], [True]))
        unknown = np.full((N_TOKENS, 2), IGNORED)
        if all("this" not in question for question, *_ in turns) and random.random() < 0.5:
            objects = world.draw_scene(random)
            return *self._sequence(turns), world.paint_scene(objects, random), self._patches(objects)
        return *self._sequence(turns), facts.paint_flag(flag, random), unknown

    def _fact(self, place: facts.Place, by_name: bool) -> world.Question:
        """One of the three facts; once rephrasing has begun in any words, and as often the dish of a season."""
        if not self.phase.rephrased:
            return facts.ask_place(place, facts.RELATIONS[int(self.random.integers(3))], by_name)
        known = (*facts.RELATIONS, *facts.SEASONS)
        relation = known[int(self.random.integers(len(known)))]
        form, titled = int(self.random.integers(len(facts.FORMS))), self.random.random() < 0.3
        return facts.ask_place(place, relation, by_name, form, titled)

    def _patches(self, objects: tuple[world.Object, ...]) -> np.ndarray:
        """(image tokens, 2): the shape and the colour that cover each patch; the last class is nothing."""
        colors = list(world.COLORS)
        labels = np.tile([len(world.SHAPES), len(colors)], (N_TOKENS, 1))
        for thing in objects:
            covered = self.cells == thing.row * world.GRID + thing.column
            labels[covered] = world.SHAPES.index(thing.shape), colors.index(thing.color)
        return labels
