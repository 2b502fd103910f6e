"""Running windows of text through sessions in pieces that fit batches and the memory for logits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemma4_quant.ggml import GgmlType
from gemma4_quant.measuring.kernels import Logits, Targets
from gemma4_quant.runner.session import BATCH_TOKENS, Session, SessionOptions
from gemma4_quant.texts.packing import Window

LOGITS_BYTES = 512 << 20
"""Most memory for logits, of all sessions that run side by side; 256 positions of Gemma's 262,144 tokens, twice:
llama.cpp computes logits in one buffer and hands them out in another."""

_COPIES = 2
_MAX_SEQUENCES = 32
_MAX_CELLS = 4 * BATCH_TOKENS
"""Positions of the KV cache of all sequences together, unless one alone takes more."""


@dataclass(frozen=True)
class RunOptions:
    """How sessions run. n_threads: None for all cores. flash_attention: None lets llama.cpp choose."""

    n_threads: int | None = None
    key_type: GgmlType = GgmlType.F16
    value_type: GgmlType = GgmlType.F16
    flash_attention: bool | None = None


def session_options(
    windows: Sequence[Window], n_vocab: int, n_sessions: int, options: RunOptions, n_batch: int | None = None
) -> SessionOptions:
    """Size sessions that run the same windows side by side: sequences to fill a batch, logits as memory allows.

    n_batch: most tokens of a decode, of one sequence at a time; None for several sequences in decodes of usual size.
    """
    lengths = [len(window.tokens) for window in windows]
    n_ctx = max(2, *lengths)
    typical = max(1, sum(lengths) // len(lengths))
    n_sequences = min(len(windows), BATCH_TOKENS // typical, _MAX_CELLS // n_ctx, _MAX_SEQUENCES)
    n_sequences = max(1, n_sequences) if n_batch is None else 1
    n_outputs = max(1, LOGITS_BYTES // (_COPIES * 4 * n_vocab * n_sessions))
    n_batch = min(BATCH_TOKENS if n_batch is None else n_batch, n_sequences * n_ctx)
    return SessionOptions(
        n_ctx=n_ctx,
        n_sequences=n_sequences,
        n_batch=n_batch,
        n_outputs=min(n_outputs, n_batch),
        n_threads=options.n_threads,
        key_type=options.key_type,
        value_type=options.value_type,
        flash_attention=options.flash_attention,
    )


@dataclass(frozen=True)
class Piece:
    """Tokens of one decode: of one or several sequences, each going on where its last piece ended.

    tokens, positions, sequences: (n,) int32. wanted: (n,) bool. targets: (n_wanted,) int32, the tokens that follow
    the wanted ones.
    """

    tokens: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    sequences: npt.NDArray[np.int32]
    wanted: npt.NDArray[np.bool_]
    targets: Targets

    def run(self, session: Session) -> Logits:
        """Return logits of the wanted positions, (n_wanted, n_vocab), valid until the session's next decode."""
        return session.decode_tokens(self.tokens, self.positions, self.sequences, self.wanted)


def groups(windows: Sequence[Window], n_sequences: int) -> Iterator[range]:
    """Yield which windows run together: a sequence each."""
    for start in range(0, len(windows), n_sequences):
        yield range(start, min(start + n_sequences, len(windows)))


def pieces(windows: Sequence[Window], options: SessionOptions) -> list[Piece]:
    """Cut a group of windows into decodes.

    The last token of a window predicts nothing, but is evaluated as in llama.cpp's tools: batches of the same sizes
    round alike.
    """
    lengths = [len(window.tokens) for window in windows]
    tokens = np.concatenate([window.tokens for window in windows])
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    sequences = np.repeat(np.arange(len(windows), dtype=np.int32), lengths)
    wanted = np.concatenate([np.append(window.is_scored[1:], False) for window in windows])
    following = np.append(tokens[1:], 0).astype(np.int32)
    found = []
    start = 0
    n_wanted = np.concatenate([[0], np.cumsum(wanted)])
    while start < len(tokens):
        most = int(np.searchsorted(n_wanted, n_wanted[start] + options.n_outputs, side="right")) - 1
        stop = min(start + options.n_batch, most, len(tokens))
        part = slice(start, stop)
        targets = np.ascontiguousarray(following[part][wanted[part]])
        found.append(Piece(tokens[part], positions[part], sequences[part], wanted[part], targets))
        start = stop
    return found
