"""One file of a checkpoint, opened once and read only through its own descriptor.

This is the door: it refuses everything but regular files, never blocks on a FIFO, and hands out
byte ranges only after comparing them with the size the kernel reports. A file that is truncated
by somebody else while a mapped view of it is being read still ends in SIGBUS; `mmap=False` copies
with `pread` instead and turns that into `CheckpointError`.
"""

import errno
import mmap
import os
import stat
from pathlib import Path

import numpy as np

from octavo.errors import CheckpointError, ClosedError, UnsupportedError

# A FIFO would block open() for ever without O_NONBLOCK; it means nothing for regular files.
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)

_READ_BYTES = 1 << 30  # one read call moves less than 2 GiB


def fail(path, what, value, legal, offset=None):
    """Build the `CheckpointError` that names file, thing, byte offset, value and legal values."""
    where = "" if offset is None else f" at byte {offset}"
    return CheckpointError(f"{path}: {what}{where} is {_short(value)}; legal: {legal}")


def unsupported(path, what, value, read):
    """Build the `UnsupportedError` that names file, thing, value and what is read instead."""
    return UnsupportedError(f"{path}: {what} is {_short(value)}, which is not read; read: {read}")


def _short(value):
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def bare_name(path, what, name):
    """Return `name` if it is a bare file name; names inside files never lead out of the folder."""
    legal = "a bare file name in the checkpoint's own folder"
    if not isinstance(name, str) or not 0 < len(name) <= 255:
        raise fail(path, what, name, legal)
    lowered = name.lower()
    if name in {".", ".."} or any(bad in lowered for bad in ("/", "\\", ":", "\0", "%2e", "%2f")):
        raise fail(path, what, repr(name), legal)
    return name


def read_whole(path, limit_bytes):
    """Return the bytes of a regular file; one of more than `limit_bytes` is refused unread."""
    file = File(path, mmap=False)
    try:
        if file.size > limit_bytes:
            raise fail(path, "size", f"{file.size} bytes", f"at most {limit_bytes} bytes")
        return file.read(0, file.size)
    finally:
        file.close()


class File:
    """A regular file held open for reading, optionally mapped.

    Parameters
    ----------
    path : path-like
        Opened with ``O_CLOEXEC | O_NONBLOCK``; links are followed.
    mmap : bool
        Map the file (``PROT_READ``, ``MAP_PRIVATE``) and hand out views, or read copies.

    Raises
    ------
    CheckpointError
        If the descriptor is not a regular file.
    OSError
        If it cannot be opened.
    """

    def __init__(self, path, *, mmap=True):
        self.path = Path(path)
        self._fd = -1
        self._fd = self._open()
        self.size = os.fstat(self._fd).st_size
        self._mapped = self._map() if mmap and self.size else None

    def _open(self):
        try:
            fd = os.open(self.path, _FLAGS)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket or a device without driver
                raise fail(self.path, "file", "not a regular file", "a regular file") from error
            raise
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            os.close(fd)
            kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device"}
            kind = kinds.get(stat.S_IFMT(mode), "not a regular file")
            raise fail(self.path, "file", kind, "a regular file")
        return fd

    def _map(self):
        mapped = mmap.mmap(self._fd, self.size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        return np.frombuffer(mapped, np.uint8)

    @property
    def closed(self):
        """Whether `close` was called."""
        return self._fd < 0

    def descriptor_path(self):
        """Return a name under which another library opens this very inode, where the OS has one."""
        name = f"/dev/fd/{self._checked_fd()}"
        return name if os.path.exists(name) else os.fspath(self.path)

    def view(self, offset, nbytes):
        """Return `nbytes` bytes from `offset` as a read-only uint8 array (a view if mapped)."""
        self._check(offset, nbytes)
        if self._mapped is not None:
            return self._mapped[offset : offset + nbytes]
        return self.copy(offset, nbytes)

    def copy(self, offset, nbytes):
        """Return `nbytes` bytes from `offset` as a fresh read-only uint8 array."""
        return np.frombuffer(self.read(offset, nbytes), np.uint8)

    def read(self, offset, nbytes):
        """Return `nbytes` bytes from `offset` as bytes, held once."""
        self._check(offset, nbytes)
        out = os.pread(self._fd, nbytes, offset)
        while len(out) < nbytes:  # a signal or a network mount may cut a read short
            more = os.pread(self._fd, nbytes - len(out), offset + len(out))
            if not more:
                raise fail(self.path, "end of file", offset + len(out), f"{nbytes} bytes more")
            out += more
        return out

    def read_into(self, buffer, offset):
        """Fill a writable memoryview of bytes from `offset`; a short file is `CheckpointError`."""
        done = 0
        while done < len(buffer):
            part = buffer[done : done + _READ_BYTES]
            got = os.preadv(self._checked_fd(), [part], offset + done)
            if got == 0:
                raise fail(self.path, "end of file", offset + done, "the size it was opened with")
            done += got

    def _check(self, offset, nbytes):
        size = os.fstat(self._checked_fd()).st_size
        if offset < 0 or nbytes < 0 or offset + nbytes > size:
            legal = f"at least {offset + nbytes} bytes (was it truncated after it was opened?)"
            raise fail(self.path, "size", size, legal)

    def _checked_fd(self):
        if self._fd < 0:
            raise ClosedError(f"{self.path}: the checkpoint was closed; open it again to read it")
        return self._fd

    def close(self):
        """Close the descriptor; the mapping goes at once, or with the last view of it."""
        fd, self._fd, self._mapped = self._fd, -1, None
        if fd >= 0:
            os.close(fd)

    def __del__(self):
        if getattr(self, "_fd", -1) >= 0:
            self.close()
