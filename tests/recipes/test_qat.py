"""Weights on a grid: recognised by themselves, repacked to the same bits; ordinary weights are never mistaken."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from qat_weights import FOUR_BIT_GRIDS, TWO_BIT_GRIDS, Rows, bfloat16, four_bit, two_bit

from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.codecs.qat_blocks import GRID_SHAPES, encode_on_grid
from gemma4_quant.ggml import GgmlType, block_size
from gemma4_quant.model import ArrayRows, Tensor
from gemma4_quant.recipes.qat import GridEncoder, recognise_tensor

TWO_BIT_TYPES = (GgmlType.Q2_0, GgmlType.TQ2_0, GgmlType.Q2_K)
EVERY_TYPE = (GgmlType.Q4_0, *TWO_BIT_TYPES)


def gaussian(n_rows: int = 64, n_cols: int = 512, seed: int = 1) -> Rows:
    return (np.random.default_rng(seed).standard_normal((n_rows, n_cols)) * 0.04).astype(np.float32)


def tensor_of(rows: Rows, kind: GgmlType = GgmlType.BF16) -> Tensor:
    stored = codec_for(kind).encode(rows, None, Effort.PLAIN)
    return Tensor("blk.0.any.weight", rows.shape, kind, ArrayRows(lambda: stored))


def decoded_by_gguf(kind: GgmlType, data: np.ndarray) -> Rows:
    """Decode by the gguf package; it knows no Q2_0, which is written out from the layout in ggml-common.h."""
    if kind is not GgmlType.Q2_0:
        return quants.dequantize(data, GGMLQuantizationType(kind))
    blocks = data.reshape(-1, 18)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    codes = np.stack([blocks[:, 2:] >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1).reshape(len(blocks), 64)
    return (scales * (codes.astype(np.float32) - 1)).reshape(len(data), -1)


@pytest.mark.parametrize("scales_in", ["bf16", "f32"])
@pytest.mark.parametrize("grid", FOUR_BIT_GRIDS)
def test_four_bit_grids_are_repacked_to_the_same_bfloat16(grid: str, scales_in: str) -> None:
    rows = four_bit(gaussian(), grid, scales_in=scales_in)
    blocks = encode_on_grid(GgmlType.Q4_0, rows, None, Effort.BALANCED, 16)
    same = (bfloat16(decoded_by_gguf(GgmlType.Q4_0, blocks.data)) == rows).reshape(-1, 32).all(axis=1)
    assert blocks.n_off == 0
    assert blocks.n_exact == same.sum()
    # float16 holds every bfloat16 scale of this size, but not every float32 one well enough
    assert same.mean() == 1 if scales_in == "bf16" else same.mean() > 0.93


@pytest.mark.parametrize("grid", FOUR_BIT_GRIDS)
def test_four_bit_grids_are_recognised(grid: str) -> None:
    rows = four_bit(gaussian(), grid)
    for kind in (GgmlType.BF16, GgmlType.F16, GgmlType.F32):
        found = recognise_tensor(tensor_of(rows, kind), (GgmlType.Q4_0,))
        assert found is not None, kind
        assert (found.types, found.dropped_bits) == ((GgmlType.Q4_0,), 16)
        assert found.n_exact == found.n_probed


def test_a_grid_that_was_never_rounded_is_recognised_in_f32() -> None:
    rng = np.random.default_rng(5)
    scales = rng.uniform(0.001, 0.01, (64, 16, 1)).astype(np.float32)
    rows = (scales * rng.integers(-8, 8, (64, 16, 32)).astype(np.float32)).reshape(64, 512)
    found = recognise_tensor(tensor_of(rows, GgmlType.F32), (GgmlType.Q4_0,))
    assert found is not None
    assert found.dropped_bits == 0
    assert found.n_exact < found.n_probed  # such scales need more bits than float16 has
    blocks = encode_on_grid(GgmlType.Q4_0, rows, None, Effort.BALANCED, 0)
    decoded = decoded_by_gguf(GgmlType.Q4_0, blocks.data)
    assert np.abs(decoded - rows).max() <= 2.0**-11 * np.abs(rows).max()


@pytest.mark.parametrize("kind", TWO_BIT_TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("grid", TWO_BIT_GRIDS)
def test_two_bit_grids_are_recognised_and_repacked_to_the_same_bits(kind: GgmlType, grid: str) -> None:
    rows = two_bit(gaussian(), grid, group=256)
    found = recognise_tensor(tensor_of(rows), TWO_BIT_TYPES)
    assert found is not None
    assert kind in found.types
    blocks = encode_on_grid(kind, rows, None, Effort.BALANCED, found.dropped_bits)
    assert (blocks.n_near, blocks.n_off) == (0, 0)
    np.testing.assert_array_equal(bfloat16(decoded_by_gguf(kind, blocks.data)), rows)


def test_a_two_bit_grid_without_zero_fits_q2_k_only() -> None:
    rng = np.random.default_rng(6)
    scales = bfloat16(rng.uniform(0.001, 0.01, (64, 2, 1)))
    rows = bfloat16(scales * rng.choice([-3, -1, 1, 3], (64, 2, 256))).reshape(64, 512)
    found = recognise_tensor(tensor_of(rows), TWO_BIT_TYPES)
    assert found is not None
    assert found.types == (GgmlType.Q2_K,)
    blocks = encode_on_grid(GgmlType.Q2_K, rows, None, Effort.BALANCED, 16)
    np.testing.assert_array_equal(bfloat16(decoded_by_gguf(GgmlType.Q2_K, blocks.data)), rows)


def test_scales_of_fewer_weights_than_a_block_are_not_mistaken_for_its_grid() -> None:
    rows = two_bit(gaussian(), "ternary", group=64)
    found = recognise_tensor(tensor_of(rows), TWO_BIT_TYPES)
    assert found is not None
    assert found.types == (GgmlType.Q2_0,)
    assert recognise_tensor(tensor_of(four_bit(gaussian(), "absmax/7")), TWO_BIT_TYPES) is None


def ordinary_weights() -> st.SearchStrategy[Rows]:
    """Weights that no grid made: of many shapes and distributions, as trained or rounded."""

    def build(seed: int, kind: str, scale: float, density: float, *, rounded: bool) -> Rows:
        random = np.random.default_rng(seed)
        rows = {
            "gaussian": lambda: random.standard_normal((48, 256)),
            "heavy-tailed": lambda: random.standard_t(1.5, (48, 256)),
            "uniform": lambda: random.uniform(-1, 1, (48, 256)),
            "narrow": lambda: 1 + random.standard_normal((48, 256)) * 0.003,
            "two-sided": lambda: random.choice([-1, 1], (48, 256)) * (1 + random.standard_normal((48, 256)) * 0.003),
            "log-normal": lambda: np.exp(random.standard_normal((48, 256)) * 2),
        }[kind]()
        rows = (rows * scale * (random.random(rows.shape) < density)).astype(np.float32)
        return bfloat16(rows) if rounded else rows

    return st.builds(
        build,
        seed=st.integers(0, 10**6),
        kind=st.sampled_from(["gaussian", "heavy-tailed", "uniform", "narrow", "two-sided", "log-normal"]),
        scale=st.sampled_from([1.0, 0.02, 3e-5, 100.0]),
        density=st.sampled_from([1.0, 0.5, 0.1, 0.02]),
        rounded=st.booleans(),
    )


@settings(deadline=None, max_examples=150)
@given(rows=ordinary_weights())
def test_ordinary_weights_are_not_mistaken_for_a_grid(rows: Rows) -> None:
    assert recognise_tensor(tensor_of(rows, GgmlType.F32), EVERY_TYPE) is None


@pytest.mark.parametrize("value", [0.0, 1.0, -0.0123, 3e-40])
def test_constant_weights_are_not_mistaken_for_a_grid(value: float) -> None:
    rows = np.full((64, 256), value, np.float32)
    assert recognise_tensor(tensor_of(rows, GgmlType.F32), EVERY_TYPE) is None


def test_weights_that_another_format_rounded_are_not_mistaken_for_a_grid() -> None:
    rows = gaussian()
    for kind in (GgmlType.Q4_K, GgmlType.Q5_0, GgmlType.Q8_0, GgmlType.MXFP4):
        if kind is GgmlType.MXFP4:
            stored = quants.quantize(rows, GGMLQuantizationType.MXFP4)
        else:
            stored = codec_for(kind).encode(rows, None, Effort.FAST)
        again = quants.dequantize(stored, GGMLQuantizationType(kind))
        assert recognise_tensor(tensor_of(bfloat16(again)), (GgmlType.Q4_0,)) is None, kind


def test_a_tensor_with_too_few_weights_to_tell_is_left_alone() -> None:
    assert recognise_tensor(tensor_of(four_bit(gaussian(4, 64), "absmax/7")), EVERY_TYPE) is None


def test_blocks_off_the_grid_are_encoded_by_the_ordinary_search() -> None:
    rows = four_bit(gaussian(), "absmax/8")
    off = gaussian(seed=2)[::4, 32:64]
    rows[::4, 32:64] = off
    importance = np.random.default_rng(3).gamma(0.5, 1.0, 512).astype(np.float32)
    encoder = GridEncoder(GgmlType.Q4_0, 16)
    data = encoder.encode(rows, importance, Effort.BALANCED)
    assert (encoder.n_exact, encoder.n_near, encoder.n_off) == (64 * 16 - 16, 0, 16)
    ordinary = codec_for(GgmlType.Q4_0).encode(rows, importance, Effort.BALANCED)
    np.testing.assert_array_equal(data[::4, 18:36], ordinary[::4, 18:36])
    decoded = bfloat16(decoded_by_gguf(GgmlType.Q4_0, data))
    np.testing.assert_array_equal(np.delete(decoded[::4], np.s_[32:64], 1), np.delete(rows[::4], np.s_[32:64], 1))


def test_bytes_of_a_row_do_not_depend_on_the_rows_around_it() -> None:
    rows = four_bit(gaussian(), "learned", scales_in="f32")
    whole = encode_on_grid(GgmlType.Q4_0, rows, None, Effort.BALANCED, 16).data
    apart = [encode_on_grid(GgmlType.Q4_0, rows[i : i + 1], None, Effort.BALANCED, 16).data for i in range(len(rows))]
    np.testing.assert_array_equal(whole, np.concatenate(apart))


@settings(deadline=None, max_examples=100)
@given(
    kind=st.sampled_from(list(GRID_SHAPES)),
    seed=st.integers(0, 10**6),
    exponent=st.integers(-12, 12),
    density=st.sampled_from([1.0, 0.3, 0.01]),
)
def test_whatever_the_codes_a_grid_with_float16_scales_is_held_exactly(
    kind: GgmlType, seed: int, exponent: int, density: float
) -> None:
    shape, random = GRID_SHAPES[kind], np.random.default_rng(seed)
    codes = random.integers(shape.low, shape.high + 1, (8, 2, shape.n_weights))
    if kind is GgmlType.Q2_K:
        codes = np.minimum(codes, codes.min(axis=-1, keepdims=True) + 3)
    codes = codes * (random.random(codes.shape) < density)
    scales = bfloat16(random.choice([-1, 1], (8, 2, 1)) * random.uniform(1, 2, (8, 2, 1)) * 2.0**exponent)
    if kind is GgmlType.Q2_K:
        scales = np.abs(scales)
    rows = bfloat16(codes * scales).reshape(8, -1)
    blocks = encode_on_grid(kind, rows, None, Effort.FAST, 16)
    assert blocks.n_exact == 16
    assert blocks.data.shape == (8, 2 * block_size(kind).n_bytes)
    np.testing.assert_array_equal(bfloat16(decoded_by_gguf(kind, blocks.data)), rows)
