"""A run that can be killed in the middle: converts or quantizes slowly and tells which tiles it wrote.

Run as `python killable.py LOG SECONDS_PER_TILE convert|quantize ARGUMENT…` with the arguments of `run_convert` or
`run_quantize`. Appends the name of each tensor to LOG when a tile of it has been written, a line a tile.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import gemma4_quant as gq
from gemma4_quant.codecs.base import Effort
from gemma4_quant.formats.shards import SplitLimits
from gemma4_quant.quantization import QuantizeOptions, quantize_each
from gemma4_quant.writing import committer, tiles, writer
from gemma4_quant.writing.tiles import Destination, Tile


def slow_down(log: Path, seconds: float) -> None:
    """Make each tile take `seconds` longer, tiles small, and commits frequent; log tiles."""
    write = writer.write_tile
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def logged(tile: Tile, destinations: Sequence[Destination], effort: Effort) -> int:
        n_bytes = write(tile, destinations, effort)
        os.write(descriptor, f"{tile.tensor.name}\n".encode())
        time.sleep(seconds)
        return n_bytes

    writer.write_tile = logged
    tiles.TILE_WEIGHTS = 1 << 16
    committer._INTERVAL_S = 0.02


def run_convert(checkpoint: str, output: str, max_tensors: str) -> None:
    """Convert to BF16 in shards of at most so many tensors."""
    gq.convert(Path(checkpoint), Path(output), "bf16", split=SplitLimits(None, int(max_tensors)))


def run_quantize(source: str, output: str, file_types: str, n_threads: str) -> None:
    """Quantize to several types, in shards of at most 50 tensors."""
    kinds = [gq.FileType[name] for name in file_types.split(",")]
    options = QuantizeOptions(split=SplitLimits(None, 50), n_threads=int(n_threads))
    quantize_each(Path(source), Path(output), kinds, options)


if __name__ == "__main__":
    slow_down(Path(sys.argv[1]), float(sys.argv[2]))
    {"convert": run_convert, "quantize": run_quantize}[sys.argv[3]](*sys.argv[4:])
