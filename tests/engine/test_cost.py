"""What results say of time, bytes and operations: against counts made from shapes by hand."""

import numpy as np
import pytest

import octavo
from octavo.engine.cost import KINDS, Cost

SCHEMES = ["bf16", "int8", "int4", "k8v4", "fp8", "int4,recent=1", "int8,sinks=1", "f32"]


def products(spec):
    """Elements of the layers' matrices and of the head."""
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    layer = spec.hidden * (2 * q + 2 * kv) + 3 * spec.hidden * spec.ffn
    return spec.layers * layer, spec.hidden * spec.vocab


def opened(path, **options):
    return octavo.LLM(path, threads=1, progress=False, **options)


@pytest.mark.core
@pytest.mark.parametrize("kv", SCHEMES)
def test_bytes_and_operations_equal_a_count_by_hand(tiny_llama, ids, kv):
    n = 150
    with opened(tiny_llama, kv=kv, act="a32") as llm, llm.sequence(prefix=False) as sequence:
        spec = llm.spec
        linear, head = products(spec)
        per_pair = 2 * 2 * spec.heads * spec.head_dim * spec.layers
        sequence.append(ids[:n])
        with llm.profile() as seen:
            sequence.append(ids[n : n + 1])
        held = sequence.kv.bytes()
        decode, kinds = sequence.phases.decode, seen.kinds
        assert (decode.steps, decode.tokens) == (1, 1)
        assert kinds["attend"].bytes == held.sealed + held.open
        assert decode.ops == 2 * (linear + head) + per_pair * (n + 1)
        # Vectors and the row of the embedding aside, a step reads all weights once.
        vectors = 4 * spec.hidden * (2 * spec.layers + 1)
        embedding = 0 if spec.tied else head * 2
        matrices = kinds["linear"].bytes + kinds["head"].bytes
        assert matrices == llm.weight_bytes - vectors - embedding
        assert kinds["embed"].bytes == (kinds["head"].bytes / spec.vocab)
        assert decode.bytes == matrices + kinds["attend"].bytes + kinds["embed"].bytes
        prefill = sequence.phases.prefill
        assert (prefill.steps, prefill.tokens) == (1, n)
        assert prefill.ops == 2 * (n * linear + head) + per_pair * n * (n + 1) // 2


def test_operations_are_told_apart_by_their_arithmetic(tiny_llama, ids):
    def attend_of(kv):
        with opened(tiny_llama, kv=kv) as llm, llm.sequence(prefix=False) as sequence:
            sequence.append(ids[:150])
            with llm.profile() as seen:
                sequence.append(ids[150:151])
            return seen.kinds["attend"], llm.spec

    exact, spec = attend_of("int8,attention=f32")
    coded, _ = attend_of("int8")
    each = 2 * 2 * spec.heads * spec.head_dim * spec.layers
    assert (exact.int8_ops, exact.f32_ops) == (0, 151 * each)
    assert (coded.int8_ops, coded.f32_ops) == (128 * each, 23 * each)


def test_a_batch_reads_the_weights_once(llm, ids):
    with llm.profile() as alone:
        llm.generate([ids[:9]], octavo.SamplingParams(temperature=0, max_tokens=1))
    with llm.profile() as both:
        llm.generate([ids[:9], ids[20:29]], octavo.SamplingParams(temperature=0, max_tokens=1))
    assert alone.whole.steps == both.whole.steps == 1
    assert both.kinds["linear"].bytes == alone.kinds["linear"].bytes
    assert both.kinds["linear"].f32_ops == 2 * alone.kinds["linear"].f32_ops


def test_results_carry_phases_and_times(llm, ids):
    params = octavo.SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    first, second = llm.generate([ids[:100], ids[30:40]], params)
    for out, length in ((first, 100), (second, 10)):
        m = out.metrics
        assert m.prefill.tokens + out.num_cached_tokens == length
        assert m.decode.tokens == m.decode.steps == 4
        assert m.arrival_time < m.first_token_time < m.finished_time
        assert 0 < m.first_token_s < m.finished_time - m.arrival_time
        for phase in (m.prefill, m.decode):
            assert phase.seconds > 0 and phase.bytes > 0 and phase.ops > 0
            assert phase.gbs == pytest.approx(phase.bytes / phase.seconds / 1e9)
            assert phase.gops == pytest.approx(phase.ops / phase.seconds / 1e9)
        assert "tok/s" in str(m)
    assert first.metrics.prefill.steps > 1, "48 rows a step"


def test_a_step_of_several_completions_counts_once_for_their_request(llm, ids):
    params = octavo.SamplingParams(n=3, temperature=1, seed=1, max_tokens=5, ignore_eos=True)
    with llm.profile() as all_steps:
        (out,) = llm.generate([ids[50:70]], params)
    m = out.metrics
    assert (m.prefill.tokens + out.num_cached_tokens, m.prefill.steps) == (20, 1)
    assert (m.decode.tokens, m.decode.steps) == (3 * 4, 4)
    assert m.prefill.seconds + m.decode.seconds == pytest.approx(all_steps.whole.seconds)
    assert m.prefill.bytes + m.decode.bytes == all_steps.whole.bytes


def test_profile_times_all_kinds_and_nothing_outside_its_block(llm, ids):
    with llm.profile() as profile, llm.sequence(prefix=False) as sequence:
        sequence.append(ids[:130])
    assert profile.whole.tokens == 130 and profile.whole.steps == 3
    assert set(profile.kinds) <= set(KINDS)
    assert {"linear", "attend", "head", "seal"} <= set(profile.kinds)
    assert all(cost.seconds > 0 for cost in profile.kinds.values())
    assert sum(cost.seconds for cost in profile.kinds.values()) <= profile.whole.seconds
    llm.prefill(ids[200:210]).close()
    assert profile.whole.steps == 3
    machine = octavo.machine(1, seconds=0.01)
    text = str(profile.table(machine))
    assert "linear" in text and "of roof" in text and "around" in text
    assert "<table>" in profile.table(machine)._repr_html_()


def test_share_of_the_roof_is_the_longer_of_reading_and_computing():
    machine = octavo.Machine(
        "cpu", "scalar", 1, 0, int8_ops=100.0, tile_ops=0.0, f32_ops=10.0, read_bytes=50.0
    )
    cost = Cost(seconds=4.0, bytes=100.0, int8_ops=100.0, f32_ops=0.0)
    assert cost.floor(machine) == 2.0 and cost.of_roof(machine) == 0.5
    cost = Cost(seconds=4.0, bytes=100.0, int8_ops=100.0, f32_ops=20.0)
    assert cost.floor(machine) == 3.0 and cost.of_roof(machine) == 0.75
    assert np.isnan(Cost().of_roof(machine)) and np.isnan(Cost().gbs)
