"""RoPE frequencies and their scalings: linear, Llama 3, YaRN, and stored divisors.

f_i = theta^(-2i/d) in float64, scaled in float64, rounded once to float32 (see `spec.Rope`).
"""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from octavo.errors import CheckpointError, UnsupportedError

from .fields import Fields
from .spec import Rope

THETA = (1.0, 1e12)
_FACTOR = (1e-6, 1e6)


def frequencies(dim: int, theta: float, divisors: npt.ArrayLike = 1.0) -> Rope:
    """Return the half-split `Rope` of `dim` channels, frequencies divided by `divisors`."""
    exact = np.float64(theta) ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    with np.errstate(over="ignore"):  # what is that fast is refused: `_checked`
        rounded = (exact / np.asarray(divisors, dtype=np.float64)).astype(np.float32)
    return Rope(freq=rounded.astype(np.float64))


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


def _corrections(dim: int, theta: float, scaling: Fields) -> tuple[float, float]:
    """Return the pairs between which YaRN goes from keeping a frequency to dividing it."""
    original = scaling.integer("original_max_position_embeddings", most=1 << 40)

    def pair(turns: float) -> float:
        return dim * math.log(original / (2 * math.pi * turns)) / (2 * math.log(theta))

    low, high = (
        pair(scaling.number(key, *_FACTOR, default=default))
        for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0))
    )
    if scaling.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return low, high + 0.001 if low == high else high


def yarn_divisors(dim: int, theta: float, scaling: Fields) -> npt.NDArray[np.float64]:
    """Return the divisors of YaRN (arXiv:2309.00071; kimi.md section 4)."""
    factor = scaling.number("factor", *_FACTOR)
    low, high = _corrections(dim, theta, scaling)
    r = np.clip((np.arange(dim // 2, dtype=np.float64) - low) / (high - low), 0.0, 1.0)
    return 1.0 / (r / factor + (1.0 - r))


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def _yarn_mscale(scaling: Fields) -> float:
    """Return the factor of cosine and sine, which not every model leaves at 1."""
    given = scaling.number("attention_factor", 0.0, 1e3, default=None)
    if given is not None:
        return given
    factor = scaling.number("factor", *_FACTOR)
    keys = ("mscale", "mscale_all_dim")
    both = [scaling.number(key, 0.0, 1e3, default=None) for key in keys]
    if None in both:
        return _mscale(factor, 1.0)
    return _mscale(factor, both[0]) / _mscale(factor, both[1])


def softmax_factor(config: Fields) -> float:
    """Return what DeepSeek's models multiply attention's logits by under YaRN, at every length."""
    scaling = _scaling(config)
    weight = scaling.number("mscale_all_dim", 0.0, 1e3, default=None)
    if weight is None:
        return 1.0
    return _mscale(scaling.number("factor", *_FACTOR), weight) ** 2


def _scaling(config: Fields) -> Fields:
    nested = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(nested, dict):
        raise config.bad("rope_scaling", nested, "an object or null")
    return Fields(nested, f"{config.source}: rope_scaling")


def rope_from_config(config: Fields, dim: int, theta: float = 10000.0) -> Rope:
    """Return the `Rope` of a Hugging Face config (`rope_scaling`, or `rope_parameters`).

    `theta` is what the family's configs take where they have no ``rope_theta``.
    """
    scaling = _scaling(config)
    theta = scaling.number("rope_theta", *THETA, default=None) or config.number(
        "rope_theta", *THETA, default=theta
    )
    for fields in (config, scaling):
        fields.refuse("partial_rotary_factor", (1,), "rotating a part of a head")
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    rope = _checked(frequencies(dim, theta, _divisors(kind, dim, theta, scaling)), scaling)
    return replace(rope, mscale=_yarn_mscale(scaling)) if kind == "yarn" else rope


def _divisors(kind: str, dim: int, theta: float, scaling: Fields) -> npt.ArrayLike:
    if kind == "default":
        return 1.0
    if kind == "linear":
        return scaling.number("factor", *_FACTOR)
    if kind == "llama3":
        return llama3_divisors(dim, theta, scaling)
    if kind == "yarn":
        return yarn_divisors(dim, theta, scaling)
    raise UnsupportedError(
        f"{scaling.source} type {kind!r:.40} is not built; "
        "supported: 'default', 'linear', 'llama3', 'yarn'"
    )


def _checked(rope: Rope, scaling: Fields) -> Rope:
    """Hold every pair to what the core's reduction of angles is made for."""
    fastest = rope.freq.max()
    if not fastest <= 1.0:
        raise CheckpointError(
            f"{scaling.source}: a pair turns by {fastest:g} radians a token; legal: at most 1"
        )
    return rope


def rope_from_gguf(meta: Fields, dim: int, divisors: npt.NDArray[np.float32] | None) -> Rope:
    """Return the `Rope` of GGUF metadata; `divisors` are the values of ``rope_freqs.weight``."""
    theta = meta.number("rope.freq_base", *THETA, default=10000.0)
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
    return _checked(frequencies(dim, theta, scale if divisors is None else divisors * scale), meta)
