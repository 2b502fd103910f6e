"""Watching the inputs of matrix products while llama.cpp evaluates a batch."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gemma4_quant.ggml import GgmlType
from gemma4_quant.runner.llama_library import libraries
from gemma4_quant.runner.tensors import GgmlTensor, OpCodes, checked_op_codes, read_tensor, tensor_at


@dataclass(frozen=True)
class Product:
    """A product of a weight with activations that is about to be seen.

    weight: GGUF name of the weight. n_matrices: matrices stacked in it (experts). n_in: input features.
    n_inputs: input vectors in each of the activations' matrices. is_routed: each token picks its matrices.
    input_id: the same for products of one evaluation that have the same input, as q, k and v; 0 when unknown.
    """

    weight: str
    n_matrices: int
    n_in: int
    n_inputs: int
    is_routed: bool
    input_id: int = 0


class Observer(Protocol):
    """Receiver of activations; what it raises ends the evaluation and reaches the caller of `decode`."""

    def wants(self, product: Product) -> bool:
        """Tell whether the inputs of `product` shall be handed over; called before they are computed."""
        ...

    def observe(
        self, product: Product, inputs: npt.NDArray[np.float32], experts: npt.NDArray[np.int32] | None
    ) -> None:
        """Take the inputs of a product; the arrays are valid only during the call.

        Dense: inputs (..., n_inputs, n_in), experts None. Routed: inputs (n_tokens, n_used or 1, n_in), experts
        (n_tokens, n_used), the matrix that each token's n-th choice is multiplied with; one input for all choices
        when the second dimension is 1.
        """
        ...


class Callback:
    """An observer as llama.cpp's evaluation callback (`ggml_backend_sched_eval_callback`)."""

    def __init__(self, observer: Observer) -> None:
        """Check the tensor layout of the installed library; raises RunError when it is unknown."""
        self._observer = observer
        self._ops: OpCodes = checked_op_codes()
        self._failure: BaseException | None = None
        self.function = libraries().llama.ggml_backend_sched_eval_callback(self._called)

    def raise_failure(self) -> None:
        """Raise what the observer raised during the last evaluation; C cannot pass it on."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _called(self, node_address: int, ask: bool, _user_data: object) -> bool:
        if self._failure is not None:
            return False
        try:
            node = tensor_at(node_address)
            if node.op not in (self._ops.mul_mat, self._ops.mul_mat_id):
                return False
            product = self._product(node)
            if ask:
                return product is not None and self._observer.wants(product)
            if product is not None:
                self._observer.observe(product, *self._arrays(node, product))
            return True
        except BaseException as error:  # noqa: BLE001 - an exception must not cross C; raise_failure brings it back
            self._failure = error
            return False

    def _product(self, node: GgmlTensor) -> Product | None:
        inputs = tensor_at(node.src[1])
        if inputs.type != GgmlType.F32 or inputs.nb[0] != 4:
            return None
        weight = tensor_at(node.src[0])
        return Product(
            weight=_plain_name(weight.name),
            n_matrices=weight.ne[2] * weight.ne[3],
            n_in=inputs.ne[0],
            n_inputs=inputs.ne[1],
            is_routed=node.op == self._ops.mul_mat_id,
            input_id=node.src[1],
        )

    def _arrays(self, node: GgmlTensor, product: Product) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
        inputs = read_tensor(node.src[1], np.float32)
        if not product.is_routed:
            return inputs, None
        return inputs[0], read_tensor(node.src[2], np.int32)[0, 0]


def _plain_name(name: bytes) -> str:
    """Strip what the scheduler puts around the name of a copied weight: `CUDA0#blk.0.attn_k.weight#0`."""
    parts = name.decode("utf-8", errors="replace").split("#")
    return parts[1] if len(parts) > 1 else parts[0]
