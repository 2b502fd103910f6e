"""Correcting the target of a matrix toward the outputs that its layer has in full precision."""

from collections.abc import Sequence

import numpy as np

from gemma4_quant.arrays import Float32Rows
from gemma4_quant.codecs.feedback.factor import FeedbackFactor, Square
from gemma4_quant.errors import MomentsError, ShapeError


def corrected_rows(
    rows: Float32Rows, factor: FeedbackFactor, cross_moments: Sequence[Square], strength: float = 0.5
) -> Float32Rows:
    """Return the weights whose outputs for the inputs x̂ of the quantized model come nearest to W x.

    The layers below are quantized already, so that this layer sees x̂ where it saw x. Least squares over both give
    W' = W E[x x̂ᵀ] H⁻¹ with H = E[x̂ x̂ᵀ], hence W' = W + strength · W (E[x x̂ᵀ] − H) H⁻¹ between W and it; H⁻¹ is
    that of the damped H. rows (n_rows, n_in) float32. factor: of H. cross_moments: the blocks on the diagonal of
    E[x̂ xᵀ] (w, w), in the order of the factor's. strength: part of the correction; a half gave less divergence than
    all of it or none, since part of the difference is noise of the calibration text.
    Raises ShapeError for other shapes, MomentsError for values that are not finite.
    """
    if rows.ndim != 2 or rows.shape[1] != factor.n_in:
        raise ShapeError(f"rows are {rows.shape}, second moments are of {factor.n_in} inputs")
    widths = [block.width for block in factor.blocks]
    shapes = [each.shape for each in cross_moments]
    if shapes != [(width, width) for width in widths]:
        raise ShapeError(f"cross moments have blocks {shapes}, second moments {widths}")
    corrected = np.array(rows, np.float32)
    for block, cross in zip(factor.blocks, cross_moments, strict=True):
        if not np.isfinite(cross).all():
            raise MomentsError("cross moments are not finite; calibrate again")
        columns = slice(block.first, block.first + block.width)
        damped = block.moments.astype(np.float64)
        moments = damped.copy()
        moments[np.diag_indices(block.width)] -= factor.added
        difference = cross.T.astype(np.float64) / factor.unit - moments
        # H is symmetric: X = (C − H) H⁻¹ solves H Xᵀ = (C − H)ᵀ
        change = np.linalg.solve(damped, difference.T).T
        corrected[:, columns] += (strength * (rows[:, columns].astype(np.float64) @ change)).astype(np.float32)
    return corrected
