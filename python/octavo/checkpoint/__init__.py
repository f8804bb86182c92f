"""Checkpoint files to named tensors: GGUF and safetensors, from anybody, believed in nothing.

`open_checkpoint` walks the header under a guard, and returns a `Checkpoint` whose tensors are
proven byte ranges. Which tensors a model needs is the business of `octavo.model`.
"""

import os
from pathlib import Path

from octavo.errors import CheckpointError, UnsupportedError

from .tensors import Checkpoint, Tensor

__all__ = ["Checkpoint", "CheckpointError", "Tensor", "UnsupportedError", "open_checkpoint"]

_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npy", ".npz"}


def open_checkpoint(path, *, mmap=True):
    """Open a checkpoint and prove its headers.

    Parameters
    ----------
    path : path-like
        A ``.gguf`` file (of a split: the first), a folder with ``config.json`` and safetensors
        files, or one ``.safetensors`` file in such a folder.
    mmap : bool
        Map the files (tensors are views of them), or read copies: the safe choice on network
        mounts, where a vanished file would otherwise end the process with SIGBUS.

    Returns
    -------
    Checkpoint

    Raises
    ------
    CheckpointError
        If a file is malformed or lies; the message names file, place, value and what is legal.
    UnsupportedError
        If a quantized safetensors checkpoint names a method or a setting that is not read.
    FileNotFoundError, OSError
        If there is nothing to open.
    """
    path = Path(os.fsdecode(path))
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise CheckpointError(
            f"{path}: {suffix} files can run code when they are read and are never opened; "
            "legal: .gguf, .safetensors, or a folder of safetensors"
        )
    if suffix == ".gguf":
        return _open_gguf(path, mmap)
    if suffix == ".safetensors" or path.is_dir():
        from .safetensors import open_safetensors

        return open_safetensors(path, mmap=mmap)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint file or folder")
    raise CheckpointError(f"{path}: not a checkpoint; legal: .gguf, .safetensors, or a folder")


def _open_gguf(path, mmap):
    from .gguf_checks import read_gguf

    metadata, tensors, files = read_gguf(path, mmap=mmap)
    named = {t.name: Tensor(*t, file) for t, file in tensors}
    return Checkpoint(path, "gguf", metadata, named, files)
