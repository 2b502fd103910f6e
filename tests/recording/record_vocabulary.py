"""Record Gemma 4's vocabulary: `python tests/recording/record_vocabulary.py path/to/ggml-vocab-gemma-4.gguf`.

The file lies in llama.cpp's models/ folder, with tokenizer vectors (.inp, .out) beside it. It has 15 MB; what is kept
in tests/golden is a megabyte of compressed token texts, the vectors, and hashes of everything. The merges follow from
the tokens (real_vocabulary.py), and the hashes prove that they do.
"""

import hashlib
import json
import lzma
import sys
from pathlib import Path

from gemma4_quant.formats.gguf_reader import read_gguf

GOLDEN = Path(__file__).parents[1] / "golden"
SEPARATOR = "\n__ggml_vocab_test__\n"  # llama.cpp's tests/test-tokenizer-0.cpp
PREFIX = "tokenizer."
TOKENS, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"


def main(path: Path) -> None:
    """Write the golden files."""
    values = {key: value for key, value in read_gguf(path).metadata.items() if key.startswith(PREFIX)}
    texts = json.dumps(values[TOKENS].decode(), ensure_ascii=False).encode()
    (GOLDEN / "gemma-4-tokens.json.xz").write_bytes(lzma.compress(texts, preset=9 | lzma.PRESET_EXTREME))
    inputs = path.with_name(path.name + ".inp").read_text().split(SEPARATOR)
    outputs = path.with_name(path.name + ".out").read_text().splitlines()
    facts = {
        "values": {
            key: {"type": value.describe_type(), "sha256": hashlib.sha256(value.data).hexdigest()}
            for key, value in values.items()
        },
        "chat_template": values["tokenizer.chat_template"].decode(),
        "vectors": [
            {"text": text, "tokens": [int(number) for number in line.split()]}
            for text, line in zip(inputs, outputs, strict=True)
        ],
    }
    (GOLDEN / "gemma-4-vocabulary.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
