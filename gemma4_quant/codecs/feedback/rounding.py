"""Rounding the columns of a panel to given scales: first with feedback, then by descent on the whole quadratic form.

For a panel with moments M = R Rᵀ and weights x to come near to, the error of a row is (v − x) M (v − x)ᵀ over its
decoded weights v. Feedback rounds column after column and lets the later ones make up for the error so far. Descent
goes over the columns again and moves each code to where the error, all others being fixed, is least; gradient =
(v − x) M is kept up to date. Scales and minima move along in the same way, in steps that their format can express.
"""

import numpy as np

from gemma4_quant.codecs.feedback.block_parts import BlockForm, Parts, has_offset
from gemma4_quant.codecs.feedback.matrix_tiles import STRIP, add_product, packed_strip
from gemma4_quant.codecs.grids import Grid, nearest
from gemma4_quant.codecs.half import LARGEST
from gemma4_quant.codecs.lanes import LANES, Array, load_tile
from gemma4_quant.codecs.small_floats import scale_near
from gemma4_quant.compiled import compiled

_FEW = 32
"""Columns rounded one after the other before their errors are carried to the rest of the panel, all together."""

_SCALES_EVERY = 3
"""Sweeps from one move of scales to the next: one group in a hundred has a better scale, and looking for it takes as
long as a sweep over the codes."""


@compiled(finite=True)
def _inverse(value: np.float32) -> np.float32:
    """Return 1 / value, 0 for values that are 0 or so small that the quotient would overflow."""
    return np.float32(1) / value if abs(value) > np.float32(1e-37) else np.float32(0)


@compiled(finite=True)
def _scale_of(parts: Parts, form: BlockForm, row: int, group: int) -> tuple[np.float32, np.float32]:
    """Return a and b of a group's weights, a · code − b."""
    unit = group // form.per_unit
    a: np.float32 = parts.supers[0, row, unit] * parts.subs[0, row, group]
    b: np.float32 = parts.supers[1, row, unit] * parts.subs[1, row, group]
    return a, b


@compiled(finite=True)
def round_with_feedback(
    wanted: Array,
    root: Array,
    inverse_root: Array,
    form: BlockForm,
    grid: Grid,
    first: int,
    parts: Parts,
    out: Array,
    rest: Array,
) -> None:
    """Choose the codes of a panel from its first column to its last.

    wanted (n_rows, width) float32: the weights to come near to; used up. root, inverse_root: R and R⁻¹ of the panel.
    first: the panel's first column in parts, which has scales on entry, codes on return. out (n_rows, width): decoded
    weights. rest (n_rows, width): (out − wanted) R, whose squares sum up to the error.
    """
    n_rows, width = wanted.shape
    packed = np.empty(STRIP * min(_FEW, form.size), np.float32)
    few = min(_FEW, form.size)
    tiles = np.empty((4, few, LANES), np.float32)  # wanted, codes, decoded, rest
    scales = np.zeros((3, LANES), np.float32)  # a, b of a · code − b, and 1 / a
    for start in range(0, width, few):
        stop = start + few
        group = (first + start) // form.size
        for row in range(0, n_rows, LANES):
            n = min(LANES, n_rows - row)
            for lane in range(n):
                scales[0, lane], scales[1, lane] = _scale_of(parts, form, row + lane, group)
                scales[2, lane] = _inverse(scales[0, lane])
            load_tile(wanted, row, n, start, tiles[0])
            _round_few(tiles, root[start:stop, start:stop], inverse_root[start:stop, start:stop], grid, scales)
            for lane in range(n):
                for i in range(few):
                    parts.codes[row + lane, first + start + i] = np.int8(tiles[1, i, lane])
                    out[row + lane, start + i] = tiles[2, i, lane]
                    rest[row + lane, start + i] = tiles[3, i, lane]
        for column in range(stop, width, STRIP):
            packed_strip(inverse_root, start, few, column, packed, 0)
            add_product(rest[:, start:stop], packed, 0, wanted[:, column : column + STRIP])


@compiled(finite=True)
def _round_few(tiles: Array, root: Array, inverse_root: Array, grid: Grid, scales: Array) -> None:
    """Round a few columns that share a scale, in all lanes; tiles (4, n, LANES): wanted, codes, decoded, rest."""
    wanted, codes, decoded, rest = tiles[0], tiles[1], tiles[2], tiles[3]
    a, offset, inverse = scales[0], scales[1], scales[2]
    for i in range(len(root)):
        r = root[i, i]
        for lane in range(LANES):
            x = wanted[i, lane]
            code = nearest((x + offset[lane]) * inverse[lane], grid)
            value = a[lane] * code - offset[lane]
            codes[i, lane] = code
            decoded[i, lane] = value
            rest[i, lane] = (value - x) * r
        for step in range(len(root) - i - 1):
            u = inverse_root[i, i + 1 + step]
            later, error = wanted[i + 1 + step], rest[i]
            for lane in range(LANES):
                later[lane] += u * error[lane]


@compiled(finite=True)
def descend(
    moments: Array,
    form: BlockForm,
    grid: Grid,
    sweeps: tuple[int, int],
    first: int,
    parts: Parts,
    out: Array,
    gradient: Array,
) -> int:
    """Move codes and scales of a panel to lower the error, until nothing moves or all sweeps are done.

    moments (width, width): M. sweeps: their numbers, from the first to before the last; scales move in some only.
    first: the panel's first column in parts. out (n_rows, width): decoded weights, kept up to date, as is gradient
    (n_rows, width), (out − wanted) @ M. Returns how many moves were made.
    """
    n_rows, width = out.shape
    size = form.size
    steps = np.empty(width, np.float32)
    sums = np.zeros(width // size, np.float32)  # of M within each group
    for i in range(width):
        steps[i] = np.float32(1) / moments[i, i]
        for k in range(i // size * size, (i // size + 1) * size):
            sums[i // size] += moments[i, k]
    work = np.empty((2, size), np.float32)
    total = 0
    for row in range(n_rows):
        weights, slopes = out[row], gradient[row]
        codes = parts.codes[row, first : first + width]
        for sweep in range(sweeps[0], sweeps[1]):
            n_moves = 0
            for start in range(0, width, size):
                scale = _scale_of(parts, form, row, (first + start) // size)
                n_moves += _move_codes(moments, steps, grid, start, size, scale, codes, weights, slopes, work[0])
            if sweep % _SCALES_EVERY == 0:
                for start in range(0, width, size):
                    place = (row, (first + start) // size)
                    n_moves += _move_scale(moments, start, form, place, codes, parts, work, weights, slopes)
                    if has_offset(form):
                        n_moves += _move_offset(
                            moments, start, sums[start // size], form, place, parts, work, weights, slopes
                        )
            total += n_moves
            if n_moves == 0:
                break
    return total


@compiled(finite=True)
def _move_codes(
    moments: Array,
    steps: Array,
    grid: Grid,
    first: int,
    size: int,
    scale: tuple[np.float32, np.float32],
    codes: Array,
    out: Array,
    gradient: Array,
    best: Array,
) -> int:
    """Move the codes of one group; codes, out and gradient are those of a panel's row, best (size,) is used up."""
    a, offset = scale
    inverse = _inverse(a)
    if inverse == np.float32(0):
        return 0
    columns = slice(first, first + size)
    own, slopes, step, weights = codes[columns], gradient[columns], steps[columns], out[columns]
    n_moves = 0
    at = 0
    while at < size:
        for i in range(size):  # all at once, as vectors: few of them move
            best[i] = nearest((weights[i] - slopes[i] * step[i] + offset) * inverse, grid)
        while at < size and best[at] == np.float32(own[at]):
            at += 1
        if at < size:
            value = a * best[at] - offset
            change = value - weights[at]
            own[at] = np.int8(best[at])
            weights[at] = value
            line = moments[first + at]
            for k in range(len(gradient)):
                gradient[k] += change * line[k]
            n_moves += 1
            at += 1
    return n_moves


@compiled(finite=True)
def _move_scale(
    moments: Array,
    first: int,
    form: BlockForm,
    place: tuple[int, int],
    codes: Array,
    parts: Parts,
    work: Array,
    out: Array,
    gradient: Array,
) -> int:
    """Move the scale that belongs to one group alone: s in K types, d elsewhere; returns the number of moves.

    first: the group's first column in the panel. place: row and group in parts. work (2, size): to use up. codes,
    out, gradient: of a panel's row.
    """
    direction, image = work[0], work[1]
    row, group = place
    step = parts.supers[0, row, group // form.per_unit] if form.per_unit > 1 else np.float32(1)
    for i in range(form.size):
        direction[i] = step * np.float32(codes[first + i])
    _multiply(moments, first, direction, image)
    for i in range(form.size):
        image[i] *= direction[i]
    curvature = _folded(image)
    for i in range(form.size):
        image[i] = direction[i] * gradient[first + i]
    change = _move_number(-_folded(image), curvature, 0, form, row, group, parts)
    return _follow(moments, first, direction, change, out, gradient)


@compiled(finite=True)
def _move_offset(
    moments: Array,
    first: int,
    sum_moments: np.float32,
    form: BlockForm,
    place: tuple[int, int],
    parts: Parts,
    work: Array,
    out: Array,
    gradient: Array,
) -> int:
    """Move the minimum that belongs to one group alone: q in K types, dmin elsewhere; as _move_scale."""
    direction, image = work[0], work[1]
    row, group = place
    step = parts.supers[1, row, group // form.per_unit] if form.per_unit > 1 else np.float32(1)
    for i in range(form.size):
        direction[i] = -step
        image[i] = gradient[first + i]
    change = _move_number(step * _folded(image), step * step * sum_moments, 1, form, row, group, parts)
    return _follow(moments, first, direction, change, out, gradient)


@compiled(finite=True)
def _move_number(
    gain: np.float32, curvature: np.float32, part: int, form: BlockForm, row: int, group: int, parts: Parts
) -> np.float32:
    """Move s or d (part 0), q or dmin (part 1) by gain / curvature as its format allows; returns the change."""
    wanted = gain / curvature if curvature > np.float32(1e-37) else np.float32(0)
    if form.per_unit > 1:
        old = parts.subs[part, row, group]
        low = form.low_s if part == 0 else np.float32(0)
        high = form.high_s if part == 0 else form.high_q
        new = min(max(old + np.rint(wanted), low), high)
        parts.subs[part, row, group] = new
    else:
        old = parts.supers[part, row, group]
        new = _scale_toward(old, wanted, form)
        parts.supers[part, row, group] = new
    change: np.float32 = new - old
    return change


@compiled(finite=True)
def _multiply(moments: Array, first: int, direction: Array, image: Array) -> None:
    """Write M @ direction for the columns of a group to image; four columns at a time, as vectors."""
    size = len(direction)
    for k in range(size):
        image[k] = np.float32(0)
    own = slice(first, first + size)
    for i in range(0, size, 4):
        d0, d1, d2, d3 = direction[i], direction[i + 1], direction[i + 2], direction[i + 3]
        m0, m1 = moments[first + i, own], moments[first + i + 1, own]
        m2, m3 = moments[first + i + 2, own], moments[first + i + 3, own]
        for k in range(size):
            image[k] += d0 * m0[k] + d1 * m1[k] + d2 * m2[k] + d3 * m3[k]


@compiled(finite=True)
def _folded(values: Array) -> np.float32:
    """Return the sum of values, a power of two of them, which are used up."""
    n = len(values) // 2
    while n > 0:
        for i in range(n):
            values[i] += values[n + i]
        n //= 2
    total: np.float32 = values[0]
    return total


@compiled(finite=True)
def _scale_toward(old: np.float32, change: np.float32, form: BlockForm) -> np.float32:
    """Return the representable scale nearest to old + change; old where that is zero, or further from it than old."""
    wanted = min(max(old + change, np.float32(-LARGEST)), np.float32(LARGEST))
    new = scale_near(wanted, 0, form.scale_form)
    return new if new != np.float32(0) and abs(new - wanted) < abs(old - wanted) else old


@compiled(finite=True)
def _follow(moments: Array, first: int, direction: Array, length: np.float32, out: Array, gradient: Array) -> int:
    """Go along a direction of a group's columns; returns the number of moves, 1 unless length is 0."""
    if length == np.float32(0):
        return 0
    for i in range(len(direction)):
        change = length * direction[i]
        out[first + i] += change
        line = moments[first + i]
        for k in range(len(out)):
            gradient[k] += change * line[k]
    return 1
