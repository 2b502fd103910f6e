"""Models with the layers and shapes of the released Gemma 4 models; as files, with two rows of zeros a matrix.

llama-quantize chooses types by names, row widths and metadata; rows only make files large.
"""

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import GgmlType
from gemma4_quant.model import ArrayRows, Model, Tensor

N_ROWS = 2
N_VOCAB = 262_144
_LOCAL_HEAD, _GLOBAL_HEAD = 256, 512


@dataclass(frozen=True)
class Shape:
    """What decides the widths of a model's rows.

    period: every period-th layer is global. n_per_layer: width of a layer's own embedding, 0 for none.
    n_shared: last layers that borrow keys and values, and have twice the feed-forward width in E2B.
    """

    n_layers: int
    n_embd: int
    n_ff: int
    n_head: int
    n_kv: int
    n_kv_global: int
    period: int
    n_per_layer: int = 0
    n_shared: int = 0
    wide_shared: bool = False
    n_expert: int = 0
    n_ff_expert: int = 0
    with_output: bool = False
    architecture: str = "gemma4"

    def is_global(self, layer: int) -> bool:
        """Tell whether the layer sees the whole context."""
        return layer % self.period == self.period - 1

    def n_ff_of(self, layer: int) -> int:
        """Return the feed-forward width of a layer."""
        return self.n_ff * 2 if self.wide_shared and layer >= self.n_layers - self.n_shared else self.n_ff


SHAPES = {
    "E2B": Shape(35, 1536, 6144, 8, 1, 1, 5, n_per_layer=256, n_shared=20, wide_shared=True),
    "E4B": Shape(42, 2560, 10240, 8, 2, 2, 6, n_per_layer=256, n_shared=18),
    "12B": Shape(48, 3840, 15360, 16, 8, 1, 6),
    "26B-A4B": Shape(30, 2816, 2112, 16, 8, 2, 6, n_expert=128, n_ff_expert=704),
    "31B": Shape(60, 5376, 21504, 32, 16, 4, 6),
    # Not released: an output matrix of its own, and eight experts, which llama.cpp treats in a way of their own.
    "untied": Shape(12, 512, 1024, 8, 4, 4, 6, n_per_layer=64, with_output=True),
    "8-experts": Shape(17, 512, 96, 4, 1, 1, 6, n_expert=8, n_ff_expert=288, with_output=True),
    "assistant": Shape(4, 256, 2048, 4, 1, 1, 4, n_shared=4, architecture="gemma4-assistant"),
}


def write_shape(path: Path, shape: Shape) -> None:
    """Write a GGUF file of the shape."""
    writer = gguf.GGUFWriter(path, shape.architecture)
    _add_metadata(writer, shape)
    for name, dims in _tensors(shape).items():
        few_rows = (*(min(N_ROWS, size) for size in dims[:-1]), dims[-1])
        writer.add_tensor(name, np.zeros(few_rows, np.float16 if _is_wide(name, dims) else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def whole_model(path: Path, shape: Shape) -> Model:
    """Return a model of the full shape, with the metadata of the file at `path`, whose rows cannot be read."""
    no_rows = ArrayRows(lambda: np.empty((0, 0), np.uint8))
    tensors = [
        Tensor(name, dims, GgmlType.F16 if _is_wide(name, dims) else GgmlType.F32, no_rows)
        for name, dims in _tensors(shape).items()
    ]
    return Model(path, read_gguf(path).metadata, tensors)


def _is_wide(name: str, dims: tuple[int, ...]) -> bool:
    return len(dims) > 1 and "ffn_gate_inp" not in name


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    layers = range(shape.n_layers)
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length([shape.n_ff_of(layer) for layer in layers])
    writer.add_head_count(shape.n_head)
    uniform = shape.n_kv == shape.n_kv_global
    per_layer = [shape.n_kv_global if shape.is_global(layer) else shape.n_kv for layer in layers]
    writer.add_head_count_kv(shape.n_kv if uniform else per_layer)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_key_length(_GLOBAL_HEAD)
    writer.add_value_length(_GLOBAL_HEAD)
    writer.add_key_length_swa(_LOCAL_HEAD)
    writer.add_value_length_swa(_LOCAL_HEAD)
    writer.add_sliding_window(512)
    writer.add_sliding_window_pattern([not shape.is_global(layer) for layer in layers])
    writer.add_shared_kv_layers(shape.n_shared)
    writer.add_embedding_length_per_layer_input(shape.n_per_layer)
    if shape.n_expert:
        writer.add_expert_count(shape.n_expert)
        writer.add_expert_used_count(min(8, shape.n_expert))
        writer.add_expert_feed_forward_length(shape.n_ff_expert)
    if shape.architecture == "gemma4-assistant":
        writer.add_embedding_length_out(1536)
        writer.add_nextn_predict_layers(shape.n_layers)


def _tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by name, in numpy's order."""
    tensors: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (N_VOCAB, shape.n_embd),
        "output_norm.weight": (shape.n_embd,),
        "rope_freqs.weight": (_GLOBAL_HEAD // 2,),
    }
    if shape.with_output:
        tensors["output.weight"] = (N_VOCAB, shape.n_embd)
    if shape.n_per_layer:
        width = shape.n_per_layer * shape.n_layers
        tensors["per_layer_token_embd.weight"] = (N_VOCAB, width)
        tensors["per_layer_model_proj.weight"] = (width, shape.n_embd)
        tensors["per_layer_proj_norm.weight"] = (shape.n_per_layer,)
    if shape.architecture == "gemma4-assistant":
        tensors["nextn.pre_projection.weight"] = (shape.n_embd, 2 * 1536)
        tensors["nextn.post_projection.weight"] = (1536, shape.n_embd)
        tensors["masked_embd_centroids.weight"] = (2048, shape.n_embd)
    for layer in reversed(range(shape.n_layers)):  # not in the order llama.cpp visits them
        for name, dims in _layer_tensors(shape, layer).items():
            tensors[f"blk.{layer}.{name}"] = dims
    return tensors


def _layer_tensors(shape: Shape, layer: int) -> dict[str, tuple[int, ...]]:
    is_global = shape.is_global(layer)
    head = _GLOBAL_HEAD if is_global else _LOCAL_HEAD
    n_kv = shape.n_kv_global if is_global else shape.n_kv
    n_ff = shape.n_ff_of(layer)
    tensors: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (shape.n_embd,),
        "attn_q.weight": (shape.n_head * head, shape.n_embd),
        "attn_output.weight": (shape.n_embd, shape.n_head * head),
        "ffn_down.weight": (shape.n_embd, n_ff),
        "ffn_gate.weight": (n_ff, shape.n_embd),
        "ffn_up.weight": (n_ff, shape.n_embd),
        "layer_output_scale.weight": (1,),
    }
    if layer < shape.n_layers - shape.n_shared:
        tensors["attn_k.weight"] = (n_kv * head, shape.n_embd)
        if not is_global or shape.n_kv == shape.n_kv_global:  # else values are the keys
            tensors["attn_v.weight"] = (n_kv * head, shape.n_embd)
    if shape.n_per_layer:
        tensors["inp_gate.weight"] = (shape.n_per_layer, shape.n_embd)
        tensors["proj.weight"] = (shape.n_embd, shape.n_per_layer)
    if shape.n_expert:
        n_expert, width = shape.n_expert, shape.n_ff_expert
        tensors["ffn_gate_inp.weight"] = (n_expert, shape.n_embd)
        tensors["ffn_gate_inp.scale"] = (shape.n_embd,)
        tensors["ffn_gate_up_exps.weight"] = (n_expert, 2 * width, shape.n_embd)
        tensors["ffn_down_exps.weight"] = (n_expert, shape.n_embd, width)
        tensors["ffn_down_exps.scale"] = (n_expert,)
    return tensors
