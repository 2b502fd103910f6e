"""Quantized files against llama-quantize: types, sizes, divergence (tests/golden), and that they run."""

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from checkpoints import write_checkpoint

import gemma4_quant as gq
from gemma4_quant import quantize_plan
from gemma4_quant.benchmark import BenchOptions
from gemma4_quant.codecs import CODECS
from gemma4_quant.errors import ImportanceError, UnsupportedTypeError
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import FileType, GgmlType
from gemma4_quant.measuring.bootstrap import BootstrapOptions
from gemma4_quant.measuring.scored_text import WindowOptions
from gemma4_quant.metadata import get_int, get_string
from gemma4_quant.recipes.recipe import Recipe
from gemma4_quant.texts.framing import Framing

GOLDEN = Path(__file__).parent / "golden"
EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny-gemma4-e"
IMPORTANCE = GOLDEN / "imatrix.gguf"
FILE_TYPES = ["Q8_0", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"]
KLD_FILE_TYPES = ["Q8_0", "Q4_0", "Q4_K_M", "Q6_K"]
"""Those whose divergence is measured here; benchmarks/fidelity.py measures all, in more time."""


@pytest.fixture(scope="module")
def quantized(example_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The example as each file type, with importance and llama-quantize's types."""
    directory = tmp_path_factory.mktemp("quantized")
    return {
        name: gq.quantize(
            example_bf16, directory / f"{name}.gguf", recipe=Recipe(FileType[name]), importance=IMPORTANCE
        ).path
        for name in FILE_TYPES
    }


@pytest.mark.parametrize("name", FILE_TYPES)
def test_each_tensor_has_the_type_that_llama_quantize_gives_it(
    name: str, example_bf16: Path, quantized: dict[str, Path], tmp_path: Path
) -> None:
    plain = gq.quantize(example_bf16, tmp_path / "plain.gguf", recipe=Recipe(FileType[name])).path
    for path, golden in ((plain, "types-plain.json"), (quantized[name], "types-imatrix.json")):
        expected = json.loads((GOLDEN / golden).read_text())[name]
        assert {tensor.name: tensor.type.name for tensor in read_gguf(path).tensors} == expected


@pytest.mark.parametrize("name", KLD_FILE_TYPES)
def test_sizes_equal_llama_quantizes_but_for_metadata(name: str, quantized: dict[str, Path]) -> None:
    expected = json.loads((GOLDEN / "quality.json").read_text())["files"][f"{name}+imatrix"]["bytes"]
    metadata = read_gguf(quantized[name]).metadata
    own = sum(
        len(key) + len(value.encoded()) + 8 for key, value in metadata.items() if key.startswith("gemma4_quant.")
    )
    assert abs(quantized[name].stat().st_size - own - expected) <= 256


def test_metadata_records_type_and_importance(quantized: dict[str, Path], example_bf16: Path) -> None:
    metadata = read_gguf(quantized["Q4_K_M"]).metadata
    assert get_int(metadata, "general.file_type") == FileType.Q4_K_M
    assert get_int(metadata, "general.quantization_version") == 2
    assert get_string(metadata, "quantize.imatrix.file") == "imatrix.gguf"
    assert get_string(metadata, "quantize.imatrix.dataset").endswith("calibration.txt")
    assert get_int(metadata, "quantize.imatrix.entries_count") == 48
    assert get_int(metadata, "quantize.imatrix.chunks_count") > 200
    kept = {key: value for key, value in metadata.items() if not key.startswith(("quantize.", "gemma4_quant."))}
    assert {**kept, "general.file_type": 0} == {**read_gguf(example_bf16).metadata, "general.file_type": 0}


def test_divergence_is_no_larger_than_llama_quantizes(quantized: dict[str, Path], example_f32: Path) -> None:
    """The gate of the project: at most 1.02 times llama-quantize's mean KL divergence, for every file type."""
    options = BenchOptions(framing=Framing.RAW, bootstrap=BootstrapOptions(resamples=0), speed=None)
    texts = [EXAMPLE / "evaluation.txt"]
    result = gq.bench(
        [quantized[name] for name in KLD_FILE_TYPES], reference=example_f32, texts=texts, options=options
    )
    files = json.loads((GOLDEN / "quality.json").read_text())["files"]
    found = {
        name: model.score and model.score.overall for name, model in zip(KLD_FILE_TYPES, result.models, strict=True)
    }
    for name in KLD_FILE_TYPES:
        expected, score = files[f"{name}+imatrix"], found[name]
        assert score is not None
        assert score.divergence is not None
        assert score.divergence.kl.mean.value <= expected["mean_kld"][0] * 1.02, name
        assert score.perplexity.value == pytest.approx(expected["ppl"][0], rel=0.003)


def test_a_mixture_of_experts_quantizes_straight_from_a_checkpoint_and_runs(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "moe", kind="moe")
    original = gq.convert(checkpoint, tmp_path / "moe-F32.gguf", "f32").path
    path = gq.quantize(checkpoint, tmp_path / "moe-Q4_K_M.gguf", FileType.Q4_K_M).path
    rows = {tensor.name: tensor.data for tensor in gguf.GGUFReader(original).tensors}
    for tensor in gguf.GGUFReader(path).tensors:
        decoded = gguf.dequantize(tensor.data, tensor.tensor_type)
        wanted = rows[tensor.name].astype(np.float64)
        error = np.linalg.norm(decoded - wanted) / np.linalg.norm(wanted)
        assert error < 0.1, tensor.name
    options = BenchOptions(framing=Framing.RAW, windows=WindowOptions(n_chunks=4), speed=None)
    result = gq.bench([original, path], texts=[EXAMPLE / "evaluation.txt"], options=options)
    before, after = (model.score and model.score.overall for model in result.models)
    assert before is not None
    assert after is not None
    assert after.perplexity.value == pytest.approx(before.perplexity.value, rel=0.2)


def test_importance_with_values_that_are_not_finite_is_refused(example_bf16: Path, tmp_path: Path) -> None:
    damaged = bytearray(IMPORTANCE.read_bytes())
    damaged[-64:-60] = struct.pack("<f", np.nan)
    (tmp_path / "damaged.gguf").write_bytes(damaged)
    with pytest.raises(ImportanceError):
        gq.quantize(example_bf16, tmp_path / "out.gguf", importance=tmp_path / "damaged.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_file_type_without_encoder_is_refused_before_work(
    example_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_plan, "CODECS", {k: v for k, v in CODECS.items() if k is not GgmlType.Q4_K})
    with pytest.raises(UnsupportedTypeError, match="Q4_K_S needs Q4_K"):
        gq.quantize(example_bf16, tmp_path / "out.gguf", FileType.Q4_K_S)
    with pytest.raises(ImportanceError, match="importance"):
        gq.quantize(example_bf16, tmp_path / "out.gguf", FileType.Q2_K_S)
    assert not list(tmp_path.iterdir())


def test_the_default_name_puts_the_new_type_in_place_of_the_old(example_bf16: Path, tmp_path: Path) -> None:
    source = tmp_path / "model-BF16.gguf"
    source.write_bytes(example_bf16.read_bytes())
    assert gq.quantize(source, file_type=FileType.Q8_0).path.name == "model-Q8_0.gguf"
