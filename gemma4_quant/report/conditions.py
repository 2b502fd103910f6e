"""Under what was measured, in words, and what it takes to repeat it: command, versions, hashes."""

import shlex

from gemma4_quant.measuring.results import BenchResult, Conditions, FileFact, ModelFile, ReferenceKind
from gemma4_quant.report.numbers import size_text
from gemma4_quant.report.printable import clean, cut, printable
from gemma4_quant.report.tables import Cell, Column, Row, Table

_MAX_COMMAND = 20_000

FRAMINGS = {
    "turn": "each text is the model's own turn, inside its chat template; template tokens are not scored",
    "raw": "raw text, without a chat template",
    "tokens": "the tokens that the file of the reference's predictions holds",
}


def facts(result: BenchResult) -> tuple[tuple[str, str], ...]:
    """Return conditions as pairs of a name and a value, each fit to be shown."""
    conditions = result.conditions
    found: list[tuple[str, str | None]] = [
        ("reference", reference_text(result)),
        ("framing", None if conditions.framing is None else FRAMINGS.get(conditions.framing, conditions.framing)),
        ("context", f"{conditions.n_ctx:,} tokens" + _stride_text(conditions) if conditions.framing else None),
        ("intervals", _interval_text(conditions) if conditions.framing else None),
        ("KV cache", f"{conditions.key_type} keys, {conditions.value_type} values"),
        ("flash attention", flash_text(conditions.flash_attention)),
        ("device", device_text(conditions)),
        ("threads", str(conditions.n_threads)),
        *conditions.versions.items(),
        ("measured", f"{conditions.started}, in {conditions.elapsed_s:,.0f} s"),
    ]
    return tuple((clean(name), clean(value)) for name, value in found if value is not None)


def reference_text(result: BenchResult) -> str | None:
    """Say what the models were compared with."""
    reference = result.reference
    if reference is None:
        return None
    text = reference.path.name
    if reference.kind is not ReferenceKind.MODEL:
        text += f", stored predictions ({reference.kind.value}"
        text += f", {size_text(reference.stored_bytes)}" if reference.stored_bytes is not None else ""
        text += ")"
        if reference.storage_error is not None:
            text += f", which adds a standard error of {reference.storage_error:.2g} nat to the mean divergence"
    return text


def warnings(result: BenchResult) -> tuple[str, ...]:
    """Return what limits the numbers: the bench's warnings, mismatches that were forced, and failures."""
    forced = () if result.reference is None else result.reference.forced
    found = [
        *result.warnings,
        *(f"The reference does not match, and was used nevertheless: {mismatch}" for mismatch in forced),
        *(
            f"{model.file.path.name} was not measured completely: {model.failure}"
            for model in result.models
            if model.failure
        ),
    ]
    return tuple(clean(text) for text in found)


def command_line(result: BenchResult) -> str:
    """Return the command that repeats the run, quoted for a shell."""
    return cut(printable(shlex.join(result.conditions.command)), _MAX_COMMAND)


def files_table(result: BenchResult) -> Table:
    """Return every file measured or compared with: size, types, hash."""
    rows = [_row(fact, model.file) for model in result.models for fact in model.file.files]
    reference = None if result.reference is None else result.reference.model
    if reference is not None and not any(model.is_reference for model in result.models):
        rows += [_row(fact, reference) for fact in reference.files]
    return Table(
        "Files",
        (_text("file"), Column("bytes"), _text("model"), Column("SHA-256", is_text=True, is_code=True)),
        tuple(dict.fromkeys(rows)),
    )


def texts_table(result: BenchResult) -> Table | None:
    """Return every text that was scored; None when there was none."""
    if not result.texts:
        return None
    rows = tuple(
        Row(
            (
                Cell(clean(text.domain)),
                Cell(clean(text.source)),
                Cell(f"{text.n_documents:,}"),
                Cell(f"{text.n_tokens:,}"),
                Cell(f"{text.n_positions:,}"),
                Cell(clean(text.sha256)),
            )
        )
        for text in result.texts
    )
    numbers = map(Column, ("documents", "tokens", "scored"))
    return Table(
        "Texts",
        (_text("domain"), _text("text"), *numbers, Column("SHA-256 of tokens", is_text=True, is_code=True)),
        rows,
    )


def types_text(file: ModelFile, n_types: int = 4) -> str:
    """Say which types most of a file's weights have, such as `Q4_K 71 %, Q6_K 28 %`."""
    shown = [
        f"{clean(each.type)} {100 * each.n_weights / max(1, file.n_weights):.0f} %" for each in file.types[:n_types]
    ]
    return ", ".join(shown) + (", …" if len(file.types) > n_types else "")


def _text(title: str) -> Column:
    return Column(title, is_text=True)


def _row(fact: FileFact, model: ModelFile) -> Row:
    described = ", ".join(part for part in (clean(model.name), model.file_type and clean(model.file_type)) if part)
    return Row((Cell(clean(fact.name)), Cell(f"{fact.n_bytes:,}"), Cell(described), Cell(clean(fact.sha256))))


def _stride_text(conditions: Conditions) -> str:
    return "" if conditions.stride is None else f", a chunk every {conditions.stride:,} tokens"


def _interval_text(conditions: Conditions) -> str:
    return (
        f"± is one standard error; intervals are {100 * conditions.confidence:.4g} %, by bootstrap over documents "
        f"({conditions.resamples:,} resamples, seed {conditions.seed})"
    )


def flash_text(flash_attention: bool | None) -> str:
    """Say whether flash attention was used."""
    return {None: "llama.cpp's choice", True: "on", False: "off"}[flash_attention]


def device_text(conditions: Conditions) -> str:
    """Say what ran the models, and how many layers were offloaded."""
    layers = conditions.n_gpu_layers
    return conditions.device + (
        "" if not layers else f", {layers} layers offloaded" if layers > 0 else ", all layers offloaded"
    )
