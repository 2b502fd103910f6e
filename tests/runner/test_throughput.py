"""Speed tests that would not end are refused before they start."""

import pytest

from gemma4_quant.errors import InputError
from gemma4_quant.measuring.throughput import measure_speed
from gemma4_quant.progress import SilentProgress
from gemma4_quant.runner.weights import LoadedModel


@pytest.mark.parametrize("counts", [{"n_prompt": 4097, "n_generate": 0}, {"n_prompt": 0, "n_generate": 1 << 40}])
def test_tests_longer_than_the_context_are_refused(example_bf16, counts):
    with LoadedModel(example_bf16) as model, pytest.raises(InputError, match="at most 4096"):
        measure_speed(model, SilentProgress(), **counts)
