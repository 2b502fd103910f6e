"""The options of `quantize` that say which types a file gets, and the recipe they make."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma4_quant.errors import listed
from gemma4_quant.ggml import FileType, GgmlType, parse_ggml_type

if TYPE_CHECKING:
    from gemma4_quant.recipes.recipe import PadMode, QatMode, Recipe

TensorType = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor-type",
        metavar="PATTERN=TYPE",
        help="Type of tensors whose name matches; repeatable.",
        show_default=False,
    ),
]
TensorTypeFile = Annotated[
    Path | None,
    typer.Option("--tensor-type-file", help="File of PATTERN=TYPE, one a line.", show_default=False),
]
OutputTensorType = Annotated[str | None, typer.Option(help="Type of output.weight.", show_default=False)]
TokenEmbeddingType = Annotated[str | None, typer.Option(help="Type of the token embeddings.", show_default=False)]
Pure = Annotated[bool, typer.Option("--pure", help="The file type's own type for every tensor.")]
LeaveOutputTensor = Annotated[bool, typer.Option("--leave-output-tensor", help="Do not quantize output.weight.")]
IncludeWeights = Annotated[
    list[str] | None,
    typer.Option(
        "--include-weights",
        metavar="PART",
        help="Use importance only for tensors with PART in their names; repeatable.",
        show_default=False,
    ),
]
ExcludeWeights = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude-weights",
        metavar="PART",
        help="Use no importance for tensors with PART in their names; repeatable.",
        show_default=False,
    ),
]
PruneLayers = Annotated[
    str | None,
    typer.Option("--prune-layers", metavar="L0,L1,…", help="Leave out these layers.", show_default=False),
]
OverrideKv = Annotated[
    list[str] | None,
    typer.Option(
        "--override-kv",
        metavar="KEY=TYPE:VALUE",
        help="Other metadata; TYPE is int, float, bool or str; repeatable.",
        show_default=False,
    ),
]
Qat = Annotated[
    str | None,
    typer.Option(
        "--qat",
        help="Keep tensors that lie on a trained grid on it: auto (where the type can), on, off.  [default: auto]",
        show_default=False,
    ),
]
PadFfn = Annotated[
    str | None,
    typer.Option(
        "--pad-ffn",
        help="Pad feed-forward widths with zeros to whole blocks: auto (when that saves bytes), on, off.  "
        "[default: auto]",
        show_default=False,
    ),
]
Floors = Annotated[
    bool,
    typer.Option("--floors/--no-floors", help="Give small sensitive tensors of Gemma 4 more bits than the mixture."),
]
StrictLlama = Annotated[
    bool,
    typer.Option("--strict-llama", help="Choose types exactly as llama-quantize: no floors, no qat, no padding."),
]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="Recipe file that decides the types.", show_default=False)
]
RecipeFrom = Annotated[
    Path | None,
    typer.Option(
        "--recipe-from", metavar="OTHER.gguf", help="Copy another file's choice of types.", show_default=False
    ),
]
SaveRecipe = Annotated[
    Path | None, typer.Option("--save-recipe", help="Save the recipe, with every tensor's type.", show_default=False)
]


@dataclass(frozen=True)
class RecipeOptions:
    """The options as given; see their help."""

    tensor_type: Sequence[str]
    tensor_type_file: Path | None
    output_tensor_type: str | None
    token_embedding_type: str | None
    pure: bool
    leave_output_tensor: bool
    include_weights: Sequence[str]
    exclude_weights: Sequence[str]
    prune_layers: str | None
    override_kv: Sequence[str]
    qat: str | None
    pad_ffn: str | None
    floors: bool
    strict_llama: bool
    recipe: Path | None
    recipe_from: Path | None


def base_recipe(options: RecipeOptions, source: Path) -> "Recipe | None":
    """Return the recipe that a file or another model gives, None without either; its file type is a default.

    Raises typer.BadParameter when both are given, InputError when one cannot be used.
    """
    if options.recipe is not None and options.recipe_from is not None:
        raise typer.BadParameter("--recipe and --recipe-from both decide the types; choose one")
    if options.recipe is not None:
        from gemma4_quant.recipes.recipe_file import read_recipe

        return read_recipe(options.recipe)
    return None if options.recipe_from is None else _copied(options.recipe_from, source)


def _copied(other: Path, source: Path) -> "Recipe":
    from gemma4_quant.recipes.recipe import QatMode
    from gemma4_quant.source import open_model
    from gemma4_quant.types_of import copy_types

    copied = copy_types(other, open_model(source))
    for names, what in ((copied.missing, "does not have"), (copied.strangers, "has besides")):
        if names:
            typer.echo(f"{len(names)} tensors that {other} {what}: {listed(names)}", err=True)
    return replace(copied.recipe, qat=QatMode.AUTO)


def finished_recipe(options: RecipeOptions, base: "Recipe | None", file_type: FileType) -> "Recipe":
    """Return `base` (or the defaults of the file type) with what the other options say.

    Raises typer.BadParameter, InputError or UnsupportedTypeError for a value that is none.
    """
    from gemma4_quant.recipes.gemma_defaults import gemma_recipe
    from gemma4_quant.recipes.overrides import parse_override
    from gemma4_quant.recipes.pruning import parse_layers
    from gemma4_quant.recipes.recipe import PadMode, QatMode, parse_tensor_type, read_tensor_types

    if options.include_weights and options.exclude_weights:
        raise typer.BadParameter("--include-weights and --exclude-weights cannot be used together")
    recipe = replace(base or gemma_recipe(file_type), file_type=file_type)
    if options.strict_llama:
        recipe = replace(recipe, floors=(), qat=QatMode.OFF, pad_ffn=PadMode.OFF)
    if not options.floors:
        recipe = replace(recipe, floors=())
    patterns = tuple(parse_tensor_type(text) for text in options.tensor_type)
    if options.tensor_type_file is not None:
        patterns += read_tensor_types(options.tensor_type_file)
    asked = [option.pattern for option in patterns]
    return replace(
        recipe,
        pure=options.pure or recipe.pure,
        leave_output_tensor=options.leave_output_tensor or recipe.leave_output_tensor,
        output_tensor_type=_type(options.output_tensor_type) or recipe.output_tensor_type,
        token_embedding_type=_type(options.token_embedding_type) or recipe.token_embedding_type,
        tensor_types=patterns + recipe.tensor_types,
        named_types={name: kind for name, kind in recipe.named_types.items() if not _found(asked, name)},
        qat=recipe.qat if options.qat is None else _qat(options.qat),
        pad_ffn=recipe.pad_ffn if options.pad_ffn is None else _pad(options.pad_ffn),
        prune_layers=recipe.prune_layers if options.prune_layers is None else parse_layers(options.prune_layers),
        overrides=recipe.overrides + tuple(parse_override(text) for text in options.override_kv),
        include_weights=tuple(options.include_weights) or recipe.include_weights,
        exclude_weights=tuple(options.exclude_weights) or recipe.exclude_weights,
    )


def _type(text: str | None) -> GgmlType | None:
    return None if text is None else parse_ggml_type(text)


def _found(patterns: Sequence[re.Pattern[str]], name: str) -> bool:
    return any(pattern.search(name) for pattern in patterns)


def _qat(text: str) -> "QatMode":
    from gemma4_quant.recipes.recipe import QatMode

    return QatMode(_mode("--qat", text))


def _pad(text: str) -> "PadMode":
    from gemma4_quant.recipes.recipe import PadMode

    return PadMode(_mode("--pad-ffn", text))


def _mode(option: str, text: str) -> str:
    if text.lower() not in ("auto", "on", "off"):
        raise typer.BadParameter(f"{option} is {text!r}; say auto, on or off")
    return text.lower()
