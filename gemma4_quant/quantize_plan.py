"""The plan of a quantized file: what a recipe makes of a model and its importance."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gemma4_quant.arrays import Float32Rows
from gemma4_quant.calibration.importance import Importance
from gemma4_quant.calibration.moments import MomentsFile
from gemma4_quant.codecs import CODECS
from gemma4_quant.converters import auto_type, float_type
from gemma4_quant.errors import ImportanceError, InputError, UnsupportedTypeError, listed
from gemma4_quant.feedback.encoder import FeedbackEncoder
from gemma4_quant.feedback.factors import FactorCache
from gemma4_quant.feedback.plan import moments_of, plan_feedback
from gemma4_quant.formats.shards import SplitRule
from gemma4_quant.ggml import FileType, is_quantized, row_bytes
from gemma4_quant.metadata import Metadata, Value, string, uint32
from gemma4_quant.model import Model, Tensor
from gemma4_quant.recipes.overrides import overridden
from gemma4_quant.recipes.padding import FeedForward, can_be_padded, padded, padded_importance, padded_widths
from gemma4_quant.recipes.provenance import provenance, without_provenance
from gemma4_quant.recipes.pruning import pruned, pruned_importance
from gemma4_quant.recipes.qat import GridPlan, plan_grids
from gemma4_quant.recipes.recipe import Choice, PadMode, Recipe, choose_types, requires_importance
from gemma4_quant.writing.plan import Assignment, Plan, make_plan

logger = logging.getLogger(__name__)

_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION in ggml.h


@dataclass(frozen=True)
class QuantizePlan:
    """A plan with the choices and findings behind it.

    lent_importance: how many experts of a weight saw too little text, as `1 of 8`. grids: tensors that lie on a
    trained grid. padding: widths that were padded, by metadata key, as `704 → 768`. feedback: encoders of the tensors
    that are encoded with error feedback, by name; None without second moments.
    """

    plan: Plan
    choices: tuple[Choice, ...]
    without_importance: tuple[str, ...]
    lent_importance: dict[str, str]
    grids: GridPlan
    padding: dict[str, str]
    feedback: dict[str, FeedbackEncoder] | None


@dataclass(frozen=True)
class SecondMoments:
    """Second moments of the model's inputs, and the factors of them that a run shares."""

    file: MomentsFile
    factors: FactorCache = field(default_factory=FactorCache)


def quantize_plan(
    model: Model,
    recipe: Recipe,
    importance: Importance | None,
    importance_path: Path | None = None,
    *,
    second_moments: SecondMoments | None = None,
    allow_requantize: bool = False,
    split: SplitRule | None = None,
) -> QuantizePlan:
    """Decide the type of every tensor and lay out the file; reads a few rows of each, to find trained grids.

    second_moments: encode with error feedback what they say something of, but for tensors on a trained grid.
    """
    if not model.tensors:
        raise InputError(f"{model.path} holds no tensors, only a vocabulary; quantize the whole model")
    moments = moments_of(model, second_moments.file) if second_moments else {}
    if importance is not None:
        importance = importance.of_matrices({tensor.name: tensor.n_matrices for tensor in model.tensors})
    measured = _importance_of(model, importance, importance_path)
    measured = {name: rows for name, rows in measured.items() if recipe.uses_importance_of(name)}
    moments = {name: each for name, each in moments.items() if recipe.uses_importance_of(name)}
    source, model = model, overridden(model, recipe.overrides)
    unpadded, model = model, pruned(model, recipe.prune_layers)
    model, wanted = _padded_where_wanted(model, recipe, unpadded.metadata)
    _refuse_unknown_names(model, recipe)
    grids = plan_grids(model, recipe, wanted)
    _warn_of_lost_grids(grids, recipe)
    choices, padding = grids.choices, padded_widths(unpadded, model)
    weights = padded_importance(model, pruned_importance(measured, recipe.prune_layers))
    _refuse_missing_importance(weights, recipe, choices)
    needing = requires_importance(recipe, choices)
    lent = _lent_importance(importance, measured, needing) if importance is not None else {}
    _refuse_missing_encoders(model, recipe, choices)
    _refuse_requantizing(model, choices, allow=allow_requantize)
    metadata = _metadata(model, recipe.file_type, importance, importance_path)
    metadata.update(provenance(source, recipe, grids, padding, importance_path))
    feedback = (
        plan_feedback(
            [
                (tensor, c.type)
                for tensor, c in zip(model.tensors, choices, strict=True)
                if c.name not in grids.encoders
            ],
            pruned_importance(moments, recipe.prune_layers),
            second_moments.factors,
        )
        if second_moments
        else None
    )
    assignments = [
        Assignment(
            tensor,
            choice.type,
            weights.get(tensor.name) if is_quantized(choice.type) else None,
            grids.encoders.get(tensor.name) or (feedback or {}).get(tensor.name),
        )
        for tensor, choice in zip(model.tensors, choices, strict=True)
    ]
    missing = tuple(c.name for c in choices if is_quantized(c.type) and c.name not in weights) if importance else ()
    return QuantizePlan(make_plan(metadata, assignments, split), choices, missing, lent, grids, padding, feedback)


def _padded_where_wanted(model: Model, recipe: Recipe, unpruned: Metadata) -> tuple[Model, list[Choice]]:
    """Pad feed-forward layers as the recipe says; returns the model and the types of its tensors.

    unpruned: the metadata whose counts of layers and heads the mixture follows, as in llama-quantize.
    """

    def chosen(model: Model) -> list[Choice]:
        return choose_types(recipe, replace(as_converted(model), metadata=unpruned))

    choices = chosen(model)
    for kind in FeedForward if recipe.pad_ffn is not PadMode.OFF else ():
        if recipe.pad_ffn is PadMode.AUTO and not can_be_padded(model, kind):
            continue
        wider = padded(model, kind)
        if wider is model:
            continue
        wider_choices = chosen(wider)
        if recipe.pad_ffn is PadMode.ON or _n_bytes(wider, wider_choices) < _n_bytes(model, choices):
            model, choices = wider, wider_choices
    return model, choices


def _n_bytes(model: Model, choices: Sequence[Choice]) -> int:
    return sum(t.n_rows * row_bytes(c.type, t.n_cols) for t, c in zip(model.tensors, choices, strict=True))


def as_converted(model: Model) -> Model:
    """Show a checkpoint's tensors with the types `convert` would give them; a GGUF stays as it is.

    llama-quantize keeps small tensors in the type it finds them, so the choice must see norms as F32.
    """
    if not model.path.is_dir():
        return model
    kind = auto_type(model)
    tensors = [Tensor(t.name, t.shape, float_type(t.name, t.shape, kind), t.source) for t in model.tensors]
    return Model(model.path, model.metadata, tensors)


def _importance_of(model: Model, importance: Importance | None, path: Path | None) -> dict[str, Float32Rows]:
    """Return importance by tensor name; raises ImportanceError when it is of another model."""
    if importance is None:
        return {}
    weights: dict[str, Float32Rows] = {}
    wrong: list[str] = []
    for tensor in model.tensors:
        if tensor.name not in importance.names:
            continue
        rows = importance.mean_square(tensor.name)
        if rows.shape == (tensor.n_matrices, tensor.n_cols):
            weights[tensor.name] = rows
        else:
            wrong.append(f"{tensor.name} ({rows.shape} for {(tensor.n_matrices, tensor.n_cols)})")
    known = {tensor.name for tensor in model.tensors}
    strangers = [name for name in importance.names if name not in known]
    if wrong or strangers or not weights:
        offenders = listed(wrong or strangers) or "it shares no tensor"
        raise ImportanceError(
            f"{path} is the importance of another model: {offenders}; calibrate this model and use that"
        )
    return weights


def _warn_of_lost_grids(grids: GridPlan, recipe: Recipe) -> None:
    if grids.left:
        logger.warning(
            "%d tensors lie on a trained 4-bit grid that %s moves them off, and so would even q8_0; "
            "--type q4_0 or --qat on keeps them exactly: %s",
            len(grids.left),
            recipe.file_type.name.lower(),
            listed(grids.left, 3),
        )


def _refuse_missing_importance(
    weights: Mapping[str, Float32Rows], recipe: Recipe, choices: tuple[Choice, ...]
) -> None:
    if needing := [name for name in requires_importance(recipe, choices) if name not in weights]:
        raise ImportanceError(
            f"{recipe.file_type.name} is garbage without importance of {listed(needing)} ({len(needing)} tensors); "
            "run calibrate and pass --imatrix"
        )


def _lent_importance(importance: Importance, used: Iterable[str], needing: Iterable[str]) -> dict[str, str]:
    """Return how many experts of each weight have lent importance, as `1 of 8`, with a warning.

    used: weights whose importance is used. needing: those whose types need it. Raises ImportanceError where most
    experts of one of these have lent importance.
    """
    lent = {name: experts for name in used if (experts := importance.lent(name))}
    needed, n_experts = set(needing), {name: len(importance.entries[name].counts) for name in lent}
    if refused := [name for name in lent if name in needed and 2 * len(lent[name]) > n_experts[name]]:
        raise ImportanceError(
            f"most experts of {listed(refused)} saw no text when importance was measured, and their type is garbage "
            "without; calibrate with --min-expert-tokens, or use a type of four bits"
        )
    shares = {name: f"{len(experts)} of {n_experts[name]}" for name, experts in lent.items()}
    if lent:
        logger.warning(
            "%d experts saw too little text and get the mean importance of their layer: %s; calibrate with "
            "--min-expert-tokens to change that",
            sum(map(len, lent.values())),
            listed((f"{name} ({share})" for name, share in shares.items()), 4),
        )
    return shares


def _refuse_unknown_names(model: Model, recipe: Recipe) -> None:
    known = {tensor.name for tensor in model.tensors}
    if unknown := [name for name in recipe.named_types if name not in known]:
        raise InputError(f"the recipe names tensors that the model has not: {listed(unknown)}; delete those lines")


def _refuse_missing_encoders(model: Model, recipe: Recipe, choices: tuple[Choice, ...]) -> None:
    changed = {c.type for c, tensor in zip(choices, model.tensors, strict=True) if c.type is not tensor.type}
    if missing := sorted(kind.name for kind in changed if kind not in CODECS):
        raise UnsupportedTypeError(
            f"{recipe.file_type.name} needs {listed(missing)}, for which there is no encoder; "
            f"there are {', '.join(kind.name for kind in CODECS)}"
        )


def _refuse_requantizing(model: Model, choices: tuple[Choice, ...], *, allow: bool) -> None:
    again = [
        tensor.name
        for tensor, choice in zip(model.tensors, choices, strict=True)
        if is_quantized(tensor.type) and choice.type is not tensor.type
    ]
    if not again:
        return
    if not allow:
        raise UnsupportedTypeError(
            f"{model.path} is quantized already ({listed(again, 3)}); quantize its bf16 original, "
            "or pass --allow-requantize to lose quality twice"
        )
    logger.warning("requantizing %d tensors that are quantized already: the errors add up", len(again))


def _metadata(
    model: Model, file_type: FileType, importance: Importance | None, path: Path | None
) -> dict[str, Value]:
    metadata = without_provenance(model.metadata)
    metadata["general.quantization_version"] = uint32(_QUANTIZATION_VERSION)
    metadata["general.file_type"] = uint32(file_type)
    if importance is not None:
        metadata["quantize.imatrix.file"] = string(path.name.encode(errors="replace").decode() if path else "")
        if importance.datasets:
            metadata["quantize.imatrix.dataset"] = string(importance.datasets[0])
        metadata["quantize.imatrix.entries_count"] = uint32(len(importance.names))
        metadata["quantize.imatrix.chunks_count"] = uint32(importance.chunk_count)
    return metadata
