"""Quantization-aware checkpoints end to end: the example with its matrices snapped to grids."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from checkpoints import EXAMPLE
from qat_weights import Rows, bfloat16, four_bit, two_bit, write_snapped_example

import gemma4_quant as gq
from gemma4_quant.benchmark import BenchOptions
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import FileType, GgmlType
from gemma4_quant.measuring.scored_text import WindowOptions
from gemma4_quant.progress import SilentProgress
from gemma4_quant.recipes.gemma_defaults import gemma_recipe
from gemma4_quant.recipes.recipe import QatMode, Recipe, parse_tensor_type
from gemma4_quant.texts.framing import Framing

CONVENTIONS = [
    ("absmax/7", "bf16"),
    ("absmax/8", "f32"),
    ("extremum/-8", "bf16"),
    ("learned", "f32"),
    ("per row", "f32"),
]
MATRICES = 50  # of the example, beside per_layer_model_proj, which stays as it is


def qat_checkpoint(folder: Path, grid: str, scales_in: str) -> Path:
    def snap(name: str, weights: Rows) -> Rows:
        return four_bit(weights, grid, scales_in=scales_in, seed=len(name))

    return write_snapped_example(folder, snap)


def decoded(path: Path) -> dict[str, Rows]:
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize(("grid", "scales_in"), CONVENTIONS, ids=lambda each: each)
def test_q4_0_keeps_a_trained_grid(grid: str, scales_in: str, tmp_path: Path) -> None:
    checkpoint = qat_checkpoint(tmp_path / "qat", grid, scales_in)
    exact = gq.convert(checkpoint, tmp_path / "f32.gguf", "f32").path
    result = gq.quantize(checkpoint, tmp_path / "q4_0.gguf", FileType.Q4_0)
    assert (result.qat.n_tensors, result.qat.n_off, result.qat.left) == (MATRICES, 0, ())
    assert result.types["Q4_0"] == MATRICES
    assert result.qat.n_blocks == sum(t.n_weights // 32 for t in read_gguf(exact).tensors if t.name in _q4_0(result))
    wanted, found = decoded(exact), decoded(result.path)
    same = [(bfloat16(found[name]) == wanted[name]).reshape(-1, 32).all(axis=1) for name in _q4_0(result)]
    assert np.concatenate(same).mean() == result.qat.exact_share
    assert result.qat.exact_share == 1 if scales_in == "bf16" else result.qat.exact_share > 0.9


def _q4_0(result: "gq.quantization.QuantizeResult") -> list[str]:
    return [t.name for t in read_gguf(result.path).tensors if t.type is GgmlType.Q4_0]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The worst convention: scales of no particular value in float32."""
    return qat_checkpoint(tmp_path_factory.mktemp("qat") / "learned", "learned", "f32")


def test_the_weights_of_the_q4_0_file_predict_what_the_trained_ones_do(learned: Path, tmp_path: Path) -> None:
    """llama.cpp computes with blocks of 8-bit activations whatever the weights are, which alone costs more than a
    BF16 file does; so the weights are judged by a file that holds them in F32, and the blocks beside Q8_0.
    """
    reference = gq.convert(learned, tmp_path / "f32.gguf", "f32").path
    files = {
        "bf16": gq.convert(learned, tmp_path / "bf16.gguf", "bf16").path,
        "q4_0": gq.quantize(learned, tmp_path / "q4_0.gguf", FileType.Q4_0).path,
        "q8_0": gq.quantize(learned, tmp_path / "q8_0.gguf", recipe=Recipe(FileType.Q8_0)).path,
        "plain": gq.quantize(learned, tmp_path / "plain.gguf", recipe=Recipe(FileType.Q4_0)).path,
    }
    files["weights"] = gq.quantize(
        files["q4_0"], tmp_path / "weights.gguf", recipe=Recipe(FileType.F32), allow_requantize=True
    ).path
    text = EXAMPLE / "evaluation.txt"
    options = BenchOptions(framing=Framing.RAW, windows=WindowOptions(n_chunks=6), speed=None)
    measured = gq.bench(list(files.values()), reference=reference, texts=[text], options=options)
    found = {name: model.score.overall.divergence for name, model in zip(files, measured.models, strict=True)}
    assert found["weights"].kl.mean.value <= 3 * found["bf16"].kl.mean.value
    assert found["weights"].same_top.value >= 0.995
    assert found["q4_0"].kl.mean.value <= 1.1 * found["q8_0"].kl.mean.value
    assert found["q4_0"].same_top.value >= 0.99
    assert found["q4_0"].kl.mean.value < 0.8 * found["plain"].kl.mean.value


class Interrupting(SilentProgress):
    """Stops a run in its middle, as Ctrl-C does."""

    def start(self, label: str, total: int, unit: str) -> None:
        """Count down half of the stage."""
        del label, unit
        self.left = total // 2

    def advance(self, n: int) -> None:
        """Interrupt when half is done."""
        self.left -= n
        if self.left < 0:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_to_the_same_bytes(learned: Path, tmp_path: Path) -> None:
    once, again = (
        gq.quantize(learned, tmp_path / f"{n}.gguf", FileType.Q4_0, n_threads=n).path.read_bytes() for n in (1, 4)
    )
    assert once == again
    stopped = tmp_path / "stopped.gguf"
    with pytest.raises(KeyboardInterrupt):
        gq.quantize(learned, stopped, FileType.Q4_0, progress=Interrupting())
    assert not stopped.exists()
    result = gq.quantize(learned, stopped, FileType.Q4_0)
    assert stopped.read_bytes() == once
    total = sum(tensor.n_weights // 32 for tensor in read_gguf(stopped).tensors if tensor.type is GgmlType.Q4_0)
    assert 0 < result.qat.n_blocks < total  # what the first run finished was not encoded again


def test_other_types_warn_about_a_grid(learned: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = gq.quantize(learned, tmp_path / "q8_0.gguf", FileType.Q8_0)
    assert len(result.qat.left) == MATRICES
    assert result.qat.n_tensors == 0
    assert "50 tensors lie on a trained 4-bit grid that q8_0 moves them off" in caplog.text


def test_the_grid_can_be_kept_in_any_file_type_and_never(learned: Path, tmp_path: Path) -> None:
    kept = gq.quantize(learned, tmp_path / "on.gguf", recipe=Recipe(FileType.Q6_K, qat=QatMode.ON))
    assert kept.types["Q4_0"] == MATRICES
    plain = gq.quantize(learned, tmp_path / "off.gguf", recipe=Recipe(FileType.Q4_0))
    assert (plain.qat.n_tensors, plain.qat.left) == (0, ())
    assert plain.types["Q6_K"] == 1  # llama-quantize's choice for the embeddings


def test_tensors_off_the_grid_get_what_the_user_asked_for(tmp_path: Path) -> None:
    def snap(name: str, weights: Rows) -> Rows:
        return weights if "embed_tokens" in name or "q_proj" in name else four_bit(weights, "absmax/7")

    mixed = write_snapped_example(tmp_path / "mixed", snap)
    result = gq.quantize(mixed, tmp_path / "q4_0.gguf", FileType.Q4_0)
    ordinary = gq.quantize(mixed, tmp_path / "plain.gguf", recipe=Recipe(FileType.Q4_0)).path
    types = [{t.name: t.type for t in read_gguf(path).tensors} for path in (result.path, ordinary)]
    assert types[0]["token_embd.weight"] is types[1]["token_embd.weight"] is GgmlType.Q6_K
    assert result.qat.n_tensors == MATRICES - 8  # two tables and six attn_q
    rows = [{t.name: t.data.tobytes() for t in gguf.GGUFReader(path).tensors} for path in (result.path, ordinary)]
    assert rows[0]["blk.0.attn_q.weight"] == rows[1]["blk.0.attn_q.weight"]
    assert rows[0]["blk.0.attn_output.weight"] != rows[1]["blk.0.attn_output.weight"]


def test_a_type_that_was_asked_for_stays_and_is_warned_about(learned: Path, tmp_path: Path) -> None:
    recipe = replace(gemma_recipe(FileType.Q4_0), tensor_types=(parse_tensor_type("attn_q=q8_0"),))
    result = gq.quantize(learned, tmp_path / "q4_0.gguf", recipe=recipe)
    assert set(result.qat.left) == {f"blk.{layer}.attn_q.weight" for layer in range(6)}
    assert result.types["Q8_0"] == 6


def test_the_ordinary_example_is_on_no_grid(example_bf16: Path, tmp_path: Path) -> None:
    result = gq.quantize(example_bf16, tmp_path / "q4_0.gguf", FileType.Q4_0)
    assert (result.qat.n_tensors, result.qat.left) == (0, ())


@pytest.mark.parametrize("file_type", ["Q2_K", "TQ2_0"])
def test_two_bit_grids_are_kept_where_their_groups_are_whole_blocks(file_type: str, tmp_path: Path) -> None:
    def snap(_name: str, weights: Rows) -> Rows:
        return two_bit(weights, "four codes", group=256) if weights.shape[1] % 256 == 0 else weights

    checkpoint = write_snapped_example(tmp_path / "mobile", snap)
    exact = decoded(gq.convert(checkpoint, tmp_path / "f32.gguf", "f32").path)
    result = gq.quantize(checkpoint, tmp_path / "two.gguf", FileType[file_type])
    kept = [t.name for t in read_gguf(result.path).tensors if t.type is GgmlType[file_type] and t.n_cols % 256 == 0]
    assert result.qat.n_tensors == len(kept) > 30
    assert result.qat.exact_share == 1
    found = decoded(result.path)
    for each in kept:
        np.testing.assert_array_equal(bfloat16(found[each]), exact[each])


def test_metadata_say_how_much_of_the_grid_was_held(learned: Path, tmp_path: Path) -> None:
    fields = gguf.GGUFReader(gq.quantize(learned, tmp_path / "q4_0.gguf", FileType.Q4_0).path).fields
    tensors, probed, exact = (
        fields[f"gemma4_quant.qat.{key}"].contents() for key in ("tensors", "probed_blocks", "exact_blocks")
    )
    assert tensors == MATRICES
    assert 0.9 * probed < exact < probed
