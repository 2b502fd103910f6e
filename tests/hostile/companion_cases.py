"""Adapters, encoders and split models: what comes beside a text model, damaged."""

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapters import write_adapter
from cases import Case
from gguf_cases import with_metadata
from json_cases import field_cases, whole_files
from projector_checkpoints import PROCESSOR, multimodal_config, write_multimodal
from safetensors_cases import changed_files, changed_headers
from tiny_models import write_tiny

from gemma4_quant.conversion import convert
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.formats.shards import SplitLimits
from gemma4_quant.metadata import Value, string, uint32

WEIGHT = "model.layers.0.mlp.up_proj.weight"

PATTERNS = (
    "(a+)+$",
    "(.*)*(.*)*(.*)*x",
    "(?:.*){50}z",
    ".*.*.*.*.*.*.*.*x",
    "[",
    "(?P<a>x)(?P=a)",
    "(?<=x{1,9})y",
    "x{65536}{65536}",
    "(" * 2000,
    "\\",
    "",
    ".",
    "\ud800",
    "a" * 100_000,
)


def adapter_cases(work: Path) -> Iterator[Case]:
    """Yield adapters with wrong settings or tensors; the base is the tiny `e` checkpoint."""
    directory = write_adapter(work / "adapter", [(WEIGHT, (64, 32))], rank_pattern={"up_proj": 4}, bias="none")
    config = directory / "adapter_config.json"
    document = json.loads(config.read_text())
    document |= {"alpha_pattern": {"up_proj": 4}, "use_rslora": False, "use_dora": False, "layers_to_transform": None}
    yield from field_cases(config, document, every=3)
    for pattern in PATTERNS:
        for key in ("rank_pattern", "alpha_pattern"):
            config.write_text(json.dumps({**document, key: {pattern: 4}}))
            yield Case(f"{key} with {pattern[:40]!r}", directory)
    config.write_text(json.dumps({**document, "rank_pattern": {f"m{number}": 4 for number in range(200_000)}}))
    yield Case("200,000 rank patterns", directory)
    for what, content in whole_files(json.dumps(document).encode()).items():
        config.write_bytes(content)
        yield Case(f"adapter_config.json: {what}", directory)
    config.write_text(json.dumps(document))
    yield from _shard_cases(directory, "adapter_model.safetensors")


def projector_cases(work: Path) -> Iterator[Case]:
    """Yield multimodal checkpoints with wrong settings of the encoders."""
    for kind in ("full", "unified"):
        directory = write_multimodal(work / kind, kind)
        document = multimodal_config(kind)
        document["text_config"] = {"hidden_size": 256, "model_type": "gemma4_text"}
        skip = {"rope_parameters", "text_config"}
        for case in field_cases(directory / "config.json", document, skip, every=3):
            yield Case(f"{kind}: {case.name}", case.path, is_quick=True)
        (directory / "processor_config.json").write_text(json.dumps(PROCESSOR))
    directory = work / "full"
    for case in field_cases(directory / "processor_config.json", PROCESSOR, every=3):
        yield Case(case.name, case.path, is_quick=True)


def split_cases(work: Path) -> Iterator[Case]:
    """Yield split models with shards missing, exchanged, or that say something else of the split."""
    checkpoint = write_tiny(work / "checkpoint")
    limits = SplitLimits(max_tensors=30)
    paths = list(convert(checkpoint, work / "model.gguf", "bf16", split=limits, n_threads=1).files)
    right = [path.read_bytes() for path in paths]
    changes: dict[str, list[Value | None]] = {
        "split.no": [None, uint32(1), uint32(2**31), uint32(2**32 - 1), string("0")],
        "split.count": [None, uint32(0), uint32(1), uint32(2), uint32(65_535), uint32(2**32 - 1), string("3")],
        "split.tensors.count": [None, uint32(0), uint32(1), uint32(2**32 - 1), string("x")],
        "general.architecture": [None, string("llama")],
    }
    for number, path in enumerate(paths):
        metadata = read_gguf(path).metadata
        for key in changes.keys() & metadata.keys():
            for value in changes[key]:
                path.write_bytes(with_metadata(right[number], metadata, key, value))
                shown = "missing" if value is None else value.decode()
                yield Case(f"shard {number}: {key} {shown}", paths[0])
        for name, content in {
            "of another": right[(number + 1) % len(paths)],
            "empty": b"",
            "cut": right[number][: len(right[number]) // 2],
        }.items():
            path.write_bytes(content)
            yield Case(f"shard {number} is {name}", paths[0])
        path.unlink()
        yield Case(f"shard {number} is gone", paths[0])
        path.symlink_to("/dev/zero")
        yield Case(f"shard {number} is a link to zeros", paths[0])
        path.unlink()
        path.write_bytes(right[number])
    moved = work / "other-name.gguf"
    shutil.copyfile(paths[0], moved)
    yield Case("a shard with another name", moved)


def _shard_cases(directory: Path, name: str) -> Iterator[Case]:
    path = directory / name
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    for what, changed in changed_headers(header):
        encoded = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])
        yield Case(f"header with {what}", directory)
    for what, damaged in changed_files(content, length).items():
        path.write_bytes(damaged)
        yield Case(f"shard with {what}", directory)
    for what, new in {
        "no A": lambda old: old.replace("lora_A", "lora_Z"),
        "the name of the weight itself": lambda old: old.replace(".lora_A", ""),
        "no prefix": lambda old: old.removeprefix("base_model.model."),
        "a layer that is not there": lambda old: old.replace("layers.0", "layers.99"),
        "control characters": lambda old: f"{old}\x1b[31m\n\0",
    }.items():
        encoded = json.dumps({new(old): entry for old, entry in header.items()}).encode()
        path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])
        yield Case(f"names with {what}", directory)
    path.write_bytes(content)
