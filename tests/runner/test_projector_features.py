"""What llama.cpp makes of a picture and a sound with our projectors, against transformers' recorded features."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mtmd import Embeddings, Senses
from projector_checkpoints import DIRECTORY_NAMES, KINDS, write_multimodal
from senses import COMPARED, PIXELS_PER_TOKEN, picture, sound

from gemma4_quant.conversion import convert
from gemma4_quant.projector_conversion import convert_projector

GOLDEN = Path(__file__).parents[1] / "golden"

TOWER, EMBEDDER, CONFORMER = 2e-3, 1e-5, 5e-3
"""How far mtmd is from transformers with float32 weights. It rounds attention to float16 in towers, and has a
spectrogram of its own; the unified models have neither. Half of each was measured."""


@pytest.fixture(scope="module", params=KINDS)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """The kind, a checkpoint of it, and its text model."""
    root = tmp_path_factory.mktemp(request.param)
    directory = write_multimodal(root / DIRECTORY_NAMES[request.param], request.param, with_text=True)
    return request.param, directory, convert(directory, root / "text.gguf").path


def recorded(kind: str) -> Any:
    return np.load(GOLDEN / f"features-{kind}.npz")


def distance(ours: Embeddings, facts: Any, name: str) -> float:
    """Length of the difference in the length of the recorded features."""
    assert len(ours) == facts[f"n_{name}"]
    return float(np.linalg.norm(ours[COMPARED] - facts[name]) / np.linalg.norm(facts[name]))


def test_features_are_those_of_transformers(files: tuple[str, Path, Path], tmp_path: Path) -> None:
    kind, directory, text = files
    projector = convert_projector(directory, tmp_path, "f32").path
    facts, is_unified = recorded(kind), kind == "unified"
    with Senses(text, projector) as senses:
        seen = senses.see(picture(PIXELS_PER_TOKEN[kind]))
        assert distance(seen, facts, "picture") < (EMBEDDER if is_unified else TOWER)
        if "sound" in facts:
            assert distance(senses.hear(sound()), facts, "sound") < (EMBEDDER if is_unified else CONFORMER)


def test_bf16_costs_the_precision_of_bf16(files: tuple[str, Path, Path], tmp_path: Path) -> None:
    kind, directory, text = files
    with Senses(text, convert_projector(directory, tmp_path).path) as senses:
        assert distance(senses.see(picture(PIXELS_PER_TOKEN[kind])), recorded(kind), "picture") < 2**-6


def test_exact_gelu_brings_pictures_nearer_to_the_model(files: tuple[str, Path, Path], tmp_path: Path) -> None:
    kind, directory, text = files
    rough, exact = (
        convert_projector(directory, tmp_path / f"{exact_gelu}.gguf", "f32", exact_gelu=exact_gelu).path
        for exact_gelu in (False, True)
    )
    if kind == "unified":  # no tower, no activation
        assert rough.read_bytes() == exact.read_bytes()
        return
    distances = []
    for projector in (rough, exact):
        with Senses(text, projector) as senses:
            distances.append(distance(senses.see(picture(PIXELS_PER_TOKEN[kind])), recorded(kind), "exact_picture"))
    assert distances[1] < TOWER
    assert distances[0] > 5 * distances[1]
