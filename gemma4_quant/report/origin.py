"""Where a GGUF file says that it comes from: base model, licence, languages, and what it was quantized with."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gemma4_quant.errors import GgufError, InputError
from gemma4_quant.formats.split_reader import read_model
from gemma4_quant.measuring.results import BenchResult
from gemma4_quant.metadata import Metadata, get_int, get_string
from gemma4_quant.report.printable import clean

_HUB = "https://huggingface.co/"
_MAX_ENTRIES = 16


@dataclass(frozen=True)
class Origin:
    """What metadata says; None or empty where it says nothing. All strings are printable, and bounded.

    base_models: ids on the Hub. source: the file that was quantized. importance_text: what the importance matrix was
    made from, `importance_chunks` its number of chunks.
    """

    base_models: tuple[str, ...] = ()
    license: str | None = None
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    source: str | None = None
    version: str | None = None
    importance_text: str | None = None
    importance_chunks: int | None = None


def read_origin(metadata: Metadata) -> Origin:
    """Read an origin; what has another type than it should is passed over."""
    return Origin(
        base_models=tuple(_base_models(metadata)),
        license=_text(metadata, "general.license"),
        languages=_list(metadata, "general.languages"),
        tags=_list(metadata, "general.tags"),
        source=_text(metadata, "gemma4_quant.source.name"),
        version=_text(metadata, "gemma4_quant.version"),
        importance_text=_text(metadata, "quantize.imatrix.dataset"),
        importance_chunks=_number(metadata, "quantize.imatrix.chunks_count"),
    )


def _base_models(metadata: Metadata) -> Iterator[str]:
    """Yield ids such as google/gemma-4-E2B-it; addresses elsewhere than on the Hub are nothing a card can name."""
    for i in range(min(_MAX_ENTRIES, _number(metadata, "general.base_model.count") or 0)):
        address = _text(metadata, f"general.base_model.{i}.repo_url") or ""
        name = address.removeprefix(_HUB)
        if address.startswith(_HUB) and name.count("/") == 1:
            yield name


def _text(metadata: Metadata, key: str) -> str | None:
    try:
        return clean(get_string(metadata, key, "")) or None
    except GgufError:
        return None


def _number(metadata: Metadata, key: str) -> int | None:
    try:
        return get_int(metadata, key) if key in metadata else None
    except GgufError:
        return None


def _list(metadata: Metadata, key: str) -> tuple[str, ...]:
    value = metadata.get(key)
    found = [] if value is None else value.decode()
    texts = found if isinstance(found, list) else [found]
    return tuple(clean(text) for text in texts[:_MAX_ENTRIES] if isinstance(text, str) and text.strip())


def origins_of(result: BenchResult) -> dict[Path, Origin]:
    """Read the origins of a result's models from their files; a file that cannot be read any more says nothing."""
    found = {}
    for model in result.models:
        try:
            found[model.file.path] = read_origin(read_model(model.file.path).metadata)
        except InputError:
            found[model.file.path] = Origin()
    return found
