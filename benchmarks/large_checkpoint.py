"""Write a random checkpoint of E2B's widths with the real vocabulary: `python benchmarks/large_checkpoint.py DIR`.

262,144 tokens, 3.2 GB in BF16 with ten layers; the per-layer embeddings alone have 1.3 GB. The weights are random, so
the model converts and runs but says nothing: Gaussian, with rows of different spread.
"""

import argparse
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import checkpoints
import real_vocabulary

ROWS_AT_ONCE = 4096


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=10, help="decoder layers [default: 10]")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    text = checkpoints.text_config("e", sizes(arguments.layers))
    (arguments.directory / "config.json").write_text(json.dumps(checkpoints.config("e", text)))
    real_vocabulary.write_tokenizer(arguments.directory)
    n_bytes = write_weights(arguments.directory / "model.safetensors", list(checkpoints.tensor_shapes("e", text)))
    print(f"{arguments.directory}: {n_bytes:,} bytes of weights")


def sizes(n_layers: int) -> dict[str, Any]:
    """Return what differs from the small E-family checkpoint of the tests: E2B's widths."""
    return {
        "head_dim": 256,
        "global_head_dim": 512,
        "hidden_size": 1536,
        "hidden_size_per_layer_input": 256,
        "intermediate_size": 6144,
        "layer_types": ["full_attention" if layer % 5 == 4 else "sliding_attention" for layer in range(n_layers)],
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_hidden_layers": n_layers,
        "num_kv_shared_layers": n_layers // 2,
        "sliding_window": 512,
        "vocab_size": 262144,
        "vocab_size_per_layer_input": 262144,
    }


def write_weights(path: Path, shapes: list[tuple[str, tuple[int, ...]]]) -> int:
    """Write a safetensors file of BF16 tensors, a few rows at a time; return its size without header."""
    header: dict[str, Any] = {}
    at = 0
    for name, shape in sorted(shapes):
        n_bytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    random = np.random.default_rng(1)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for _, shape in sorted(shapes):
            for rows in random_rows(random, shape):
                file.write(checkpoints.to_bfloat16(rows).tobytes())
    return at


def random_rows(random: np.random.Generator, shape: tuple[int, ...]) -> Iterator[np.ndarray[Any, Any]]:
    """Yield float32 rows of a tensor: around 1 for vectors, of standard deviation about 0.02 for matrices."""
    if len(shape) == 1:
        yield 1 + random.standard_normal(shape, np.float32) / 16
        return
    for start in range(0, shape[0], ROWS_AT_ONCE):
        n_rows = min(ROWS_AT_ONCE, shape[0] - start)
        spread = 0.02 * random.lognormal(0, 0.3, (n_rows, 1)).astype(np.float32)
        yield random.standard_normal((n_rows, shape[1]), np.float32) * spread


if __name__ == "__main__":
    main()
