"""The child process that tokenizes for verify: both tokenizers read files that may be built to break them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemma4_quant.errors import Gemma4QuantError
from gemma4_quant.limited_process import serve
from gemma4_quant.runner.trial_worker import skip_package_start, tell_before_aborting


def tokenize(request: Mapping[str, Any]) -> dict[str, Any]:
    """Take `{"path": …, "texts": […]}`, path a GGUF file or a tokenizer.json.

    Answer `{"tokens": [[…], …], "special": […]}`, or `{"failure": …}` with the reason.
    special: texts of the tokens that tokenizer.json calls so. Those in a text are read as such, none is added.
    """
    path = Path(request["path"])
    try:
        if path.suffix == ".json":
            return _by_tokenizers(path, request["texts"])
        return {"tokens": _by_llama(path, request["texts"]), "special": []}
    except MemoryError:
        raise
    except (Gemma4QuantError, OSError, ValueError) as error:
        return {"failure": str(error)[:500]}
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exceptions
        return {"failure": f"{type(error).__name__}: {str(error)[:300]}"}


def _by_tokenizers(path: Path, texts: Sequence[str]) -> dict[str, Any]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    added = tokenizer.get_added_tokens_decoder().values()
    return {
        "tokens": [tokenizer.encode(text, add_special_tokens=False).ids for text in texts],
        "special": [token.content for token in added if token.special],
    }


def _by_llama(path: Path, texts: Sequence[str]) -> list[list[int]]:
    from gemma4_quant.runner.llama_library import libraries
    from gemma4_quant.runner.weights import LoadedModel

    tell_before_aborting(libraries().llama._lib)
    with LoadedModel(path, vocab_only=True) as model:
        return [model.tokenise(text, add_special=False, parse_special=True).tolist() for text in texts]


def main() -> None:
    """Serve."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["GGML_NO_BACKTRACE"] = "1"  # see trial_worker
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # CUDA would take more addresses than allowed
    skip_package_start()
    serve(tokenize)


if __name__ == "__main__":
    main()
