"""RoPE frequencies, with the scalings that need no C: linear, Llama 3, and stored divisors.

f_i = theta^(-2i/d) in float64, scaled in float64, rounded once to float32 (see `spec.Rope`).
"""

import math

import numpy as np
import numpy.typing as npt

from octavo.errors import UnsupportedError

from .fields import Fields
from .spec import Rope

_THETA = (0.0, 1e12)
_FACTOR = (0.0, 1e6)


def frequencies(dim: int, theta: float, divisors: npt.ArrayLike = 1.0) -> Rope:
    """Return the half-split `Rope` of `dim` channels, frequencies divided by `divisors`."""
    exact = np.float64(theta) ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    exact = exact / np.asarray(divisors, dtype=np.float64)
    return Rope(freq=exact.astype(np.float32).astype(np.float64))


def llama3_divisors(dim: int, theta: float, scaling: Fields) -> npt.NDArray[np.float64]:
    """Return the divisors of Llama 3.1's `rope_scaling` (kimi.md section 8).

    Wavelengths below ``original / high`` keep their frequency, those above ``original / low`` are
    slowed by `factor`, and between the two the frequency is interpolated.
    """
    factor = scaling.number("factor", *_FACTOR)
    low = scaling.number("low_freq_factor", *_FACTOR)
    high = scaling.number("high_freq_factor", *_FACTOR)
    original = scaling.integer("original_max_position_embeddings", most=1 << 40)
    if high <= low:
        raise scaling.bad("high_freq_factor", high, f"a number above low_freq_factor = {low:g}")
    freq = np.float64(theta) ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    turns = original * freq / (2 * math.pi)
    s = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - s) / factor + s)


def rope_from_config(config: Fields, dim: int, theta: float = 10000.0) -> Rope:
    """Return the `Rope` of a Hugging Face config (`rope_scaling`, or `rope_parameters`).

    `theta` is what the family's configs take where they have no ``rope_theta``.
    """
    nested = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(nested, dict):
        raise config.bad("rope_scaling", nested, "an object or null")
    scaling = Fields(nested, f"{config.source}: rope_scaling")
    theta = scaling.number("rope_theta", *_THETA, default=None) or config.number(
        "rope_theta", *_THETA, default=theta
    )
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    if kind == "default":
        return frequencies(dim, theta)
    if kind == "linear":
        return frequencies(dim, theta, scaling.number("factor", *_FACTOR))
    if kind == "llama3":
        return frequencies(dim, theta, llama3_divisors(dim, theta, scaling))
    raise UnsupportedError(
        f"{config.source}: rope_scaling type {kind!r:.40} is not built; "
        "supported: 'default', 'linear', 'llama3'"
    )


def rope_from_gguf(meta: Fields, dim: int, divisors: npt.NDArray[np.float32] | None) -> Rope:
    """Return the `Rope` of GGUF metadata; `divisors` are the values of ``rope_freqs.weight``."""
    theta = meta.number("rope.freq_base", *_THETA, default=10000.0)
    kind = meta.text("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise UnsupportedError(
            f"{meta.source}: {meta.prefix}rope.scaling.type {kind!r:.40} is not built; "
            "supported: 'none', 'linear', and Llama 3's stored divisors"
        )
    factor = meta.number("rope.scale_linear", *_FACTOR, default=1.0)
    if kind == "linear":
        factor = meta.number("rope.scaling.factor", *_FACTOR, default=factor)
    scale = np.float64(factor)
    return frequencies(dim, theta, scale if divisors is None else divisors * scale)
