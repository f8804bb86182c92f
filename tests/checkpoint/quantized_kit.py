"""What the tests of quantized safetensors share: writing a folder, opening it, packing a matrix."""

import json
from types import SimpleNamespace

import numpy as np
from safetensors.numpy import save_file

from octavo import _core
from octavo.checkpoint import open_checkpoint
from octavo.engine.packing import Packed
from octavo.model import TensorUse
from octavo.scheme import WeightScheme


def write(path, tensors, quantization, *, nested=False):
    """Write one safetensors file and a config that holds `quantization`; return the folder."""
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    config = {"quantization_config": quantization}
    (path / "config.json").write_text(json.dumps({"text_config": config} if nested else config))
    return path


def opened(path, tensors, quantization, **options):
    """Write a folder and open it."""
    return open_checkpoint(write(path, tensors, quantization), **options)


def same(got, want):
    """Whether two arrays have the same dtype, shape and bits."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    np.testing.assert_array_equal(got, want)
    return got.tobytes() == want.tobytes()


def packed(checkpoint, *names, scheme="checkpoint", row_map=None):
    """Pack matrices as an LLM does: what `unpack` gives of each, and the load report."""
    uses = [TensorUse(f"layers.0.{i}", name, checkpoint.tensors[name].shape, row_map)
            for i, name in enumerate(names)]  # fmt: skip
    spec, runtime = SimpleNamespace(uses=uses), _core.Runtime(1)
    weights = Packed(runtime, checkpoint, spec, WeightScheme.parse(scheme), progress=False)
    infos = [weights.core.info(weights.ids[use.role]) for use in uses]
    arrays = [weights.core.unpack(weights.ids[use.role]) for use in uses]
    weights.core.close()
    return [i["format"] for i in infos], arrays, weights.report
