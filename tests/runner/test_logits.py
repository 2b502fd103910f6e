"""Converted F32 files compute the logits of transformers, beyond the edge of the sliding window, adapted or not."""

from pathlib import Path

import numpy as np
import pytest
from adapters import write_adapter_for
from checkpoints import KINDS, write_checkpoint
from logits_cases import ADAPTED, N_TOKENS, POSITIONS, random_tokens

from gemma4_quant.conversion import convert
from gemma4_quant.ggml import GgmlType
from gemma4_quant.runner.session import Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel

GOLDEN = Path(__file__).parents[1] / "golden"
EXACT = SessionOptions(
    n_ctx=N_TOKENS,
    n_outputs=N_TOKENS,
    n_threads=1,
    key_type=GgmlType.F32,
    value_type=GgmlType.F32,
    flash_attention=False,
)


def computed(path: Path) -> np.ndarray:
    with LoadedModel(path) as model, Session(model, EXACT) as session:
        return session.decode(random_tokens()[None], 0, slice(None))[0, list(POSITIONS)].copy()


@pytest.mark.parametrize(
    ("kind", "adapted"), [*((kind, False) for kind in KINDS), *((kind, True) for kind in ADAPTED)]
)
def test_logits_of_converted_files_are_those_of_transformers(kind: str, adapted: bool, tmp_path: Path) -> None:
    """Logits reach from -8 to 8. What differs is noise: a GELU of another rounding differs more (`plain`)."""
    adapters = [write_adapter_for(kind, tmp_path / "adapter")] if adapted else []
    path = convert(write_checkpoint(tmp_path / "base", kind), tmp_path / "model.gguf", "f32", adapters=adapters).path
    with np.load(GOLDEN / f"logits-{kind}{'-adapter' if adapted else ''}.npz") as recorded:
        expected, plain = recorded["logits"], recorded["plain"]
    difference = np.abs(computed(path) - expected)
    assert np.abs(expected).max() > 4
    assert np.median(difference) < 1e-3
    assert difference.max() < 0.02 < plain


def test_a_window_that_is_one_token_too_narrow_shows_where_it_begins_to_matter(tmp_path: Path) -> None:
    """So the comparison above would see an error at the edge."""
    narrow = write_checkpoint(tmp_path / "base", "dense", changes={"sliding_window": 63})
    with np.load(GOLDEN / "logits-dense.npz") as recorded:
        difference = np.abs(computed(convert(narrow, tmp_path / "model.gguf", "f32").path) - recorded["logits"])
    largest = dict(zip(POSITIONS, difference.max(axis=1).tolist(), strict=True))
    assert largest[62] < 0.02
    assert min(error for position, error in largest.items() if position >= 127) > 0.5
