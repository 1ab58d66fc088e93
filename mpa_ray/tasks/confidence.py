"""How sure a mean score is: a bootstrap interval of one mean, and a paired test of two models on
the same questions.

Both resample questions, so they speak of the choice of questions and not of training seeds. Memory
stays bounded by drawing how often each distinct value comes up (a multinomial, the same
distribution as drawing questions one by one) in blocks of resamples: scores take few distinct
values, and a million questions cost no more than the distinct values among them.

What is still to come is bounded too, from what was seen of the same kind: how many of further rows,
and the mean of further values.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

_CELLS_PER_BLOCK = 1 << 20
# Quantiles of so many are right within a fiftieth of their distance to the mean.
_PREDICTIONS = 20_000


class PairedTest(TypedDict):
    """`difference` and `ci95` are in the unit of the scores and say how far a is above b; `p_value`
    is two-sided, in (0, 1].
    """

    difference: float
    ci95: tuple[float, float]
    p_value: float


def bootstrap_interval(
    scores: Sequence[float] | NDArray[np.floating],
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of `scores` (Efron & Tibshirani 1993, chapter
    13), in the unit of the scores.

    Raises:
        ValueError: no scores, a score that is not a finite number, `resamples` < 1, or `level`
            outside (0, 1).
    """
    values = _finite_vector("scores", scores)
    _require_resamples(resamples)
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level!r}; give a share between 0 and 1, such as 0.95")
    means = _resampled_means(values, np.random.default_rng(seed), resamples)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


def paired_test(
    scores_a: Sequence[float] | NDArray[np.floating],
    scores_b: Sequence[float] | NDArray[np.floating],
    *,
    seed: int = 0,
    resamples: int = 10000,
) -> PairedTest:
    """Is model a better than model b, both scored on the same questions in the same order?

    `difference` is mean(a) - mean(b) and `ci95` its bootstrap interval over questions. `p_value` is
    that of the two-sided sign-flip permutation test (Fisher's randomisation test for pairs): if the
    models were exchangeable, each question's difference would be as likely with either sign. It
    counts the observed signs among the permutations, (1 + hits) / (1 + resamples), and so is never
    0.

    Raises:
        ValueError: the two lengths differ, no scores, a score that is not a finite number, or
            `resamples` < 1.
    """
    a = _finite_vector("scores_a", scores_a)
    b = _finite_vector("scores_b", scores_b)
    if len(a) != len(b):
        raise ValueError(
            f"scores_a has {len(a)} values and scores_b {len(b)}; give one of each per question,"
            " in the same order"
        )
    _require_resamples(resamples)
    differences = a - b
    low, high = bootstrap_interval(differences, seed=seed, resamples=resamples)
    return {
        "difference": float(differences.mean()),
        "ci95": (low, high),
        "p_value": _sign_flip_p_value(differences, np.random.default_rng([seed, 1]), resamples),
    }


def further_hits(
    hits: int, trials: int, further: int, *, level: float = 0.95
) -> tuple[float, float]:
    """How many of `further` trials hit, when `hits` of `trials` did: a prediction interval, in
    numbers of hits.

    They are quantiles of what Jeffreys' prior predicts: a share drawn from Beta(hits + 1/2, misses
    + 1/2), then hits drawn with it. Unlike normal intervals it holds where nearly all trials hit,
    or hardly any. It is drawn many times, so it costs the same for any number of trials.

    Raises:
        ValueError: no trial, or more hits than trials.
    """
    if trials < 1 or further < 1 or not 0 <= hits <= trials:
        raise ValueError(
            f"{hits} hits of {trials} trials, {further} further ones: give at least one trial of"
            " each, and no more hits"
        )
    generator = np.random.default_rng(0)
    shares = generator.beta(hits + 0.5, trials - hits + 0.5, _PREDICTIONS)
    low, high = np.quantile(generator.binomial(further, shares), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def further_mean(
    values: Sequence[float], further: float, *, level: float = 0.95
) -> tuple[float, float]:
    """Where the mean of `further` values will lie, when `values` were drawn from the same
    distribution: Student's prediction interval.

    Raises:
        ValueError: fewer than three values, which say next to nothing of their scatter.
    """
    numbers = _finite_vector("values", values)
    if len(numbers) < 3:
        raise ValueError(f"{len(numbers)} values; give at least three")
    half = (
        _student_quantile((1 + level) / 2, len(numbers) - 1)
        * float(numbers.std(ddof=1))
        * math.sqrt(1 / len(numbers) + 1 / further)
    )
    return float(numbers.mean()) - half, float(numbers.mean()) + half


def _student_quantile(share: float, degrees: int) -> float:
    """Within 1% from 2 degrees of freedom on (Abramowitz & Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))


def _resampled_means(
    values: NDArray[np.float64], rng: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    distinct, counts = np.unique(values, return_counts=True)
    shares = counts / len(values)
    return _in_blocks(
        resamples,
        len(distinct),
        lambda rows: rng.multinomial(len(values), shares, size=rows) @ distinct / len(values),
    )


def _sign_flip_p_value(
    differences: NDArray[np.float64], rng: np.random.Generator, resamples: int
) -> float:
    sizes, counts = np.unique(np.abs(differences), return_counts=True)
    sums = _in_blocks(
        resamples,
        len(sizes),
        lambda rows: (2 * rng.binomial(counts, 0.5, size=(rows, len(sizes))) - counts) @ sizes,
    )
    # Sums of the same numbers in another order differ in the last digits, and a tie must count as a
    # hit.
    rounding = 1e-9 * float(counts @ sizes)
    hits = int(np.count_nonzero(np.abs(sums) >= abs(float(differences.sum())) - rounding))
    return (1 + hits) / (1 + resamples)


def _in_blocks(
    resamples: int, width: int, draw: Callable[[int], NDArray[np.float64]]
) -> NDArray[np.float64]:
    block = max(1, _CELLS_PER_BLOCK // width)
    return np.concatenate(
        [draw(min(block, resamples - start)) for start in range(0, resamples, block)]
    )


def _finite_vector(
    name: str, scores: Sequence[float] | NDArray[np.floating]
) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(
            f"{name} has shape {values.shape}; give one score per question, at least one"
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(f"{name}[{bad[0]}] is {values[bad[0]]}; give finite numbers only")
    return values


def _require_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ValueError(f"resamples is {resamples!r}; give at least 1, such as 2000")
