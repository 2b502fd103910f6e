"""The model card: front matter that the Hub's own library reads, tables, and a choice for each memory."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import report_results
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from gemma4_quant.formats.split_reader import read_model
from gemma4_quant.metadata import string, strings, uint32
from gemma4_quant.report.choice import choices
from gemma4_quant.report.model_card import model_card
from gemma4_quant.report.origin import Origin, read_origin
from gemma4_quant.report.sections import named

RESULT = report_results.bench_result(13)
ORIGIN = Origin(
    base_models=("google/gemma-4-E2B-it",),
    license="apache-2.0",
    languages=("en", "vi"),
    source="E2B-BF16.gguf",
    version="0.1.0",
    importance_text="corpus",
    importance_chunks=294,
)
CARD = model_card(RESULT, {model.file.path: ORIGIN for model in RESULT.models})


def rendered(card: str) -> str:
    """Render as CommonMark with GitHub's tables and links, HTML allowed, as a site might."""
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return markdown.render(ModelCard(card).text)


def test_the_hub_reads_the_front_matter():
    data = ModelCard(CARD).data.to_dict()
    assert data["base_model"] == ["google/gemma-4-E2B-it"]
    assert data["base_model_relation"] == "quantized"
    assert data["license"] == "apache-2.0"
    assert data["language"] == ["en", "vi"]
    assert data["library_name"] == "gguf"
    assert {"gguf", "gemma4"} <= set(data["tags"])


def test_what_metadata_does_not_say_is_left_out():
    data = ModelCard(model_card(RESULT, {})).data.to_dict()
    assert not {"base_model", "base_model_relation", "license", "language"} & set(data)


def test_files_that_name_different_licences_leave_it_out():
    origins = {model.file.path: ORIGIN for model in RESULT.models}
    origins[RESULT.models[1].file.path] = replace(ORIGIN, license="gemma")
    assert "license" not in ModelCard(model_card(RESULT, origins)).data.to_dict()


def test_every_file_has_size_bits_divergence_and_hash():
    for model in RESULT.models[1:]:
        (row,) = [
            line
            for line in CARD.splitlines()
            if line.startswith(f"| {model.file.path.stem} |") and "±" in line and line.count("|") > 8
        ]
        assert f"| {model.file.bits_per_weight:.2f} |" in row
        assert f"| {model.file.n_bytes / (1 << 30):.2f} GiB |" in row
        assert model.file.files[0].sha256 in CARD
    assert "E2B-BF16 |" not in CARD


def test_it_says_how_it_was_measured_and_how_to_repeat_it():
    assert "the model's own turn" in CARD
    assert "gemma4-quant bench E2B-Q4_K_M.gguf --reference 'E2B BF16.gguf' --report report.html" in CARD
    assert "- gemma4-quant 0.1.0, from E2B-BF16.gguf, importance measured on corpus (294 chunks)" in CARD
    html = rendered(CARD)
    assert html.count("<table>") == 4
    assert html.count("<pre>") == 2


def test_each_choice_is_the_closest_file_that_fits_a_fifth_left_free():
    found = choices(named(RESULT))
    assert len(found) > 2
    for choice in found:
        limit = 0.8 * choice.memory_gib * (1 << 30)
        fitting = [model for model in RESULT.models[1:] if max(model.peak_bytes, model.file.n_bytes) <= limit]
        best = min(fitting, key=lambda model: model.score.overall.divergence.kl.mean.value)
        assert choice.model.model is best
    assert [choice.memory_gib for choice in found] == sorted({choice.memory_gib for choice in found})


def test_without_a_comparison_nothing_is_advised():
    models = tuple(replace(model, score=None) for model in RESULT.models)
    card = model_card(replace(RESULT, models=models, texts=(), reference=None), {})
    assert "Which to choose" not in card
    assert "Files" in card


HOSTILE = report_results.hostile_result()
HOSTILE_ORIGINS = {
    model.file.path: Origin(
        base_models=(report_results.HOSTILE[i % 13],),
        license=report_results.HOSTILE[9],
        source=report_results.HOSTILE[0],
    )
    for i, model in enumerate(HOSTILE.models)
}


@pytest.mark.parametrize("origins", [{}, HOSTILE_ORIGINS], ids=["files", "files-and-metadata"])
def test_hostile_names_stay_text_when_rendered(origins):
    card = model_card(HOSTILE, origins)
    html = rendered(card)
    tags = {tag.lower() for tag in re.findall(r"</?([a-zA-Z][a-zA-Z0-9]*)", html)}
    assert tags <= {
        "h1",
        "h2",
        "p",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "ul",
        "li",
        "pre",
        "code",
        "blockquote",
        "strong",
        "hr",
    }
    assert [letter for letter in card if not letter.isprintable() and letter != "\n"] == []
    assert "evil" not in str(ModelCard(card).data.to_dict().get("tags"))


def test_a_fence_in_a_command_does_not_end_its_block():
    command = ("gemma4-quant", "bench", "```\n# Owned\n")
    card = model_card(replace(RESULT, conditions=report_results.conditions(command=command)), {})
    assert "<h1>Owned" not in rendered(card)


def test_an_origin_is_read_from_metadata_and_other_types_are_passed_over():
    metadata = {
        "general.base_model.count": uint32(2),
        "general.base_model.0.repo_url": string("https://huggingface.co/google/gemma-4-E2B-it"),
        "general.base_model.1.repo_url": string("https://example.invalid/a/b"),
        "general.license": uint32(3),
        "general.languages": strings(["en", "vi\n"]),
        "quantize.imatrix.dataset": string("corpus\u202e"),
        "quantize.imatrix.chunks_count": string("many"),
    }
    origin = read_origin(metadata)
    assert origin.base_models == ("google/gemma-4-E2B-it",)
    assert origin.license is None
    assert origin.languages == ("en", "vi")
    assert origin.importance_text == "corpus\N{REPLACEMENT CHARACTER}"
    assert origin.importance_chunks is None


def test_a_converted_file_without_such_metadata_has_a_silent_origin(example_bf16: Path):
    assert read_origin(read_model(example_bf16).metadata) == Origin()
