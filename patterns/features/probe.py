"""Linear probes: how well a straight cut through a layer's activations tells the labels of prompts it has not seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._kinds import came, choice
from nnsight_mmflow._progress import progress_bar, say
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.patterns.features.classifier import import_sklearn, right_of, splits_of
from nnsight_mmflow.patterns.features.probe_result import ProbeResult
from nnsight_mmflow.patterns.features.result import FeaturesResult
from nnsight_mmflow.runs.intervals import wilson

Labels = Iterable[object] | Mapping[str, object] | Callable[..., object]
TYPES = {"input": ["picture", "question"], "question": ["question"], "picture": ["picture"]}
MISSING = ("nan", "<NA>", "NaT")
TRIES = 1000  # draws of a control whose folds all have two labels


@checked
def probe(
    features: FeaturesResult,
    labels: Labels | None = None,
    *,
    layers: int | Iterable[int] | None = None,
    types: Labels | str = "input",
    controls: int = 5,
    folds: int = 5,
    seed: int = 0,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> ProbeResult:
    """A ProbeResult: accuracy of a linear probe of each layer, on prompts held out, beside that of its control task.

    A probe is a logistic regression (L2, C=1) on standardised activations; what standardises is fitted on the training
    prompts alone. Folds are stratified by label, and prompts about the same pictures stay on one side.

    What a probe gets right may be in the activations, or be learnt by the probe itself. The control task tells: each
    type of input gets a random label, drawn as often as the real ones occur, and the same probe is trained on these.
    Accuracy minus that of the control is the probe's selectivity. By default each picture with its question is a type
    of its own: as no picture is on both sides, all that a control can find is chance, or a leak between the folds. With
    types="question" all prompts of one question share a random label: what the control finds then, it learnt from what
    the activations say of the question, as a probe of labels that go with questions would.

    Args:
        features: of one vector a prompt (pool "mean" or "last").
        labels: the prompts' answers unless given; a list, a mapping from the prompt's id (the table's column `prompt`),
            or a function of the prompt. None as a label leaves a prompt out, and it is counted.
        layers: which; all unless given.
        types: of the control task: "input" (picture and question), "question", "picture", or types of your own, given
            as labels are.
        controls: how many control tasks are drawn; 0 for none.
        folds: in how many parts the prompts are divided; each is held out once.
        seed: of the folds and of the control tasks.
        progress: show a progress bar.
        report: where is told what is fitted.

    Raises:
        MMFlowError: scikit-learn is not installed; prompts without a label; fewer than two labels, or one with fewer
            pictures than folds; features that hold every position.

    Source: linear probes: Alain and Bengio, arXiv 1610.01644; control tasks and selectivity: Hewitt and Liang, arXiv
        1909.03368.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> prompts = [one for one in mmf.nano.prompts(graph, 60, "QueryAttr") if "color" in one.question]
        >>> found = mmf.features(graph, prompts, at="last", layers=[2, 6], progress=False)
        >>> mmf.probe(found, labels=lambda prompt: prompt.answer in ("red", "blue"), folds=3, progress=False).n_rows
        2
    """
    if not isinstance(features, FeaturesResult):
        raise MMFlowError(f"features are what mmf.features(graph, prompts, ...) returns, but {came(features)} came.")
    import_sklearn()
    if features.header["pool"] is None:
        raise MMFlowError(
            "a probe takes one vector a prompt, but these features hold every position of the span: mmf.features(...,"
            ' pool="mean") or pool="last".'
        )
    chosen = _chosen(features, layers)
    named = _answers(features) if labels is None else _of_each(features, labels, "labels")
    kinds_of = _types(features, types)
    kept = [number for number, label in enumerate(named) if label is not None]
    _apart([named[number] for number in kept])
    truth = np.array([str(named[number]) for number in kept], dtype=object)
    table = features.table.iloc[kept]
    pictures = table["picture"].where(table["picture"] != "", table["question"]).to_numpy()
    counts = Counter(truth)
    _check(counts, folds, truth, pictures)
    splits = splits_of(truth, pictures, folds, seed)
    kinds = [str(kinds_of[number]) for number in kept] if controls else []
    drawn = _control_tasks(truth, kinds, splits, controls, seed)
    report(
        f"probe: {len(truth)} prompts, {len(counts)} labels, {len(set(pictures))} pictures; {len(chosen)} layer(s) x"
        f" {folds} folds x {1 + controls} task(s) = {len(chosen) * folds * (1 + controls)} logistic regressions."
    )
    rows = []
    for layer in progress_bar(chosen, "probe", shown=progress and len(chosen) > 1):
        values = np.asarray(features.values(layer), dtype=np.float64)[kept]
        right = int(right_of(values, truth, splits).sum())
        rows.append({"layer": layer, **_row(right, counts, len(truth)), **_control(values, drawn, splits, right)})
    import pandas as pd

    header = {
        **{name: features.header[name] for name in ("model", "at", "site", "pool", "n_layers", "versions")},
        "n_prompts": len(named),
        "n_counted": len(kept),
        "classes": dict(sorted(counts.items())),
        "types": types if isinstance(types, str) else "given",
        "n_types": len(set(kinds)),
        "controls": controls,
        "folds": folds,
        "seed": seed,
        "metric": "accuracy on held-out prompts, whose pictures were not trained on",
    }
    return ProbeResult(pd.DataFrame(rows), header)


def _chosen(features: FeaturesResult, layers: int | Iterable[int] | None) -> list[int]:
    there = features.layers
    asked = there if layers is None else [layers] if isinstance(layers, int) else list(layers)
    chosen = [features.counted(layer) for layer in asked]
    if not chosen or set(chosen) - set(there):
        raise MMFlowError(f"layers={asked}: of those that were read, {', '.join(map(str, there))}.")
    return chosen


def _answers(features: FeaturesResult) -> list[object]:
    answers = features.labels
    without = [number for number, answer in enumerate(answers) if answer is None]
    if without:
        raise MMFlowError(
            f"probe: {len(without)} of {len(answers)} prompts have no answer (the first: number {without[0]},"
            f" {features.table['prompt'].iloc[without[0]]!r}), and no labels came. Give answer= to graph.prompt, or"
            " labels=."
        )
    return list(answers)


def _types(features: FeaturesResult, types: Labels | str) -> list[object]:
    if isinstance(types, str):
        choice("types", types, tuple(TYPES))
        return list(features.table[TYPES[types]].itertuples(index=False, name=None))
    found = _of_each(features, types, "types")
    without = [number for number, one in enumerate(found) if one is None]
    if without:
        raise MMFlowError(f"types: {len(without)} of {len(found)} prompts have none, the first is number {without[0]}.")
    return found


def _of_each(features: FeaturesResult, given: Labels, what: str) -> list[object]:
    """A label for each prompt."""
    keys = features.table["prompt"].tolist()
    if isinstance(given, Mapping):
        lacking = [key for key in keys if key not in given]
        if lacking:
            raise MMFlowError(
                f"{what} lack {len(lacking)} of {len(keys)} prompts, such as {lacking[:3]}: they are by the prompt's id"
                " (features.to_frame()['prompt']); None leaves a prompt out."
            )
        return _told(features, [given[key] for key in keys], what)
    if callable(given):
        if features.prompts is None:
            raise MMFlowError(
                f"{what} is a function of the prompt, but features that were loaded hold no prompts: give a list, or a"
                " mapping from the prompt's id."
            )
        return _told(features, [given(prompt) for prompt in features.prompts], what)
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise MMFlowError(f"{what} are a list, a mapping by id, or a function of the prompt, but {came(given)} came.")
    found = list(given)
    if len(found) != len(keys):
        raise MMFlowError(f"{what} holds {len(found)}, but the features are of {len(keys)} prompts: one for each.")
    return _told(features, found, what)


def _told(features: FeaturesResult, given: list[object], what: str) -> list[object]:
    """The labels as plain values.

    Raises:
        MMFlowError: one that is a list, a table or no number (NaN); the message names it and its prompt.
    """
    scalar = [getattr(one, "item", None) if getattr(one, "shape", None) == () else None for one in given]
    found = [one if item is None else item() for one, item in zip(given, scalar, strict=True)]  # numpy's and torch's
    for number, one in enumerate(found):
        plain = isinstance(one, str | bytes | Hashable) and not hasattr(one, "shape")
        # NaN and pandas' NA, of which comparison gives no truth: what a table has where nothing is written
        missing = one is not None and plain and not isinstance(one, str | bytes | tuple) and str(one) in MISSING
        if not plain or missing:
            key = features.table["prompt"].iloc[number]
            hint = "None leaves a prompt out" if missing else "one word or number for each prompt, not several"
            raise MMFlowError(f"{what}: number {number}, of prompt {key!r}, is {came(one)}, which is no label: {hint}.")
    return found


def _apart(labels: Sequence[object]) -> None:
    """Refuses labels that look alike and are not: 1 and "1" would count as one.

    Raises:
        MMFlowError: two of them; the message has both.
    """
    seen: dict[str, object] = {}
    for label in labels:
        other = seen.setdefault(str(label), label)
        if other != label:
            raise MMFlowError(
                f"labels: {came(other)} and {came(label)} are written alike: give all labels as one type, such as str."
            )


def _check(counts: Counter, folds: int, truth: np.ndarray, pictures: np.ndarray) -> None:
    if folds < 2:
        raise MMFlowError(f"folds={folds}: at least 2, one to train on and one to hold out.")
    if len(counts) < 2:
        told = f"all {len(truth)} prompts have {list(counts)}" if counts else "each of the prompts has None"
        raise MMFlowError(f"labels: a probe needs two labels to tell apart, but {told}.")
    apart = {label: len(set(pictures[truth == label])) for label in counts}
    label, least = min(apart.items(), key=lambda one: one[1])
    if least < folds:
        rare = sum(few < folds for few in apart.values())
        fewer = f"folds={least}, " if least > 1 else ""
        many = (
            f" {rare} of {len(counts)} labels are so rare: is it a number to be predicted? A probe here tells classes."
            if rare > 10
            else ""
        )
        raise MMFlowError(
            f"label {label!r} has {counts[label]} prompt(s) about {least} picture(s), too few to be in each of"
            f" {folds} folds. Give {fewer}more prompts, or labels= with None for what is left out.{many}"
        )


def _control_tasks(
    truth: np.ndarray, kinds: Sequence[str], splits: Sequence[tuple], controls: int, seed: int
) -> list[np.ndarray]:
    """For each control task a label for each prompt: each type's is drawn from all prompts' labels."""
    draw, made = np.random.default_rng(seed), []
    for _ in range(controls):
        for _ in range(TRIES):
            label = {kind: truth[draw.integers(len(truth))] for kind in dict.fromkeys(kinds)}
            task = np.array([label[kind] for kind in kinds], dtype=object)
            if all(len(set(task[train])) > 1 for train, _ in splits):
                made.append(task)
                break
        else:
            raise MMFlowError(
                f"no control task can be drawn: the prompts are of {len(set(kinds))} type(s), and each fold needs two"
                " labels. Give types= that tell more of them apart, or controls=0."
            )
    return made


def _row(right: int, counts: Counter, total: int) -> dict[str, object]:
    low, high = wilson(right, total)
    numbers = {"n": total, "right": right, "accuracy": right / total, "low": low, "high": high}
    return {**numbers, "majority": max(counts.values()) / total}


def _control(values: np.ndarray, drawn: Sequence[np.ndarray], splits: Sequence[tuple], right: int) -> dict[str, float]:
    names = ("control", "control_low", "control_high", "control_majority", "selectivity")
    if not drawn:
        return dict.fromkeys(names, float("nan"))
    total = len(values)
    found = float(np.mean([right_of(values, task, splits).mean() for task in drawn]))
    majority = float(np.mean([max(Counter(task).values()) / total for task in drawn]))
    return dict(zip(names, (found, *wilson(found * total, total), majority, right / total - found), strict=True))
