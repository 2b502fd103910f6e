"""How llama-quantize mixes tensor types: the rules behind names such as Q4_K_M.

Which tensors are quantized at all, and which of them get more or fewer bits than the file type's own type. The rules
are those of llama.cpp (src/llama-quant.cpp) for the architectures gemma4 and gemma4-assistant; tests hold every file
type to it. Counts of layers and heads enter because some rules favour the first layers or grouped attention.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from gemma4_quant.errors import GgufError, ShapeError, UnsupportedTypeError
from gemma4_quant.ggml import FileType, GgmlType, block_size
from gemma4_quant.metadata import Metadata, get_int, get_string
from gemma4_quant.model import Tensor

ARCHITECTURES = ("gemma4", "gemma4-assistant")

_N_EXPERT_MIXTRAL = 8  # llama.cpp favours attention in models of exactly eight experts
_N_GROUPED = 4  # query heads per key-value head from which attn_v is small enough for more bits


class Category(Enum):
    """What a tensor does, as far as the rules care."""

    OUTPUT = auto()
    TOKEN_EMBEDDING = auto()
    ATTENTION_V = auto()
    ATTENTION_K = auto()
    ATTENTION_Q = auto()
    ATTENTION_OUTPUT = auto()
    FFN_UP = auto()
    FFN_GATE = auto()
    FFN_DOWN = auto()
    OTHER = auto()


_EXACT_CATEGORIES = {
    "output.weight": Category.OUTPUT,
    "token_embd.weight": Category.TOKEN_EMBEDDING,
    "per_layer_token_embd.weight": Category.TOKEN_EMBEDDING,
}

# The first part found in a name decides; fused ffn_gate_up_exps counts as a gate.
_CATEGORY_PARTS = (
    ("attn_qkv.weight", Category.ATTENTION_V),
    ("attn_v.weight", Category.ATTENTION_V),
    ("attn_k.weight", Category.ATTENTION_K),
    ("attn_q.weight", Category.ATTENTION_Q),
    ("attn_output.weight", Category.ATTENTION_OUTPUT),
    ("ffn_up", Category.FFN_UP),
    ("ffn_gate", Category.FFN_GATE),
    ("ffn_down", Category.FFN_DOWN),
)

# Norms, routers and small projections stay as they are.
_KEPT_PARTS = ("_norm.weight", "ffn_gate_inp.weight", "per_layer_model_proj", "altup", "laurel")

# File types whose own type is not of the same name.
_DEFAULT_TYPES = {
    FileType.Q2_K_S: GgmlType.Q2_K,
    FileType.Q3_K_S: GgmlType.Q3_K,
    FileType.Q3_K_M: GgmlType.Q3_K,
    FileType.Q3_K_L: GgmlType.Q3_K,
    FileType.Q4_K_S: GgmlType.Q4_K,
    FileType.Q4_K_M: GgmlType.Q4_K,
    FileType.Q5_K_S: GgmlType.Q5_K,
    FileType.Q5_K_M: GgmlType.Q5_K,
    FileType.IQ2_S: GgmlType.IQ2_XS,
    FileType.IQ2_M: GgmlType.IQ2_S,
    FileType.IQ3_XS: GgmlType.IQ3_S,
    FileType.IQ3_M: GgmlType.IQ3_S,
    FileType.MXFP4_MOE: GgmlType.MXFP4,
}

# What takes the place of a type whose blocks do not divide the row.
_FALLBACK_TYPES = {
    **dict.fromkeys((GgmlType.IQ1_S, GgmlType.IQ1_M, GgmlType.IQ4_XS), GgmlType.IQ4_NL),
    **dict.fromkeys((GgmlType.IQ2_XXS, GgmlType.IQ2_XS, GgmlType.IQ2_S), GgmlType.IQ4_NL),
    **dict.fromkeys((GgmlType.IQ3_XXS, GgmlType.IQ3_S), GgmlType.IQ4_NL),
    **dict.fromkeys((GgmlType.Q2_0, GgmlType.Q2_K, GgmlType.Q3_K), GgmlType.Q4_0),
    **dict.fromkeys((GgmlType.TQ1_0, GgmlType.TQ2_0), GgmlType.Q4_0),
    GgmlType.Q4_K: GgmlType.Q5_0,
    GgmlType.Q5_K: GgmlType.Q5_1,
    GgmlType.Q6_K: GgmlType.Q8_0,
}

_NEEDS_IMPORTANCE = frozenset(
    {GgmlType.IQ1_S, GgmlType.IQ1_M, GgmlType.IQ2_XXS, GgmlType.IQ2_XS, GgmlType.IQ2_S, GgmlType.IQ3_XXS}
)


def category_of(name: str) -> Category:
    """Return the category of the tensor called `name`."""
    if name in _EXACT_CATEGORIES:
        return _EXACT_CATEGORIES[name]
    return next((category for part, category in _CATEGORY_PARTS if part in name), Category.OTHER)


def is_quantizable(tensor: Tensor) -> bool:
    """Tell whether llama-quantize changes the tensor: a weight matrix, neither norm nor router."""
    is_matrix = tensor.n_weights > tensor.n_cols  # leading dimensions of 1 do not count, as in ggml_n_dims
    return is_matrix and tensor.name.endswith("weight") and not any(part in tensor.name for part in _KEPT_PARTS)


def visiting_order(name: str) -> tuple[int, str]:
    """Return the key by which llama.cpp sorts tensors: tensors outside layers, then by layer, then by name."""
    return (-1 if (layer := _layer_of(name)) is None else layer, name)


def default_type(file_type: FileType) -> GgmlType:
    """Return the type that most tensors of a file have; raises UnsupportedTypeError for NVFP4.

    llama-quantize has no mixture of that name either: NVFP4 comes from trained checkpoints.
    """
    if file_type is FileType.NVFP4:
        raise UnsupportedTypeError("nvfp4 is not a file type to quantize to; choose mxfp4_moe or q4_k_m instead")
    return _DEFAULT_TYPES[file_type] if file_type in _DEFAULT_TYPES else GgmlType[file_type.name]


def fitting_type(wanted: GgmlType, n_cols: int) -> GgmlType:
    """Return `wanted`, or what stands in for it when a row of `n_cols` weights is not whole blocks.

    Raises ShapeError when llama.cpp knows no substitute (Q1_0, NVFP4, Q8_K).
    """
    size = block_size(wanted).n_weights
    if n_cols % size == 0:
        return wanted
    if wanted not in _FALLBACK_TYPES and size > 32:
        raise ShapeError(
            f"a row of {n_cols} weights is not whole {wanted.name} blocks of {size} and no type stands in for it; "
            "choose another type for this tensor"
        )
    substitute = _FALLBACK_TYPES.get(wanted, wanted)
    return GgmlType.F16 if n_cols % block_size(substitute).n_weights else substitute


def needs_importance(file_type: FileType, name: str, kind: GgmlType) -> bool:
    """Tell whether llama-quantize refuses to give the tensor `kind` without importance."""
    if name in _EXACT_CATEGORIES:
        return False
    return kind in _NEEDS_IMPORTANCE or (kind is GgmlType.Q2_K and file_type is FileType.Q2_K_S)


@dataclass(frozen=True)
class ModelFacts:
    """What the rules ask of a model.

    n_gqa: query heads per key-value head in layer 0. n_attention_v: attn_v tensors. tied: the token embeddings are
    also the output matrix.
    """

    n_layers: int
    n_gqa: int
    n_expert: int
    n_attention_v: int
    tied: bool


def model_facts(metadata: Metadata, names: Iterable[str]) -> ModelFacts:
    """Read the facts from metadata and tensor names.

    Raises UnsupportedTypeError for another architecture, GgufError when a count is missing or not an integer.
    """
    architecture = get_string(metadata, "general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedTypeError(
            f"types are chosen for {' and '.join(ARCHITECTURES)}, not for {architecture!r}; "
            "quantize the language model, and convert others to the wanted float type"
        )
    n_heads = _first_int(metadata, f"{architecture}.attention.head_count")
    n_heads_kv = _first_int(metadata, f"{architecture}.attention.head_count_kv", n_heads)
    categories = Counter(category_of(name) for name in names)
    return ModelFacts(
        n_layers=get_int(metadata, f"{architecture}.block_count"),
        n_gqa=n_heads // n_heads_kv if n_heads_kv > 0 else 0,
        n_expert=get_int(metadata, f"{architecture}.expert_count", 0),
        n_attention_v=categories[Category.ATTENTION_V],
        tied=not categories[Category.OUTPUT],
    )


def _first_int(metadata: Metadata, key: str, default: int | None = None) -> int:
    """Return a number, or the first of an array with one number a layer."""
    value = metadata.get(key)
    if value is None or value.item is None:
        return get_int(metadata, key, default)
    numbers = value.array()
    if not numbers.size or numbers.dtype.kind not in "iu":
        raise GgufError(f"{key} is {value.describe_type()}, not integers")
    return int(numbers[0])


def _layer_of(name: str) -> int | None:
    found = re.match(r"blk\.(\d+)", name)
    return int(found[1]) if found else None


@dataclass(frozen=True)
class Place:
    """Position of a tensor among its kind: `index` of `count`, counted from 0."""

    index: int
    count: int

    @property
    def in_first_eighth(self) -> bool:
        """Tell whether it is in the first eighth, the layers most sensitive to rounding."""
        return self.index < self.count // 8

    @property
    def in_last_eighth(self) -> bool:
        """Tell whether it is in the last eighth."""
        return self.index >= 7 * self.count // 8

    @property
    def gets_more_bits(self) -> bool:
        """Tell whether a medium mixture favours it: first and last eighth, and every third between."""
        return self.in_first_eighth or self.in_last_eighth or (self.index - self.count // 8) % 3 == 2


class Mixture:
    """The types of one file type's mixture, asked tensor by tensor in `visiting_order`.

    Some rules count the tensors seen so far, so every tensor that follows the mixture is asked for exactly once.
    """

    def __init__(self, file_type: FileType, facts: ModelFacts, *, has_importance: bool) -> None:
        """Start before the first tensor; raises UnsupportedTypeError as default_type does."""
        self._file_type = file_type
        self._default = default_type(file_type)
        self._facts = facts
        self._has_importance = has_importance
        self._seen: Counter[Category] = Counter()

    def choose(self, tensor: Tensor, output_type: GgmlType | None = None) -> GgmlType:
        """Return the type of the next tensor, before its row width is considered.

        output_type: what the user wants for the output matrix, also when the token embeddings are that matrix.
        Raises GgufError when an expert tensor is not in a layer.
        """
        category = category_of(tensor.name)
        if category is Category.OUTPUT or (self._facts.tied and category is Category.TOKEN_EMBEDDING):
            if output_type is not None:
                return output_type
            return _output_type(self._file_type, self._default, tensor.n_cols)
        if self._file_type is FileType.MXFP4_MOE:
            return GgmlType.MXFP4 if tensor.n_matrices > 1 else GgmlType.Q8_0
        if category is Category.TOKEN_EMBEDDING:
            return _TOKEN_EMBEDDING.get(self._file_type, self._default)
        rule = self._low_bit_rule if self._file_type in _LOW_BIT else self._rule
        kind = rule(category, tensor.name)
        self._seen[category] += 1
        return self._default if kind is None else kind

    def _rule(self, category: Category, name: str) -> GgmlType | None:
        """Return what the file types of three bits and more give a tensor; None for the default."""
        file_type, facts = self._file_type, self._facts
        match category:
            case Category.ATTENTION_V:
                place = Place(self._seen[category], facts.n_attention_v)
                return _attention_v(file_type, facts, place, has_importance=self._has_importance)
            case Category.ATTENTION_K | Category.ATTENTION_Q:
                favoured = category is Category.ATTENTION_K and facts.n_expert == _N_EXPERT_MIXTRAL
                return GgmlType.Q8_0 if favoured else _ATTENTION_QK.get(file_type)
            case Category.ATTENTION_OUTPUT:
                return _attention_output(file_type, facts.n_expert)
            case Category.FFN_DOWN:
                place = self._layer_place(category, name)
                return _ffn_down(file_type, facts.n_expert, place, has_importance=self._has_importance)
            case Category.FFN_GATE | Category.FFN_UP:
                return _ffn_gate_or_up(file_type, self._layer_place(category, name))
            case _:
                return None

    def _low_bit_rule(self, category: Category, name: str) -> GgmlType | None:
        """Return what the IQ1 and IQ2 file types give a tensor; None for the default. `name` plays no part."""
        del name
        more_bits, facts = _LOW_BIT[self._file_type], self._facts
        match category:
            case Category.ATTENTION_V:
                small = facts.n_gqa >= _N_GROUPED or facts.n_expert >= _N_GROUPED
                return GgmlType.Q4_K if small else more_bits
            case Category.ATTENTION_K if facts.n_expert == _N_EXPERT_MIXTRAL:
                return GgmlType.Q4_K
            case Category.FFN_DOWN if Place(self._seen[category], facts.n_layers).in_first_eighth:
                return more_bits
            case Category.ATTENTION_OUTPUT if facts.n_expert == _N_EXPERT_MIXTRAL:
                return GgmlType.Q5_K
            case Category.ATTENTION_OUTPUT:
                return _LOW_BIT_ATTENTION_OUTPUT.get(self._file_type)
            case _:
                return None

    def _layer_place(self, category: Category, name: str) -> Place:
        """Place an FFN tensor: by count in a dense model, by the layer in its name where there are experts."""
        n_layers = self._facts.n_layers
        if self._facts.n_expert <= 1:
            return Place(self._seen[category], n_layers)
        layer = _layer_of(name)
        if layer is None or layer >= n_layers:
            raise GgufError(f"{name} belongs to no layer of a model that has {n_layers} of them")
        return Place(layer, n_layers)


# IQ1 and IQ2 file types, and what they give attn_v and the first ffn_down instead of their own type.
_LOW_BIT = {
    FileType.IQ1_S: GgmlType.Q2_K,
    FileType.IQ1_M: GgmlType.Q2_K,
    FileType.IQ2_XXS: GgmlType.Q2_K,
    FileType.IQ2_XS: GgmlType.Q2_K,
    FileType.IQ2_S: GgmlType.IQ3_S,
    FileType.IQ2_M: GgmlType.IQ3_S,
}

_LOW_BIT_ATTENTION_OUTPUT = {
    FileType.IQ1_S: GgmlType.IQ2_XXS,
    FileType.IQ1_M: GgmlType.IQ2_XXS,
    FileType.IQ2_S: GgmlType.IQ3_S,
    FileType.IQ2_M: GgmlType.IQ3_S,
}

# Embeddings that are not the output matrix too: lookups, which bear fewer bits.
_TOKEN_EMBEDDING: Mapping[FileType, GgmlType] = {
    FileType.IQ1_S: GgmlType.Q2_K,
    FileType.IQ1_M: GgmlType.Q2_K,
    FileType.IQ2_XXS: GgmlType.Q2_K,
    FileType.IQ2_XS: GgmlType.Q2_K,
    FileType.IQ2_S: GgmlType.IQ3_S,
    FileType.IQ2_M: GgmlType.IQ3_S,
    FileType.IQ3_XXS: GgmlType.IQ3_S,
    FileType.TQ1_0: GgmlType.Q4_K,
    FileType.TQ2_0: GgmlType.Q4_K,
    FileType.Q2_0: GgmlType.Q4_K,
}

_ATTENTION_V = {FileType.Q2_K: GgmlType.Q3_K, FileType.Q3_K_L: GgmlType.Q5_K, FileType.IQ3_M: GgmlType.Q4_K}

_ATTENTION_V_GROUPED = {
    **_ATTENTION_V,
    FileType.Q2_K: GgmlType.Q4_K,
    FileType.Q2_K_S: GgmlType.Q4_K,
    FileType.IQ3_XXS: GgmlType.Q4_K,
    FileType.IQ3_XS: GgmlType.Q4_K,
    FileType.IQ3_S: GgmlType.Q4_K,
    FileType.IQ4_NL: GgmlType.Q5_K,
    FileType.IQ4_XS: GgmlType.Q5_K,
}

_ATTENTION_QK = {FileType.IQ3_XS: GgmlType.IQ3_XXS, FileType.IQ3_XXS: GgmlType.IQ2_S}

_ATTENTION_OUTPUT = {
    FileType.Q2_K: GgmlType.Q3_K,
    FileType.Q3_K_M: GgmlType.Q4_K,
    FileType.Q3_K_L: GgmlType.Q5_K,
    FileType.IQ3_XXS: GgmlType.IQ3_S,
    FileType.IQ3_M: GgmlType.Q4_K,
}

_ATTENTION_OUTPUT_MIXTRAL = frozenset(
    {
        FileType.Q2_K,
        FileType.Q3_K_S,
        FileType.Q3_K_M,
        FileType.Q4_K_S,
        FileType.Q4_K_M,
        FileType.IQ3_XXS,
        FileType.IQ3_XS,
        FileType.IQ3_S,
        FileType.IQ3_M,
        FileType.IQ4_NL,
        FileType.IQ4_XS,
    }
)

_FFN_DOWN = {FileType.Q2_K: GgmlType.Q3_K, FileType.Q3_K_M: GgmlType.Q4_K, FileType.Q3_K_L: GgmlType.Q5_K}

_FFN_DOWN_FIRST = {FileType.Q2_K_S: GgmlType.Q4_K, FileType.Q4_K_S: GgmlType.Q5_K, FileType.IQ3_M: GgmlType.Q4_K}

_FFN_DOWN_FIRST_PLAIN = {
    **_FFN_DOWN_FIRST,
    FileType.IQ3_XXS: GgmlType.Q4_K,
    FileType.IQ4_NL: GgmlType.Q5_K,
    FileType.IQ4_XS: GgmlType.Q5_K,
}

# Only with importance, so that plain Q4_0 and Q5_0 files stay what they were before importance existed.
_FFN_DOWN_FIRST_IMPORTANCE = {
    **_FFN_DOWN_FIRST,
    FileType.Q4_0: GgmlType.Q4_1,
    FileType.Q5_0: GgmlType.Q5_1,
}


def _output_type(file_type: FileType, default: GgmlType, n_cols: int) -> GgmlType:
    if file_type is FileType.MXFP4_MOE or default is GgmlType.Q8_0:
        return GgmlType.Q8_0
    if n_cols % block_size(default).n_weights:
        return GgmlType.Q8_0
    if file_type in _LOW_BIT or file_type is FileType.IQ3_XXS:
        return GgmlType.Q5_K
    return GgmlType.Q6_K


def _attention_v(file_type: FileType, facts: ModelFacts, place: Place, *, has_importance: bool) -> GgmlType | None:
    if facts.n_expert == _N_EXPERT_MIXTRAL:
        return GgmlType.Q8_0
    grouped = facts.n_gqa >= _N_GROUPED
    match file_type:
        case FileType.Q3_K_M:
            return GgmlType.Q5_K if place.index < 2 else GgmlType.Q4_K
        case FileType.Q4_K_S if place.index < 4:
            return GgmlType.Q5_K
        case FileType.Q4_K_M | FileType.Q5_K_M if place.gets_more_bits:
            return GgmlType.Q6_K
        case FileType.IQ3_XXS if not grouped and not has_importance:
            return GgmlType.IQ3_S
        case _:
            return (_ATTENTION_V_GROUPED if grouped else _ATTENTION_V).get(file_type)


def _attention_output(file_type: FileType, n_expert: int) -> GgmlType | None:
    if n_expert == _N_EXPERT_MIXTRAL:
        return GgmlType.Q5_K if file_type in _ATTENTION_OUTPUT_MIXTRAL else None
    return _ATTENTION_OUTPUT.get(file_type)


def _ffn_down(file_type: FileType, n_expert: int, place: Place, *, has_importance: bool) -> GgmlType | None:
    first = _FFN_DOWN_FIRST_IMPORTANCE if has_importance else _FFN_DOWN_FIRST_PLAIN
    if place.in_first_eighth and file_type in first:
        return first[file_type]
    match file_type:
        case FileType.Q3_K_M if place.index < place.count // 16:
            return GgmlType.Q5_K
        case FileType.Q4_K_M | FileType.Q5_K_M if place.gets_more_bits:
            return GgmlType.Q6_K
        case FileType.IQ3_M if n_expert == _N_EXPERT_MIXTRAL and place.gets_more_bits:
            return GgmlType.Q4_K
        case FileType.IQ3_XXS if not has_importance:
            return GgmlType.Q3_K
        case _:
            return _FFN_DOWN.get(file_type)


def _ffn_gate_or_up(file_type: FileType, place: Place) -> GgmlType | None:
    inner = not place.in_first_eighth and not place.in_last_eighth
    return GgmlType.IQ3_XXS if file_type is FileType.IQ3_XS and inner else None
