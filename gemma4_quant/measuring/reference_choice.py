"""What models are compared with, and whether they may be: a GGUF file, or predictions that were stored of one."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from gemma4_quant.errors import InputError, MismatchError
from gemma4_quant.measuring import llama_logits
from gemma4_quant.measuring.compact_reference import MAGIC, CompactFile, CompactWriter
from gemma4_quant.measuring.fairness import identity_of, refuse_unfair
from gemma4_quant.measuring.llama_logits import LlamaFile, LlamaWriter
from gemma4_quant.measuring.model_facts import model_file
from gemma4_quant.measuring.references import Recorder
from gemma4_quant.measuring.results import ReferenceKind, ReferenceUsed
from gemma4_quant.measuring.scored_text import ScoredText
from gemma4_quant.model import Model
from gemma4_quant.runner.weights import LoadedModel


@dataclass(frozen=True)
class SaveOptions:
    """Where a reference's predictions are stored, compactly or in llama.cpp's format."""

    path: Path
    kind: ReferenceKind = ReferenceKind.COMPACT


@dataclass(frozen=True)
class ReferenceChoice:
    """A reference: a model, or stored predictions."""

    path: Path
    source: Model | CompactFile | LlamaFile

    def used(self, hashes: dict[Path, str], storage_error: float | None, forced: tuple[str, ...]) -> ReferenceUsed:
        """Describe it for the report."""
        if isinstance(self.source, Model):
            file = model_file(self.path, self.source, hashes)
            return ReferenceUsed(self.path, ReferenceKind.MODEL, file, None, storage_error, forced)
        is_compact = isinstance(self.source, CompactFile)
        return ReferenceUsed(
            path=self.path,
            kind=ReferenceKind.COMPACT if is_compact else ReferenceKind.LLAMA,
            model=self.source.header.model if isinstance(self.source, CompactFile) else None,
            stored_bytes=self.source.n_bytes,
            storage_error=storage_error,
            forced=forced,
        )


def open_reference(path: Path, open_model: Callable[[Path], Model]) -> ReferenceChoice:
    """Tell models from stored predictions by their first bytes, and check them; errors as of opening either."""
    magic = b""
    if path.is_file():
        try:
            with path.open("rb") as file:
                magic = file.read(8)
        except OSError as error:
            raise InputError(f"cannot open {path}: {error.strerror}") from error
    if magic == MAGIC:
        return ReferenceChoice(path, CompactFile(path))
    if magic == llama_logits.MAGIC:
        return ReferenceChoice(path, LlamaFile(path))
    return ReferenceChoice(path, open_model(path))


def check_fairness(reference: ReferenceChoice | None, models: Sequence[Model], *, force: bool) -> tuple[str, ...]:
    """Raise MismatchError unless models can be compared with a reference; see refuse_unfair."""
    if reference is None:
        return ()
    found = [identity_of(model.path, model.metadata) for model in models]
    source = reference.source
    if isinstance(source, Model):
        return refuse_unfair(identity_of(reference.path, source.metadata), found, force=force)
    if isinstance(source, CompactFile):
        return refuse_unfair(source.header.identity, found, force=force)
    for model in models:
        n_vocab = model.metadata["tokenizer.ggml.tokens"].count if "tokenizer.ggml.tokens" in model.metadata else 0
        if n_vocab != source.n_vocab:
            raise MismatchError(
                f"{model.path.name} has {n_vocab} tokens and {reference.path.name} {source.n_vocab}: their "
                "predictions cannot be compared; give a reference with the same tokens"
            )
    return ()


def recorder_maker(
    save: SaveOptions | None, reference: Model, hashes: dict[Path, str]
) -> Callable[[LoadedModel, ScoredText], AbstractContextManager[Recorder]] | None:
    """Return what opens the file that a reference's predictions are stored in; None when they are not."""
    if save is None:
        return None
    path = save.path

    def make(loaded: LoadedModel, text: ScoredText) -> AbstractContextManager[Recorder]:
        if save.kind is ReferenceKind.LLAMA:
            return LlamaWriter(path, loaded.n_vocab, text)
        identity = identity_of(reference.path, reference.metadata)
        return CompactWriter(path, loaded.n_vocab, text, identity, model_file(reference.path, reference, hashes))

    return make
