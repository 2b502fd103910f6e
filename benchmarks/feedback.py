"""KL divergence with error feedback against llama-quantize's, on the example: `python benchmarks/feedback.py TOOL`.

TOOL is llama-perplexity. Both quantizers read the same BF16 file and the same calibration text; llama-quantize gets
its importance, ours its second moments, and both write the same types (`--strict-llama`). Prints a Markdown table;
with --plot also draws it as SVG.
"""

import argparse
import re
import subprocess
import tempfile
from dataclasses import dataclass
from math import ceil, floor, log10
from pathlib import Path

from ggml_quantizer import llama_quantize

import gemma4_quant as gq
from gemma4_quant.calibration.collect_moments import calibrate_moments
from gemma4_quant.codecs.base import Effort
from gemma4_quant.cores import n_cores
from gemma4_quant.recipes.recipe import Recipe

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny-gemma4-e"
FILE_TYPES = ("q2_k", "q3_k_m", "iq4_xs", "q4_0", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "q8_0")


@dataclass(frozen=True)
class Line:
    """One file type. n_bytes: of our file, whose tensors take what llama-quantize's do. theirs, ours: divergences."""

    file_type: str
    n_bytes: int
    theirs: float
    ours: float


def main() -> None:
    """Make, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("perplexity", type=Path, help="llama-perplexity")
    parser.add_argument("types", nargs="*", default=FILE_TYPES, help="file types [default: all]")
    parser.add_argument("--calibration", type=Path, default=EXAMPLE / "calibration.txt", help="text or chats")
    parser.add_argument("--evaluation", type=Path, default=EXAMPLE / "evaluation.txt", help="text")
    parser.add_argument("--effort", default="balanced", help="fast, balanced or best")
    parser.add_argument("--plot", type=Path, help="SVG file to draw")
    arguments = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        reference = gq.convert(EXAMPLE, work / "f32.gguf", "f32").path
        source = gq.convert(EXAMPLE, work / "bf16.gguf", "bf16").path
        importance, moments, logits = work / "imatrix.gguf", work / "moments.gguf", work / "logits"
        gq.calibrate(source, [arguments.calibration], output=importance)
        calibrate_moments(source, [arguments.calibration], moments)
        run(arguments.perplexity, "-m", reference, "-f", arguments.evaluation, "--kl-divergence-base", logits)
        print("| file type | bytes | llama-quantize | ours | ratio |\n|---|---|---|---|---|")
        for name in arguments.types:
            file_type = gq.FileType[name.upper()]
            theirs, ours = work / f"llama-{name}.gguf", work / f"ours-{name}.gguf"
            llama_quantize(source, theirs, file_type, importance, n_cores())
            result = gq.quantize(
                source, ours, recipe=Recipe(file_type), moments=moments, effort=Effort(arguments.effort)
            )
            their_kl, our_kl = (divergence(arguments.perplexity, path, logits) for path in (theirs, ours))
            lines.append(Line(name, result.n_bytes, their_kl, our_kl))
            ratio = our_kl / their_kl
            print(f"| {name} | {result.n_bytes:,} | {their_kl:.6f} | {our_kl:.6f} | {ratio:.2f} |", flush=True)
    if arguments.plot:
        arguments.plot.write_text(plot(lines), encoding="utf-8")


def run(tool: Path, *arguments: object) -> str:
    """Run llama-perplexity with chunks of 512 tokens; returns what it prints."""
    done = subprocess.run([tool, *map(str, arguments), "-c", "512"], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def divergence(tool: Path, model: Path, logits: Path) -> float:
    """Return the mean KL divergence that llama-perplexity finds."""
    found = re.search(
        r"Mean +KLD: +([-\d.]+)", run(tool, "-m", model, "--kl-divergence", "--kl-divergence-base", logits)
    )
    if found is None:
        raise RuntimeError(f"llama-perplexity tells no divergence of {model}")
    return float(found[1])


def plot(lines: list[Line]) -> str:
    """Draw divergence over size, both quantizers, on a logarithmic scale."""
    width, height, left, bottom = 720, 420, 80, 50
    sizes = [line.n_bytes / 1e6 for line in lines]
    values = [value for line in lines for value in (line.theirs, line.ours)]
    low_x, high_x = floor(min(sizes) * 2) / 2, ceil(max(sizes) * 2) / 2
    low_y, high_y = floor(log10(min(values))), ceil(log10(max(values)))

    def at(size: float, value: float) -> tuple[float, float]:
        x = left + (size - low_x) / (high_x - low_x) * (width - left - 20)
        y = 20 + (high_y - log10(value)) / (high_y - low_y) * (height - 20 - bottom)
        return round(x, 1), round(y, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for power in range(low_y, high_y + 1):
        _, y = at(low_x, 10.0**power)
        parts.append(f'<path d="M{left} {y}H{width - 20}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{10.0**power:g}</text>')
    for step in range(round((high_x - low_x) * 2) + 1):
        size = low_x + step / 2
        x, _ = at(size, 10.0**low_y)
        parts.append(f'<text x="{x}" y="{height - bottom + 18}" text-anchor="middle">{size:g}</text>')
    for label, colour, which in [
        ("llama-quantize, importance", "#888", "theirs"),
        ("error feedback", "#0a6", "ours"),
    ]:
        points = sorted((line.n_bytes / 1e6, getattr(line, which), line.file_type) for line in lines)
        for size, value, name in points:
            x, y = at(size, value)
            parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"><title>{name}: {value:g}</title></circle>')
            if which == "theirs":
                parts.append(f'<text x="{x + 6}" y="{y - 6}" fill="#555">{name}</text>')
        y = 34 if which == "theirs" else 52
        parts.append(f'<circle cx="{width - 210}" cy="{y - 4}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{width - 200}" y="{y}">{label}</text>')
    parts.append(f'<text x="{(left + width) / 2}" y="{height - 10}" text-anchor="middle">file, MB</text>')
    parts.append(
        f'<text transform="translate(18 {height / 2})rotate(-90)" text-anchor="middle">mean KL divergence</text>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
