"""A llama.cpp context: batches of tokens in, logits out."""

import ctypes
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gemma4_quant.cores import n_cores
from gemma4_quant.errors import RunError
from gemma4_quant.ggml import CACHE_TYPES, GgmlType
from gemma4_quant.runner.interrupts import deferred_interrupt
from gemma4_quant.runner.llama_library import forget_errors, last_errors, libraries
from gemma4_quant.runner.observer import Callback, Observer
from gemma4_quant.runner.thread_pool import ThreadPool
from gemma4_quant.runner.weights import LoadedModel, Tokens

logger = logging.getLogger(__name__)

# enum llama_flash_attn_type (llama.h)
_FLASH_ATTENTION = {None: -1, False: 0, True: 1}
_MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
_HELD_BACK_S = 0.1

BATCH_TOKENS = 2048
"""Tokens of one decode, as in llama.cpp's tools (-b)."""

MICRO_BATCH_TOKENS = 512
"""Tokens computed at a time, as in llama.cpp's tools (-ub)."""

LOGITS_BYTES = 256 << 20
"""Most memory for the logits of one decode; 256 positions of Gemma's 262,144 tokens."""


@dataclass(frozen=True)
class SessionOptions:
    """How to run a model.

    n_ctx: positions of each sequence. n_sequences: independent texts evaluated side by side. n_batch: most tokens
    of one decode. n_ubatch: most tokens computed at a time. n_outputs: most positions of a decode with logits.
    n_threads: None for all cores. key_type, value_type: types of the KV cache. flash_attention: None lets
    llama.cpp choose.
    """

    n_ctx: int = 512
    n_sequences: int = 1
    n_batch: int = BATCH_TOKENS
    n_ubatch: int = MICRO_BATCH_TOKENS
    n_outputs: int = 1
    n_threads: int | None = None
    key_type: GgmlType = GgmlType.F16
    value_type: GgmlType = GgmlType.F16
    flash_attention: bool | None = None

    def check(self) -> None:
        """Raise RunError for values that llama.cpp would abort on."""
        counts = ("n_ctx", "n_sequences", "n_batch", "n_ubatch", "n_outputs")
        wrong = [f"{name} = {getattr(self, name)}" for name in counts if getattr(self, name) < 1]
        if self.n_threads is not None and self.n_threads < 1:
            wrong.append(f"n_threads = {self.n_threads}")
        if wrong:
            raise RunError(f"{', '.join(wrong)}: must be at least 1")
        if self.n_sequences > _MAX_SEQUENCES:
            raise RunError(f"n_sequences = {self.n_sequences}: llama.cpp runs at most {_MAX_SEQUENCES}")
        for kind in (self.key_type, self.value_type):
            if kind not in CACHE_TYPES:
                known = ", ".join(sorted(known.name for known in CACHE_TYPES))
                raise RunError(f"{kind.name} is no type of a KV cache; known are {known}")


class Session:
    """A context on a loaded model; a context manager. Not to be used from two threads at once."""

    def __init__(self, model: LoadedModel, options: SessionOptions, observer: Observer | None = None) -> None:
        """Make a context.

        observer: sees the inputs of matrix products during `decode`. Raises RunError when llama.cpp cannot make
        the context, most often for lack of memory.
        """
        options.check()
        if options.n_ctx > model.n_ctx_train:
            logger.warning(
                "%s was trained on at most %d positions, and is run with %d: what it says of the rest means little",
                model.path,
                model.n_ctx_train,
                options.n_ctx,
            )
        self.model = model
        self.options = options
        self.n_threads = options.n_threads or n_cores()
        self._llama: Any = libraries().llama
        self._callback = None if observer is None else Callback(observer)
        forget_errors()
        self._handle: Any = None
        try:
            with deferred_interrupt():
                self._handle = self._llama.llama_init_from_model(model.handle, self._params())
        except KeyboardInterrupt:
            self.close()
            raise
        if not self._handle:
            raise RunError(
                f"llama.cpp cannot run {model.path} with {options.n_sequences} sequences of {options.n_ctx} "
                f"positions: {last_errors()}; is there enough memory?"
            )

    def _params(self) -> Any:
        options = self.options
        params = self._llama.llama_context_default_params()
        params.n_ctx = options.n_ctx * options.n_sequences
        params.n_batch = options.n_batch
        params.n_ubatch = min(options.n_ubatch, options.n_batch)
        params.n_seq_max = options.n_sequences
        # llama.cpp reserves room for at least one output a sequence, and aborts when that exceeds the maximum.
        params.n_outputs_max = min(options.n_batch, max(options.n_outputs, options.n_sequences))
        params.n_threads = params.n_threads_batch = self.n_threads
        params.flash_attn_type = _FLASH_ATTENTION[options.flash_attention]
        params.type_k, params.type_v = options.key_type, options.value_type
        # As llama.cpp's own tools: local layers keep only their window.
        params.swa_full = False
        params.no_perf = True
        if self._callback is not None:
            params.cb_eval = self._callback.function
        return params

    def __enter__(self) -> Self:
        """Return the session."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Close the session."""
        self.close()

    def close(self) -> None:
        """Free the context."""
        if self._handle:
            self._llama.llama_free(self._handle)
            self._handle = None

    def clear(self) -> None:
        """Forget all that was decoded."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._handle), True)

    def decode(self, tokens: npt.NDArray[np.int32], start: int, wanted: slice) -> npt.NDArray[np.float32]:
        """Evaluate a piece of every sequence and return logits.

        tokens: (n_sequences or fewer, n_positions) int32, the tokens at positions start, start + 1, … of sequences
        0, 1, …. wanted: which of the columns of `tokens` get logits. Returns (n_sequences, n_wanted, n_vocab)
        float32, a view that is valid until the next decode. Raises RunError when a token is out of range, the
        piece is too large for the session, or llama.cpp fails.
        """
        n_sequences, n_positions = tokens.shape
        mask = np.zeros(tokens.shape, np.int8)
        mask[:, wanted] = 1
        n_outputs = int(mask.sum())
        self._check_piece(tokens, start, n_outputs)
        positions = np.broadcast_to(np.arange(start, start + n_positions, dtype=np.int32), tokens.shape)
        sequences = np.broadcast_to(np.arange(n_sequences, dtype=np.int32)[:, None], tokens.shape)
        self.run(Batch(tokens, positions, sequences, mask))
        return self._logits(n_outputs).reshape(n_sequences, n_outputs // n_sequences, self.model.n_vocab)

    def decode_tokens(
        self, tokens: Tokens, positions: Tokens, sequences: Tokens, wanted: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float32]:
        """Evaluate tokens of any sequences, each at its own position, and return logits.

        tokens, positions, sequences: (n,) int32; of each sequence positions that follow those it has. wanted: (n,)
        bool, which tokens get logits. Returns (n_wanted, n_vocab) float32, a view that is valid until the next
        decode. Raises RunError as `decode` does.
        """
        n_outputs, options = int(wanted.sum()), self.options
        self._check_tokens(tokens, n_outputs)
        for name, values, limit in (
            ("position", positions, options.n_ctx),
            ("sequence", sequences, options.n_sequences),
        ):
            if values.min() < 0 or values.max() >= limit:
                raise RunError(f"{name} {int(values.max())} does not fit a session with {limit} (from 0)")
        self.run(Batch(tokens, positions, sequences, wanted.astype(np.int8)))
        return self._logits(n_outputs)

    def forget(self, sequence: int) -> None:
        """Forget what was decoded of one sequence."""
        self._llama.llama_memory_seq_rm(self._llama.llama_get_memory(self._handle), sequence, -1, -1)

    def _logits(self, n_rows: int) -> npt.NDArray[np.float32]:
        """Return the logits of the last batch; rows in its order, for llama.cpp undoes what micro-batches moved."""
        if n_rows == 0:
            return np.empty((0, self.model.n_vocab), np.float32)
        pointer = self._llama.llama_get_logits(self._handle)
        if not pointer:
            raise RunError(f"llama.cpp returns no logits for {self.model.path}: {last_errors()}")
        return np.ctypeslib.as_array(pointer, shape=(n_rows, self.model.n_vocab))

    def run(self, batch: "Batch") -> None:
        """Evaluate a batch and wait until it is done; raises RunError when llama.cpp fails."""
        self.run_all([batch])

    def run_all(self, batches: Sequence["Batch"], *, waits: bool = True) -> None:
        """Evaluate batches one after the other, and wait for the last; raises RunError when llama.cpp fails.

        waits: end each batch before the next begins, as generation must. Holding back interruptions costs as much as
        a few layers of a small model: it is done for some batches at once, but for no longer than a person notices.
        """
        forget_errors()
        decode, synchronize, handle = self._llama.llama_decode, self._llama.llama_synchronize, self._handle
        n_done = code = 0
        while n_done < len(batches) and code == 0:
            with deferred_interrupt():
                deadline = time.monotonic() + _HELD_BACK_S
                while n_done < len(batches) and code == 0:
                    code = decode(handle, batches[n_done].struct)
                    n_done += 1
                    if waits:
                        synchronize(handle)
                    if time.monotonic() > deadline:
                        break
                synchronize(handle)
            if self._callback is not None:
                self._callback.raise_failure()
        if code != 0:
            reason = "no room left in the KV cache" if code == 1 else last_errors()
            n_tokens = batches[n_done - 1].n_tokens
            raise RunError(
                f"llama.cpp failed to evaluate {n_tokens} tokens with {self.model.path} ({code}): {reason}"
            )

    def use_threads(self, pool: ThreadPool) -> None:
        """Compute on the threads of `pool`, which must outlive the session."""
        libraries().libllama.llama_attach_threadpool(self._handle, pool.handle, None)

    def saved_state(self) -> npt.NDArray[np.uint8]:
        """Return what the session holds of its first sequence, in llama.cpp's bytes."""
        state = np.empty(self._llama.llama_state_seq_get_size(self._handle, 0), np.uint8)
        n_bytes = self._llama.llama_state_seq_get_data(self._handle, _pointer(state, ctypes.c_uint8), state.size, 0)
        return state[:n_bytes]

    def restore_state(self, state: npt.NDArray[np.uint8]) -> bool:
        """Take up in an empty session what `saved_state` returned; False when it stays empty, as it does not fit."""
        pointer = _pointer(state, ctypes.c_uint8)
        if state.size and self._llama.llama_state_seq_set_data(self._handle, pointer, state.size, 0):
            return True
        self.clear()
        return False

    def _check_piece(self, tokens: npt.NDArray[np.int32], start: int, n_outputs: int) -> None:
        n_sequences, n_positions = tokens.shape
        options = self.options
        if n_sequences > options.n_sequences or start < 0 or start + n_positions > options.n_ctx:
            raise RunError(
                f"{n_sequences} sequences up to position {start + n_positions} do not fit a session of "
                f"{options.n_sequences} sequences of {options.n_ctx} positions"
            )
        self._check_tokens(tokens, n_outputs)

    def _check_tokens(self, tokens: Tokens, n_outputs: int) -> None:
        options = self.options
        if tokens.size > options.n_batch or n_outputs > options.n_outputs:
            raise RunError(
                f"a piece of {tokens.size} tokens with {n_outputs} logits does not fit batches of "
                f"{options.n_batch} tokens with {options.n_outputs}"
            )
        if tokens.size == 0 or tokens.min() < 0 or tokens.max() >= self.model.n_vocab:
            raise RunError(f"a piece has no tokens, or some outside 0…{self.model.n_vocab - 1}")


class Batch:
    """Tokens laid out as `struct llama_batch`, in memory of ours."""

    def __init__(self, tokens: Tokens, positions: Tokens, sequences: Tokens, wanted: npt.NDArray[np.int8]) -> None:
        """Lay out tokens; all arrays have one shape, and rows follow each other."""
        llama: Any = libraries().llama
        self.n_tokens = tokens.size
        self._tokens = np.ascontiguousarray(tokens, np.int32)
        self._positions = np.ascontiguousarray(positions, np.int32)
        self._sequences = np.ascontiguousarray(sequences, np.int32)
        self._wanted = np.ascontiguousarray(wanted, np.int8)
        self._n_sequence_ids = np.ones(self.n_tokens, np.int32)
        # Each token points to its list of sequences; ours have one entry, the token's own.
        self._sequence_pointers = self._sequences.ctypes.data + 4 * np.arange(self.n_tokens, dtype=np.uintp)
        self.struct = llama.llama_batch(
            n_tokens=self.n_tokens,
            token=_pointer(self._tokens, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._n_sequence_ids, ctypes.c_int32),
            seq_id=_pointer(self._sequence_pointers, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._wanted, ctypes.c_int8),
        )


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))
