"""Bootstrap intervals for means over text, where neighbouring tokens are not independent.

Blocks of consecutive tokens (or whole windows) are resampled, never tokens: an interval from
independent tokens is too narrow. Differences are paired: both sides of a resample see the same
blocks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
SEED = 20_240_229
BLOCK_TOKENS = 256
MANY_WINDOWS = 30  # from here on windows are resampled, below it blocks of tokens


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % percentile interval; the bounds are NaN where there is one block."""

    value: float
    low: float
    high: float

    def __contains__(self, x: float) -> bool:
        return self.low <= x <= self.high


def block_ids(window: npt.NDArray[np.integer], position: npt.NDArray[np.integer]) -> npt.NDArray:
    """Return the resampling unit of each scored position, numbered from 0.

    Units are windows if there are at least 30 of them, else runs of 256 tokens that do not cross
    a window's border.
    """
    keys = np.asarray(window, dtype=np.int64)
    if len(np.unique(keys)) < MANY_WINDOWS:
        keys = (keys << 32) + np.asarray(position, dtype=np.int64) // BLOCK_TOKENS
    return np.unique(keys, return_inverse=True)[1]


def mean_interval(
    values: npt.NDArray,
    blocks: npt.NDArray[np.integer],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """Bootstrap the mean of `values` over `blocks`; positions that are NaN do not take part.

    A paired difference is the interval of the difference: pass ``a - b``.

    Raises
    ------
    ValueError
        If no value takes part.
    """
    values = np.asarray(values, dtype=np.float64)
    used = ~np.isnan(values)
    if not used.any():
        raise ValueError("mean_interval: no values")
    total = np.bincount(blocks[used], weights=values[used])
    count = np.bincount(blocks[used], minlength=len(total)).astype(np.float64)
    total, count = total[count > 0], count[count > 0]
    mean = float(total.sum() / count.sum())
    if len(total) < 2:
        return Interval(mean, float("nan"), float("nan"))
    rng = np.random.Generator(np.random.PCG64(seed))
    means = np.empty(resamples)
    step = max(1, 1_000_000 // len(total))  # at most some megabytes of indices at a time
    for lo in range(0, resamples, step):
        pick = rng.integers(0, len(total), (min(step, resamples - lo), len(total)))
        means[lo : lo + step] = total[pick].sum(axis=1) / count[pick].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(mean, float(low), float(high))


def sealed_fraction(length: int, *, first: int = 0, sinks: int = 0, recent: int = 0) -> float:
    """Return the mean share of positions that a query reads in sealed form (the reading law).

    Parameters
    ----------
    length : int
        Tokens of a window; queries stand at ``first`` .. ``length - 1``.
    sinks, recent : int
        The scheme's `sink_pages` and `recent_pages`.
    """
    t = np.arange(first, length)
    sealed = 64 * np.maximum(0, t // 64 - recent - sinks)
    return float(np.mean(sealed / (t + 1))) if len(t) else float("nan")
