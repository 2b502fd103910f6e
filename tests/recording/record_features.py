"""Record transformers' features of a picture and a sound: `python tests/recording/record_features.py` with torch.

Writes tests/golden/features-KIND.npz for the checkpoints of projector_checkpoints.py, in float32: `picture` as mtmd
computes it, whose vision towers take x·σ(1.702x) for GELU with files of llama.cpp's converter, `exact_picture` with
the model's activation, both rounded as ggml's table of half floats does; and `sound`. The picture's pixels are cut
into patches here, as transformers' image processor does after scaling.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
from transformers.models.gemma4_unified.feature_extraction_gemma4_unified import Gemma4UnifiedAudioFeatureExtractor

sys.path.insert(0, str(Path(__file__).parents[1]))
from projector_checkpoints import DIRECTORY_NAMES, KINDS, write_multimodal
from senses import COMPARED, PIXELS_PER_TOKEN, SAMPLE_RATE, picture, sound

GOLDEN = Path(__file__).parents[1] / "golden"


def patches_of(pixels: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return patches (1, n, side·side·3) of a picture (height, width, 3), and their positions (1, n, 2)."""
    n_rows, n_columns = pixels.shape[0] // side, pixels.shape[1] // side
    cut = pixels.reshape(n_rows, side, n_columns, side, 3).permute(0, 2, 1, 3, 4)
    y, x = torch.meshgrid(torch.arange(n_rows), torch.arange(n_columns), indexing="ij")
    return cut.reshape(1, n_rows * n_columns, -1), torch.stack([x, y], dim=-1).reshape(1, -1, 2)


def rough_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def exact_gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


class InHalf(torch.nn.Module):
    """An activation computed as by ggml's table of half floats (ggml-cpu/vec.h)."""

    def __init__(self, activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(x.half().float()).half().float()


def see(model: Any, kind: str, activation: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """Return features (n_tokens, width)."""
    config = model.config.vision_config
    if kind != "unified":
        for layer in model.model.vision_tower.encoder.layers:
            layer.mlp.act_fn = InHalf(activation)
    side = config.patch_size * (config.pooling_kernel_size if kind == "unified" else 1)
    pixels = torch.from_numpy(picture(PIXELS_PER_TOKEN[kind])).float() / 255
    patches, positions = patches_of(pixels, side)
    output = model.model.get_image_features(pixel_values=patches, image_position_ids=positions).pooler_output
    return torch.cat(list(output)).reshape(-1, model.config.text_config.hidden_size).numpy()


def hear(model: Any, kind: str) -> np.ndarray:
    """Return features (n_tokens, width)."""
    extractor = Gemma4UnifiedAudioFeatureExtractor() if kind == "unified" else Gemma4AudioFeatureExtractor()
    features = extractor([sound()], sampling_rate=SAMPLE_RATE, return_tensors="pt")
    mask = features["input_features_mask"].bool()
    output = model.model.get_audio_features(features["input_features"], mask).pooler_output
    return output.reshape(-1, model.config.text_config.hidden_size).numpy()


def main() -> None:
    """Write the files."""
    for kind in KINDS:
        unified = "Unified" if kind == "unified" else ""
        with tempfile.TemporaryDirectory() as root:
            directory = write_multimodal(Path(root) / DIRECTORY_NAMES[kind], kind, with_text=True)
            load = getattr(transformers, f"Gemma4{unified}ForConditionalGeneration").from_pretrained
            model = load(directory, dtype=torch.float32).eval()
        with torch.no_grad():
            found = {"picture": see(model, kind, rough_gelu), "exact_picture": see(model, kind, exact_gelu)}
            if model.config.audio_config is not None:
                found["sound"] = hear(model, kind)
        np.savez_compressed(
            GOLDEN / f"features-{kind}.npz",
            **{name: features[COMPARED].astype(np.float32) for name, features in found.items()},
            **{f"n_{name}": np.int32(len(features)) for name, features in found.items()},
        )


if __name__ == "__main__":
    main()
