"""Quantized safetensors written and decoded by plain NumPy, sharing no code with `octavo`.

Of each format: the parts of a matrix from its codes and scales, and the values that such parts mean
(float32, computed element by element as docs/formats.md C3 writes it). `pack_folder` turns matrices
of a folder of `fixtures.write_folder` into one of the formats.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Parts = dict[str, Array]
F32 = npt.NDArray[np.float32]

INT4 = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "kv_cache_scheme": None,
    "quantization_status": "compressed", "ignore": [],
    "config_groups": {"group_0": {
        "targets": ["Linear"], "input_activations": None, "output_activations": None,
        "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
                    "group_size": 32, "actorder": None, "dynamic": False, "block_structure": None,
                    "observer": "minmax", "observer_kwargs": {}},
    }},
}  # fmt: skip
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
       "weight_block_size": [128, 128]}  # fmt: skip
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}


def int4_parts(name: str, codes: Array, scales: Array) -> Parts:
    """Pack codes -8..7 [n, k] and scales [n, k/32] of module `name`: eight codes a word."""
    n, k = codes.shape
    words = np.zeros((n, k // 8), np.uint32)
    for i in range(8):
        words |= (codes[:, i::8] + 8).astype(np.uint32) << np.uint32(4 * i)
    return {
        f"{name}.weight_packed": words.view(np.int32),
        f"{name}.weight_scale": scales,
        f"{name}.weight_shape": np.array([n, k], np.int32),
    }


def int4_values(codes: Array, scales: Array) -> F32:
    """code * scale of its group of 32."""
    column = np.arange(codes.shape[1])
    return codes.astype(np.float32) * scales.astype(np.float32)[:, column // 32]


def e4m3_values(codes: Array) -> F32:
    """What bytes of e4m3fn mean, from sign, exponent and mantissa."""
    sign = np.where(codes >> 7, -1.0, 1.0)
    exponent, mantissa = (codes >> 3 & 15).astype(int), (codes & 7) / 8.0
    small, normal = mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7)
    values = sign * np.where(exponent == 0, small, normal)
    return np.where(codes & 127 == 127, np.nan, values).astype(np.float32)


def fp8_parts(name: str, codes: Array, scales: Array) -> Parts:
    """Bytes of e4m3 [n, k] and their scales [ceil(n/128), ceil(k/128)]."""
    return {f"{name}.weight": codes.view(ml_dtypes.float8_e4m3fn),
            f"{name}.weight_scale_inv": scales}  # fmt: skip


def fp8_values(codes: Array, scales: Array) -> F32:
    """e4m3 * scale of its block, rounded to float32 once."""
    row, column = np.indices(codes.shape)
    return e4m3_values(codes) * scales.astype(np.float32)[row // 128, column // 128]


def mxfp4_parts(name: str, codes: Array, scales: Array) -> Parts:
    """Codes 0..15 [experts, n, k] and scale bytes [experts, n, k/32]: sixteen bytes a group."""
    e, n, k = codes.shape
    grouped = codes.reshape(e, n, k // 32, 32).astype(np.uint8)
    return {f"{name}_blocks": grouped[..., 0::2] | grouped[..., 1::2] << 4,
            f"{name}_scales": scales}  # fmt: skip


def mxfp4_values(codes: Array, scales: Array) -> F32:
    """e2m1 * 2^(byte - 127), in float64, where every product is exact."""
    magnitude = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])[codes & 7]
    power = 2.0 ** (np.repeat(scales, 32, axis=-1).astype(np.float64) - 127)
    return (np.where(codes & 8, -magnitude, magnitude) * power).astype(np.float32)


def _to_int4(name: str, w: F32) -> tuple[Parts, F32]:
    top = np.abs(w.reshape(len(w), -1, 32)).max(axis=2)
    scales = (top / 7.5).astype(ml_dtypes.bfloat16)
    wide = np.repeat(scales.astype(np.float32), 32, axis=1)
    codes = np.clip(np.rint(w / wide), -8, 7).astype(int)
    return int4_parts(name, codes, scales), int4_values(codes, scales)


def _to_fp8(name: str, w: F32) -> tuple[Parts, F32]:
    scales = np.ones([-(-extent // 128) for extent in w.shape], np.float32)
    row, column = np.indices(w.shape)
    np.maximum.at(scales, (row // 128, column // 128), np.abs(w) / 448)
    codes = (w / scales[row // 128, column // 128]).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return fp8_parts(name, codes, scales), fp8_values(codes, scales)


_TO: Mapping[str, tuple[Callable[[str, F32], tuple[Parts, F32]], dict[str, Any]]] = {
    "int4": (_to_int4, INT4), "fp8": (_to_fp8, FP8),
}  # fmt: skip


def pack_folder(path: Path, method: str, modules: str) -> dict[str, Array]:
    """Quantize the modules of a folder whose names match a pattern, in place.

    Returns
    -------
    dict
        All weights by name as float32: of those modules what their codes and scales mean.
    """
    from safetensors.numpy import load_file, save_file

    quantize, config = _TO[method]
    stored: Parts = {}
    meant: Parts = {}
    for name, w in load_file(path / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if re.fullmatch(modules, module):
            parts, meant[name] = quantize(module, w.astype(np.float32))
            stored |= parts
        else:
            stored[name], meant[name] = w, w.astype(np.float32)
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    plain = [n.removesuffix(".weight") for n in stored if n.endswith(".weight")]
    config = config | {"ignore": plain} if method == "int4" else config
    whole = json.loads((path / "config.json").read_text()) | {"quantization_config": config}
    (path / "config.json").write_text(json.dumps(whole))
    return meant
