"""Tokenizer, special tokens and chat templates → metadata; results as llama.cpp's converter gives, or a refusal.

Expected values of single cases were seen in llama.cpp's converter on the same files.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import EXAMPLE, write_checkpoint

from gemma4_quant.converters import load_model
from gemma4_quant.converters.chat_templates import template_metadata
from gemma4_quant.converters.special_tokens import special_metadata, special_texts
from gemma4_quant.converters.vocabulary import Vocabulary, read_tokenizer, read_vocabulary, token_metadata
from gemma4_quant.errors import CheckpointError
from gemma4_quant.formats.checkpoint import Checkpoint, open_checkpoint

NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6


def small_tokenizer(**model: Any) -> dict[str, Any]:
    """A tokenizer of six tokens, the last of them added after the others."""
    return {
        "added_tokens": [{"id": 0, "content": "<bos>"}, {"id": 5, "content": "<|channel>"}],
        "decoder": {"type": "Sequence"},
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "vocab": {"<bos>": 0, "<0x0A>": 1, "a": 2, "b": 3, "ab": 4},
            "merges": [["a", "b"]],
            **model,
        },
    }


def write_tokenizer(directory: Path, tokenizer: Any) -> Checkpoint:
    write_checkpoint(directory, "dense")
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return open_checkpoint(directory)


def types_of(tokenizer: dict[str, Any], specials: frozenset[str] = frozenset()) -> list[int]:
    types: list[int] = token_metadata(read_vocabulary(tokenizer), specials)["tokenizer.ggml.token_type"].decode()
    return types


def test_bytes_specials_and_added_tokens_have_their_types() -> None:
    tokenizer = small_tokenizer()
    tokenizer["added_tokens"].append({"id": 6, "content": "<new>"})
    assert types_of(tokenizer, frozenset({"<bos>"})) == [CONTROL, BYTE, NORMAL, NORMAL, NORMAL, 4, USER_DEFINED]
    assert types_of(tokenizer, frozenset({"<new>"}))[6] == CONTROL


def test_tokens_that_the_chat_parser_reads_are_user_defined_even_when_special() -> None:
    assert types_of(small_tokenizer(), frozenset({"<|channel>"}))[5] == USER_DEFINED


def test_merges_as_texts_and_as_pairs_mean_the_same() -> None:
    pairs = read_vocabulary(small_tokenizer(merges=[["a", "b"], ["ab", "a"]]))
    texts = read_vocabulary(small_tokenizer(merges=["a b", "ab a"]))
    assert pairs == texts == Vocabulary(texts.texts, 5, {"<bos>": 0, "<|channel>": 5}, ["a b", "ab a"])


def test_a_space_within_a_merge_is_written_as_the_bpe_alphabet_has_it() -> None:
    assert read_vocabulary(small_tokenizer(merges=[["a b", "b"], [" ", " "]])).merges == [
        "a\u0120b b",
        "\u0120 \u0120",
    ]


TOKENIZERS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no model": (lambda t: t.pop("model"), "no model"),
    "model a list": (lambda t: t.update(model=[]), "no model"),
    "no decoder": (lambda t: t.pop("decoder"), "no decoder"),
    "decoder null": (lambda t: t.update(decoder=None), "no decoder"),
    "a unigram model": (lambda t: t["model"].update(type="Unigram"), "not a BPE tokenizer"),
    "no byte fallback": (lambda t: t["model"].update(byte_fallback=False), "not a BPE tokenizer"),
    "byte fallback as text": (lambda t: t["model"].update(byte_fallback="true"), "not a BPE tokenizer"),
    "another decoder": (lambda t: t.update(decoder={"type": "ByteLevel"}), "not a BPE tokenizer"),
    "no vocabulary": (lambda t: t["model"].pop("vocab"), "not an object of tokens"),
    "vocabulary a list": (lambda t: t["model"].update(vocab=["a"]), "not an object of tokens"),
    "vocabulary empty": (lambda t: t["model"].update(vocab={}), "not an object of tokens"),
    "id as text": (lambda t: t["model"]["vocab"].update(a="2"), "not whole numbers"),
    "id as fraction": (lambda t: t["model"]["vocab"].update(a=2.0), "not whole numbers"),
    "id as boolean": (lambda t: t["model"]["vocab"].update(a=True), "not whole numbers"),
    "id null": (lambda t: t["model"]["vocab"].update(a=None), "not whole numbers"),
    "negative id": (lambda t: t["model"]["vocab"].update(a=-1), "outside 0..5"),
    "gap": (lambda t: t["model"]["vocab"].update(a=7), "outside 0..5"),
    "absurd id": (lambda t: t["model"]["vocab"].update(a=2**62), "outside 0..5"),
    "id of thousands of digits": (lambda t: t["model"]["vocab"].update(a=10**4000), "outside 0..5"),
    "id twice": (lambda t: t["model"]["vocab"].update(a=3), "appears twice"),
    "added id twice": (lambda t: t["added_tokens"].append({"id": 3, "content": "x"}), "appears twice"),
    "added id before base ids": (
        lambda t: (t["model"]["vocab"].update(ab=5), t["added_tokens"][1].update(id=4)),
        "between those of model.vocab",
    ),
    "added token with two ids": (lambda t: t["added_tokens"][0].update(id=1), "two ids"),
    "added tokens an object": (lambda t: t.update(added_tokens={"<bos>": 0}), "not a list"),
    "added token a text": (lambda t: t["added_tokens"].append("x"), "no content or no id"),
    "added token without id": (lambda t: t["added_tokens"].append({"content": "x"}), "no content or no id"),
    "added token without content": (lambda t: t["added_tokens"].append({"id": 6}), "no content or no id"),
    "added token with a list": (lambda t: t["added_tokens"].append({"id": 6, "content": []}), "no content or no id"),
    "merges an object": (lambda t: t["model"].update(merges={}), "not a list"),
    "merges a text": (lambda t: t["model"].update(merges="a b"), "not a list"),
    "too many merges": (lambda t: t["model"].update(merges=["a b"] * (2**20 + 1)), "1,048,577 merges, more than"),
    "too many tokens": (
        lambda t: t["model"].update(vocab={f"{number:x}": number for number in range(2**20 + 1)}),
        "1,048,577 tokens, more than",
    ),
    "merges of numbers": (lambda t: t["model"].update(merges=[1, 2]), "pairs of texts"),
    "merges of triples": (lambda t: t["model"].update(merges=[["a", "b", "c"]]), "pairs of texts"),
    "merges of pairs of numbers": (lambda t: t["model"].update(merges=[[1, 2]]), "pairs of texts"),
    "merges of both forms": (lambda t: t["model"].update(merges=["a b", ["a", "b"]]), "pairs of texts"),
    "half a surrogate pair in a token": (
        lambda t: t["model"]["vocab"].update({"\ud800": 5}),
        "surrogate|two ids|twice",
    ),
    "half a surrogate pair in a merge": (lambda t: t["model"].update(merges=[["\ud800", "a"]]), "surrogate"),
    "post-processor a list": (lambda t: t.update(post_processor=[1]), "not an object"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_cannot_be_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    change, reason = TOKENIZERS[name]
    tokenizer = small_tokenizer()
    change(tokenizer)
    write_tokenizer(tmp_path, tokenizer)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_model(tmp_path)
    assert len(str(caught.value)) < 400


def test_a_missing_tokenizer_is_told_with_the_remedy(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "dense")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json; copy it"):
        load_model(tmp_path)


def test_the_vocabulary_of_the_example_reads_whole() -> None:
    vocabulary = read_vocabulary(read_tokenizer(open_checkpoint(EXAMPLE)))
    assert (len(vocabulary.texts), len(vocabulary.merges), len(vocabulary.added)) == (2048, 1601, 24)
    assert vocabulary.texts[:3] == ["<pad>", "<eos>", "<bos>"]


def test_a_vocabulary_of_gemma_4s_size_reads_whole(tmp_path: Path) -> None:
    """262,144 tokens and 514,906 merges, the numbers of released checkpoints."""
    texts = [f"\u2581t{number:06x}" for number in range(262_144 - 256)]
    vocab = {text: number for number, text in enumerate(texts + [f"<0x{byte:02X}>" for byte in range(256)])}
    merges = [[texts[number % 200_000], texts[number // 3]] for number in range(514_906)]
    tokenizer = {"decoder": {"type": "Sequence"}, "model": {"type": "BPE", "byte_fallback": True, "vocab": vocab}}
    tokenizer["model"]["merges"] = merges  # type: ignore[index]
    checkpoint = write_tokenizer(tmp_path, tokenizer)
    metadata = token_metadata(read_vocabulary(read_tokenizer(checkpoint)), frozenset({texts[0]}))
    assert metadata["tokenizer.ggml.merges"].count == 514_906
    assert metadata["tokenizer.ggml.tokens"].decode()[262_143] == "<0xFF>"


# Special tokens


def test_named_and_extra_tokens_are_special() -> None:
    settings = {
        "bos_token": "<bos>",
        "eos_token": {"content": "<eos>"},
        "image_token": "<|image|>",
        "extra_special_tokens": ["<|turn>", {"content": "<turn|>"}],
        "model_specific_special_tokens": {"audio_token": "<|audio|>"},
        "pad_token": None,
    }
    assert special_texts(settings, {}) == {"<bos>", "<eos>", "<|image|>", "<|turn>", "<turn|>", "<|audio|>"}


def test_gemma_tokenizer_classes_have_default_tokens() -> None:
    assert special_texts({"tokenizer_class": "GemmaTokenizer"}, {}) == {"<bos>", "<eos>", "<unk>", "<pad>", "<mask>"}
    assert special_texts({"tokenizer_class": "PreTrainedTokenizerFast"}, {}) == set()


def test_the_legacy_map_counts_unless_the_config_has_a_decoder_of_added_tokens() -> None:
    legacy = {"eos_token": {"content": "<turn|>"}, "additional_special_tokens": ["<|turn>"]}
    assert special_texts({"eos_token": "<eos>"}, legacy) == {"<turn|>", "<|turn>"}
    assert special_texts({"eos_token": "<eos>", "added_tokens_decoder": {}}, legacy) == {"<eos>"}


@pytest.mark.parametrize("junk", [1, [1], {"content": 1}, {"x": {}}, [[]], True, "x", [None]])
def test_special_tokens_of_the_wrong_type_are_ignored(junk: Any) -> None:
    expected = {"x"} if junk == "x" else set()
    assert special_texts({"bos_token": junk}, {}) == expected
    assert special_texts({"extra_special_tokens": junk}, {}) == set()


ADDED = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<turn|>": 16}


def special(tokenizer: dict[str, Any], settings: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    found = special_metadata(tokenizer, settings, config, ADDED, 20)
    return {key.removeprefix("tokenizer.ggml."): value.decode() for key, value in found.items()}


def test_ids_come_from_the_tokenizer_first_and_then_from_the_config() -> None:
    settings = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "unk_token": "<gone>"}
    config = {"bos_token_id": 9, "eos_token_id": [1, 16], "unk_token_id": 3, "text_config": {"pad_token_id": 0}}
    assert special({}, settings, config) == {
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unknown_token_id": 3,
        "padding_token_id": 0,
    }


def piece(token: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": 0}}


A, B = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")


def test_a_template_that_ends_with_another_token_moves_the_end_of_turn() -> None:
    processor = {
        "type": "TemplateProcessing",
        "single": [piece("<bos>"), A, piece("<turn|>")],
        "pair": [piece("<bos>"), A, piece("<turn|>"), B, piece("<turn|>")],
    }
    assert special({"post_processor": processor}, {"bos_token": "<bos>", "eos_token": "<eos>"}, {}) == {
        "bos_token_id": 2,
        "eos_token_id": 16,
        "eot_token_id": 1,
        "add_bos_token": True,
        "add_eos_token": True,
        "add_sep_token": False,
    }


@pytest.mark.parametrize(
    "processor",
    [
        {"type": "TemplateProcessing"},
        {"type": "TemplateProcessing", "single": 1, "pair": "x"},
        {"type": "TemplateProcessing", "single": [1, 2], "pair": [1, 2, 3]},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": 1}, {"SpecialToken": {"id": 7}}]},
        {"processors": 1},
        {"processors": [1, [], None, {}]},
        {"type": 7},
        {},
    ],
)
def test_post_processors_of_odd_shape_add_nothing(processor: Any) -> None:
    assert special({"post_processor": processor}, {}, {}) == {}


@pytest.mark.parametrize("number", [20, -1, 2**40])
def test_a_special_id_that_is_no_token_is_refused(number: int) -> None:
    with pytest.raises(CheckpointError, match=f"bos_token_id is {number}, but there are 20 tokens"):
        special({}, {}, {"bos_token_id": number})


# Chat templates


def templates(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    found = template_metadata(open_checkpoint(directory), settings)
    return {key.removeprefix("tokenizer."): value.decode() for key, value in found.items()}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", "dense")


def test_the_template_file_is_taken_as_it_is(directory: Path) -> None:
    text = (EXAMPLE / "chat_template.jinja").read_text()
    assert templates(directory, {}) == {"chat_template": text}


def test_the_tokenizer_config_wins(directory: Path) -> None:
    assert templates(directory, {"chat_template": "x"}) == {"chat_template": "x"}
    assert templates(directory, {"chat_template": None}) == {}


def test_additional_templates_have_keys_of_their_own(directory: Path) -> None:
    folder = directory / "additional_chat_templates"
    folder.mkdir()
    (folder / "tool-use.jinja").write_text("tools")
    found = templates(directory, {})
    assert found["chat_templates"] == ["tool_use"]
    assert found["chat_template.tool_use"] == "tools"
    assert list(found) == ["chat_template.tool_use", "chat_templates", "chat_template"]


def test_the_oldest_place_is_read_last(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()
    (directory / "chat_template.json").write_text('{"chat_template": "old"}')
    assert templates(directory, {}) == {"chat_template": "old"}
    (directory / "chat_template.json").unlink()
    assert templates(directory, {}) == {}


@pytest.mark.parametrize("junk", [1, {}, [1], [{"name": 1, "template": "x"}], [{"name": "a", "template": 1}], [{}]])
def test_templates_of_the_wrong_type_are_ignored(junk: Any, directory: Path) -> None:
    assert templates(directory, {"chat_template": junk}) == {}


@pytest.mark.parametrize(
    ("content", "reason"), [(b"\xff\xfe", "not UTF-8"), (b"x" * ((4 << 20) + 1), "larger than 4 MiB")]
)
def test_a_template_that_is_no_text_is_refused(content: bytes, reason: str, directory: Path) -> None:
    (directory / "chat_template.jinja").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        templates(directory, {})


def test_a_template_outside_the_checkpoint_is_refused(directory: Path, tmp_path: Path) -> None:
    folder = directory / "additional_chat_templates"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "x.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        templates(directory, {})


@pytest.mark.parametrize(
    ("role", "flags"), [("bos", {}), ("eos", {"add_eos_token": True}), ("sep", {"add_sep_token": True})]
)
def test_a_token_that_is_added_to_every_text_must_be_there(role: str, flags: dict[str, bool], tmp_path: Path) -> None:
    """llama.cpp aborts at the first text without it."""
    directory = write_checkpoint(tmp_path, changes={f"{role}_token_id": None})
    path = directory / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop(f"{role}_token", None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps({**settings, **flags}))
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    with pytest.raises(CheckpointError, match=f"has the role {role}, and llama"):
        load_model(directory)
