"""Files of every kind that the package makes pass verification; their own kinds of damage do not."""

from pathlib import Path

import numpy as np
import pytest
from adapters import write_adapter_for
from checkpoints import EXAMPLE, write_checkpoint
from gguf_editing import rewrite
from projector_checkpoints import write_multimodal
from real_vocabulary import write_tokenizer

from gemma4_quant.conversion import convert
from gemma4_quant.converters import load_model
from gemma4_quant.errors import GgufError, InputError
from gemma4_quant.formats.gguf_header import encode_header
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.formats.shards import SplitLimits
from gemma4_quant.ggml import FileType
from gemma4_quant.metadata import uint32
from gemma4_quant.projector_conversion import convert_projector
from gemma4_quant.quantization import quantize
from gemma4_quant.recipes.recipe import PadMode, Recipe
from gemma4_quant.verification import VerifyResult, verify

GOLDEN = Path(__file__).parents[1] / "golden"


def faults(result: VerifyResult) -> dict[str, str]:
    return {fault.subject: fault.problem for fault in result.faults}


def test_the_example_quantized_with_importance_passes(tmp_path: Path) -> None:
    path = quantize(EXAMPLE, tmp_path / "q.gguf", FileType.Q4_K_M, importance=GOLDEN / "imatrix.gguf").path
    result = verify(path, EXAMPLE, n_threads=2)
    assert result.is_ok, faults(result)
    assert {part.name: part.n_compared for part in result.parts} == {
        "tensors": 99,
        "metadata": 21,
        "tokenizer": 83,
        "chat template": 8,
    }
    exact = {tensor.type for tensor in result.tensors if tensor.is_exact}
    assert exact == {"F32", "BF16"}
    assert all(tensor.snr_db is None or tensor.snr_db > 20 for tensor in result.tensors)
    # tokens that llama.cpp's converter leaves ordinary in this checkpoint
    (note,) = [finding for part in result.parts for finding in part.findings]
    assert "reads them as letters" in note.problem


@pytest.mark.parametrize("kind", ["e", "unified", "assistant", "unified_assistant"])
def test_every_kind_of_decoder_passes(kind: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", kind)
    result = verify(convert(checkpoint, tmp_path / "m.gguf", "q8_0").path, checkpoint)
    assert result.is_ok, faults(result)
    assert len(result.parts) == 4


@pytest.mark.parametrize(("kind", "out_type"), [("full", "bf16"), ("unified", "q8_0"), ("standardized", "f16")])
def test_projectors_pass(kind: str, out_type: str, tmp_path: Path) -> None:
    checkpoint = write_multimodal(tmp_path / "checkpoint", kind)
    path = convert_projector(checkpoint, tmp_path / "mmproj.gguf", out_type).path
    result = verify(path, checkpoint)
    assert result.is_ok, faults(result)
    assert [part.name for part in result.parts] == ["tensors", "metadata"]
    exact = convert_projector(checkpoint, tmp_path / "exact.gguf", out_type, exact_gelu=True).path
    assert verify(exact, checkpoint).is_ok
    key = next(
        key for key in read_gguf(path).metadata if key.endswith("attention.head_count") or "block_count" in key
    )
    name = next(tensor.name for tensor in read_gguf(path).tensors if len(tensor.shape) > 1)
    broken = rewrite(path, tmp_path / "b.gguf", values={key: uint32(77)}, rows={name: lambda rows: rows[::-1]})
    assert set(faults(verify(broken, checkpoint))) == {key, name}


def test_padded_files_pass_while_their_zeros_are_zeros(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "moe")
    recipe = Recipe(FileType.Q4_K_M, pad_ffn=PadMode.ON)
    path = quantize(checkpoint, tmp_path / "padded.gguf", recipe=recipe).path
    names = {tensor.name: tensor for tensor in read_gguf(path).tensors}
    gate = names["blk.0.ffn_gate_up_exps.weight"]
    assert gate.shape == (8, 512, 256)
    result = verify(path, checkpoint)
    assert result.is_ok, faults(result)

    def filled(rows: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        changed = rows.copy()
        changed[100] = rows[50]  # unit 100 of expert 0, of 96
        return changed

    broken = rewrite(path, tmp_path / "b.gguf", rows={gate.name: filled})
    assert "rows 100 of expert 0" in faults(verify(broken, checkpoint))[gate.name].replace("row 100", "rows 100")
    narrow = rewrite(path, tmp_path / "n.gguf", values={"gemma4.expert_feed_forward_length": uint32(96)})
    assert "96, not 256" in faults(verify(narrow, checkpoint))["gemma4.expert_feed_forward_length"]


def test_split_files_pass_from_any_shard(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "dense")
    convert(checkpoint, tmp_path / "m.gguf", "bf16", split=SplitLimits(max_tensors=40))
    shards = sorted(tmp_path.glob("m-*.gguf"))
    assert len(shards) > 1
    for shard in (shards[0], shards[-1]):
        result = verify(shard, checkpoint)
        assert result.is_ok, faults(result)
    shards[-1].unlink()
    with pytest.raises(GgufError, match="lacks 1 of"):
        verify(shards[0], checkpoint)


def test_a_merged_adapter_must_be_named(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "dense")
    adapter = write_adapter_for("dense", tmp_path / "adapter")
    path = convert(checkpoint, tmp_path / "m.gguf", "bf16", adapters=[adapter]).path
    assert verify(path, checkpoint, adapters=[adapter]).is_ok
    assert all("weights differ" in problem for problem in faults(verify(path, checkpoint)).values())
    assert not verify(path, checkpoint).is_ok
    with pytest.raises(InputError, match="is no checkpoint"):
        verify(path, path, adapters=[adapter])


def test_a_quantized_original_allows_for_its_own_error(tmp_path: Path) -> None:
    low = quantize(EXAMPLE, tmp_path / "low.gguf", FileType.Q4_0).path
    high = quantize(EXAMPLE, tmp_path / "high.gguf", FileType.Q8_0).path
    result = verify(high, low)
    assert result.is_ok, faults(result)
    assert verify(low, low).is_ok
    assert all(tensor.is_exact for tensor in verify(low, low).tensors)


def test_the_tokens_of_gemmas_own_vocabulary_are_the_checkpoints(tmp_path: Path) -> None:
    """262,144 tokens through llama.cpp and through the tokenizers library."""
    checkpoint = write_checkpoint(
        tmp_path / "checkpoint", "dense", changes={"vocab_size": 262_144, "hidden_size": 32}
    )
    write_tokenizer(checkpoint)
    metadata = load_model(checkpoint).metadata
    # llama.cpp reads the vocabulary of a file without tensors too
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(encode_header(metadata, []))
    result = verify(path, checkpoint)
    tokenizer, template = result.parts[2:]
    assert tokenizer.findings == ()
    assert tokenizer.n_compared > 110
    assert template.findings == ()
    assert all(problem == "is missing" for problem in faults(result).values())


def test_what_cannot_be_compared_is_refused(tmp_path: Path, example_bf16: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        verify(tmp_path / "none.gguf", EXAMPLE)
    with pytest.raises(InputError, match="does not exist"):
        verify(example_bf16, tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(GgufError, match="not a GGUF file"):
        verify(tmp_path / "text.gguf", EXAMPLE)
