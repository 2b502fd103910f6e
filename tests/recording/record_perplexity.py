"""Record what llama-perplexity says: `python record_perplexity.py LLAMA_PERPLEXITY`, with tests/ on the path.

Writes tests/golden/perplexity.json and tests/golden/example.logits.xz: perplexities of the example and of the random
mixture of experts at several contexts and strides, every statistic of --kl-divergence of the example's Q4_K_M file
against its F32 file, and a small file of stored log-probabilities.
"""

import ctypes
import json
import lzma
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import llama_cpp
from checkpoints import EXAMPLE, write_checkpoint

from gemma4_quant.conversion import convert

GOLDEN = Path(__file__).parent.parent / "golden"
TEXT = EXAMPLE / "evaluation.txt"
CONTEXTS = ((128, 8), (512, 4), (1000, 2))
STRIDES = ((240, 32, 12), (480, 64, 6))
"""llama-perplexity adds half the stride to the context and rounds up to 256: windows of 256 and 512 tokens."""


def run(tool: str, *arguments: object, until: str) -> str:
    """Return what the tool prints; it sometimes ends before all of its log is written, and is run again."""
    while True:
        done = subprocess.run(
            [tool, *map(str, arguments), "-t", "2"], capture_output=True, text=True, errors="replace", check=True
        )
        if until in done.stdout + done.stderr:
            return done.stdout + done.stderr


def final(tool: str, *arguments: object) -> list[float]:
    text = run(tool, *arguments, until="Final estimate")
    found = re.search(r"Final estimate: PPL = ([\d.]+) \+/- ([\d.]+)", text)
    return [float(found[1]), float(found[2])]


def last_running(tool: str, number: int, *arguments: object) -> float:
    text = run(tool, *arguments, until=f"[{number}]")
    return float(dict(re.findall(r"\[(\d+)\]([\d.]+),", text))[str(number)])


def statistics(text: str) -> dict[str, list[float]]:
    lines = re.findall(r"^(?:[\d.]+ I )?([A-Z\d ][^:\n]*?)\s*:\s+(-?[\d.]+)%?(?: ±\s+([\d.]+))?", text, re.MULTILINE)
    names = ("PPL", "KLD", "Δp", "top p")
    return {
        re.sub(r"\s+", " ", name).strip(): [float(value)] + ([float(error)] if error else [])
        for name, value, error in lines
        if any(part in name for part in names)
    }


def main() -> None:
    tool = sys.argv[1]
    facts: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        f32 = convert(EXAMPLE, outfile=root / "example-F32.gguf", out_type="f32").path
        bf16 = convert(EXAMPLE, outfile=root / "example-BF16.gguf", out_type="bf16").path
        moe = convert(write_checkpoint(root / "moe", "moe"), outfile=root / "moe-BF16.gguf", out_type="bf16").path
        for name, model in (("e", bf16), ("moe", moe)):
            facts[name] = {
                f"c{n_ctx}": final(tool, "-m", model, "-f", TEXT, "-c", n_ctx, "--chunks", n) for n_ctx, n in CONTEXTS
            }
            for n_ctx, stride, n in STRIDES:
                arguments = ("-m", model, "-f", TEXT, "-c", n_ctx, "-b", n_ctx, "--ppl-stride", stride, "--chunks", n)
                facts[name][f"c{n_ctx}-s{stride}"] = last_running(tool, n, *arguments)
        q4 = root / "example-Q4_K_M.gguf"
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, 1
        assert not llama_cpp.llama_model_quantize(str(bf16).encode(), str(q4).encode(), ctypes.byref(params))
        for n_ctx, n in ((512, 8), (16, 40)):
            base = root / f"base-{n_ctx}"
            common = ("-f", TEXT, "-c", n_ctx, "--chunks", n, "--kl-divergence-base", base)
            facts[f"base-c{n_ctx}"] = final(tool, "-m", f32, *common)
            facts[f"kl-c{n_ctx}"] = statistics(run(tool, "-m", q4, *common, "--kl-divergence", until="Same top p:"))
        small = root / "small"
        final(tool, "-m", f32, "-f", TEXT, "-c", 16, "--chunks", 3, "--kl-divergence-base", small)
        (GOLDEN / "example.logits.xz").write_bytes(lzma.compress(small.read_bytes(), preset=9))
    (GOLDEN / "perplexity.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


main()
