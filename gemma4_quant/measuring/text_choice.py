"""Which texts are scored, and how they are framed: what a user names, else what the package brings."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gemma4_quant.calibration.self_text import SelfTextOptions, self_documents
from gemma4_quant.errors import InputError
from gemma4_quant.measuring.scored_text import Domain, ScoredText, WindowOptions, scored_text
from gemma4_quant.measuring.texts import builtin_domains
from gemma4_quant.progress import Progress
from gemma4_quant.runner.sampling import SamplingOptions
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.texts.documents import read_documents
from gemma4_quant.texts.framing import Framing, chosen_framing, has_template

logger = logging.getLogger(__name__)

RAW_WARNING = (
    "%s is instruction-tuned and never saw raw text outside of a turn: its perplexity there means little, for it can "
    "fall when a model gets worse, and divergences are of states it is never in; without --raw, text is its own turn"
)


@dataclass(frozen=True)
class TextOptions:
    """What is scored.

    domains: texts. framing: None for turns where the model has a chat template, else raw. windows: how they are cut.
    own_tokens: about how many tokens the model writes itself, to be scored on as one more domain; 0 for none. seed:
    of what it writes.
    """

    domains: tuple[Domain, ...]
    framing: Framing | None = None
    windows: WindowOptions = field(default_factory=WindowOptions)
    own_tokens: int = 0
    seed: int = 0


def named_domains(names: Sequence[str]) -> tuple[Domain, ...]:
    """Read texts as named on the command line, `PATH` or `NAME=PATH`, with commas between several.

    A path that exists is taken as it is, whatever signs are in it. Raises TextError for what cannot be read.
    """
    found = []
    for name in [part for text in names for part in _parts(text)]:
        label, path = _label_and_path(name)
        found.append(Domain(label, str(path), read_documents(path)))
    return tuple(found)


def path_domain(path: Path) -> Domain:
    """Read a text, a file of chats or a directory as a domain named after it."""
    return Domain(path.name, str(path), read_documents(path))


def builtin_texts() -> tuple[Domain, ...]:
    """Return the texts that the package brings, in domains."""
    return tuple(Domain(name, "built in", documents) for name, documents in builtin_domains().items())


def _parts(text: str) -> list[str]:
    return [text] if Path(text).exists() else [part for part in text.split(",") if part]


def _label_and_path(text: str) -> tuple[str, Path]:
    label, separator, path = text.partition("=")
    if Path(text).exists() or not separator:
        return Path(text).name, Path(text)
    if not label:
        raise InputError(f"{text!r} names no domain; write NAME=PATH, such as code=examples.py")
    return label, Path(path)


def make_text(model: LoadedModel, options: TextOptions, progress: Progress) -> ScoredText:
    """Frame and cut the texts for a model, and warn when raw text is asked of one that is trained on turns."""
    domains = options.domains
    if options.own_tokens:
        domains = (*domains, _own_text(model, options, progress))
    framing = chosen_framing(model, options.framing)
    if framing is Framing.RAW and has_template(model):
        logger.warning(RAW_WARNING, model.path.name)
    return scored_text(model, domains, framing, options.windows)


def _own_text(model: LoadedModel, options: TextOptions, progress: Progress) -> Domain:
    """Let a model answer the built-in prompts: what it says itself is where its divergence matters most."""
    wanted = SelfTextOptions(options.own_tokens, free_share=0.0, sampling=SamplingOptions(seed=options.seed))
    return Domain("self", "self", self_documents(model, wanted, progress=progress))
