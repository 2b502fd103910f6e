"""Which weights a model multiplies, and which of them with the same input: found out by running a few tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemma4_quant.errors import RunError
from gemma4_quant.metadata import get_int
from gemma4_quant.model import Model, Tensor
from gemma4_quant.runner.observer import Product
from gemma4_quant.runner.session import Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel

_N_TOKENS = 32
"""Enough for llama.cpp to evaluate them as it does a chunk, with products of matrices rather than of vectors."""


@dataclass(frozen=True)
class Input:
    """What enters one or more weights.

    names: of the weights, the one that is multiplied first in front. n_in: columns. n_matrices: experts of stacked
    weights, else 1. is_routed: each token picks its matrices. n_used: how many each token picks, 1 when not routed.
    """

    names: tuple[str, ...]
    n_in: int
    n_matrices: int
    is_routed: bool
    n_used: int

    @property
    def name(self) -> str:
        """Name of the weight that its statistics are kept for."""
        return self.names[0]


def survey(model: LoadedModel, *, n_threads: int | None = None) -> tuple[Input, ...]:
    """Return the inputs of all products with weights of the model, in the order of evaluation.

    Products of one dense matrix and of routed experts count; others, such as batched ones, do not occur in Gemma 4.
    """
    observer = _Surveyor(frozenset(tensor.name for tensor in model.file.tensors))
    options = SessionOptions(
        n_ctx=_N_TOKENS, n_batch=_N_TOKENS, n_ubatch=_N_TOKENS, n_outputs=_N_TOKENS, n_threads=n_threads
    )
    tokens = np.full((1, _N_TOKENS), max(0, model.bos), np.int32)
    with Session(model, options, observer) as session:
        session.decode(tokens, 0, slice(None))
    found = observer.inputs()
    if not found:
        raise RunError(f"{model.path} multiplies none of its tensors, so there are no statistics to gather")
    return found


def expected_inputs(model: Model) -> tuple[Input, ...]:
    """Return what `survey` would find for a model that cannot be run yet, by the names of its tensors."""
    n_used = get_int(model.metadata, "gemma4.expert_used_count", 1)
    shared: dict[str, list[Tensor]] = {}
    for tensor in model.tensors:
        if len(tensor.shape) > 1 and tensor.name not in _LOOKED_UP:
            shared.setdefault(_input_name(tensor.name), []).append(tensor)
    return tuple(
        Input(
            tuple(tensor.name for tensor in tensors),
            first.n_cols,
            first.n_matrices,
            first.n_matrices > 1,
            n_used if first.n_matrices > 1 else 1,
        )
        for tensors in shared.values()
        for first in [tensors[0]]
    )


_LOOKED_UP = frozenset({"per_layer_token_embd.weight"})

_SAME_INPUT = {"attn_k": "attn_q", "attn_v": "attn_q", "ffn_up": "ffn_gate", "ffn_up_exps": "ffn_gate_exps"}


def _input_name(name: str) -> str:
    """Return the same for tensors of a layer that have the same input in llama.cpp's graph of Gemma 4."""
    if not name.startswith("blk."):
        return name
    layer, part, rest = name.removeprefix("blk.").split(".", 2)
    return f"{layer}.{_SAME_INPUT.get(part, part)}.{rest}"


class _Surveyor:
    """Observer that notes the products of one evaluation."""

    def __init__(self, weights: frozenset[str]) -> None:
        self._weights = weights
        self._products: dict[str, Product] = {}
        self._n_used: dict[str, int] = {}

    def wants(self, product: Product) -> bool:
        """Note a product; only routed ones need be seen, for the number of choices. See Observer."""
        if product.weight not in self._weights or not (product.is_routed or product.n_matrices == 1):
            return False
        self._products.setdefault(product.weight, product)
        return product.is_routed

    def observe(
        self, product: Product, _inputs: npt.NDArray[np.float32], experts: npt.NDArray[np.int32] | None
    ) -> None:
        """Note how many experts a token picks; see Observer."""
        self._n_used[product.weight] = 1 if experts is None else experts.shape[1]

    def inputs(self) -> tuple[Input, ...]:
        together: dict[tuple[object, ...], list[Product]] = {}
        for product in self._products.values():
            own = product.input_id or product.weight
            key = (own, product.is_routed, product.n_matrices, product.n_in)
            together.setdefault(key, []).append(product)
        return tuple(self._input(products) for products in together.values())

    def _input(self, products: Sequence[Product]) -> Input:
        first = products[0]
        names = tuple(product.weight for product in products)
        return Input(names, first.n_in, first.n_matrices, first.is_routed, self._n_used.get(first.weight, 1))
