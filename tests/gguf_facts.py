"""GGUF files described as the golden files describe those of llama.cpp's converters."""

import hashlib
import json
from pathlib import Path
from typing import Any

from gemma4_quant.formats.gguf_reader import read_gguf


def facts_of(path: Path) -> dict[str, Any]:
    """Describe a GGUF file as the golden files do."""
    model = read_gguf(path)
    metadata = {}
    for key, value in model.metadata.items():
        decoded = value.decode()
        types = [value.type.name] + ([] if value.item is None else [value.item.name])
        long = (isinstance(decoded, str) and len(decoded) > 500) or (isinstance(decoded, list) and len(decoded) > 500)
        text = json.dumps(decoded, ensure_ascii=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        metadata[key] = {"types": types} | (
            {"n": len(decoded), "sha256_of_json": digest} if long else {"value": decoded}
        )
    tensors = {
        tensor.name: {
            "type": tensor.type.name,
            "shape": list(reversed(tensor.shape)),
            "sha256": hashlib.sha256(tensor.source.read_rows(0, tensor.n_rows).tobytes()).hexdigest(),
        }
        for tensor in model.tensors
    }
    return {"metadata": metadata, "tensors": tensors}
