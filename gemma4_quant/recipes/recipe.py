"""Which type every tensor of a quantized file gets: llama-quantize's mixture, floors under it, the user's wishes."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from gemma4_quant.errors import InputError, ShapeError
from gemma4_quant.ggml import FileType, GgmlType, bits_per_weight, is_quantized, parse_ggml_type
from gemma4_quant.model import Model, Tensor
from gemma4_quant.recipes.llama_types import (
    Category,
    Mixture,
    category_of,
    default_type,
    fitting_type,
    is_quantizable,
    model_facts,
    needs_importance,
    visiting_order,
)
from gemma4_quant.recipes.overrides import MetadataOverride


@dataclass(frozen=True)
class TensorTypeOverride:
    """A type for every tensor in whose name `pattern`, a regular expression, is found."""

    pattern: re.Pattern[str]
    type: GgmlType

    def matches(self, name: str) -> bool:
        """Tell whether the pattern occurs anywhere in `name`."""
        return self.pattern.search(name) is not None


def read_tensor_types(path: Path) -> tuple[TensorTypeOverride, ...]:
    """Read a file of `PATTERN=TYPE` between spaces or newlines, as --tensor-type-file takes it; raises InputError."""
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} as text: {error}") from error
    return tuple(parse_tensor_type(word) for word in words)


def parse_tensor_type(text: str) -> TensorTypeOverride:
    """Read `PATTERN=TYPE` as llama-quantize does: the pattern in lower case, the type in any case.

    Raises InputError when a part is missing or the pattern is no regular expression, UnsupportedTypeError for an
    unknown type.
    """
    pattern, equals, kind = text.partition("=")
    if not pattern or not equals or not kind:
        raise InputError(f"{text!r} is not PATTERN=TYPE, such as ffn_down=q6_k")
    try:
        compiled = re.compile(pattern.lower())
    except re.error as error:
        raise InputError(f"{pattern!r} in {text!r} is not a regular expression: {error}") from error
    return TensorTypeOverride(compiled, parse_ggml_type(kind))


class QatMode(StrEnum):
    """What to do with tensors whose weights lie on a trained grid.

    AUTO: repack them when the file type is a grid's own (q4_0, or a two-bit type), else only warn. ON: repack them
    whatever the file type. OFF: do not look.
    """

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class PadMode(StrEnum):
    """Whether feed-forward widths become whole super-blocks: AUTO when that makes the file smaller."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


@dataclass(frozen=True)
class Floor:
    """A type below whose bits the mixture does not take tensors in whose name `pattern` is found, and why.

    from_bits: holds for file types whose own type has at least so many bits a weight. beside: holds in models that
    have a tensor of this name, in all when empty.
    """

    pattern: re.Pattern[str]
    type: GgmlType
    why: str = ""
    from_bits: float = 0.0
    beside: str = ""

    def holds(self, file_type: FileType, names: Collection[str]) -> bool:
        """Tell whether the floor is one for files of `file_type` of a model with tensors of these names."""
        return bits_per_weight(default_type(file_type)) >= self.from_bits and (
            not self.beside or self.beside in names
        )


@dataclass(frozen=True)
class Recipe:
    """What decides the types of a file.

    has_importance: the mixture differs a little when importance is known. pure: `file_type`'s own type for every
    quantized tensor. leave_output_tensor: output.weight stays as it is. output_tensor_type: of output.weight, or of
    the token embeddings where they are the output matrix too. token_embedding_type: of both embedding tables.
    tensor_types: the first that matches wins; they act on quantized file types only, as in llama-quantize.
    named_types: types of matrices by their exact names; they win over everything else. floors: the first that holds
    counts, for what the mixture chose, not for what was asked by name, pattern or `pure`; none as in llama-quantize.
    qat, pad_ffn: what to do with trained grids and odd feed-forward widths, both off in llama-quantize.
    prune_layers: layers to leave out. overrides: other metadata. include_weights, exclude_weights: parts of names of
    tensors whose importance is used (all when empty), and is not.
    """

    file_type: FileType
    has_importance: bool = False
    pure: bool = False
    leave_output_tensor: bool = False
    output_tensor_type: GgmlType | None = None
    token_embedding_type: GgmlType | None = None
    tensor_types: tuple[TensorTypeOverride, ...] = ()
    named_types: Mapping[str, GgmlType] = field(default_factory=dict)
    floors: tuple[Floor, ...] = ()
    qat: QatMode = QatMode.OFF
    pad_ffn: PadMode = PadMode.OFF
    prune_layers: tuple[int, ...] = ()
    overrides: tuple[MetadataOverride, ...] = ()
    include_weights: tuple[str, ...] = ()
    exclude_weights: tuple[str, ...] = ()

    def uses_importance_of(self, name: str) -> bool:
        """Tell whether the importance of the tensor called `name` is used, if there is any."""
        included = not self.include_weights or any(part in name for part in self.include_weights)
        return included and not any(part in name for part in self.exclude_weights)


class Reason(StrEnum):
    """Why a tensor has the type it has."""

    KEPT = "not quantized"
    FILE_TYPE = "file type"
    MIXTURE = "mixture of the file type"
    TENSOR_TYPE = "tensor type option"
    OUTPUT_TENSOR_TYPE = "output tensor type option"
    TOKEN_EMBEDDING_TYPE = "token embedding type option"
    NAMED = "named in the recipe"
    FLOOR = "floor of the recipe"
    GRID = "weights lie on a trained grid"


@dataclass(frozen=True)
class Choice:
    """The type of one tensor. wanted: the type before the width of its rows was considered."""

    name: str
    type: GgmlType
    wanted: GgmlType
    reason: Reason

    @property
    def fallback(self) -> bool:
        """Tell whether another type stands in because a row is not whole blocks of the wanted one."""
        return self.type is not self.wanted


def choose_types(recipe: Recipe, model: Model) -> list[Choice]:
    """Choose the type of every tensor as llama-quantize does; returns one choice a tensor, in the model's order.

    One difference: a token embedding type whose blocks do not divide the rows falls back like any other type, where
    llama-quantize aborts. Raises UnsupportedTypeError for a file type or architecture without a mixture, GgufError
    for metadata that lack a count, ShapeError when no type fits a tensor.
    """
    names = [tensor.name for tensor in model.tensors]
    facts = model_facts(model.metadata, names)
    mixture = Mixture(recipe.file_type, facts, has_importance=recipe.has_importance)
    if recipe.floors:
        holding = tuple(floor for floor in recipe.floors if floor.holds(recipe.file_type, names))
        recipe = replace(recipe, floors=holding)
    choices: dict[str, Choice] = {}
    for tensor in sorted(model.tensors, key=lambda tensor: visiting_order(tensor.name)):
        wanted, reason = _wanted(recipe, tensor, mixture)
        choices[tensor.name] = Choice(tensor.name, _fitting(tensor, wanted, reason), wanted, reason)
    return [choices[name] for name in names]


def requires_importance(recipe: Recipe, choices: Iterable[Choice]) -> list[str]:
    """Return the tensors whose types are garbage without importance; llama-quantize refuses them."""
    return [
        choice.name
        for choice in choices
        if choice.reason not in (Reason.KEPT, Reason.GRID)
        and needs_importance(recipe.file_type, choice.name, choice.type)
    ]


def _wanted(recipe: Recipe, tensor: Tensor, mixture: Mixture) -> tuple[GgmlType, Reason]:
    """Return a tensor's type before its width is considered, by falling rank of what may decide it."""
    if tensor.name in recipe.named_types and tensor.n_weights > tensor.n_cols:
        return recipe.named_types[tensor.name], Reason.NAMED
    if _is_kept(recipe, tensor):
        return tensor.type, Reason.KEPT
    override = next((option for option in recipe.tensor_types if option.matches(tensor.name)), None)
    if (asked := _asked_by_table(recipe, tensor.name, override)) is not None:
        return asked
    default = default_type(recipe.file_type)
    if override is not None and is_quantized(default):
        return override.type, Reason.TENSOR_TYPE
    if recipe.pure or not is_quantized(default):
        return default, Reason.FILE_TYPE
    return _mixed(recipe, tensor, mixture)


def _is_kept(recipe: Recipe, tensor: Tensor) -> bool:
    left = recipe.leave_output_tensor and category_of(tensor.name) is Category.OUTPUT
    return left or not is_quantizable(tensor)


def _mixed(recipe: Recipe, tensor: Tensor, mixture: Mixture) -> tuple[GgmlType, Reason]:
    """Return what the mixture and the floors under it say of a tensor."""
    chosen = mixture.choose(tensor, recipe.output_tensor_type)
    # more bits bring nothing back that an earlier quantization took
    floors = () if is_quantized(tensor.type) else recipe.floors
    floor = next((floor for floor in floors if floor.pattern.search(tensor.name)), None)
    if floor is not None and bits_per_weight(_fitting(tensor, chosen, Reason.MIXTURE)) < bits_per_weight(floor.type):
        return floor.type, Reason.FLOOR
    return chosen, Reason.FILE_TYPE if chosen is default_type(recipe.file_type) else Reason.MIXTURE


def _asked_by_table(recipe: Recipe, name: str, override: TensorTypeOverride | None) -> tuple[GgmlType, Reason] | None:
    """Return what the options for embeddings and output say of a tensor; None when they are silent."""
    category = category_of(name)
    # Of the two embedding tables only the per-layer one can be named apart.
    named_apart = override is not None and name == "per_layer_token_embd.weight"
    if recipe.token_embedding_type is not None and category is Category.TOKEN_EMBEDDING and not named_apart:
        return recipe.token_embedding_type, Reason.TOKEN_EMBEDDING_TYPE
    if recipe.output_tensor_type is not None and category is Category.OUTPUT:
        return recipe.output_tensor_type, Reason.OUTPUT_TENSOR_TYPE
    return None


def _fitting(tensor: Tensor, wanted: GgmlType, reason: Reason) -> GgmlType:
    if reason is Reason.KEPT:
        return wanted
    try:
        return fitting_type(wanted, tensor.n_cols)
    except ShapeError as error:
        raise ShapeError(f"{tensor.name}: {error}") from error
