"""Quantized safetensors checkpoints: which format a `config.json` names, and what formats share.

A format is one file beside this one with `reader_of(path, config)`: it proves the config at once
and returns a function that puts logical tensors in the place of the parts. No weight is read.
"""

from importlib import import_module

from octavo.quantization_config import quantization_in

from .source import fail, unsupported

# quant_method to the file of its format
FORMATS = {
    "compressed-tensors": "packed_int4",
    "fp8": "fp8_blocks",
    "mxfp4": "mxfp4",
}
FLOATS = ("F32", "F16", "BF16")
MAX_LOGICAL = 1 << 18  # as many tensors as an index may name


def reader_of(path, config):
    """Return what turns stored tensors into logical ones, as the config's quantization says.

    Parameters
    ----------
    path : path-like
        Of ``config.json``, for messages.
    config : dict
        `quantization_config` stands at its top or in its ``text_config``.

    Returns
    -------
    callable
        From a dict of tensors by name to another; without a quantization it is the same.

    Raises
    ------
    CheckpointError
        If the config is malformed.
    UnsupportedError
        If it names a method or a setting that is not read.
    """
    found = quantization_in(config, path)
    if found is None:
        return lambda tensors: tensors
    method = found.get("quant_method")
    if not isinstance(method, str) or method not in FORMATS:
        read = f"{', '.join(FORMATS)}; else use the unquantized checkpoint or a .gguf file"
        raise unsupported(path, "quantization_config.quant_method", repr(method), read)
    return import_module(f".{FORMATS[method]}", __package__).reader_of(path, found)


def require(path, where, table, legal):
    """Hold fields of a config to the values that are read, None standing for an absent one.

    Raises
    ------
    UnsupportedError
        At the first field of another value.
    """
    for field, values in legal.items():
        if table.get(field) not in values:
            read = " or ".join("null" if v is None else repr(v) for v in values)
            raise unsupported(path, f"{where}.{field}", repr(table.get(field)), read)


def part(tensors, whole, name):
    """Return the tensor `name`, without which the tensor `whole` cannot be read."""
    found = tensors.get(name)
    if found is None:
        raise fail(tensors[whole].path, f"tensor {name!r}", "missing", f"one beside {whole!r}")
    return found


def expect(tensor, types, shape):
    """Hold one part to its dtypes and shape.

    Raises
    ------
    CheckpointError
        Naming the tensor, what it is and what is legal.
    """
    if tensor.type in types and tensor.shape == shape:
        return
    value = f"{tensor.type} of shape {list(tensor.shape)}"
    legal = f"{' or '.join(types)} of shape {list(shape)}"
    raise fail(tensor.path, f"tensor {tensor.name!r}", value, legal)


def stray(tensor, legal):
    """Build the error about a part that nothing has room for."""
    return fail(tensor.path, "tensor", repr(tensor.name), legal)
