"""Rounding the columns of a panel to given scales: first with feedback, then by descent on the whole quadratic form.

For a panel with moments M = R Rᵀ and weights x to come near to, the error of a row is (v − x) M (v − x)ᵀ over its
decoded weights v. Feedback rounds column after column and lets the later ones make up for the error so far. Descent
goes over the columns again and moves each code to where the error, all others being fixed, is least; gradient =
(v − x) M is kept up to date. Scales and minima move along in the same way, in steps that their format can express.
"""

import numpy as np

from gemma4_quant.codecs.feedback.block_parts import BlockForm, Parts, has_offset
from gemma4_quant.codecs.grids import Grid, nearest
from gemma4_quant.codecs.half import LARGEST
from gemma4_quant.codecs.lanes import Array
from gemma4_quant.codecs.small_floats import scale_near
from gemma4_quant.compiled import compiled

_LEAST_GAIN = np.float32(1e-6)
"""A code moves only for more than this part of its step: rounding of the gradient must not make codes swing."""


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
    first: the panel's first column in what follows. parts: scales on entry, codes on return. out (n_rows, n_cols):
    decoded weights. rest (n_rows, n_cols): (out − wanted) R, whose squares sum up to the error.
    """
    n_rows, width = wanted.shape
    for row in range(n_rows):
        x = wanted[row]
        for j in range(width // form.size):
            a, offset = _scale_of(parts, form, row, first // form.size + j)
            inverse = _inverse(a)
            for i in range(j * form.size, (j + 1) * form.size):
                code = nearest((x[i] + offset) * inverse, grid)
                value = a * code - offset
                error = (value - x[i]) * root[i, i]
                parts.codes[row, first + i] = np.int8(code)
                out[row, first + i] = value
                rest[row, first + i] = error
                line = inverse_root[i]
                for k in range(i + 1, width):
                    x[k] += error * line[k]


@compiled(finite=True)
def descend(
    moments: Array, form: BlockForm, grid: Grid, n_sweeps: int, first: int, parts: Parts, out: Array, gradient: Array
) -> bool:
    """Move codes and scales of a panel to lower the error, until nothing moves or n_sweeps are done.

    moments (width, width): M. first: the panel's first column in what follows. out (n_rows, n_cols): decoded weights,
    kept up to date, as is the panel's part of gradient (n_rows, n_cols), (out − wanted) @ M. Returns whether anything
    moved.
    """
    n_rows, width = out.shape[0], len(moments)
    steps = np.empty(width, np.float32)
    for i in range(width):
        steps[i] = np.float32(1) / moments[i, i]
    direction = np.empty(form.size, np.float32)
    moved = False
    for row in range(n_rows):
        weights, slopes = out[row, first : first + width], gradient[row, first : first + width]
        codes = parts.codes[row, first : first + width]
        for _ in range(n_sweeps):
            changed = False
            for j in range(width // form.size):
                group = first // form.size + j
                changed |= _move_codes(
                    moments,
                    steps,
                    grid,
                    j * form.size,
                    (j + 1) * form.size,
                    _scale_of(parts, form, row, group),
                    codes,
                    weights,
                    slopes,
                )
            for j in range(width // form.size):
                group = first // form.size + j
                for i in range(form.size):
                    direction[i] = np.float32(codes[j * form.size + i])
                changed |= _move_scale(moments, j * form.size, 0, form, row, group, parts, direction, weights, slopes)
                if has_offset(form):
                    direction[:] = np.float32(-1)
                    changed |= _move_scale(
                        moments, j * form.size, 1, form, row, group, parts, direction, weights, slopes
                    )
            moved |= changed
            if not changed:
                break
    return moved


@compiled(finite=True)
def _move_codes(
    moments: Array,
    steps: Array,
    grid: Grid,
    first: int,
    stop: int,
    scale: tuple[np.float32, np.float32],
    codes: Array,
    out: Array,
    gradient: Array,
) -> bool:
    """Move the codes of one group; codes, out and gradient are those of a panel's row."""
    a, offset = scale
    inverse = _inverse(a)
    if inverse == np.float32(0):
        return False
    changed = False
    for i in range(first, stop):
        code = nearest((out[i] - gradient[i] * steps[i] + offset) * inverse, grid)
        if code != np.float32(codes[i]):
            value = a * code - offset
            change = value - out[i]
            codes[i] = np.int8(code)
            out[i] = value
            line = moments[i]
            for k in range(len(out)):
                gradient[k] += change * line[k]
            changed = True
    return changed


@compiled(finite=True)
def _move_scale(
    moments: Array,
    first: int,
    part: int,
    form: BlockForm,
    row: int,
    group: int,
    parts: Parts,
    direction: Array,
    out: Array,
    gradient: Array,
) -> bool:
    """Move what belongs to one group alone: s (part 0) or q (1) in K types, d or dmin elsewhere.

    direction: how the group's weights follow d·s or dmin·q; used up. out, gradient: of a panel's row.
    """
    unit = group // form.per_unit
    if form.per_unit > 1:
        for i in range(len(direction)):
            direction[i] *= parts.supers[part, row, unit]
        wanted = _best_step(moments, first, direction, gradient)
        old = parts.subs[part, row, group]
        low = form.low_s if part == 0 else np.float32(0)
        high = form.high_s if part == 0 else form.high_q
        new = min(max(old + np.rint(wanted), low), high)
        parts.subs[part, row, group] = new
    else:
        wanted = _best_step(moments, first, direction, gradient)
        old = parts.supers[part, row, unit]
        new = _scale_toward(old, wanted, form)
        parts.supers[part, row, unit] = new
    if new == old:
        return False
    _follow(moments, first, direction, new - old, out, gradient)
    return True


@compiled(finite=True)
def _scale_toward(old: np.float32, change: np.float32, form: BlockForm) -> np.float32:
    """Return the representable scale nearest to old + change; old where that is zero, or further from it than old."""
    wanted = min(max(old + change, np.float32(-LARGEST)), np.float32(LARGEST))
    new = scale_near(wanted, 0, form.scale_form)
    return new if new != np.float32(0) and abs(new - wanted) < abs(old - wanted) else old


@compiled(finite=True)
def _best_step(moments: Array, first: int, direction: Array, gradient: Array) -> np.float32:
    """Return how far to go along a direction of a group's columns for the least error; 0 where it does not matter."""
    slope = np.float32(0)
    curvature = np.float32(0)
    size = len(direction)
    for i in range(size):
        slope += direction[i] * gradient[first + i]
        line = moments[first + i, first : first + size]
        total = np.float32(0)
        for k in range(size):
            total += line[k] * direction[k]
        curvature += total * direction[i]
    return -slope / curvature if curvature > np.float32(1e-37) else np.float32(0)


@compiled(finite=True)
def _follow(moments: Array, first: int, direction: Array, length: np.float32, out: Array, gradient: Array) -> None:
    """Go along a direction of a group's columns."""
    for i in range(len(direction)):
        change = length * direction[i]
        out[first + i] += change
        line = moments[first + i]
        for k in range(len(out)):
            gradient[k] += change * line[k]
