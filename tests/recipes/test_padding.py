"""Feed-forward layers padded with zeros: the same logits, larger blocks, fewer bytes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint
from family_shapes import SHAPES, whole_model, write_shape
from hypothesis import given, settings
from hypothesis import strategies as st

import gemma4_quant as gq
from gemma4_quant.calibration.importance import Entry, Importance, write_importance
from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.errors import GgufError, ShapeError
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import FileType, GgmlType, row_bytes
from gemma4_quant.metadata import get_int, get_string, uint32
from gemma4_quant.model import ArrayRows, Model
from gemma4_quant.quantize_plan import quantize_plan
from gemma4_quant.recipes.padding import FeedForward, PaddedRows, padded
from gemma4_quant.recipes.recipe import PadMode, Recipe
from gemma4_quant.runner.session import Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel

EXACT = SessionOptions(
    n_ctx=64, n_outputs=64, n_threads=1, key_type=GgmlType.F32, value_type=GgmlType.F32, flash_attention=False
)


def logits(path: Path) -> np.ndarray:
    tokens = np.random.default_rng(4).integers(3, 2000, 48)
    with LoadedModel(path) as model, Session(model, EXACT) as session:
        return session.decode(tokens[None], 0, slice(None))[0].copy()


@pytest.fixture(scope="module")
def moe_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random mixture of experts, 96 wide, with shared layers 352 wide: no super-block fits either."""
    root = tmp_path_factory.mktemp("moe")
    return gq.convert(write_checkpoint(root / "moe", "moe"), root / "moe-F32.gguf", "f32").path


def test_a_padded_model_computes_the_same_logits(moe_f32: Path, tmp_path: Path) -> None:
    result = gq.quantize(moe_f32, tmp_path / "padded.gguf", recipe=Recipe(FileType.F32, pad_ffn=PadMode.ON))
    assert result.padding == {"feed_forward_length": "352 → 512", "expert_feed_forward_length": "96 → 256"}
    model = read_gguf(result.path)
    shapes = {tensor.name: tensor.shape for tensor in model.tensors}
    assert shapes["blk.2.ffn_gate_up_exps.weight"] == (8, 512, 256)
    assert shapes["blk.2.ffn_down_exps.weight"] == (8, 256, 256)
    assert shapes["blk.2.ffn_down.weight"] == (256, 512)
    assert get_int(model.metadata, "gemma4.expert_feed_forward_length") == 256
    assert get_string(model.metadata, "gemma4_quant.padded.expert_feed_forward_length") == "96 → 256"
    np.testing.assert_array_equal(logits(result.path), logits(moe_f32))


def test_layers_of_different_widths_are_padded_each_to_its_own(tmp_path: Path) -> None:
    """As in E2B, where the layers that share keys and values are twice as wide."""
    checkpoint = write_checkpoint(tmp_path / "e", "e", changes={"intermediate_size": 160})
    plain = gq.convert(checkpoint, tmp_path / "plain.gguf", "f32").path
    result = gq.quantize(plain, tmp_path / "padded.gguf", recipe=Recipe(FileType.F32, pad_ffn=PadMode.ON))
    assert result.padding == {"feed_forward_length": "160, 320 → 256, 512"}
    widths = read_gguf(result.path).metadata["gemma4.feed_forward_length"].decode()
    assert widths == [256, 256, 256, 512, 512, 512]
    np.testing.assert_array_equal(logits(result.path), logits(plain))


def test_gate_and_up_halves_are_padded_each(moe_f32: Path) -> None:
    model = read_gguf(moe_f32)
    wide = padded(model, FeedForward.EXPERTS)
    name = "blk.1.ffn_gate_up_exps.weight"
    before, after = (next(t for t in each.tensors if t.name == name) for each in (model, wide))
    plain = before.source.read_rows(0, before.n_rows).reshape(8, 2, 96, -1)
    zeros = after.source.read_rows(0, after.n_rows).reshape(8, 2, 256, -1)
    np.testing.assert_array_equal(zeros[:, :, :96], plain)
    assert not zeros[:, :, 96:].any()


def test_quantized_blocks_are_those_of_rows_padded_by_hand(moe_f32: Path, tmp_path: Path) -> None:
    """Columns of zeros weigh nothing: importance decides as it did."""
    importance = tmp_path / "imatrix.gguf"
    name = "blk.0.ffn_down_exps.weight"
    sums = np.random.default_rng(1).gamma(0.5, 1.0, (8, 96)).astype(np.float32)
    write_importance(importance, Importance({name: Entry(sums, np.ones(8, np.float32))}, ["none"], 1, 512))
    recipe = Recipe(FileType.Q6_K, pad_ffn=PadMode.ON)
    path = gq.quantize(moe_f32, tmp_path / "q6.gguf", recipe=recipe, importance=importance).path
    stored, source = (next(t for t in read_gguf(p).tensors if t.name == name) for p in (path, moe_f32))
    assert stored.type is GgmlType.Q6_K
    weights = source.source.read_rows(0, 256).view("<f4")  # the first expert
    wide, zeros = np.pad(weights, ((0, 0), (0, 160))), np.pad(sums[0], (0, 160))
    expected = codec_for(GgmlType.Q6_K).encode(wide, zeros, Effort.BALANCED)
    np.testing.assert_array_equal(stored.source.read_rows(0, 256), expected)
    decoded = codec_for(GgmlType.Q6_K).decode(expected, 256)
    assert not decoded[:, 96:].any()


def test_a_padded_and_quantized_model_is_as_near_to_the_original_as_an_unpadded_one(
    moe_f32: Path, tmp_path: Path
) -> None:
    """The weights are random, so the routers magnify every rounding; only the comparison says something."""
    expected = logits(moe_f32)
    errors = []
    for mode in (PadMode.OFF, PadMode.ON):
        path = gq.quantize(moe_f32, tmp_path / f"{mode}.gguf", recipe=Recipe(FileType.Q6_K, pad_ffn=mode)).path
        errors.append(np.abs(logits(path) - expected).mean())
    assert errors[1] < 1.5 * errors[0]


@pytest.fixture(scope="module")
def a4b(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The full shape of 26B-A4B, whose experts are 704 and whose shared layers 2112 wide."""
    path = tmp_path_factory.mktemp("shapes") / "26B-A4B.gguf"
    write_shape(path, SHAPES["26B-A4B"])
    return whole_model(path, SHAPES["26B-A4B"])


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "IQ4_XS"])
def test_auto_takes_whatever_makes_the_smallest_file(name: str, a4b: Model) -> None:
    def n_bytes(mode: PadMode, model: Model = a4b) -> int:
        return quantize_plan(model, Recipe(FileType[name], pad_ffn=mode), None).plan.n_bytes

    only = [n_bytes(PadMode.OFF, padded(a4b, kind)) for kind in FeedForward]
    metadata = 4096  # what padding adds to the header
    assert n_bytes(PadMode.AUTO) <= min(n_bytes(PadMode.OFF), n_bytes(PadMode.ON), *only) + metadata


def test_auto_saves_bytes_where_the_fallback_is_large_and_pads_nothing_where_blocks_fit(a4b: Model) -> None:
    plain = quantize_plan(a4b, Recipe(FileType.Q2_K), None).plan.n_bytes
    decided = quantize_plan(a4b, Recipe(FileType.Q2_K, pad_ffn=PadMode.AUTO), None)
    assert decided.padding == {"feed_forward_length": "2112 → 2304", "expert_feed_forward_length": "704 → 768"}
    assert decided.plan.n_bytes < 0.98 * plain
    assert not [choice.name for choice in decided.choices if choice.fallback]
    assert not quantize_plan(a4b, Recipe(FileType.Q8_0, pad_ffn=PadMode.AUTO), None).padding


def test_layers_of_whole_blocks_stay_as_they_are(example_f32: Path) -> None:
    model = read_gguf(example_f32)
    for kind in FeedForward:
        assert padded(model, kind) is model


def test_what_cannot_be_padded_is_refused(moe_f32: Path, tmp_path: Path) -> None:
    model = read_gguf(moe_f32)
    without = {key: value for key, value in model.metadata.items() if not key.endswith(".feed_forward_length")}
    with pytest.raises(GgufError, match="has no gemma4"):
        padded(replace(model, metadata=without), FeedForward.SHARED)
    odd = [replace(t, shape=(288, 256)) if t.name == "blk.3.ffn_up.weight" else t for t in model.tensors]
    with pytest.raises(GgufError, match=r"blk\.3\.ffn"):
        padded(replace(model, tensors=odd), FeedForward.SHARED)
    halves = [replace(t, shape=(8, 191, 256)) if "blk.3.ffn_gate_up" in t.name else t for t in model.tensors]
    with pytest.raises(GgufError, match="191 rows, not as many for gate as for up"):
        padded(replace(model, tensors=halves), FeedForward.EXPERTS)
    small = gq.quantize(moe_f32, tmp_path / "q8.gguf", recipe=Recipe(FileType.Q8_0)).path
    with pytest.raises(ShapeError, match="is Q8_0"):
        padded(read_gguf(small), FeedForward.EXPERTS)
    again = Recipe(FileType.Q4_K_M, pad_ffn=PadMode.AUTO)
    assert not quantize_plan(read_gguf(small), again, None, allow_requantize=True).padding


@settings(deadline=None)
@given(
    groups=st.integers(1, 4),
    rows=st.integers(1, 9),
    extra_rows=st.integers(0, 9),
    extra_bytes=st.integers(0, 5),
    cut=st.tuples(st.integers(0, 99), st.integers(0, 99)),
)
def test_any_range_of_padded_rows_is_that_of_the_whole(
    groups: int, rows: int, extra_rows: int, extra_bytes: int, cut: tuple[int, int]
) -> None:
    plain = np.arange(groups * rows * 3, dtype=np.uint8).reshape(groups * rows, 3) + 1
    source = PaddedRows(ArrayRows(lambda: plain), 3, rows, 3 + extra_bytes, rows + extra_rows)
    whole = np.pad(plain.reshape(groups, rows, 3), ((0, 0), (0, extra_rows), (0, extra_bytes)))
    whole = whole.reshape(-1, 3 + extra_bytes)
    start, stop = sorted(at % (len(whole) + 1) for at in cut)
    np.testing.assert_array_equal(source.read_rows(start, stop), whole[start:stop])


def test_padded_sizes_are_those_of_the_new_shape(a4b: Model) -> None:
    wide = padded(a4b, FeedForward.EXPERTS)
    changed = [(new, old) for new, old in zip(wide.tensors, a4b.tensors, strict=True) if new is not old]
    assert len(changed) == 2 * SHAPES["26B-A4B"].n_layers
    for new, old in changed:
        assert new.n_weights == old.n_weights // 704 * 768
        assert new.n_bytes == new.n_rows * row_bytes(new.type, new.n_cols)
    assert wide.metadata["gemma4.expert_feed_forward_length"] == uint32(768)
