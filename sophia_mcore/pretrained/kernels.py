"""Compiled loops of the image preprocessing, which `resize` and the families call.

Pictures are arrays of 32-bit pixels: [H, W] uint32, or the same memory as bytes [H, 4 * W] (red, green, blue, unused).
"""

from __future__ import annotations

import numpy as np
from numba import njit

BITS = 22  # fraction bits of the weights, as in Pillow
_HALF = np.int32(1 << (BITS - 1))
_STRIPE = 64  # rows that are transposed together
_BLOCK = 128  # columns that are transposed together; a block of a stripe fits into the L1 cache


@njit(cache=True, nogil=True)
def resize_rows(picture, first, weights, target):  # type: ignore[no-untyped-def]
    """Resize ``picture`` to the number of rows of ``target``; both are bytes [H, L].

    ``first``, ``weights``: see `resize.weights_of`.
    """
    sums = np.empty(target.shape[1], np.int32)
    for y in range(target.shape[0]):
        _weigh(picture, first[y], weights[y], sums, target[y])


@njit(cache=True, nogil=True)
def resize_columns(picture, first, weights, target):  # type: ignore[no-untyped-def]
    """Resize ``picture`` to the number of columns of ``target``; both are pixels [H, W].

    Stripes of rows are transposed and transposed back, so that `_weigh` runs over consecutive memory as for rows.
    """
    height, width = picture.shape
    turned, done = np.zeros((width, _STRIPE), np.uint32), np.empty((_BLOCK, _STRIPE), np.uint32)
    turned_bytes, done_bytes = turned.view(np.uint8), done.view(np.uint8)
    sums = np.empty(4 * _STRIPE, np.int32)
    for top in range(0, height, _STRIPE):
        rows = min(_STRIPE, height - top)
        for left in range(0, width, _BLOCK):
            _turn(picture, top, rows, left, turned[left : left + _BLOCK])
        for left in range(0, target.shape[1], _BLOCK):
            columns = min(_BLOCK, target.shape[1] - left)
            for x in range(columns):
                _weigh(turned_bytes, first[left + x], weights[left + x], sums, done_bytes[x])
            _turn_back(done[:columns], target, top, rows, left)


# The next two are functions of their own, because LLVM compiles them to loops twice as fast as inline code.
@njit(cache=True, nogil=True)
def _turn(picture, top, rows, left, turned):  # type: ignore[no-untyped-def]
    for y in range(rows):
        line = picture[top + y]
        for x in range(turned.shape[0]):
            turned[x, y] = line[left + x]


@njit(cache=True, nogil=True)
def _turn_back(done, target, top, rows, left):  # type: ignore[no-untyped-def]
    for y in range(rows):
        line = target[top + y]
        for x in range(done.shape[0]):
            line[left + x] = done[x, y]


@njit(cache=True, nogil=True)
def _weigh(lines, first, weights, sums, target):  # type: ignore[no-untyped-def]
    """target[i] = sum over t of weights[t] * lines[first + t, i], rounded and clamped to [0, 255].

    The number of weights is a multiple of 4; weights beyond the last line are zero. Sums fit into 32 bits.
    """
    last, count = lines.shape[0] - 1, target.size
    a, b, c, d = _four(lines, first, last)
    k0, k1, k2, k3 = weights[0], weights[1], weights[2], weights[3]
    if weights.size == 4:
        for i in range(count):
            target[i] = _byte(_HALF + _sum(k0, a[i], k1, b[i], k2, c[i], k3, d[i]))
        return
    if weights.size == 8:
        e, f, g, h = _four(lines, first + 4, last)
        k4, k5, k6, k7 = weights[4], weights[5], weights[6], weights[7]
        for i in range(count):
            near = _sum(k0, a[i], k1, b[i], k2, c[i], k3, d[i])
            target[i] = _byte(_HALF + near + _sum(k4, e[i], k5, f[i], k6, g[i], k7, h[i]))
        return
    for i in range(count):
        sums[i] = _HALF
    for t in range(0, weights.size, 4):
        a, b, c, d = _four(lines, first + t, last)
        k0, k1, k2, k3 = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        for i in range(count):
            sums[i] += _sum(k0, a[i], k1, b[i], k2, c[i], k3, d[i])
    for i in range(count):
        target[i] = _byte(sums[i])


@njit(cache=True, nogil=True, inline="always")
def _four(lines, first, last):  # type: ignore[no-untyped-def]
    return (
        lines[min(first, last)],
        lines[min(first + 1, last)],
        lines[min(first + 2, last)],
        lines[min(first + 3, last)],
    )


@njit(cache=True, nogil=True, inline="always")
def _sum(k0, a, k1, b, k2, c, k3, d):  # type: ignore[no-untyped-def]
    return np.int32(k0 * np.int32(a) + k1 * np.int32(b) + k2 * np.int32(c) + k3 * np.int32(d))


@njit(cache=True, nogil=True, inline="always")
def _byte(total):  # type: ignore[no-untyped-def]
    return np.uint8(min(max(np.int32(total) >> BITS, 0), 255))  # type: ignore[arg-type]


@njit(cache=True, nogil=True)
def cut_tiles(picture, table, target):  # type: ignore[no-untyped-def]
    """Cut square tiles, row by row.

    ``picture``: bytes [rows * S, columns * S, 4]. ``target``: [rows * columns, 3, S, S].
    ``table`` [3, 256]: for each colour, the value that replaces a byte.
    """
    size = target.shape[2]
    columns = picture.shape[1] // size
    for tile in range(target.shape[0]):
        top, left = tile // columns * size, tile % columns * size
        for y in range(size):
            for colour in range(3):
                values, line = table[colour], target[tile, colour, y]
                source = picture[top + y, left : left + size, colour]
                for x in range(size):
                    line[x] = values[source[x]]


@njit(cache=True, nogil=True)
def cut_patches(picture, table, merge, target):  # type: ignore[no-untyped-def]
    """Cut patches, in the order of squares of ``merge`` x ``merge`` patches. ``picture``: bytes [H * p, W * p, 4].

    ``table``: as in `cut_tiles`. ``target``: [H * W, 3, F, p, p]; all F frames are equal.
    """
    size, across = target.shape[3], picture.shape[1] // target.shape[3] // merge
    for patch in range(target.shape[0]):
        square, inside = patch // (merge * merge), patch % (merge * merge)
        top = (square // across * merge + inside // merge) * size
        left = (square % across * merge + inside % merge) * size
        for colour in range(3):
            values = table[colour]
            for frame in range(target.shape[2]):
                for y in range(size):
                    for x in range(size):
                        target[patch, colour, frame, y, x] = values[picture[top + y, left + x, colour]]
