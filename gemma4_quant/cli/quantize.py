"""`gemma4-quant quantize`: GGUF or checkpoint → smaller GGUF."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma4_quant.cli.hub import CacheDir, Revision, Token, local
from gemma4_quant.cli.options import DryRun, Json, SplitMaxSize, SplitMaxTensors, Threads, Verbose, split_limits
from gemma4_quant.cli.quantize_text import result_text
from gemma4_quant.cli.recipe_options import (
    ExcludeWeights,
    Floors,
    IncludeWeights,
    LeaveOutputTensor,
    OutputTensorType,
    OverrideKv,
    PadFfn,
    PruneLayers,
    Pure,
    Qat,
    RecipeFile,
    RecipeFrom,
    RecipeOptions,
    SaveRecipe,
    StrictLlama,
    TensorType,
    TensorTypeFile,
    TokenEmbeddingType,
    base_recipe,
    finished_recipe,
)
from gemma4_quant.cli.run import command, emit, set_up_logging, terminal_progress
from gemma4_quant.errors import UnsupportedTypeError
from gemma4_quant.ggml import FileType, parse_file_type

if TYPE_CHECKING:
    from gemma4_quant.codecs.base import Effort
    from gemma4_quant.quantization import QuantizeOptions

_EFFORTS = ("fast", "balanced", "best")
_TYPE_NAMES = ", ".join(kind.name.lower() for kind in FileType if kind is not FileType.NVFP4)


@dataclass(frozen=True)
class Target:
    """What the positional arguments after the source say."""

    output: Path | None
    file_types: tuple[FileType, ...]
    n_threads: int | None


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(
        app,
        examples=[
            "gemma4-quant quantize model-BF16.gguf --type q4_k_m --calibration imatrix.hessian.gguf",
            "gemma4-quant quantize examples/tiny-gemma4-e --type q4_k_m --best",
        ],
    )
    def quantize(
        source: Annotated[
            Path,
            typer.Argument(metavar="SOURCE", help="GGUF file, checkpoint directory, or Hub id.", show_default=False),
        ],
        rest: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="[OUT.gguf] [TYPE] [NTHREADS]",
                help="As llama-quantize takes them.",
                show_default=False,
            ),
        ] = None,
        adapter: Annotated[
            list[Path] | None,
            typer.Option(
                "--adapter",
                help="Directory of a LoRA adapter to merge into a checkpoint; repeatable.",
                show_default=False,
            ),
        ] = None,
        file_type: Annotated[
            str | None,
            typer.Option(
                "--type",
                help="File type, such as q4_k_m, or several (q4_k_m,q6_k) in one run that reads the source once. "
                f"There are {_TYPE_NAMES}, or their numbers.",
                show_default=False,
            ),
        ] = None,
        imatrix: Annotated[
            Path | None,
            typer.Option("--imatrix", help="Importance file of this model, from calibrate.", show_default=False),
        ] = None,
        best: Annotated[
            bool,
            typer.Option(
                "--best",
                help="Gather second moments first: convert to BF16, calibrate, then quantize with error feedback. "
                "An interrupted run goes on; --dry-run tells what it takes.",
            ),
        ] = False,
        text: Annotated[
            list[Path] | None,
            typer.Option(
                "-f",
                "--file",
                help="Text for --best to calibrate with, or chats, or a directory; repeatable "
                "[default: the built-in corpus].",
                show_default=False,
            ),
        ] = None,
        keep_work: Annotated[
            bool, typer.Option("--keep-work", help="Keep OUT.gguf.work with --best's BF16 file and moments.")
        ] = False,
        hessian_memory: Annotated[
            float, typer.Option("--hessian-memory", min=0.001, metavar="GIB", help="Memory for --best's moments.")
        ] = 4.0,
        moments: Annotated[
            Path | None,
            typer.Option(
                "--calibration",
                help="Second moments of this model, from calibrate --hessian: half the divergence at the same size.",
                show_default=False,
            ),
        ] = None,
        effort: Annotated[
            str, typer.Option("--effort", help="How long to search: fast, balanced or best.")
        ] = "balanced",
        tensor_type: TensorType = None,
        tensor_type_file: TensorTypeFile = None,
        output_tensor_type: OutputTensorType = None,
        token_embedding_type: TokenEmbeddingType = None,
        pure: Pure = False,
        leave_output_tensor: LeaveOutputTensor = False,
        include_weights: IncludeWeights = None,
        exclude_weights: ExcludeWeights = None,
        prune_layers: PruneLayers = None,
        override_kv: OverrideKv = None,
        qat: Qat = None,
        pad_ffn: PadFfn = None,
        floors: Floors = True,
        strict_llama: StrictLlama = False,
        recipe_path: RecipeFile = None,
        recipe_from: RecipeFrom = None,
        save_recipe: SaveRecipe = None,
        allow_requantize: Annotated[
            bool, typer.Option("--allow-requantize", help="Accept a source that is quantized already.")
        ] = False,
        keep_split: Annotated[
            bool, typer.Option("--keep-split", help="Write as many files as the source has, with the same tensors.")
        ] = False,
        split_max_size: SplitMaxSize = None,
        split_max_tensors: SplitMaxTensors = None,
        dry_run: DryRun = False,
        revision: Revision = None,
        cache_dir: CacheDir = None,
        token: Token = None,
        threads: Threads = None,
        json: Json = False,
        verbose: Verbose = False,
    ) -> None:
        """Quantize a GGUF file or a checkpoint; types are chosen as llama-quantize does, made safe for Gemma 4."""
        from gemma4_quant import quantization

        set_up_logging(verbose=verbose)
        split = split_limits(split_max_size, split_max_tensors)
        if keep_split and split:
            raise typer.BadParameter("--keep-split splits as the source is; leave out --split-max-…")
        options = RecipeOptions(
            tensor_type or [],
            tensor_type_file,
            output_tensor_type,
            token_embedding_type,
            pure,
            leave_output_tensor,
            include_weights or [],
            exclude_weights or [],
            prune_layers,
            override_kv or [],
            qat,
            pad_ffn,
            floors,
            strict_llama,
            recipe_path,
            recipe_from,
        )
        source = local(source, revision, cache_dir, token, may_download=not dry_run)
        adapters = [local(each, None, cache_dir, token, may_download=not dry_run) for each in adapter or ()]
        base = base_recipe(options, source)
        target = parse_target(rest or [], file_type, threads, base.file_type if base else None)
        recipe = finished_recipe(options, base, target.file_types[0])
        how = quantization.QuantizeOptions(
            importance=imatrix,
            moments=moments,
            adapters=adapters,
            recipe=recipe,
            effort=_effort(effort),
            allow_requantize=allow_requantize,
            split=split,
            keep_split=keep_split,
            recipe_file=save_recipe,
            n_threads=target.n_threads,
        )
        if (text or keep_work) and not best:
            raise typer.BadParameter("-f and --keep-work say how --best calibrates; add it, or run calibrate")
        if best:
            _run_best(
                source, target, how, text or [], hessian_memory, keep_work=keep_work, dry_run=dry_run, as_json=json
            )
            return
        if dry_run:
            from gemma4_quant.cli.forecast import forecast_text

            forecast = quantization.forecast_quantization(source, target.output, target.file_types, how)
            emit(forecast, as_json=json, text=forecast_text(forecast))
            return
        results = quantization.quantize_each(source, target.output, target.file_types, how, terminal_progress())
        told = "\n".join(map(result_text, results))
        emit(results if len(results) > 1 else results[0], as_json=json, text=told)


def _run_best(
    source: Path,
    target: Target,
    how: "QuantizeOptions",
    texts: list[Path],
    memory_gib: float,
    *,
    keep_work: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    from gemma4_quant import best_quantization
    from gemma4_quant.cli.best_text import best_forecast_text, best_text

    options = best_quantization.BestOptions(texts, memory_bytes=int(memory_gib * (1 << 30)), keep_work=keep_work)
    arguments = (source, target.output, target.file_types, how, options)
    forecast = best_quantization.forecast_quantize_best(*arguments)
    if dry_run:
        emit(forecast, as_json=as_json, text=best_forecast_text(forecast))
        return
    typer.echo(best_forecast_text(forecast), err=True)
    result = best_quantization.quantize_best(*arguments, terminal_progress())
    emit(result, as_json=as_json, text=best_text(result))


def parse_target(
    rest: list[str], file_type: str | None, n_threads: int | None, default: FileType | None = None
) -> Target:
    """Read `[OUT] [TYPE] [NTHREADS]`; TYPE only counts when --type is absent, and may be a list with commas.

    default: the type when none is given. Raises typer.BadParameter.
    """
    arguments = list(rest)
    output: Path | None = None
    if file_type is None and default is not None and not any(map(_is_file_type, arguments[:2])):
        file_type = default.name
    if file_type is None:
        if (
            len(arguments) > 1
            and _is_file_type(arguments[1])
            and not (_is_file_type(arguments[0]) and arguments[1].isdecimal())
        ):
            output = Path(arguments.pop(0))
        if not arguments:
            raise typer.BadParameter("say which type to make, such as --type q4_k_m")
        kinds = _parse_or_refuse(arguments.pop(0))
    else:
        kinds = _parse_or_refuse(file_type)
        if arguments and not arguments[0].isdecimal():
            output = Path(arguments.pop(0))
    if arguments:
        count = arguments.pop(0)
        if not count.isdecimal() or int(count) < 1:
            raise typer.BadParameter(f"{count!r} is not a number of threads")
        n_threads = n_threads or int(count)
    if arguments:
        raise typer.BadParameter(f"unexpected argument {arguments[0]!r}")
    return Target(output, kinds, n_threads)


def _is_file_type(text: str) -> bool:
    try:
        _parse_types(text)
    except UnsupportedTypeError:
        return False
    return True


def _parse_types(text: str) -> tuple[FileType, ...]:
    """Read one file type or several with commas between; raises UnsupportedTypeError."""
    return tuple(dict.fromkeys(parse_file_type(each) for each in text.split(",")))


def _parse_or_refuse(text: str) -> tuple[FileType, ...]:
    try:
        return _parse_types(text)
    except UnsupportedTypeError as error:
        raise typer.BadParameter(str(error)) from error


def _effort(text: str) -> "Effort":
    from gemma4_quant.codecs.base import Effort

    if text.lower() not in _EFFORTS:
        raise typer.BadParameter(f"{text!r} is not an effort; known are {', '.join(_EFFORTS)}")
    return Effort(text.lower())
