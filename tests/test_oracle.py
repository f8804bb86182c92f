"""The oracle itself: its parts against definitions, its two readers against each other."""

import numpy as np
import pytest
from oracle import fixtures
from oracle.forward import (
    Config,
    Forward,
    causal_attention,
    from_folder,
    from_gguf,
    llama3_divisors,
    permute,
    unpermute,
)


def test_permute_interleaves_the_halves_of_each_head():
    w = np.arange(12)[:, None] * np.ones((1, 3))
    assert permute(w, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    np.testing.assert_array_equal(unpermute(permute(w, 2), 2), w)


def test_rope_rotates_by_position_and_keeps_relative_angles():
    rng = np.random.default_rng(0)
    model = Forward(Config(0, 8, 1, 1, 8, 1e-5, 100.0), {})
    x = np.tile(rng.standard_normal(8), (9, 1, 1))
    y = model.rope(x)
    np.testing.assert_array_equal(y[0], x[0])
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1))
    np.testing.assert_allclose(y[1, 0] @ y[4, 0], y[5, 0] @ y[8, 0])
    angle = 2 * 100.0 ** (-2 / 8)  # channel 1 pairs with channel 5
    want = x[0, 0, 1] * np.cos(angle) - x[0, 0, 5] * np.sin(angle)
    np.testing.assert_allclose(y[2, 0, 1], want)


def test_causal_attention_is_a_weighted_mean_of_what_is_visible():
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((n, h, 4)) for n, h in ((3, 4), (5, 2), (5, 2)))
    out = causal_attention(q, k, v)
    for i, h in np.ndindex(3, 4):
        s = np.array([q[i, h] @ k[j, h // 2] / 2 for j in range(3 + i)])
        p = np.exp(s) / np.exp(s).sum()
        np.testing.assert_allclose(out[i, h], p @ v[: 3 + i, h // 2])


def test_llama3_divisors_leave_short_waves_and_divide_long_ones():
    scaling = {
        "factor": 8,
        "low_freq_factor": 1,
        "high_freq_factor": 4,
        "original_max_position_embeddings": 8192,
    }
    got = llama3_divisors(128, 500000.0, scaling)
    freq = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    wave = 2 * np.pi / freq
    assert (got[wave < 8192 / 4] == 1).all() and (got[wave > 8192] == 8).all()
    middle = (wave >= 8192 / 4) & (wave <= 8192)
    smooth = (8192 / wave[middle] - 1) / (4 - 1)
    want = (1 - smooth) * freq[middle] / 8 + smooth * freq[middle]
    np.testing.assert_allclose(freq[middle] / got[middle], want)


@pytest.mark.parametrize("shape", [fixtures.LLAMA, fixtures.QWEN3], ids=lambda s: s.arch)
def test_both_readers_give_one_model(tmp_path, shape):
    ids = fixtures.tokenizer().encode(fixtures.text()).ids[:80]
    weights = fixtures.write_folder(tmp_path / "folder", shape)
    folder = from_folder(tmp_path / "folder")
    want = Forward(folder.config, weights).logprobs(ids)
    np.testing.assert_allclose(np.exp(want).sum(axis=1), 1)
    np.testing.assert_allclose(folder.logprobs(ids), want, atol=1e-12)
    path = fixtures.write_gguf(tmp_path / "m.gguf", shape)
    # GGUF holds eps and theta as float32.
    np.testing.assert_allclose(from_gguf(path).logprobs(ids), want, atol=1e-6)


def test_a_hook_sees_and_replaces(tmp_path):
    fixtures.write_folder(tmp_path)
    model, seen = from_folder(tmp_path), {}

    def record(name, array):
        seen[name] = array.shape

    def no_values(name, array):
        return 0 * array if name == "layers.1.v" else None

    plain = model.logits([5, 6, 7], record)
    assert seen["layers.0.k"] == (3, 2, 16) and seen["layers.1.attn.out"] == (3, 64)
    assert not np.allclose(plain, model.logits([5, 6, 7], no_values))
