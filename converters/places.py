"""The machinery of converter tables: where each tensor of a checkpoint goes in a GGUF, and nothing left over."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from gemma4_quant.errors import CheckpointError, UnmappedTensorsError, listed
from gemma4_quant.formats.checkpoint import CheckpointTensor
from gemma4_quant.ggml import GgmlType
from gemma4_quant.model import Tensor

logger = logging.getLogger(__name__)

FLOAT_TYPES = {"F32": GgmlType.F32, "F16": GgmlType.F16, "BF16": GgmlType.BF16}
"""Dtypes of weights that a GGUF can hold as they are."""

MOST_LISTED = 1000
"""Offenders that a message names: all of any real model, not all of a hostile one."""

_PREFIX = re.compile(r"^(?:model\.)?(?:language_model\.)?(?:model\.)?")


class Presence(Enum):
    """Whether a checkpoint has a tensor."""

    REQUIRED = 1
    OPTIONAL = 2
    ABSENT = 3


Transform = Callable[[Tensor], Tensor]
"""From a tensor as it is stored (under its GGUF name) to what GGUF holds of it."""


@dataclass(frozen=True)
class Place:
    """The place of one checkpoint tensor.

    name: in the checkpoint, without prefixes such as `model.language_model.`. gguf: name in the GGUF.
    shape: what the config makes of it, in numpy order; () for a number, which becomes a vector of one.
    max_rows: rows beyond are not copied, None for all. transform: None for tensors that are copied as they are.
    """

    name: str
    gguf: str
    shape: tuple[int, ...]
    presence: Presence = Presence.REQUIRED
    max_rows: int | None = None
    transform: Transform | None = None


@dataclass(frozen=True)
class Drop:
    """Checkpoint tensors that have no place in this GGUF, and why. pattern: searched in the whole name."""

    pattern: re.Pattern[str]
    reason: str


def place_tensors(
    stored: Mapping[str, CheckpointTensor], places: Iterable[Place], drops: Sequence[Drop], architecture: str
) -> list[Tensor]:
    """Give every checkpoint tensor its place, in checkpoint order.

    architecture: what the GGUF is of, for messages.

    Raises UnmappedTensorsError listing all tensors without a place and all places without a tensor, CheckpointError
    listing all tensors of a wrong shape or of a dtype that is not F32, F16 or BF16.
    """
    table = {place.name: place for place in places if place.presence is not Presence.ABSENT}
    found: dict[str, CheckpointTensor] = {}
    unknown, dropped = [], []
    for tensor in stored.values():
        name = bare_name(tensor.name)
        reason = _drop_reason(tensor.name, drops)
        if reason is not None:
            dropped.append((tensor.name, reason))
        elif name not in table or name in found:
            unknown.append(tensor.name)
        else:
            found[name] = tensor
    _log_dropped(dropped)
    required = (place.name for place in table.values() if place.presence is Presence.REQUIRED)
    _check_complete(unknown, [name for name in required if name not in found], architecture)
    _check_contents(found, table)
    return [_placed(tensor, table[name]) for name, tensor in found.items()]


def bare_name(name: str) -> str:
    """Return a tensor's name without prefixes such as `model.language_model.`, which differ between saves."""
    return _PREFIX.sub("", name, count=1)


def _drop_reason(name: str, drops: Sequence[Drop]) -> str | None:
    return next((drop.reason for drop in drops if drop.pattern.search(name)), None)


def _log_dropped(dropped: list[tuple[str, str]]) -> None:
    for reason in dict.fromkeys(reason for _, reason in dropped):
        names = [name for name, other in dropped if other == reason]
        logger.info("left out %d tensors (%s): %s", len(names), reason, listed(names, 3))


def _check_complete(unknown: list[str], missing: list[str], architecture: str) -> None:
    problems = []
    if unknown:
        problems.append(
            f"{len(unknown)} tensors have no place in a {architecture} GGUF: {listed(unknown, MOST_LISTED)}"
        )
    if missing:
        problems.append(
            f"{len(missing)} tensors that config.json calls for are missing: {listed(missing, MOST_LISTED)}"
        )
    if problems:
        raise UnmappedTensorsError(
            "; ".join(problems) + ". config.json and the weights must belong to the same text model; "
            "a fine-tune with added layers or an adapter must be merged into its base model first"
        )


def _check_contents(found: Mapping[str, CheckpointTensor], table: Mapping[str, Place]) -> None:
    packed = [f"{tensor.name} ({tensor.dtype})" for tensor in found.values() if tensor.dtype not in FLOAT_TYPES]
    if packed:
        raise CheckpointError(
            f"{len(packed)} tensors are not stored as F32, F16 or BF16: {listed(packed, MOST_LISTED)}; "
            "start from the unquantized checkpoint"
        )
    wrong = [
        f"{tensor.name} is {list(tensor.shape)}, not {list(table[name].shape)}"
        for name, tensor in found.items()
        if tensor.shape not in _accepted_shapes(table[name])
    ]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors do not have the shape of config.json: {listed(wrong, MOST_LISTED)}"
        )


def _accepted_shapes(place: Place) -> tuple[tuple[int, ...], ...]:
    """Return the place's shape, and for numbers that of the vectors of one that some programs make of them."""
    return (place.shape,) if place.shape else (place.shape, (1,))


def _placed(tensor: CheckpointTensor, place: Place) -> Tensor:
    kind = FLOAT_TYPES[tensor.dtype]
    shape = tensor.shape or (1,)
    if place.max_rows is not None:
        shape = (min(shape[0], place.max_rows), *shape[1:])
    stored = Tensor(place.gguf, shape, kind, tensor.source)
    return stored if place.transform is None else place.transform(stored)
