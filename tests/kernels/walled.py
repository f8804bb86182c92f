"""Arrays that end where a page of memory may not be touched: a read past them is a crash. Canaries
show writes only, and a sanitizer does not see what instructions written as assembly read."""

import ctypes
import mmap

import numpy as np


def walled(array):
    """A copy of `array` whose last byte is the last that may be read."""
    page = mmap.PAGESIZE
    whole = -(-array.nbytes // page) * page
    memory = mmap.mmap(-1, whole + page)
    wall = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + whole
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(wall), ctypes.c_size_t(page), 0) == 0
    out = np.frombuffer(memory, array.dtype, array.size, whole - array.nbytes)
    out[:] = array.ravel()
    return out.reshape(array.shape)
