"""Several trained networks as one classifier, from their stored logits. Pure functions on arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raybench.records import Predictions


def mean_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the mean over the networks of their softmax, [images, classes], of ``logits`` [networks, images, classes].

    The ensemble's prediction is its largest class, the first of several equal ones.
    """
    from scipy.special import softmax  # here: tables without ensembles do not wait for it

    return softmax(logits.astype(np.float64), axis=-1).mean(axis=0)


def majority_vote(predictions: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the class that most networks predict, [images].

    Args:
        predictions: [networks, images], each network's class.
        mean: [images, classes], the `mean_softmax`: of classes with equally many votes the one with more of it wins.
    """
    votes = np.zeros(mean.shape, int)
    for prediction in predictions:
        votes[np.arange(len(mean)), prediction] += 1
    tied = votes == votes.max(axis=1, keepdims=True)
    return np.where(tied, mean, -1.0).argmax(axis=1)


def same_images(trials: Sequence[Predictions]) -> bool:
    """Return whether the trials were tested on the same rows of a dataset, with the same classes, in the same order.

    Whether it was the same dataset, their ``dataset_fingerprint`` says.
    """
    first = trials[0]
    return all(
        np.array_equal(trial.index, first.index)
        and np.array_equal(trial.label, first.label)
        and trial.logits.shape == first.logits.shape
        for trial in trials
    )


def accuracies(trials: Sequence[Predictions]) -> tuple[float, float]:
    """Return the accuracies of the mean softmax and of the majority vote, 0 to 1, of trials with the `same_images`."""
    label = trials[0].label
    mean = mean_softmax(np.stack([trial.logits for trial in trials]))
    vote = majority_vote(np.stack([trial.prediction for trial in trials]), mean)
    return float((mean.argmax(axis=1) == label).mean()), float((vote == label).mean())
