"""Sessions against recorded transformers logits, each other, and arguments that would abort llama.cpp."""

from pathlib import Path

import numpy as np
import pytest
from checkpoints import EXAMPLE

from gemma4_quant.errors import GgufError, InputError, RunError
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import GgmlType
from gemma4_quant.runner.devices import device_text, devices
from gemma4_quant.runner.session import Session, SessionOptions
from gemma4_quant.runner.tensors import checked_op_codes
from gemma4_quant.runner.weights import LoadedModel

GOLDEN = Path(__file__).parents[1] / "golden"
EXACT = SessionOptions(
    n_ctx=300, n_outputs=300, n_threads=1, key_type=GgmlType.F32, value_type=GgmlType.F32, flash_attention=False
)


@pytest.fixture(scope="module")
def model(example_f32):
    with LoadedModel(example_f32) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDEN / "logits.npz") as file:
        return {name: file[name] for name in file}


def test_logits_equal_those_of_transformers(model, recorded):
    with Session(model, EXACT) as session:
        logits = session.decode(recorded["tokens"][None], 0, slice(None))
        assert logits.shape == (1, 300, 2048)
        np.testing.assert_allclose(logits[0], recorded["logits"], rtol=0, atol=5e-3)


def test_sequences_side_by_side_and_pieces_give_the_logits_of_one_text(model, recorded):
    first, second = recorded["tokens"][:128], recorded["tokens"][128:256]
    with Session(model, SessionOptions(n_ctx=128, n_outputs=128, n_threads=1)) as session:
        alone = session.decode(second[None], 0, slice(100, None)).copy()
    options = SessionOptions(n_ctx=128, n_sequences=2, n_outputs=56, n_threads=1)
    with Session(model, options) as session:
        both = np.stack([first, second])
        session.decode(both[:, :60], 0, slice(60, None))
        together = session.decode(both[:, 60:], 60, slice(40, None))
        assert together.shape == (2, 28, 2048)
        np.testing.assert_allclose(together[1], alone[0], rtol=0, atol=2e-2)
        assert np.abs(together[0] - alone[0]).max() > 1


def test_clearing_forgets_what_was_read(model, recorded):
    tokens = recorded["tokens"][None, :50]
    with Session(model, SessionOptions(n_ctx=100, n_outputs=1, n_threads=1)) as session:
        once = session.decode(tokens, 0, slice(49, None)).copy()
        session.clear()
        np.testing.assert_array_equal(session.decode(tokens, 0, slice(49, None)), once)


def test_tokens_are_those_of_the_recorded_text(model, recorded):
    text = (EXAMPLE / "evaluation.txt").read_text(encoding="utf-8")
    np.testing.assert_array_equal(model.tokenise(text[:4000])[:300], recorded["tokens"])
    assert model.add_bos
    assert model.tokenise("", add_special=True).tolist() == [model.bos]
    assert model.tokenise("", add_special=False).tolist() == []


def test_special_tokens_in_a_text_are_letters_unless_asked_for(model):
    assert model.tokenise("<bos>", add_special=False, parse_special=True).tolist() == [model.bos]
    assert len(model.tokenise("<bos>", add_special=False)) > 1


def test_pieces_that_llama_cpp_would_abort_on_are_refused(model):
    tokens = np.full((1, 40), 5, np.int32)
    with Session(model, SessionOptions(n_ctx=64, n_batch=32, n_outputs=4, n_threads=1)) as session:
        for piece, start, wanted in [
            (tokens, 0, slice(0, 0)),  # larger than a batch
            (tokens[:, :8], 60, slice(0, 0)),  # beyond the context
            (tokens[:, :8], -1, slice(0, 0)),
            (tokens[:, :8], 0, slice(0, 5)),  # more logits than reserved
            (tokens[:, :0], 0, slice(0, 0)),
            (np.full((2, 8), 5, np.int32), 0, slice(0, 0)),  # more sequences than the session has
            (tokens[:, :8] * 2048, 0, slice(0, 1)),
            (tokens[:, :8] - 6, 0, slice(0, 1)),
        ]:
            with pytest.raises(RunError):
                session.decode(piece, start, wanted)
        assert np.isfinite(session.decode(tokens[:, :8], 0, slice(7, None))).all()


@pytest.mark.parametrize(
    "wrong", [{"n_ctx": 0}, {"n_batch": -1}, {"n_threads": 0}, {"n_sequences": 257}, {"key_type": GgmlType.Q4_K}]
)
def test_options_that_llama_cpp_would_abort_on_are_refused(model, wrong):
    with pytest.raises(RunError, match=next(iter(wrong)) if "key_type" not in wrong else "Q4_K"):
        Session(model, SessionOptions(**wrong))


def test_what_is_no_model_is_refused_before_llama_cpp_sees_it(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        LoadedModel(tmp_path / "nowhere.gguf")
    (tmp_path / "text.gguf").write_text("once upon a time")
    with pytest.raises(GgufError, match="not a GGUF file"):
        LoadedModel(tmp_path / "text.gguf")
    with pytest.raises(GgufError, match="no model"):
        LoadedModel(GOLDEN / "imatrix.gguf")


def test_a_model_that_does_not_load_says_why(example_bf16, tmp_path):
    """A file whose tensor has another name passes every check of the container."""
    damaged = tmp_path / "renamed.gguf"
    data = example_bf16.read_bytes()
    damaged.write_bytes(data.replace(b"blk.3.ffn_up.weight", b"blk.3.ffn_ux.weight", 1))
    assert len(read_gguf(damaged).tensors) > 0
    with pytest.raises(RunError, match=r"blk\.3\.ffn_up\.weight"):
        LoadedModel(damaged)


def test_the_tensor_layout_is_that_of_the_installed_library():
    assert checked_op_codes().mul_mat != checked_op_codes().mul_mat_id


def test_the_cpu_is_named_when_nothing_is_offloaded():
    assert any(device.name == "CPU" for device in devices())
    assert device_text(0).startswith("CPU")


def test_more_positions_than_the_model_was_trained_on_are_warned_of(model, caplog):
    trained = read_gguf(model.path).metadata["gemma4.context_length"].decode()
    with Session(model, SessionOptions(n_ctx=trained, n_threads=1)):
        assert not caplog.records
    with Session(model, SessionOptions(n_ctx=trained + 1, n_threads=1)):
        pass
    (record,) = caplog.records
    assert f"trained on at most {trained} positions, and is run with {trained + 1}" in record.getMessage()
