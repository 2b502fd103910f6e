"""Scoring in pieces and in groups, and texts and references that cannot be used."""

import struct

import numpy as np
import pytest
from checkpoints import EXAMPLE

from gemma4_quant import text
from gemma4_quant.errors import InputError, TextError
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.measuring import evaluation
from gemma4_quant.measuring.evaluation import EvaluationOptions, evaluate
from gemma4_quant.progress import SilentProgress
from gemma4_quant.runner.weights import LoadedModel

TEXT = EXAMPLE / "evaluation.txt"


@pytest.fixture(scope="module")
def bf16(example_bf16):
    with LoadedModel(example_bf16) as model:
        yield model


@pytest.fixture(scope="module")
def f32(example_f32):
    with LoadedModel(example_f32) as model:
        yield model


class Recorder:
    """Progress that remembers."""

    def __init__(self):
        self.calls = []

    def start(self, label, total, unit):
        self.calls.append((label, total, unit))

    def advance(self, n):
        self.calls.append(n)

    def finish(self):
        self.calls.append("finish")


def test_a_copy_of_the_reference_does_not_diverge(f32, example_f32):
    with LoadedModel(example_f32) as copy:
        (score,) = evaluate([copy], TEXT, EvaluationOptions(n_chunks=4), SilentProgress(), reference=f32)
    assert score.divergence.maximum < 1e-9
    assert score.divergence.same_top.value == 1


def test_little_memory_changes_the_pieces_but_not_the_score(f32, monkeypatch):
    options = EvaluationOptions(n_ctx=128, n_chunks=6)
    (whole,) = evaluate([f32], TEXT, options, SilentProgress())
    monkeypatch.setattr(evaluation, "LOGITS_BYTES", 20 * 4 * f32.n_vocab)
    monkeypatch.setattr(evaluation, "BATCH_TOKENS", 50)
    (pieces,) = evaluate([f32], TEXT, options, SilentProgress())
    assert pieces.n_positions == whole.n_positions == 6 * 63
    assert pieces.perplexity.value == pytest.approx(whole.perplexity.value, rel=1e-4)


def test_progress_counts_every_chunk(f32):
    recorder = Recorder()
    evaluate([f32], TEXT, EvaluationOptions(n_ctx=512, n_chunks=7), recorder)
    assert recorder.calls[0] == ("evaluate", 7, "chunk")
    assert recorder.calls[-1] == "finish"
    assert sum(recorder.calls[1:-1]) == 7


def test_chunks_begin_with_bos_and_leave_out_the_rest(f32):
    chunks = text.chunk_text(f32, TEXT, 500)
    tokens = f32.tokenise(text.read_text(TEXT))
    assert chunks.n_text_tokens == len(tokens)
    assert chunks.tokens.shape == (len(tokens) // 500, 500)
    assert (chunks.tokens[:, 0] == f32.bos).all()
    np.testing.assert_array_equal(chunks.tokens[1, 1:], tokens[501:1000])


def test_one_final_line_break_is_dropped_as_llama_cpp_does(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\n\n\n")
    assert text.read_text(path) == "one\r\n\n"


def test_a_text_that_is_too_short_names_both_numbers(f32, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("In the beginning was the word. " * 20, encoding="utf-8")
    n_tokens = len(f32.tokenise(text.read_text(path)))
    with pytest.raises(TextError, match=f"has {n_tokens} tokens, but a context of 512 needs at least 1024"):
        evaluate([f32], path, EvaluationOptions(), SilentProgress())
    path.write_text(" \n", encoding="utf-8")
    with pytest.raises(TextError, match="is empty"):
        evaluate([f32], path, EvaluationOptions(), SilentProgress())


@pytest.mark.parametrize("options", [EvaluationOptions(n_ctx=1), EvaluationOptions(n_chunks=0)])
def test_senseless_sizes_are_refused(f32, options):
    with pytest.raises(InputError, match="at least"):
        evaluate([f32], TEXT, options, SilentProgress())


def test_a_reference_with_other_tokens_is_refused(f32, example_f32, tmp_path):
    tokens = read_gguf(example_f32).metadata["tokenizer.ggml.tokens"].decode()
    longest = max((token for token in tokens if token.isascii() and token.isalpha()), key=len).encode()
    stored = struct.pack("<Q", len(longest)) + longest
    other = tmp_path / "other.gguf"
    other.write_bytes(
        example_f32.read_bytes().replace(stored, struct.pack("<Q", len(longest)) + longest.swapcase(), 1)
    )
    with LoadedModel(other) as stranger, pytest.raises(InputError, match=r"differ in tokenizer\.ggml\.tokens"):
        evaluate([f32], TEXT, EvaluationOptions(), SilentProgress(), reference=stranger)
