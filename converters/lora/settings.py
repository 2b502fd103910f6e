"""adapter_config.json: rank and scale of each module of a LoRA adapter, and refusal of what is no plain LoRA.

Meaning of the keys: peft, tuners/lora/config.py; patterns: peft, utils/other.py (get_pattern_key).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma4_quant.errors import CheckpointError, listed
from gemma4_quant.formats.checkpoint import find_checkpoint_file
from gemma4_quant.formats.json_input import Fields, kind_of, read_json_object

CONFIG_NAME = "adapter_config.json"

MAX_RANK = 1 << 16
MAX_PATTERNS = 4096
"""PEFT writes one entry a module where ranks differ (AdaLoRA-like searches); 60 layers have some 500 modules."""

_MAX_REGEXES = 64
_MAX_REPEATS = 3  # a search over names of at most 256 letters then ends soon, whatever the pattern

# Keys whose value must be null, false or empty for an adapter to be scale · B · A beside the unchanged base weights.
_UNSUPPORTED: Mapping[str, str] = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "lora_bias": "biases in lora_B",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "single trained tokens",
    "megatron_config": "Megatron layers",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}

# These ways to begin leave the base weights as they are; PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ change them.
_PLAIN_INITS = ("gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Settings:
    """How an adapter scales each of its modules.

    base_model: what it was trained on, a Hub id or a path; None when unknown. invocation_tokens: the tokens after
    which an activated LoRA begins to work, empty for others. is_tied: input and output embeddings are trained as one.
    """

    rank: int
    alpha: float
    is_rank_stabilized: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    base_model: str | None
    invocation_tokens: tuple[int, ...]
    is_tied: bool

    def rank_of(self, module: str) -> int:
        """Return the rank of a module, named without `base_model.model.`."""
        return self.ranks.get(_pattern_for(self.ranks, module), self.rank)

    def alpha_of(self, module: str) -> float:
        """Return the numerator of a module's scale."""
        return self.alphas.get(_pattern_for(self.alphas, module), self.alpha)

    def scale_of(self, module: str) -> float:
        """Return the factor of B · A of a module: alpha / rank, or alpha / √rank if rank-stabilized."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.is_rank_stabilized else rank)


def read_settings(directory: Path) -> Settings:
    """Read adapter_config.json; raises CheckpointError for anything but a LoRA that adds scale · B · A."""
    path = find_checkpoint_file(directory, CONFIG_NAME)
    if path is None:
        raise CheckpointError(f"{directory} has no {CONFIG_NAME}; give the directory of an adapter saved by PEFT")
    fields = Fields(read_json_object(path), str(path))
    _refuse_other_methods(fields)
    return Settings(
        rank=fields.integer("r", 8, high=MAX_RANK),
        alpha=fields.number("lora_alpha", 8.0),
        is_rank_stabilized=fields.flag("use_rslora", False),
        ranks=_read_ranks(fields),
        alphas=_read_alphas(fields),
        base_model=fields.text("base_model_name_or_path") if "base_model_name_or_path" in fields else None,
        invocation_tokens=_read_invocation(fields),
        is_tied=fields.flag("ensure_weight_tying", False),
    )


def _refuse_other_methods(fields: Fields) -> None:
    method = fields.text("peft_type", "LORA")
    if method != "LORA":
        fields.fail("peft_type", f"is {method[:40]!r}; only LORA adapters can be converted")
    found = [name for key, name in _UNSUPPORTED.items() if fields.values.get(key)]
    bias = fields.text("bias", "none")
    if bias != "none":
        found.append(f"trained biases (bias = {bias[:40]!r})")
    start = fields.values.get("init_lora_weights")
    if isinstance(start, str) and start not in _PLAIN_INITS:
        found.append(f"a start that changes the base weights (init_lora_weights = {start[:40]!r})")
    if found:
        raise CheckpointError(
            f"{fields.source} uses {listed(found)}, which this tool cannot apply; "
            "merge the adapter with PEFT (merge_and_unload) and convert the result"
        )


def _read_ranks(fields: Fields) -> dict[str, int]:
    patterns = _patterns(fields, "rank_pattern")
    return {name: patterns.integer(name, high=MAX_RANK) for name in patterns.values}


def _read_alphas(fields: Fields) -> dict[str, float]:
    patterns = _patterns(fields, "alpha_pattern")
    return {name: patterns.number(name) for name in patterns.values}


def _patterns(fields: Fields, key: str) -> Fields:
    if key not in fields:
        return Fields({}, fields.source)
    patterns = fields.inner(key)
    if len(patterns.values) > MAX_PATTERNS:
        fields.fail(key, f"has {len(patterns.values):,} entries, more than {MAX_PATTERNS:,}")
    regexes = [pattern for pattern in patterns.values if not _is_literal(pattern)]
    if len(regexes) > _MAX_REGEXES:
        fields.fail(key, f"has {len(regexes)} regular expressions, more than {_MAX_REGEXES}")
    for pattern in regexes:
        if len(re.findall(r"[*+?{]", pattern)) > _MAX_REPEATS or re.search(r"\)[*+?{]", pattern):
            fields.fail(key, f"holds {pattern[:80]!r}, a regular expression too intricate to be a module's name")
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            fields.fail(key, f"holds {pattern[:80]!r}, which is no regular expression ({error})")
    return patterns


def _is_literal(pattern: str) -> bool:
    return re.fullmatch(r"[\w.]*", pattern) is not None


def _pattern_for(patterns: Mapping[str, Any], module: str) -> str:
    """Return the first pattern that a module's name ends with, as PEFT finds it; the module itself when none does."""
    for pattern in patterns:
        if _is_literal(pattern):  # a dot of a name matches itself; no two modules differ there in another letter
            if module == pattern or module.endswith(f".{pattern}"):
                return pattern
        elif re.match(rf"(.*\.)?({pattern})$", module):
            return pattern
    return module


def _read_invocation(fields: Fields) -> tuple[int, ...]:
    if "alora_invocation_tokens" not in fields:
        if "invocation_string" in fields:
            fields.fail("invocation_string", "is there without alora_invocation_tokens; write the token ids")
        return ()
    tokens = fields.sequence("alora_invocation_tokens")
    if len(tokens) > MAX_PATTERNS or not all(type(token) is int and 0 <= token < 2**31 for token in tokens):
        fields.fail("alora_invocation_tokens", f"is {kind_of(tokens)}, not a list of token ids")
    return tuple(tokens)
