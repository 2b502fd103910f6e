"""A whole GGUF file against the checkpoint, or the other GGUF, that it was made from."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma4_quant.converters import load_model, open_with_adapters
from gemma4_quant.converters.projector import open_projector
from gemma4_quant.cores import n_cores
from gemma4_quant.errors import GgufError, InputError, naming
from gemma4_quant.formats.checkpoint import find_checkpoint_file
from gemma4_quant.formats.split_reader import read_model
from gemma4_quant.metadata import boolean, get_string
from gemma4_quant.model import Model
from gemma4_quant.progress import Progress, SilentProgress
from gemma4_quant.recipes.padding import FeedForward, can_be_padded, padded
from gemma4_quant.source import PROJECTOR, exists
from gemma4_quant.verification.findings import Finding, Part
from gemma4_quant.verification.judgement import TensorResult
from gemma4_quant.verification.settings import compare_settings
from gemma4_quant.verification.templates import compare_templates
from gemma4_quant.verification.tensors import compare_tensors
from gemma4_quant.verification.tokenization import Tokenizer, compare_tokenizers
from gemma4_quant.verification.vocabulary import TOKENS

_ARCHITECTURE = "general.architecture"
_EXACT_GELU = "clip.use_gelu"
_ADAPTER = "adapter"  # general.type


@dataclass(frozen=True)
class VerifyResult:
    """What `verify` found.

    is_ok: there is no fault. parts: tensors, metadata and, where the model has them, tokenizer and chat template,
    with all findings. tensors: a line for each tensor that could be compared.
    """

    path: Path
    against: Path
    is_ok: bool
    parts: tuple[Part, ...]
    tensors: tuple[TensorResult, ...]
    seconds: float

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that make the file wrong."""
        return tuple(fault for part in self.parts for fault in part.faults)


def verify(
    path: Path,
    against: Path,
    *,
    adapters: Sequence[Path] = (),
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> VerifyResult:
    """Compare a GGUF file of a text model, drafter or projector with what it was made from.

    path: the file, or the first one of a split model. against: the checkpoint's directory, or a GGUF file, best one
    of full precision. adapters: directories of LoRA adapters that were merged into the checkpoint.
    Every tensor is dequantized and held against its original; metadata, tokenizer and chat template against what the
    converter makes of the checkpoint. Differences are findings of the result; exceptions are for files that cannot be
    compared at all: InputError and its kinds for a file that is cut short or no GGUF, or a checkpoint that cannot be
    converted, UnsupportedTypeError for a type that has no decoder.
    """
    started = time.monotonic()
    file = _open_gguf(path)
    with naming(path):
        original = _padded_like(file, _open_original(against, file, adapters))
        tensors = compare_tensors(
            file, original, n_threads=n_threads or n_cores(), progress=progress or SilentProgress()
        )
        parts = [tensors.part, compare_settings(file.metadata, original.metadata, _prefix(original))]
        if TOKENS in original.metadata:
            tokenizer = _tokenizer(against, original)
            parts.append(compare_tokenizers(Tokenizer(file.path, file.metadata), tokenizer))
            parts.append(compare_templates(file.metadata, original.metadata))
    return VerifyResult(
        path=path,
        against=against,
        is_ok=not any(part.faults for part in parts),
        parts=tuple(parts),
        tensors=tensors.results,
        seconds=time.monotonic() - started,
    )


def _open_gguf(path: Path) -> Model:
    if not exists(path) or not path.is_file():
        raise InputError(f"{path} does not exist or is no file; give a GGUF file")
    model = read_model(path)
    if _ARCHITECTURE not in model.metadata:
        raise GgufError(f"{path} holds no model: it has no {_ARCHITECTURE}")
    with naming(path):
        kind = get_string(model.metadata, "general.type", "model")
    if kind == _ADAPTER:
        raise GgufError(f"{path} holds an adapter; verify the model with the adapter merged into it")
    return model


def _open_original(against: Path, file: Model, adapters: Sequence[Path]) -> Model:
    if not against.is_dir():
        if adapters:
            raise InputError(f"{against} is no checkpoint, so that no adapter can be merged into it")
        return _open_gguf(against)
    if get_string(file.metadata, _ARCHITECTURE) != PROJECTOR:
        return load_model(against, adapters=adapters)
    # the converter writes the key on request: both kinds of files are what it makes
    is_exact = file.metadata.get(_EXACT_GELU) == boolean(True)
    return open_projector(open_with_adapters(against, adapters), exact_gelu=is_exact).model


def _padded_like(file: Model, original: Model) -> Model:
    """Return the original with its feed-forward widths padded by zeros where the file's are."""
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    for kind in FeedForward:
        if not can_be_padded(original, kind):
            continue
        wide = padded(original, kind)
        pairs = zip(wide.tensors, original.tensors, strict=True)
        changed = [new for new, old in pairs if new is not old]
        if changed and all(shapes.get(tensor.name) == tensor.shape for tensor in changed):
            original = wide
    return original


def _prefix(original: Model) -> str:
    return f"{get_string(original.metadata, _ARCHITECTURE)}."


def _tokenizer(against: Path, original: Model) -> Tokenizer:
    if not against.is_dir():
        return Tokenizer(original.path, original.metadata)
    path = find_checkpoint_file(against, "tokenizer.json")
    if path is None:
        raise InputError(f"{against / 'tokenizer.json'} is gone")
    return Tokenizer(path, original.metadata)
