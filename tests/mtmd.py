"""llama.cpp's mtmd on a model and its projector: embeddings of a picture or a sound, for tests."""

import ctypes
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gemma4_quant.runner.llama_library import last_errors, libraries, log_callback

Embeddings = npt.NDArray[np.float32]


class Senses:
    """A context manager that holds a text model and a projector."""

    def __init__(self, model: Path, projector: Path) -> None:
        import llama_cpp.mtmd_cpp as mtmd

        self._mtmd, self._llama = mtmd, libraries().llama
        mtmd.mtmd_log_set(log_callback(self._llama), None)
        self._model = self._llama.llama_model_load_from_file(
            os.fsencode(model), self._llama.llama_model_default_params()
        )
        params = mtmd.mtmd_context_params_default()
        params.use_gpu, params.print_timings, params.n_threads = False, False, 1
        self._context: Any = mtmd.mtmd_init_from_file(os.fsencode(projector), self._model, params)
        assert self._context, last_errors()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._mtmd.mtmd_free(self._context)
        self._llama.llama_model_free(self._model)

    def see(self, pixels: npt.NDArray[np.uint8]) -> Embeddings:
        """Return (n_tokens, width) for a picture (height, width, 3)."""
        height, width, _ = pixels.shape
        data = np.ascontiguousarray(pixels).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return self._embed(self._mtmd.mtmd_bitmap_init(width, height, data))

    def hear(self, samples: npt.NDArray[np.float32]) -> Embeddings:
        """Return (n_tokens, width) for a sound (n_samples,)."""
        data = np.ascontiguousarray(samples).ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        return self._embed(self._mtmd.mtmd_bitmap_init_from_audio(len(samples), data))

    def _embed(self, bitmap: Any) -> Embeddings:
        mtmd = self._mtmd
        chunks = mtmd.mtmd_input_chunks_init()
        marker = mtmd.mtmd_default_marker()
        text = mtmd.mtmd_input_text(marker, len(marker), False, True)
        assert mtmd.mtmd_tokenize(self._context, chunks, ctypes.byref(text), (ctypes.c_void_p * 1)(bitmap), 1) == 0
        found = []
        for i in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, i)
            if mtmd.mtmd_input_chunk_get_type(chunk) != mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                assert mtmd.mtmd_encode_chunk(self._context, chunk) == 0
                shape = mtmd.mtmd_input_chunk_get_n_tokens(chunk), self._llama.llama_model_n_embd(self._model)
                found.append(np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(self._context), shape).copy())
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        return np.concatenate(found)
