"""How often an interval over n seeds covers what it is of: the percentile bootstrap and Student's t, on normal data.

    python benchmarks/coverage.py [--repetitions 20000]

Each promises 95 %. The table is the one of docs/statistics.md; half a minute on one core.
"""

from __future__ import annotations

import argparse

import numpy as np
from rounds import table

from raybench.stats import RESAMPLES, mean_interval

SIZES = (3, 5, 10, 20)
AT_ONCE = 500
"""Repetitions that share one set of resamples."""


def bootstrap(values: np.ndarray, rng: np.random.Generator, confidence: float = 0.95) -> np.ndarray:
    """Return the percentile bootstrap intervals [2, repetitions] for the means of ``values`` [n, repetitions].

    As `raybench.stats.bootstrap_interval`, but that the repetitions share their resamples.
    """
    n = len(values)
    means = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) @ values / n
    return np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)


def coverage(n: int, repetitions: int, seed: int = 0) -> tuple[float, float]:
    """Return the shares of repetitions whose bootstrap interval, and whose t interval, covers the true mean."""
    rng = np.random.default_rng([seed, n])
    covered = np.zeros(2)
    for start in range(0, repetitions, AT_ONCE):
        values = rng.standard_normal((n, min(AT_ONCE, repetitions - start)))
        for number, (low, high) in enumerate((bootstrap(values, rng), np.transpose([*map(mean_interval, values.T)]))):
            covered[number] += ((low <= 0) & (high >= 0)).sum()
    return tuple(covered / repetitions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20_000)
    arguments = parser.parse_args()
    rows = [(n, *(f"{100 * share:.0f} %" for share in coverage(n, arguments.repetitions))) for n in SIZES]
    print(table(("n", "percentile bootstrap", "t"), rows))


if __name__ == "__main__":
    main()
