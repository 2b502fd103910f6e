"""Rows encoded with error feedback: less error than without, valid bytes, each row on its own."""

import libggml
import numpy as np
import pytest
from feedback_moments import correlated_moments, layer_error

from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.codecs.feedback import FEEDBACK_TYPES, encode_with_feedback, prepare_factor
from gemma4_quant.ggml import GgmlType

every_type = pytest.mark.parametrize("kind", sorted(FEEDBACK_TYPES), ids=lambda kind: kind.name)


@every_type
def test_errors_of_correlated_inputs_shrink_and_are_reported_as_they_are(kind: GgmlType) -> None:
    moments = correlated_moments(512)
    rows = np.random.default_rng(1).standard_normal((48, 512)).astype(np.float32) * np.float32(0.02)
    result = encode_with_feedback(rows, kind, prepare_factor([moments]), Effort.BALANCED)
    plain = codec_for(kind).encode(rows, np.diagonal(moments).copy(), Effort.BALANCED)
    assert libggml.is_valid(kind, result.data)
    before, after = (layer_error(kind, data, rows, moments) for data in (plain, result.data))
    assert result.error_before == pytest.approx(before, rel=0.5)
    assert result.error_after == pytest.approx(after, rel=1e-4)
    assert after < 0.2 * before
