"""Which tensors of a plan are encoded with error feedback."""

from collections.abc import Mapping, Sequence

from gemma4_quant.calibration.moments import Moments, MomentsFile
from gemma4_quant.codecs.feedback import FEEDBACK_TYPES
from gemma4_quant.errors import MomentsError, listed
from gemma4_quant.feedback.encoder import FeedbackEncoder
from gemma4_quant.feedback.factors import FactorCache, Inputs
from gemma4_quant.ggml import GgmlType
from gemma4_quant.model import Model, Tensor

_TIED = "token_embd.weight"

LOOKUP_SHARE = 0.03
"""Weight of the tied embedding's lookups relative to its use as the output matrix (docs/measurements.md)."""


def moments_of(model: Model, file: MomentsFile) -> dict[str, Moments]:
    """Return second moments by tensor name; raises MomentsError when they are of another model."""
    tensors = {tensor.name: tensor for tensor in model.tensors}
    wrong = [
        name
        for name, moments in file.items()
        if name not in tensors
        or (moments.n_matrices, moments.n_in) != (tensors[name].n_matrices, tensors[name].n_cols)
    ]
    if wrong:
        raise MomentsError(
            f"{file.path} has the second moments of another model: {listed(wrong)}; calibrate this model and use that"
        )
    return dict(file)


def plan_feedback(
    tensors: Sequence[tuple[Tensor, GgmlType]], moments: Mapping[str, Moments], factors: FactorCache
) -> dict[str, FeedbackEncoder]:
    """Return encoders for the tensors that have moments and change to a type with a code for each weight.

    tensors: as they will be written, padded ones included, with the type of each. factors: shared by the file types
    of a run.
    """
    is_tied = not any(tensor.name == "output.weight" for tensor, _ in tensors)
    encoders = {}
    for tensor, kind in tensors:
        if tensor.name in moments and kind in FEEDBACK_TYPES and kind is not tensor.type:
            inputs = Inputs(moments[tensor.name], tensor.n_cols, _lookup_share(tensor.name, is_tied))
            factors.expect(inputs, tensor.n_matrices)
            encoders[tensor.name] = FeedbackEncoder(tensor, kind, inputs, factors)
    return encoders


def _lookup_share(name: str, is_tied: bool) -> float:
    return LOOKUP_SHARE if is_tied and name == _TIED else 0.0
