"""gpt-oss and Gemma3: what their specs and programs say, the published numbers, what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
from oracle import gemma3, gpt_oss
from test_families import Tensor, folder_like

from octavo import _core
from octavo.checkpoint import open_checkpoint
from octavo.engine.packing import Packed
from octavo.errors import CheckpointError, UnsupportedError
from octavo.model import check_tensors, model_of, spec_of
from octavo.model.fields import Fields
from octavo.model.rope import frequencies
from octavo.model.windows import windows_of
from octavo.scheme import WeightScheme

GPT_OSS_20B = gpt_oss.config_of(gpt_oss.Shape(
    layers=24, hidden=2880, heads=64, kv_heads=8, head_dim=64, window=128, experts=32, top=4,
    inner=2880, vocab=201088))  # fmt: skip
# As published: the text model's numbers are what differs from the code's defaults.
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
        "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16", "vision_config": {},
}  # fmt: skip
GEMMA3_1B = gemma3.config_of(gemma3.Shape(
    layers=26, period=6, hidden=1152, heads=4, kv_heads=1, head_dim=256, scalar=256.0, ffn=6912,
    window=512, vocab=262144)) | {"rope_scaling": None}  # fmt: skip


@pytest.fixture(scope="module")
def oss(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpt_oss")
    gpt_oss.write_folder(path)
    return path


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    path = tmp_path_factory.mktemp("gemma3")
    gemma3.write_folder(path)
    return path


def test_the_published_numbers_of_gpt_oss():
    spec = spec_of(GPT_OSS_20B, "20b")
    assert spec.windows == (128, 0) * 12 and spec.softmax_scale == 0.125
    assert spec.rope.mscale == pytest.approx(1.3465736, abs=1e-7)
    # Pairs up to 8 keep their frequency, from 18 on they are 32 times as slow, without rounding.
    plain = frequencies(64, 150000.0).freq
    ratio = plain / spec.rope.freq
    assert (ratio[:9] == 1).all() and np.allclose(ratio[18:], 32, rtol=1e-6)
    share = (12 - 8.09278) / (17.39802 - 8.09278)
    assert ratio[12] == pytest.approx(1 / (share / 32 + 1 - share), rel=1e-5)
    assert spec.parameters == 20_914_757_184


def test_the_published_numbers_of_gemma3():
    spec = spec_of(GEMMA3_4B, "4b")
    assert (spec.heads, spec.kv_heads, spec.head_dim, spec.context) == (8, 4, 256, 131072)
    assert (spec.vocab, spec.tied, spec.eps, spec.embed_scale) == (262208, True, 1e-6, 50.5)
    assert spec.windows == ((1024,) * 5 + (0,)) * 5 + (1024,) * 4
    assert spec.rope.freq[0] == 0.125 and spec.local_rope.freq[0] == 1
    assert spec.rope.freq[1] == np.float32(1e6 ** (-2 / 256) / 8)
    assert spec.local_rope.freq[1] == np.float32(1e4 ** (-2 / 256))
    assert spec.parameters == 3_880_099_328 + 64 * 2560, "with 64 ids for images"
    small = spec_of(GEMMA3_1B, "1b")
    assert small.windows == ((512,) * 5 + (0,)) * 4 + (512,) * 2
    assert (small.embed_scale, small.rope.freq[0], small.parameters) == (34.0, 1.0, 999_885_952)


def test_the_program_of_gpt_oss(oss):
    with open_checkpoint(oss) as checkpoint:
        spec, program = model_of(checkpoint)
    kinds = ["norm_linear", "attend", "linear_add", "moe"]
    assert [op.kind for op in program.ops] == ["embed", *kinds * 4, "norm", "head"]
    qkv, attend, out, moe = program.ops[5:9]
    assert qkv.bias == tuple(f"layers.1.attn.{p}.bias" for p in "qkv")
    assert (attend.window, attend.sinks, attend.rope) == (0, "layers.1.attn.sinks", 0)
    assert program.ops[2].window == 48 and len(program.ropes) == 1
    assert (out.bias, out.out_norm) == (("layers.1.attn.o.bias",), None)
    assert moe.bias == ("layers.1.moe.router.logit_bias", None)
    assert moe.biases[5] == tuple(f"layers.1.moe.5.{p}.bias" for p in ("gate", "up", "down"))
    assert (moe.activation, moe.moe.score) == ("clamped_silu", "top")
    uses = {u.role: u for u in spec.uses}
    assert uses["layers.1.attn.sinks"].tensor == "model.layers.1.self_attn.sinks"
    low = program.lowered({role: i for i, role in enumerate(uses)})["ops"][4]
    assert low["biases"].dtype == np.int32 and low["biases"].shape == (6, 3)


def test_the_program_of_gemma3(gemma):
    with open_checkpoint(gemma) as checkpoint:
        spec, program = model_of(checkpoint)
    embed, _, attend, out, mlp = program.ops[:5]
    assert embed.scale == 9.8125, "the root of 96 in bfloat16"
    assert (attend.window, attend.rope, attend.scale) == (40, 1, 24**-0.5)
    assert (program.ops[10].window, program.ops[10].rope) == (0, 0), "layer 2 is global"
    assert (out.out_norm, mlp.out_norm) == ("layers.0.attn.out_norm", "layers.0.mlp.out_norm")
    assert (mlp.norm, mlp.activation) == ("layers.0.mlp.norm", "gelu_tanh")
    norms = [u for u in spec.uses if u.offset]
    assert len(norms) == 5 * 6 + 1 and {u.offset for u in norms} == {1.0}
    assert all(len(u.shape) == 1 for u in norms)
    assert next(u for u in norms if u.role == "layers.0.mlp.norm").tensor.endswith(
        "layers.0.pre_feedforward_layernorm.weight"
    )
    assert [s.window for s in spec.cache_layers] == [40, 40, 0, 40, 40]


def test_norms_are_one_more_in_float32(gemma):
    """What is loaded is the float32 sum, as the model's own code has it."""
    runtime = _core.Runtime(1)
    with open_checkpoint(gemma) as checkpoint:
        spec, _ = model_of(checkpoint)
        use = next(u for u in spec.uses if u.role == "norm")
        want = checkpoint.tensors[use.tensor].dequantize() + np.float32(1)
        only, scheme = SimpleNamespace(uses=[use]), WeightScheme.parse("checkpoint")
        packed = Packed(runtime, checkpoint, only, scheme, progress=False)
    # The norm of a row of ones, without eps, is the vector itself.
    ones = np.ones((1, 96), np.float32)
    embed = packed.core.matrix("f32", 1, 96, ones, source="values", values_type="f32",
                               row_stride=384)  # fmt: skip
    ops = [{"kind": "embed", "out": [0], "w": [embed]},
           {"kind": "norm", "in": 0, "out": [1], "norm": packed.ids["norm"]},
           {"kind": "head", "in": 1, "w": [embed]}]  # fmt: skip
    program = _core.Program(packed.core, widths=[96, 96], ops=ops, ropes=[], act="a32")
    layer = {"kv_heads": 1, "k_width": 16, "v_width": 16, "k_format": "f32", "v_format": "f32"}
    cache = _core.Cache(runtime, [layer], budget=1 << 16)
    items = [(cache.open(), np.zeros(1, np.int32), 1)]
    (got,) = _core.step(program, cache, items, captures=[(1, 1)])["captures"]
    np.testing.assert_array_equal(got[0], want)


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"layer_types": ["full_attention"] * 3}, CheckpointError, "layer_types .* a list of 4"),
        ({"layer_types": "full_attention"}, CheckpointError, "layer_types"),
        ({"layer_types": ["full_attention"] * 3 + ["chunked_attention"]}, UnsupportedError,
         "layer_types has 'chunked_attention'"),
        ({"layer_types": [["full_attention"]] * 4}, UnsupportedError, "layer_types"),
        ({"sliding_window": 0}, CheckpointError, "sliding_window is 0"),
        ({"sliding_window": None}, CheckpointError, "sliding_window is missing"),
        ({"sliding_window": "48"}, CheckpointError, "sliding_window"),
        ({"swiglu_limit": 5.0}, UnsupportedError, "swiglu_limit is 5.0"),
        ({"swiglu_alpha": 1.0}, UnsupportedError, "swiglu_alpha"),
        ({"hidden_act": "gelu"}, UnsupportedError, "hidden_act"),
        ({"num_local_experts": 7}, CheckpointError, "router.weight.* has shape"),
        ({"num_experts_per_tok": 7}, CheckpointError, "num_experts_per_tok is 7"),
        ({"attention_bias": False}, CheckpointError, "self_attn.*bias.* is not part of"),
        ({"attention_bias": 1}, CheckpointError, "attention_bias"),
        ({"drop": ["model.layers.1.self_attn.sinks"]}, CheckpointError, "sinks.* is missing"),
        ({"tensors": {"model.layers.1.self_attn.sinks": Tensor([5])}}, CheckpointError,
         r"sinks.* has shape \[5\]"),
        ({"drop": ["model.layers.0.mlp.router.bias"]}, CheckpointError, "router.bias.* is missing"),
        ({"drop": ["model.layers.0.mlp.experts.2.up_proj.bias"]}, CheckpointError,
         "experts.2.up_proj.bias"),
        ({"tensors": {"model.layers.0.mlp.experts.gate_up_proj": Tensor([6, 64, 64])}},
         UnsupportedError, "gate_up_proj.*supported: the MXFP4 checkpoint"),
        ({"rope_scaling": {"rope_type": "yarn"}}, CheckpointError, "rope_scaling"),
    ],
)  # fmt: skip
def test_what_gpt_oss_refuses(oss, change, error, says):
    with pytest.raises(error, match=says):
        model_of(folder_like(oss, **change))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"final_logit_softcapping": 30.0}, UnsupportedError, "final_logit_softcapping is 30.0"),
        ({"attn_logit_softcapping": 50.0}, UnsupportedError, "attn_logit_softcapping"),
        ({"hidden_activation": "gelu"}, UnsupportedError, "hidden_activation"),
        ({"hidden_act": "silu"}, UnsupportedError, "hidden_act"),
        ({"use_bidirectional_attention": True}, UnsupportedError, "use_bidirectional_attention"),
        ({"query_pre_attn_scalar": 0}, CheckpointError, "query_pre_attn_scalar is 0"),
        ({"query_pre_attn_scalar": None}, CheckpointError, "query_pre_attn_scalar is missing"),
        ({"sliding_window_pattern": 0}, CheckpointError, "sliding_window_pattern is 0"),
        ({"sliding_window": 1.5}, CheckpointError, "sliding_window"),
        ({"rope_local_base_freq": 1.0}, CheckpointError, "rope_local_base_freq is 1.0"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, UnsupportedError, "dynamic"),
        ({"rope_parameters": {"full_attention": 7}}, CheckpointError, "rope_scaling is 7"),
        ({"text_config": 7}, CheckpointError, "text_config is 7"),
        ({"head_dim": 31}, CheckpointError, "head_dim is 31; legal: an even width"),
        ({"head_dim": 30}, CheckpointError, "q_proj.* has shape"),
        ({"drop": ["model.layers.4.post_feedforward_layernorm.weight"]}, CheckpointError,
         "layers.4.mlp.out_norm.* is missing"),
        ({"tensors": {"vision_tower.x": Tensor([4])}}, CheckpointError, "vision_tower.x"),
    ],
)  # fmt: skip
def test_what_gemma3_refuses(gemma, change, error, says):
    with pytest.raises(error, match=says):
        model_of(folder_like(gemma, **change))


def test_a_tied_head_and_the_vision_part_are_skipped_by_rules(tmp_path):
    gemma3.write_folder(tmp_path, nested=True)
    extra = {"language_model.lm_head.weight": Tensor([300, 96])}
    checkpoint = folder_like(tmp_path, tensors=extra)
    spec, program = model_of(checkpoint)
    skipped = check_tensors(spec, checkpoint.tensors, "here")
    assert {n.partition(".")[0] for n in skipped} == {
        "language_model", "vision_tower", "multi_modal_projector",
    }  # fmt: skip
    assert "tied" in skipped["language_model.lm_head.weight"]
    assert program.ops[-1].w == ("embed",)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight' is not part"):
        model_of(folder_like(tmp_path, tensors={"lm_head.weight": Tensor([300, 96])}))


def test_patterns_and_lists_say_the_same():
    fields = {"num_hidden_layers": 7, "sliding_window": 9}
    assert windows_of(Fields(fields, "t"), 2) == (9, 0, 9, 0, 9, 0, 9)
    assert windows_of(Fields(fields, "t"), 3) == (9, 9, 0, 9, 9, 0, 9)
    assert windows_of(Fields({"num_hidden_layers": 3}, "t"), 1) == (0, 0, 0)
    kinds = ["full_attention", "sliding_attention"] * 3 + ["full_attention"]
    listed = fields | {"layer_types": kinds}
    assert windows_of(Fields(listed, "t"), 3) == (0, 9, 0, 9, 0, 9, 0)
