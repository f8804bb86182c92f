"""Adding a page format is one folder and one line: a copy of the tree gets a throw-away format that
has `layout`, `seal` and `decode` alone, is built with the scalar column (which is also what other
processors get), and then serves a cache under law one, by name, with nothing else touched."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
/* fix8: a throw-away page format. 8-bit codes, value = code / 16, no scales; [64][d] in both roles.
 */
#include <math.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/num.h"

static oct_kstatus layout(int d, oct_role role, oct_page_layout *out)
{
    (void)role;
    if (d < 16 || d % 16 || d > OCT_MAX_HEAD_DIM) return OCT_K_NONFINITE;
    *out = (oct_page_layout){.bytes = (size_t)d * OCT_PAGE_TOKENS, .group = d, .parts = 1};
    out->part[0] = (oct_part){.name = "codes", .dtype = OCT_I8, .ndim = 2, .split = 1,
                              .shape = {OCT_PAGE_TOKENS, d}, .axes = {0, 1},
                              .rows = OCT_PAGE_TOKENS, .cols = d};
    return OCT_K_OK;
}

static oct_kstatus seal(const oct_seal_args *a)
{
    int8_t *code = a->block;
    const uint16_t *x = a->x;
    for (int t = 0; t < OCT_PAGE_TOKENS; t++)
        for (int c = 0; c < a->d; c++) {
            const float q = rintf(oct_bf16_to_f32(x[(size_t)t * a->ldx + (size_t)c]) * 16.0f);
            code[t * a->d + c] = (int8_t)fminf(fmaxf(q, -127.0f), 127.0f);
        }
    return OCT_K_OK;
}

static oct_kstatus decode(const oct_decode_args *a)
{
    const int8_t *code = a->block;
    for (int t = 0; t < a->tokens; t++)
        for (int c = 0; c < a->d; c++) {
            const size_t at = a->role == OCT_ROLE_K ? (size_t)(c * OCT_PAGE_TOKENS + t)
                                                    : (size_t)(t * a->d + c);
            a->out[at] = (float)code[t * a->d + c] / 16.0f;
        }
    return OCT_K_OK;
}

const oct_page_kernels oct_page_fix8_scalar = {.layout = layout, .seal = seal, .decode = decode};
"""
LINE = "OCT_PAGE(fix8, OCT_BF16, OCT_FORM_F32, YES, NO, NO, NO, NO)\n"
USE = """
import numpy as np
import octavo
from octavo import _core
assert _core.Runtime().isa == "scalar"
assert "fix8" in {row[1] for row in _core.Runtime().kernels()}
rng = np.random.default_rng(0)
k, v = (rng.standard_normal((1, 150, 2, 32)).astype(np.float32) for _ in "kv")
q = rng.standard_normal((3, 4, 32)).astype(np.float32)
results = []
for cuts in ([150], [64, 128, 150], list(range(1, 151))):
    with octavo.Cache(1, 2, 32, kv="fix8") as cache:
        at = 0
        for end in cuts:
            cache.append(k[:, at:end], v[:, at:end])
            at = end
        results.append(cache.attend(q))
        page = cache.page(0, 0).k
        want = np.clip(np.rint(k[0, :64].transpose(1, 0, 2) * 16), -127, 127) / 16
        assert np.abs(page.dequantize() - want).max() <= 1 / 16, "a bf16 tie at most"
        assert page.codes.shape == (2, 64, 32) and not page.codes.flags.writeable
        del page
for other in results[1:]:
    np.testing.assert_array_equal(results[0], other)
print("law one holds")
"""


@pytest.mark.skipif("OCTAVO_SANITIZER" in os.environ, reason="builds an extension of its own")
def test_a_page_format_is_one_folder_and_one_line(tmp_path):
    for folder in ("kernels", "csrc", "python"):
        skip = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", "probe*.c", "*_avx*.c")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "csrc/py/probe.c").write_text('#include "csrc/py/numpy_api.h"\n')
    folder = tmp_path / "kernels/page/fix8"
    folder.mkdir()
    (folder / "fix8_scalar.c").write_text(SOURCE)
    with (tmp_path / "kernels/pages.def").open("a") as table:
        table.write(LINE)

    def run(*argv, **env):
        done = subprocess.run(
            [sys.executable, *argv], cwd=tmp_path, env={**os.environ, **env}, timeout=300,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("setup.py", "-q", "build_ext", "--inplace", OCTAVO_BUILD="portable")
    out = run("-c", USE, PYTHONPATH=str(tmp_path / "python"), OCTAVO_ISA="")
    assert out.strip() == "law one holds"
