"""Read a model that lies in several GGUF files as one; the shards must belong together, none may be missing."""

from collections.abc import Sequence
from pathlib import Path

from gemma4_quant.errors import GgufError, listed
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.formats.shards import COUNT_KEY, KEYS, N_TENSORS_KEY, NUMBER_KEY, sibling_paths
from gemma4_quant.metadata import Value, get_int
from gemma4_quant.model import Model

_SHARED_KEYS = ("general.architecture", "general.name")


def read_model(path: Path) -> Model:
    """Open a GGUF file, and with any shard of a split model all others.

    The model's path is the first shard's, which llama.cpp loads. Raises GgufError (or InputError) for a damaged file,
    and for shards that are missing, misnamed, of another model or of another split.
    """
    model = read_gguf(path)
    if COUNT_KEY not in model.metadata:
        return model
    try:
        number, count = get_int(model.metadata, NUMBER_KEY), get_int(model.metadata, COUNT_KEY)
        n_tensors = get_int(model.metadata, N_TENSORS_KEY)
    except GgufError as error:
        raise GgufError(f"{path}: {error}; it is not a whole shard") from error
    if not 0 <= number < count <= n_tensors + 1:  # only the first shard may be without tensors
        raise GgufError(f"{path} says it is shard {number + 1} of {count}, with {n_tensors} tensors in all")
    if count == 1:
        return _joined([model])
    paths = sibling_paths(path, number, count)
    if paths is None:
        raise GgufError(
            f"{path} is shard {number + 1} of {count} and must be named NAME-{number + 1:05}-of-{count:05}.gguf, "
            "as it was, to find the others"
        )
    if missing := [sibling.name for sibling in paths if not sibling.is_file()]:
        raise GgufError(f"{path} lacks {len(missing)} of {count} shards: {listed(missing)}; put them beside it")
    shards = [model if sibling == path else read_gguf(sibling) for sibling in paths]
    _check_shards(shards, n_tensors)
    return _joined(shards)


def _check_shards(shards: Sequence[Model], n_tensors: int) -> None:
    names: set[str] = set()
    for number, shard in enumerate(shards):
        expected = {NUMBER_KEY: number, COUNT_KEY: len(shards), N_TENSORS_KEY: n_tensors}
        for key, value in expected.items():
            found = shard.metadata.get(key)
            if found is None or found.decode() != value:
                raise GgufError(f"{shard.path} is no shard of this split: {key} is {_shown(found)}, not {value}")
        for key in _SHARED_KEYS:
            if key in shard.metadata and shard.metadata[key] != shards[0].metadata.get(key):
                raise GgufError(f"{shard.path} is of another model than {shards[0].path}: their {key} differ")
        if twice := [tensor.name for tensor in shard.tensors if tensor.name in names]:
            raise GgufError(f"{shard.path} holds tensors that another shard has too: {listed(twice)}")
        names.update(tensor.name for tensor in shard.tensors)
    if len(names) != n_tensors:
        raise GgufError(f"{shards[0].path} and its shards hold {len(names)} tensors, {n_tensors} are expected")


def _joined(shards: Sequence[Model]) -> Model:
    first = shards[0]
    return Model(
        first.path,
        {key: value for key, value in first.metadata.items() if key not in KEYS},
        [tensor for shard in shards for tensor in shard.tensors],
        tuple(len(shard.tensors) for shard in shards) if len(shards) > 1 else (),
    )


def _shown(value: Value | None) -> str:
    return "missing" if value is None else str(value.decode())[:40]
