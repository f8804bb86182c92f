"""Plans of the large models, against figures worked out by hand from their configs: parameters,
bytes of weights in their published forms, bytes of caches, and what follows for memories."""

import json
import math

import pytest

import octavo
from octavo.plan.machine import tables
from octavo.plan.quantization import Grid

CONTEXT = 262_144
GIB = 1 << 30
# Latent of 512 in the format, key of 64 as open rows: bytes per token and layer, and of 61 layers,
# GiB at the context, and how many times less than bf16.
CELLS = {
    "f32": (2304, 140_544, 34.312, 0.5), "f16": (1152, 70_272, 17.156, 1.0),
    "bf16": (1152, 70_272, 17.156, 1.0), "fp8": (648, 39_528, 9.650, 1.78),
    "int8": (648, 39_528, 9.650, 1.78), "int4": (400, 24_400, 5.957, 2.88),
}  # fmt: skip


@pytest.fixture(scope="module")
def kimi():
    return octavo.plan("kimi-k2.5", CONTEXT, "int4", memory="24GiB,512GiB", bandwidth="400GB/s")


def test_parameters(kimi):
    w = kimi.weights
    assert w.parameters == 1_026_408_232_448
    assert w.active_parameters == 31_687_095_808
    assert w.expert_parameters == 44_040_192
    assert w.part("attention").parameters == 61 * 101_124_096
    embedding, head = w.part("embedding").parameters, w.part("head").parameters
    assert w.other_parameters == 11_722_208_768
    assert w.other_parameters - embedding == 10_547_803_648
    assert w.other_parameters - embedding - head == 9_373_398_528
    assert w.parameters_without_embedding == 1_026_408_232_448 - 163_840 * 7168


def test_bytes_of_weights(kimi):
    w = kimi.weights
    assert w.expert_bytes == 24_772_608
    gate, down = (Grid(4, (1, 32), 2, packed=True).stored(*n) for n in ((2048, 7168), (7168, 2048)))
    assert 2 * gate.codes + down.codes == 22_020_096
    assert 2 * gate.scales + down.scales == 2_752_512
    assert w.part("routed experts").nbytes == 570_760_888_320
    assert w.file_bytes == 594_205_904_896
    shapes = 60 * 384 * 3 * 8
    assert w.nbytes == 594_205_904_896 - shapes


def test_bytes_read_by_a_token(kimi):
    assert kimi.weights.routed_read == 11_890_851_840
    # The figure is of bf16 throughout; the routers' biases are float32.
    assert kimi.weights.other_read - 2 * 60 * 384 == 21_095_607_296
    assert kimi.read_bytes == 11_890_851_840 + 21_095_607_296 + 2 * 60 * 384 + 6_396_313_600


def test_cache_of_bf16_and_of_whole_heads():
    plan = octavo.plan("kimi-k2.5")
    assert plan.context == CONTEXT and plan.kv.scheme == "bf16"
    assert plan.kv.token_bytes == 70_272
    assert plan.kv_bytes == 18_421_383_168
    assert plan.full_token_bytes == 2_498_560
    assert plan.full_token_bytes * CONTEXT == 610 * GIB
    assert round(plan.full_token_bytes / plan.kv.token_bytes, 1) == 35.6


def test_operations_of_attention(kimi):
    assert kimi.attention_ops == 61 * 139_264
    assert round(kimi.attention_ops * CONTEXT / 1e12, 3) == 2.227


@pytest.mark.parametrize("model", ["kimi-k2.5", "kimi-k2", "deepseek-v3"])
def test_latent_cells(model):
    for kv in octavo.plan(model).formats:
        if kv.scheme in CELLS:
            gib, less = kv.nbytes(CONTEXT) / GIB, 70_272 / kv.token_bytes
            cell = (kv.token_bytes // 61, kv.token_bytes, round(gib, 3), round(less, 2))
            assert cell == CELLS[kv.scheme]
            assert kv.page_bytes == 64 * CELLS[kv.scheme][1]


def test_every_page_format_is_compared(kimi):
    assert [kv.scheme for kv in kimi.formats] == list(tables().pages)
    assert {*CELLS} <= {kv.scheme for kv in kimi.formats}


def test_what_fits(kimi):
    small, large = kimi.fits
    others = kimi.weights.other_bytes
    assert others == 11_722_208_768 * 2 + 2 * 60 * 384
    assert (small.memory, large.memory) == (24 * GIB, 512 * GIB)
    assert not small.weights and small.contexts == small.tokens == 0
    assert small.others and small.experts == (24 * GIB - others) // 24_772_608 == 93
    assert not small.others_and_context and small.experts_and_context == 0
    need = 6_396_313_600 + 64 * 70_272  # a page is open while it fills
    assert large.others_and_context
    assert large.experts_and_context == (512 * GIB - others - need) // 24_772_608


@pytest.mark.parametrize("contexts", [0, 1, 3])
def test_contexts_fit_to_the_byte(contexts):
    one = octavo.plan("kimi-k2.5", 1000)
    need = 15 * one.kv.page_bytes + 64 * one.kv.row_bytes
    exact = one.weights.nbytes + contexts * need
    fits = octavo.plan("kimi-k2.5", 1000, memory=[exact, exact - 1]).fits
    assert [f.contexts for f in fits] == [contexts, max(0, contexts - 1)]
    assert [f.weights for f in fits] == [True, contexts > 0]
    assert [f.weights_and_context for f in fits] == [contexts > 0, contexts > 1]


def test_all_experts_are_the_most_that_fit():
    (fit,) = octavo.plan("kimi-k2.5", memory="2 TiB").fits
    assert fit.experts == fit.experts_and_context == 60 * 384


def test_ceilings(kimi):
    empty, full = kimi.ceilings
    assert (empty.context, full.context) == (0, CONTEXT)
    assert full.read_bytes == kimi.read_bytes
    assert full.read_bytes - empty.read_bytes == 6_396_313_600
    assert full.tokens_per_s == pytest.approx(400e9 / kimi.read_bytes) and full.bound == "reading"
    # Two for each weight of a matrix that a token meets: norms and biases are not products.
    vectors = 61 * (2 * 7168 + 1536 + 512) + 7168 + 60 * 384
    assert empty.ops == 2 * (31_687_095_808 - vectors)
    assert full.ops == empty.ops + 61 * 139_264 * CONTEXT


def test_measured_roofs_bound_operations_too():
    roofs = octavo.Machine("cpu", "isa", 2, 1 << 20, 1e12, 4e12, 2e11, 4e11)
    empty, full = octavo.plan("kimi-k2.5", kv="int4", bandwidth=roofs).ceilings
    assert empty.bound == "reading"
    assert full.bound == "computing"
    assert full.tokens_per_s == pytest.approx(4e12 / full.ops)


def test_fp8_blocks_are_ragged():
    """kv_a's 576 rows are five blocks; a router, the head and vectors have none."""
    w = octavo.plan("deepseek-v3").weights

    def fp8(n, k):
        return n * k + 4 * math.ceil(n / 128) * math.ceil(k / 128)

    expert = 2 * fp8(2048, 7168) + fp8(7168, 2048)
    assert w.expert_bytes == expert and w.expert_count == 58 * 256
    attention = fp8(1536, 7168) + fp8(24576, 1536) + fp8(576, 7168) + fp8(32768, 512)
    attention += fp8(7168, 16384) + 2 * (1536 + 512)
    assert w.part("attention").nbytes == 61 * attention
    assert w.part("routers").nbytes == 58 * 256 * (2 * 7168 + 4)
    assert w.part("head").nbytes == w.part("embedding").nbytes == 2 * 129_280 * 7168
    assert w.parameters == 671_026_419_200


def test_text_html_and_json(kimi):
    text, html = repr(kimi), kimi._repr_html_()
    for figure in ("1,026,408,232,448", "31,687,095,808", "6,396,313,600", "24,772,608"):
        assert figure in text and figure in html
    assert "24.00 GiB" in text and "93 (1 a layer)" in text and "400 GB/s" in text
    found = json.loads(kimi.to_json())
    assert found["weights"]["expert_bytes"] == 24_772_608
    assert found["kv"]["nbytes"] == 6_396_313_600
    assert found["fits"][0]["experts"] == 93
    assert len(found["formats"]) == len(tables().pages)


def test_unverified_fields_are_named():
    assert "rms_norm_eps" in repr(octavo.plan("kimi-k2"))
    assert "not confirmed" not in repr(octavo.plan("kimi-k2.5"))
