"""Plans of models with windows: what a token reads is what a step counts; MXFP4 in files."""

import json

import pytest
from oracle import fixtures, gemma3, gpt_oss

import octavo
from octavo.model import spec_of
from octavo.plan.kv import attention_ops, kv_cost
from octavo.scheme import KVScheme

WRITERS = {"gemma3": gemma3.write_folder, "gpt_oss": gpt_oss.write_folder}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    out = {name: tmp_path_factory.mktemp(name) for name in WRITERS}
    for name, path in out.items():
        WRITERS[name](path)
    return out


@pytest.mark.core
@pytest.mark.parametrize("kv", ["bf16", "k8v4", "int8,sinks=1,recent=1", "int4,layer0=bf16"])
@pytest.mark.parametrize("family", WRITERS)
def test_what_a_token_reads_is_what_its_step_counts(folders, family, kv):
    ids = fixtures.tokenizer().encode(fixtures.text()).ids
    with octavo.LLM(folders[family], kv=kv, progress=False) as llm:
        cost = octavo.plan(llm).kv
        assert cost.windows and cost.read(0) == 0
        for n in (39, 75, 130, 200, 263):  # no multiple of 16: the token's own row is in a unit
            with llm.sequence(prefix=False) as sequence:
                sequence.append(ids[:n])
                with llm.profile() as seen:
                    sequence.append(ids[n : n + 1])
                assert seen.kinds["attend"].bytes == cost.read(n), n
                held = sequence.kv.bytes()
                assert held.sealed + held.open == cost.nbytes(n + 1), "nothing is let go"
                assert seen.kinds["attend"].ops == attention_ops(llm.spec, n + 1)


def test_layers_without_windows_read_everything():
    spec = spec_of(gemma3.config_of(gemma3.Shape(period=1)), "t")
    cost = kv_cost(spec, KVScheme("int8"))
    assert cost.windows == () and cost.read(1000) == cost.nbytes(1000)
    assert attention_ops(spec, 1000) == 1000 * attention_ops(spec)


def test_gpt_oss_20b_from_its_config(tmp_path):
    shape = gpt_oss.Shape(layers=24, hidden=2880, heads=64, kv_heads=8, head_dim=64, window=128,
                          experts=32, top=4, inner=2880, vocab=201088)  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(gpt_oss.config_of(shape)))
    plan = octavo.plan(tmp_path, bandwidth="100GB/s")
    w = plan.weights
    assert w.parameters == 20_914_757_184
    weights, biases = 24 * 32 * 3 * 2880 * 2880, 24 * 32 * 3 * 2880
    assert w.part("routed experts").parameters == weights + biases
    assert w.part("routed experts").nbytes == weights * 17 // 32 + 2 * biases
    assert w.file_bytes == 13_761_264_768, "of the published files, without their headers"
    assert w.products == 24 * (4 * 3 * 2880**2 + 2880 * (2 * 4096 + 2 * 512 + 32)) + 201088 * 2880
    # A full layer's token is 2,048 bytes in bf16; the others read 128 to 191 tokens.
    assert plan.kv.token_bytes == 24 * 2048
    first = (131072 - 127) // 64 * 64
    assert plan.kv.read(131072) == 12 * 2048 * (131072 + 131072 - first)
    assert plan.ceilings[1].ops == 2 * w.products + 2 * 2 * 4096 * 12 * (131072 + 128)
