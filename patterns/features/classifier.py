"""The classifier of probes and the folds it is tried on: scikit-learn's, imported when a probe is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from nnsight_mmflow._errors import MMFlowError

STEPS = 10_000


def import_sklearn() -> None:
    """Sees to it that scikit-learn is there.

    Raises:
        MMFlowError: it is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MMFlowError(
            f"a probe is fitted by scikit-learn, which cannot be imported ({error}). It is an extra:"
            ' pip install -c constraints.txt -e ".[probe]"'
        ) from error


def splits_of(truth: np.ndarray, pictures: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train, held out) of each fold: stratified by label, no picture on both sides.

    Raises:
        MMFlowError: a fold lacks a label to train on.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    shared = len(set(pictures)) < len(pictures)
    kind = StratifiedGroupKFold if shared else StratifiedKFold
    made = kind(folds, shuffle=True, random_state=seed)
    found = list(made.split(np.zeros(len(truth)), truth, pictures if shared else None))
    for number, (train, held) in enumerate(found):
        lacking = sorted(set(truth) - set(truth[train]))
        if lacking or not len(held):
            raise MMFlowError(
                f"fold {number} holds out every prompt labelled {lacking[:3]}: their pictures are too few to be on both"
                f" sides. Give another seed=, fewer folds than {folds}, or more pictures."
            )
    return found


def right_of(values: np.ndarray, truth: np.ndarray, splits: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """For each prompt whether the probe that was not trained on it names its label.

    Raises:
        MMFlowError: a fit that does not converge.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    right: np.ndarray = np.zeros(len(truth), dtype=bool)
    names, numbers = np.unique(truth.astype(str), return_inverse=True)
    for train, held in splits:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=STEPS))
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                model.fit(values[train], numbers[train])
            except ConvergenceWarning as error:
                raise MMFlowError(
                    f"a probe on {len(train)} prompts, {len(names)} labels did not converge in {STEPS} steps: {error}"
                ) from None
        right[held] = model.predict(values[held]) == numbers[held]
    return right
