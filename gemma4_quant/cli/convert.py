"""`gemma4-quant convert`: checkpoint → GGUF."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma4_quant.cli.hub import CacheDir, Revision, Token, local
from gemma4_quant.cli.options import DryRun, Json, SplitMaxSize, SplitMaxTensors, Threads, Verbose, split_limits
from gemma4_quant.cli.run import command, emit, files_text, set_up_logging, size_text, terminal_progress

if TYPE_CHECKING:
    from gemma4_quant.conversion import ConversionOptions, ConvertResult
    from gemma4_quant.conversion_set import ConvertAllResult
    from gemma4_quant.writing.forecast import Forecast


class Part(Enum):
    """What of a checkpoint is converted."""

    TEXT_MODEL = 1
    PROJECTOR = 2
    ALL = 3


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(
        app,
        examples=[
            "gemma4-quant convert examples/tiny-gemma4-e --outfile tiny-{ftype}.gguf --outtype q8_0",
            "gemma4-quant convert examples/tiny-gemma4-e --all",
        ],
    )
    def convert(
        checkpoint: Annotated[
            Path,
            typer.Argument(
                metavar="CHECKPOINT",
                help="Directory of a Hugging Face checkpoint, or a Hub id such as google/gemma-4-E2B-it.",
                show_default=False,
            ),
        ],
        outfile: Annotated[
            Path | None,
            typer.Option(
                "--outfile",
                help="File to write; {ftype} in its name stands for the type. With --all a directory.",
                show_default="in CHECKPOINT, of a Hub id here",
            ),
        ] = None,
        outtype: Annotated[
            str | None,
            typer.Option(
                "--outtype",
                help="bf16, f16, f32, q8_0, or auto: the 16-bit type of the checkpoint.",
                show_default="auto; f32 with --as-adapter",
            ),
        ] = None,
        model_name: Annotated[
            str | None,
            typer.Option("--model-name", help="Name to record in the file.", show_default="the directory's"),
        ] = None,
        adapter: Annotated[
            list[Path] | None,
            typer.Option("--adapter", help="Directory of a LoRA adapter to merge; repeatable.", show_default=False),
        ] = None,
        as_adapter: Annotated[
            bool,
            typer.Option("--as-adapter", help="CHECKPOINT is a LoRA adapter: write a file for llama.cpp's --lora."),
        ] = False,
        base: Annotated[
            Path | None,
            typer.Option(
                "--base",
                help="With --as-adapter: directory of the checkpoint it was trained on.",
                show_default="as the adapter says",
            ),
        ] = None,
        mmproj: Annotated[
            bool, typer.Option("--mmproj", help="Convert the vision and audio encoders instead of the text model.")
        ] = False,
        everything: Annotated[
            bool,
            typer.Option("--all", help="Convert text model, encoders and drafter, and see that they load together."),
        ] = False,
        drafter: Annotated[
            Path | None,
            typer.Option("--drafter", help="With --all: directory of the -assistant checkpoint.", show_default=False),
        ] = None,
        exact_gelu: Annotated[
            bool,
            typer.Option(
                "--exact-gelu",
                help="Have llama.cpp see pictures with the model's activation, not its default, which is rougher.",
            ),
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
        """Convert a Gemma 4 checkpoint to a GGUF file."""
        from gemma4_quant import conversion

        set_up_logging(verbose=verbose)
        outtype = outtype or ("f32" if as_adapter else "auto")
        if outtype.lower() not in conversion.OUT_TYPES:
            raise typer.BadParameter(
                f"{outtype!r} is not an --outtype ({', '.join(conversion.OUT_TYPES)}); for other types run quantize"
            )
        split = split_limits(split_max_size, split_max_tensors)
        part = _part(mmproj, everything, drafter, exact_gelu, is_split=split is not None)
        if base is not None and not as_adapter:
            raise typer.BadParameter("--base goes with --as-adapter; to merge an adapter, use --adapter")
        if as_adapter:
            if part is not Part.TEXT_MODEL or adapter or split or dry_run:
                raise typer.BadParameter("--as-adapter goes with --base, --outfile, --outtype and --model-name only")
            from gemma4_quant.adapter_conversion import convert_adapter

            written = convert_adapter(
                local(checkpoint, revision, cache_dir, token),
                outfile,
                outtype,
                base=None if base is None else local(base, None, cache_dir, token),
                model_name=model_name,
                n_threads=threads,
                progress=terminal_progress(),
            )
            emit(written, as_json=json, text=_describe(written))
            return
        options = conversion.ConversionOptions(
            outtype,
            model_name,
            [local(each, None, cache_dir, token, may_download=not dry_run) for each in adapter or ()],
            split,
            exact_gelu,
            threads,
        )
        checkpoint = local(checkpoint, revision, cache_dir, token, may_download=not dry_run)
        if drafter is not None:
            drafter = local(drafter, None, cache_dir, token, may_download=not dry_run)
        if dry_run:
            from gemma4_quant.cli.forecast import forecast_text

            forecast = _forecast(part, checkpoint, outfile, drafter, options)
            emit(forecast, as_json=json, text=forecast_text(forecast))
        elif part is Part.ALL:
            from gemma4_quant.conversion_set import convert_set

            files = convert_set(checkpoint, outfile, drafter, options, terminal_progress())
            emit(files, as_json=json, text=_describe_all(files))
        else:
            result = _convert_one(part, checkpoint, outfile, options)
            emit(result, as_json=json, text=_describe(result))


def _forecast(
    part: Part, checkpoint: Path, outfile: Path | None, drafter: Path | None, options: "ConversionOptions"
) -> "Forecast":
    if part is Part.ALL:
        from gemma4_quant.conversion_set import forecast_all

        return forecast_all(checkpoint, outfile, drafter, options)
    if part is Part.PROJECTOR:
        from gemma4_quant.projector_conversion import forecast_projector

        return forecast_projector(checkpoint, outfile, options)
    from gemma4_quant.conversion import forecast_conversion

    return forecast_conversion(checkpoint, outfile, options)


def _convert_one(part: Part, checkpoint: Path, outfile: Path | None, options: "ConversionOptions") -> "ConvertResult":
    if part is Part.PROJECTOR:
        from gemma4_quant.projector_conversion import convert_encoders

        return convert_encoders(checkpoint, outfile, options, terminal_progress())
    from gemma4_quant.conversion import convert_text_model

    return convert_text_model(checkpoint, outfile, options, terminal_progress())


def _part(mmproj: bool, everything: bool, drafter: Path | None, exact_gelu: bool, *, is_split: bool) -> Part:
    """Return what is meant; raises typer.BadParameter for options that contradict each other."""
    if mmproj and everything:
        raise typer.BadParameter("--all includes the encoders; leave out --mmproj")
    if mmproj and is_split:
        raise typer.BadParameter("--split-max-… is for the text model; leave it out with --mmproj")
    if drafter is not None and not everything:
        raise typer.BadParameter("--drafter goes with --all; to convert a drafter alone, give it as CHECKPOINT")
    if exact_gelu and not (mmproj or everything):
        raise typer.BadParameter("--exact-gelu is for the encoders of pictures; add --mmproj or --all")
    if everything:
        return Part.ALL
    return Part.PROJECTOR if mmproj else Part.TEXT_MODEL


def _describe(result: "ConvertResult") -> str:
    types = ", ".join(f"{count} {name}" for name, count in result.types.items())
    return (
        f"wrote {files_text(result.files)} ({size_text(result.n_bytes)}, {result.n_tensors} tensors: {types}) "
        f"in {result.seconds:.1f} s"
    )


def _describe_all(files: "ConvertAllResult") -> str:
    written = [result for result in (files.model, files.projector, files.drafter) if result is not None]
    abilities = {
        "text": True,
        "pictures": files.companions.sees,
        "sound": files.companions.hears,
        "drafting": files.companions.drafts,
    }
    able = ", ".join(name for name, is_able in abilities.items() if is_able)
    return "\n".join([*map(_describe, written), f"llama.cpp loads what was written, for {able}"])
