"""How far models are from a reference, on plain text in chunks of 512 tokens, as llama-perplexity measures it."""

from collections.abc import Sequence
from pathlib import Path

import gemma4_quant as gq
from gemma4_quant.benchmark import BenchOptions
from gemma4_quant.measuring.results import Divergence
from gemma4_quant.measuring.scored_text import WindowOptions
from gemma4_quant.texts.framing import Framing


def divergences(
    models: Sequence[Path], reference: Path, text: Path, *, n_chunks: int | None = None
) -> list[Divergence]:
    """Return the divergence of each model from `reference` on a text; n_chunks: None for the whole text."""
    options = BenchOptions(framing=Framing.RAW, windows=WindowOptions(512, n_chunks), speed=None)
    result = gq.bench(models, reference=reference, texts=[text], options=options)
    found = [model.score.overall.divergence for model in result.models if model.score is not None]
    if len(found) != len(models) or any(each is None for each in found):
        raise RuntimeError("; ".join(model.failure or "no divergence" for model in result.models))
    return [each for each in found if each is not None]
