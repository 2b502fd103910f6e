"""A model loaded by llama.cpp: its vocabulary and its tokeniser."""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gemma4_quant.errors import RunError, TextError
from gemma4_quant.model import Model
from gemma4_quant.runner.devices import device_array
from gemma4_quant.runner.interrupts import deferred_interrupt
from gemma4_quant.runner.llama_library import forget_errors, last_errors, libraries
from gemma4_quant.runner.preflight import refuse_what_aborts
from gemma4_quant.runner.trial import refuse_what_kills
from gemma4_quant.source import open_gguf

Tokens = npt.NDArray[np.int32]
"""(n_tokens,) int32: token ids."""

_MAX_TEXT_BYTES = (1 << 31) - 1  # llama_tokenize takes the length as int32


class LoadedModel:
    """The weights of a GGUF file in llama.cpp's hands, memory-mapped; a context manager.

    path: the file, or any shard of a split model. file: its metadata and tensors. n_vocab: number of tokens. bos: the
    token that begins a text. add_bos: whether a text begins with it. n_ctx_train: positions it was trained on.
    n_gpu_layers: layers to offload; None for all that fit.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_gpu_layers: int | None = None,
        devices: Sequence[str] | None = None,
        vocab_only: bool = False,
    ) -> None:
        """Load a model.

        devices: names of those to offload to; None for llama.cpp's choice. vocab_only: only what tokenises. It is not
        tried in a child process first; call it in one. Raises InputError or GgufError when the file is not a sound
        GGUF of a Gemma 4 model, InputError when there is no such device, RunError with llama.cpp's reason when it
        does not load.
        """
        self.path = path
        self.file: Model = open_gguf(path)
        refuse_what_aborts(self.file)
        if not vocab_only:
            refuse_what_kills(self.file)
        self.n_gpu_layers = n_gpu_layers
        self._llama: Any = libraries().llama
        params = self._llama.llama_model_default_params()
        params.vocab_only = vocab_only
        if n_gpu_layers is not None:
            params.n_gpu_layers = n_gpu_layers
        if devices is not None:
            self._devices = device_array(devices)  # kept, because llama.cpp has the pointer
            params.devices = ctypes.cast(self._devices, ctypes.c_void_p)
        forget_errors()
        self.handle: Any = None
        try:
            with deferred_interrupt():
                self.handle = self._llama.llama_model_load_from_file(os.fsencode(self.file.path), params)
        except KeyboardInterrupt:
            self.close()
            raise
        if not self.handle:
            raise RunError(f"llama.cpp cannot load {path}: {last_errors()}")
        self._vocab: Any = self._llama.llama_model_get_vocab(self.handle)
        self.n_vocab = int(self._llama.llama_vocab_n_tokens(self._vocab))
        self.bos = int(self._llama.llama_vocab_bos(self._vocab))
        self.add_bos = bool(self._llama.llama_vocab_get_add_bos(self._vocab)) and self.bos >= 0
        self.n_ctx_train = int(self._llama.llama_model_n_ctx_train(self.handle))

    def __enter__(self) -> Self:
        """Return the model."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Close the model."""
        self.close()

    def close(self) -> None:
        """Free the weights; sessions on them must have been closed."""
        if self.handle:
            self._llama.llama_model_free(self.handle)
            self.handle = None

    def description(self) -> str:
        """Return llama.cpp's description of the model, such as `gemma4 E2B Q4_K - Medium`."""
        text = ctypes.create_string_buffer(128)
        self._llama.llama_model_desc(self.handle, text, len(text))
        return text.value.decode(errors="replace")

    def n_bytes(self) -> int:
        """Return the size of the weights in bytes, as llama.cpp counts it."""
        return int(self._llama.llama_model_size(self.handle))

    def n_weights(self) -> int:
        """Return the number of weights, as llama.cpp counts it."""
        return int(self._llama.llama_model_n_params(self.handle))

    def tokenise(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> Tokens:
        """Return the tokens of a text.

        add_special: begin with BOS where the model wants it. parse_special: read `<bos>` and the like in the text
        as the tokens they name rather than as letters. Raises TextError when the text is too long for llama.cpp.
        """
        raw = text.encode()
        if len(raw) > _MAX_TEXT_BYTES:
            raise TextError(f"a text of {len(raw)} bytes is too long for llama.cpp; split it at 2 GiB")
        tokens = np.empty(len(raw) + 2, np.int32)
        n_tokens = self._llama.llama_tokenize(
            self._vocab,
            raw,
            len(raw),
            tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            len(tokens),
            add_special,
            parse_special,
        )
        if n_tokens < 0:
            raise RunError(f"llama.cpp makes {-n_tokens} tokens of {len(raw)} bytes of text, more than one a byte")
        return tokens[:n_tokens].copy()
