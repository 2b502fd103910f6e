"""`gemma4-quant calibrate`: text → importance matrix, and what else is done with such files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma4_quant.cli.options import Chunks, ContextSize, GpuLayers, Json, Threads, Verbose
from gemma4_quant.cli.run import command, emit, set_up_logging, terminal_progress

if TYPE_CHECKING:
    from gemma4_quant.calibration.collect import CalibrationResult
    from gemma4_quant.calibration.files import OutputFormat
    from gemma4_quant.calibration.sources import TextSource

Files = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="MODEL.gguf",
        help="GGUF file of a Gemma 4 model; with --merge or --show-statistics, importance files.",
        show_default=False,
    ),
]
Texts = Annotated[
    list[str] | None,
    typer.Option(
        "-f",
        "--file",
        metavar="PATH[=WEIGHT]",
        help="UTF-8 text (read raw, as llama-imatrix does), .jsonl of chats (framed as turns), or a directory of "
        "both; repeatable, a chunk of weight 2 counts twice [default: the built-in corpus, framed as turns].",
        show_default=False,
    ),
]
Output = Annotated[Path, typer.Option("-o", "--output-file", help="Importance file to write.")]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--raw",
        help="Frame plain text too as turns of the model's template; read all as it is, chats too.",
        show_default=False,
    ),
]
ParseSpecial = Annotated[
    bool, typer.Option("--parse-special", help="Read tokens such as <|turn> in plain text as tokens.")
]
FromChunk = Annotated[
    int, typer.Option("--from-chunk", "--chunk", min=0, help="Leave out the first N chunks; merge the parts later.")
]
SelfTokens = Annotated[
    int,
    typer.Option(
        "--self",
        min=0,
        metavar="N",
        help="Let the model write N tokens of text, kept beside the matrix, and calibrate with that.",
    ),
]
Seed = Annotated[int, typer.Option("-s", "--seed", min=0, help="Seed of the text that the model writes.")]
MinExpertTokens = Annotated[
    int | None,
    typer.Option(
        "--min-expert-tokens",
        min=1,
        metavar="N",
        help="Go on with the built-in corpus until N tokens have reached each expert "
        "[default: 256 when the text is that corpus, else only report].",
        show_default=False,
    ),
]
ProcessOutput = Annotated[
    bool | None,
    typer.Option(
        "--process-output/--no-process-output",
        help="Collect for the output matrix too, tied or not [default: yes, unless --strict-llama].",
        show_default=False,
    ),
]
StrictLlama = Annotated[
    bool, typer.Option("--strict-llama", help="Collect what llama-imatrix collects, in the batches it makes.")
]
InFiles = Annotated[
    list[Path] | None,
    typer.Option("--in-file", help="Importance file to add to; repeatable.", show_default=False),
]
Merge = Annotated[
    bool, typer.Option("--merge", help="Add up the importance files named, instead of running a model.")
]
ShowStatistics = Annotated[
    bool, typer.Option("--show-statistics", help="Print statistics of one importance file, and write nothing.")
]
Format = Annotated[
    str,
    typer.Option("--output-format", metavar="gguf|dat", help="dat is llama.cpp's older format."),
]
SaveFrequency = Annotated[
    int | None,
    typer.Option(
        "--save-frequency", min=1, metavar="N", help="Also keep a copy, NAME.at_N, each N chunks.", show_default=False
    ),
]

Device = Annotated[
    str | None,
    typer.Option(
        "-dev",
        "--device",
        metavar="NAME,...",
        help="Devices to offload to, as bench --list-devices names them; none for the CPU alone [default: all GPUs].",
        show_default=False,
    ),
]
Hessian = Annotated[
    bool,
    typer.Option(
        "--hessian",
        help="Also gather second moments, into NAME.hessian.gguf beside the importance file: what "
        "quantize --calibration halves the divergence with.",
    ),
]
HessianFile = Annotated[
    Path | None, typer.Option("--hessian-file", help="File for them; implies --hessian.", show_default=False)
]
HessianMemory = Annotated[
    float,
    typer.Option(
        "--hessian-memory",
        min=0.001,
        metavar="GIB",
        help="Memory for them. Weights that need more than an eighth get 256-wide blocks on the diagonal; the text "
        "is run as often as all together need.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(
        app,
        examples=[
            "gemma4-quant calibrate model-BF16.gguf",
            "gemma4-quant calibrate model-BF16.gguf -f text.txt -f chats.jsonl=2 -o imatrix.gguf --chunks 100",
        ],
    )
    def calibrate(
        files: Files = None,
        text: Texts = None,
        output: Output = Path("imatrix.gguf"),
        ctx_size: ContextSize = 512,
        chunks: Chunks = None,
        from_chunk: FromChunk = 0,
        chat: Chat = None,
        parse_special: ParseSpecial = False,
        self_tokens: SelfTokens = 0,
        seed: Seed = 0,
        min_expert_tokens: MinExpertTokens = None,
        process_output: ProcessOutput = None,
        strict_llama: StrictLlama = False,
        in_file: InFiles = None,
        merge: Merge = False,
        show_statistics: ShowStatistics = False,
        output_format: Format = "gguf",
        save_frequency: SaveFrequency = None,
        hessian: Hessian = False,
        hessian_file: HessianFile = None,
        hessian_memory: HessianMemory = 4.0,
        n_gpu_layers: GpuLayers = 0,
        device: Device = None,
        threads: Threads = None,
        json: Json = False,
        verbose: Verbose = False,
    ) -> None:
        """Run text through a model and record how strongly each input column is used."""
        from gemma4_quant.calibration.collect import CalibrationOptions, calibrate
        from gemma4_quant.calibration.collect_moments import calibrate_moments
        from gemma4_quant.cli.calibrate_text import calibration_text
        from gemma4_quant.cli.moments_text import moments_text
        from gemma4_quant.texts.framing import Framing

        set_up_logging(verbose=verbose)
        named, earlier = files or [], in_file or []
        if show_statistics:
            _show_statistics([*named, *earlier], as_json=json)
            return
        if merge or (not named and earlier and not text):
            _merge([*named, *earlier], output, output_format, min_expert_tokens, as_json=json)
            return
        if len(named) != 1:
            raise typer.BadParameter(
                f"one model is calibrated at a time, and {len(named)} files are named; to add importance files up, "
                "pass --merge"
            )
        options = CalibrationOptions(
            n_ctx=ctx_size,
            first_chunk=from_chunk,
            n_chunks=chunks,
            framing=None if chat is None else Framing.TURN if chat else Framing.RAW,
            parse_special=parse_special,
            process_output=not strict_llama if process_output is None else process_output,
            n_self_tokens=self_tokens,
            seed=seed,
            min_expert_tokens=min_expert_tokens,
            earlier=earlier,
            output_format=_format(output_format),
            save_every=save_frequency,
            strict_llama=strict_llama,
            n_threads=threads,
            n_gpu_layers=n_gpu_layers,
            devices=None if device is None else _devices(device),
        )
        result = calibrate(
            named[0], _sources(text or []), output=output, options=options, progress=terminal_progress()
        )
        if not (hessian or hessian_file):
            emit(result, as_json=json, text=calibration_text(result))
            return
        moments = calibrate_moments(
            named[0],
            _moment_sources(result, text or []),
            hessian_file or output.with_name(f"{output.stem}.hessian.gguf"),
            options=options,
            memory_bytes=int(hessian_memory * (1 << 30)),
            progress=terminal_progress(),
        )
        emit(
            {"importance": result, "moments": moments},
            as_json=json,
            text=f"{calibration_text(result)}\n{moments_text(moments)}",
        )


def _sources(texts: list[str]) -> "list[TextSource]":
    """Read PATH or PATH=WEIGHT; what follows the last `=` is a weight if it is a number and there is no such file."""
    from gemma4_quant.calibration.sources import TextSource
    from gemma4_quant.source import exists

    sources = []
    for text in texts:
        path, sign, weight = text.rpartition("=")
        if not sign or exists(Path(text)):
            sources.append(TextSource(Path(text)))
            continue
        try:
            sources.append(TextSource(Path(path), float(weight)))
        except ValueError:
            sources.append(TextSource(Path(text)))
    return sources


def _devices(names: str) -> list[str]:
    return [] if names.lower() == "none" else [name.strip() for name in names.split(",")]


def _moment_sources(result: "CalibrationResult", texts: list[str]) -> "list[TextSource]":
    """Return what importance was measured with: also the text that the model wrote for it."""
    from gemma4_quant.calibration.sources import TextSource

    written = getattr(result, "self_text", None)
    return [*_sources(texts), *([TextSource(written)] if written else [])]


def _format(name: str) -> "OutputFormat":
    from gemma4_quant.calibration.files import OutputFormat

    try:
        return OutputFormat(name.lower())
    except ValueError as error:
        raise typer.BadParameter(f"{name} is no format of importance files; use gguf or dat") from error


def _merge(
    files: list[Path], output: Path, output_format: str, min_expert_tokens: int | None, *, as_json: bool
) -> None:
    from gemma4_quant.calibration.moments import holds_moments

    if any(map(holds_moments, files)):
        from gemma4_quant.calibration.moments_merge import merge_moments
        from gemma4_quant.cli.moments_text import merged_text

        made_from = merge_moments(files, output)
        emit(made_from, as_json=as_json, text=merged_text(output, made_from))
        return
    from gemma4_quant.calibration.coverage import ENOUGH_TOKENS
    from gemma4_quant.calibration.files import merge_importance
    from gemma4_quant.cli.calibrate_text import merge_text

    result = merge_importance(
        files,
        output,
        output_format=_format(output_format),
        min_expert_tokens=min_expert_tokens or ENOUGH_TOKENS,
    )
    emit(result, as_json=as_json, text=merge_text(result))


def _show_statistics(files: list[Path], *, as_json: bool) -> None:
    from gemma4_quant.calibration.importance import read_importance
    from gemma4_quant.calibration.statistics import statistics
    from gemma4_quant.cli.calibrate_text import statistics_text

    if len(files) != 1:
        raise typer.BadParameter(f"statistics are shown of one importance file at a time, and {len(files)} are named")
    found = statistics(read_importance(files[0]))
    emit(found, as_json=as_json, text=statistics_text(found))
