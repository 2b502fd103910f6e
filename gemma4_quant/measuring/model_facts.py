"""What a report says about a GGUF file itself: sizes, types, hashes, where its weights come from."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from gemma4_quant.errors import GgufError
from gemma4_quant.ggml import FileType, GgmlType
from gemma4_quant.measuring.results import FileFact, ModelFile, TypeShare
from gemma4_quant.metadata import Metadata, get_string
from gemma4_quant.model import DataFile, Model
from gemma4_quant.progress import Progress

_PIECE = 8 << 20
_QAT_TENSORS = "gemma4_quant.qat.tensors"
_QAT_NAMES = ("general.name", "general.basename", "general.finetune", "general.base_model.0.name")
_QAT = re.compile(r"(?<![a-z])qat(?![a-z])", re.IGNORECASE)


def data_files(model: Model) -> tuple[DataFile, ...]:
    """Return the files that a model's tensors lie in, each once, in order."""
    files = {file.path: file for tensor in model.tensors for file in tensor.source.files}
    return tuple(files.values())


def model_file(path: Path, model: Model, hashes: dict[Path, str]) -> ModelFile:
    """Describe a model; hashes: SHA-256 of its files by their paths, from `hash_files`."""
    files, metadata, n_weights = data_files(model), model.metadata, model.n_weights
    return ModelFile(
        path=path,
        name=_text(metadata, "general.name") or path.name.removesuffix(".gguf"),
        files=tuple(FileFact(file.path.name, file.n_bytes, hashes[file.path]) for file in files),
        n_bytes=sum(file.n_bytes for file in files),
        n_weights=n_weights,
        bits_per_weight=8 * sum(tensor.n_bytes for tensor in model.tensors) / n_weights,
        architecture=get_string(metadata, "general.architecture"),
        file_type=_file_type(metadata),
        types=_types(model),
        is_qat=is_trained_for_grid(path, metadata),
    )


def hash_files(models: list[Model], progress: Progress) -> dict[Path, str]:
    """Return SHA-256 in hexadecimal of all files of some models, by path; each is read once."""
    files = {file.path: file for model in models for file in data_files(model)}
    progress.start("hash", sum(file.n_bytes for file in files.values()), "B")
    try:
        return {path: _sha256(file, progress) for path, file in files.items()}
    finally:
        progress.finish()


def is_trained_for_grid(path: Path, metadata: Metadata) -> bool:
    """Tell whether weights come from quantization-aware training, as names and our own metadata tell.

    The weights themselves do not always: those for a grid that another type has stored lie on it no more.
    """
    return _QAT_TENSORS in metadata or is_named_after_training(path, metadata)


def is_named_after_training(path: Path, metadata: Metadata) -> bool:
    """Tell whether names alone say so: the float file of a checkpoint trained for a grid has no key of it."""
    names = [path.name, *(_text(metadata, key) for key in _QAT_NAMES), _text(metadata, "gemma4_quant.source.name")]
    return any(_QAT.search(name) for name in names)


def _sha256(file: DataFile, progress: Progress) -> str:
    state = hashlib.sha256()
    for piece in _pieces(file):
        state.update(piece)
        progress.advance(len(piece))
    return state.hexdigest()


def _pieces(file: DataFile) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(_PIECE, max(1, file.n_bytes))))
    for start in range(0, file.n_bytes, _PIECE):
        part = buffer[: min(_PIECE, file.n_bytes - start)]
        file.read_into(start, part)
        yield part


def _types(model: Model) -> tuple[TypeShare, ...]:
    totals: dict[GgmlType, tuple[int, int, int]] = {}
    for tensor in model.tensors:
        n, weights, size = totals.get(tensor.type, (0, 0, 0))
        totals[tensor.type] = (n + 1, weights + tensor.n_weights, size + tensor.n_bytes)
    shares = [TypeShare(kind.name, *total) for kind, total in totals.items()]
    return tuple(sorted(shares, key=lambda share: -share.n_weights))


def _file_type(metadata: Metadata) -> str | None:
    value = metadata.get("general.file_type")
    number = None if value is None else value.decode()
    return FileType(number).name if isinstance(number, int) and number in set(FileType) else None


def _text(metadata: Metadata, key: str) -> str:
    try:
        return get_string(metadata, key, "")
    except GgufError:
        return ""  # of another type than a text, which harms nothing here
