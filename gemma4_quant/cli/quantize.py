"""`gemma4-quant quantize`: GGUF or checkpoint → smaller GGUF."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma4_quant.cli.hub import CacheDir, Revision, Token, local
from gemma4_quant.cli.options import DryRun, Json, SplitMaxSize, SplitMaxTensors, Threads, Verbose, split_limits
from gemma4_quant.cli.run import command, emit, files_text, set_up_logging, size_text, terminal_progress
from gemma4_quant.errors import UnsupportedTypeError, listed
from gemma4_quant.ggml import FileType, parse_file_type, parse_ggml_type

if TYPE_CHECKING:
    from gemma4_quant.codecs.base import Effort
    from gemma4_quant.quantization import QuantizeResult

_EFFORTS = ("fast", "balanced", "best")


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
            "gemma4-quant quantize model-BF16.gguf --type q4_k_m --imatrix imatrix.gguf",
            "gemma4-quant quantize examples/tiny-gemma4-e tiny-Q6_K.gguf Q6_K",
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
        file_type: Annotated[
            str | None,
            typer.Option(
                "--type",
                help="File type, such as q4_k_m, or several (q4_k_m,q6_k) in one run that reads the source once.",
                show_default=False,
            ),
        ] = None,
        imatrix: Annotated[
            Path | None,
            typer.Option("--imatrix", help="Importance file of this model, from calibrate.", show_default=False),
        ] = None,
        effort: Annotated[
            str, typer.Option("--effort", help="How long to search: fast, balanced or best.")
        ] = "balanced",
        tensor_type: Annotated[
            list[str] | None,
            typer.Option(
                "--tensor-type",
                metavar="PATTERN=TYPE",
                help="Type of tensors whose name matches; repeatable.",
                show_default=False,
            ),
        ] = None,
        output_tensor_type: Annotated[
            str | None, typer.Option(help="Type of output.weight.", show_default=False)
        ] = None,
        token_embedding_type: Annotated[
            str | None, typer.Option(help="Type of the token embeddings.", show_default=False)
        ] = None,
        pure: Annotated[bool, typer.Option("--pure", help="The file type's own type for every tensor.")] = False,
        leave_output_tensor: Annotated[
            bool, typer.Option("--leave-output-tensor", help="Do not quantize output.weight.")
        ] = False,
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
        """Quantize a GGUF file or a checkpoint; types are chosen as llama-quantize does."""
        from gemma4_quant import quantization
        from gemma4_quant.recipe import Recipe, parse_tensor_type

        set_up_logging(verbose=verbose)
        target = parse_target(rest or [], file_type, threads)
        split = split_limits(split_max_size, split_max_tensors)
        if keep_split and split:
            raise typer.BadParameter("--keep-split splits as the source is; leave out --split-max-…")
        recipe = Recipe(
            target.file_types[0],
            has_importance=imatrix is not None,
            pure=pure,
            leave_output_tensor=leave_output_tensor,
            output_tensor_type=parse_ggml_type(output_tensor_type) if output_tensor_type else None,
            token_embedding_type=parse_ggml_type(token_embedding_type) if token_embedding_type else None,
            tensor_types=tuple(parse_tensor_type(text) for text in tensor_type or []),
        )
        source = local(source, revision, cache_dir, token, may_download=not dry_run)
        if dry_run:
            from gemma4_quant.cli.forecast import forecast_text

            forecast = quantization.forecast_quantization(
                source,
                target.output,
                target.file_types,
                importance=imatrix,
                recipe=recipe,
                effort=_effort(effort),
                allow_requantize=allow_requantize,
                split=split,
                keep_split=keep_split,
                n_threads=target.n_threads,
            )
            emit(forecast, as_json=json, text=forecast_text(forecast))
            return
        results = quantization.quantize_each(
            source,
            target.output,
            target.file_types,
            importance=imatrix,
            recipe=recipe,
            effort=_effort(effort),
            allow_requantize=allow_requantize,
            split=split,
            keep_split=keep_split,
            n_threads=target.n_threads,
            progress=terminal_progress(),
        )
        text = "\n".join(map(_describe, results))
        emit(results if len(results) > 1 else results[0], as_json=json, text=text)


def parse_target(rest: list[str], file_type: str | None, n_threads: int | None) -> Target:
    """Read `[OUT] [TYPE] [NTHREADS]`; TYPE only counts when --type is absent, and may be a list with commas.

    Raises typer.BadParameter.
    """
    arguments = list(rest)
    output: Path | None = None
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


def _describe(result: "QuantizeResult") -> str:
    types = ", ".join(f"{count} {name}" for name, count in result.types.items())
    lines = [
        f"wrote {files_text(result.files)} ({size_text(result.n_bytes)}, "
        f"{result.bits_per_weight:.2f} bits per weight) in {result.seconds:.1f} s",
        f"types: {types}",
    ]
    if result.fallbacks:
        shown = ", ".join(f"{name} {change}" for name, change in list(result.fallbacks.items())[:3])
        more = len(result.fallbacks) - 3
        lines.append(
            f"{len(result.fallbacks)} tensors have rows that do not fit the wanted type: {shown}"
            + (f" and {more} more" if more > 0 else "")
        )
    if result.without_importance:
        lines.append(f"without importance: {listed(result.without_importance)}")
    return "\n".join(lines)
