"""How much of which second moments fits into memory: full matrices or blocks, and in how many passes."""

from collections.abc import Sequence
from dataclasses import dataclass

from gemma4_quant.calibration.moment_sums import RunningMoments
from gemma4_quant.calibration.moments import block_width_of
from gemma4_quant.calibration.moments_writing import EntryLayout
from gemma4_quant.calibration.survey import Input
from gemma4_quant.errors import InputError

DEFAULT_MEMORY_BYTES = 4 << 30
"""For the sums of one pass; the model and llama.cpp's context come on top."""

_SHARE = 8
"""One weight's full matrix takes at most so small a part of the memory: 21,504 columns would take 925 MB, and a pass
for every four layers."""

TOKENS_PER_COLUMN = 3
"""Vectors a column that a full matrix needs to be better than its diagonal (prototypes of error feedback)."""

_SLOTS, _EXPERT_SLOTS = 256, 32
"""Held-out vectors of a matrix. Hundreds of output rows share them, so a handful tells a fit from a chance."""

_NEVER_QUANTIZED = "ffn_gate_inp.weight"  # the router: llama-quantize leaves it as it is (tensor_allows_quantization)


@dataclass(frozen=True)
class MomentsPlan:
    """What is gathered, and when.

    entries: all, in the order of evaluation. passes: the entries of each pass over the text. memory_bytes: of the
    largest pass's sums.
    """

    entries: tuple[EntryLayout, ...]
    passes: tuple[tuple[EntryLayout, ...], ...]
    memory_bytes: int


def plan_moments(inputs: Sequence[Input], n_tokens: int, memory_bytes: int) -> MomentsPlan:
    """Decide what to gather of `inputs` from n_tokens tokens with sums of at most memory_bytes.

    A full matrix is gathered where it takes at most an eighth of the memory, and where experts, each of which sees
    some of the tokens only, can be expected to see three vectors a column; else blocks of 256 columns on the
    diagonal. Raises InputError when the memory does not suffice for the blocks of one weight.
    """
    entries = tuple(
        _layout(each, n_tokens, memory_bytes) for each in inputs if not each.name.endswith(_NEVER_QUANTIZED)
    )
    passes: list[list[EntryLayout]] = []
    used = memory_bytes
    most = 0
    for entry in entries:
        n_bytes = entry_memory(entry)
        if n_bytes > memory_bytes:
            raise InputError(
                f"the second moments of {entry.name} take {n_bytes:,} bytes of memory, {memory_bytes:,} are allowed; "
                "allow more with --hessian-memory"
            )
        if used + n_bytes > memory_bytes:
            passes.append([])
            used = 0
        passes[-1].append(entry)
        used += n_bytes
        most = max(most, used)
    return MomentsPlan(entries, tuple(map(tuple, passes)), most)


def entry_memory(entry: EntryLayout) -> int:
    """Return the bytes that an entry's sums take while they are gathered."""
    return entry.n_matrices * RunningMoments.n_bytes(entry.n_in, entry.block_width, entry.n_slots)


def _layout(each: Input, n_tokens: int, memory_bytes: int) -> EntryLayout:
    n_slots = _EXPERT_SLOTS if each.is_routed else _SLOTS
    full = EntryLayout(each.names, each.n_in, each.n_matrices, each.n_in, n_slots)
    vectors = n_tokens * each.n_used // each.n_matrices
    if entry_memory(full) <= memory_bytes // _SHARE and (
        not each.is_routed or vectors >= TOKENS_PER_COLUMN * each.n_in
    ):
        return full
    width = block_width_of(each.n_in, full=False)
    return EntryLayout(each.names, each.n_in, each.n_matrices, width, n_slots)
