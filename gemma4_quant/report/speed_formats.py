"""Speeds in llama-bench's output formats, so that whatever reads its output reads ours.

Fields, their order and their types are those of llama-bench.cpp (get_fields, get_field_type, markdown_printer). What
this package leaves at llama.cpp's defaults is written as those defaults.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import chain
from statistics import mean, stdev
from typing import TypeAlias

from gemma4_quant.measuring.speed import DRIFT_LIMIT, ModelSpeeds, Speed
from gemma4_quant.measuring.speed_plan import SpeedSettings

Value: TypeAlias = str | bool | int | float
Fields: TypeAlias = dict[str, Value]

_FLASH_ATTENTION = {None: -1, False: 0, True: 1}  # enum llama_flash_attn_type (llama.h)
_POLL = 50  # ggml_threadpool_params_init (ggml.c)
_SQL_TYPES = {str: "TEXT", bool: "INTEGER", int: "INTEGER", float: "REAL"}


class SpeedFormat(StrEnum):
    """A format of llama-bench's `-o`."""

    MD = "md"
    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"
    SQL = "sql"


def speed_text(results: Sequence[ModelSpeeds], output_format: SpeedFormat) -> str:
    """Write speeds of models in one of llama-bench's formats, without a line break at the end."""
    writers = {
        SpeedFormat.MD: _markdown,
        SpeedFormat.CSV: _csv,
        SpeedFormat.JSON: _json,
        SpeedFormat.JSONL: _jsonl,
        SpeedFormat.SQL: _sql,
    }
    return writers[output_format](results)


def speed_fields(model: ModelSpeeds, speed: Speed) -> Fields:
    """Return the fields of one result, by llama-bench's names and in its order."""
    return {**_build_fields(model), **_settings_fields(model, speed.settings), **_result_fields(speed)}


def _build_fields(model: ModelSpeeds) -> Fields:
    return {
        "build_commit": model.build.commit,
        "build_number": model.build.number,
        "cpu_info": model.build.cpu,
        "gpu_info": model.build.gpu,
        "backends": model.build.backends,
        "model_filename": str(model.path),
        "model_type": model.model_type,
        "model_size": model.model_bytes,
        "model_n_params": model.n_weights,
    }


def _settings_fields(model: ModelSpeeds, settings: SpeedSettings) -> Fields:
    return {
        "n_batch": settings.n_batch,
        "n_ubatch": settings.n_ubatch,
        "n_threads": settings.n_threads or model.n_threads,
        "cpu_mask": "0x0",
        "cpu_strict": False,
        "poll": _POLL,
        "type_k": settings.key_type.name.lower(),
        "type_v": settings.value_type.name.lower(),
        "n_gpu_layers": settings.n_gpu_layers,
        "n_cpu_moe": 0,
        "split_mode": "layer",
        "main_gpu": 0,
        "no_kv_offload": False,
        "flash_attn": _FLASH_ATTENTION[settings.flash_attention],
        "devices": "auto" if settings.devices is None else "/".join(settings.devices) or "none",
        "tensor_split": "0.00",
        "tensor_buft_overrides": "none",
        "load_mode": "auto",
        "lazy_mode": "auto",
        "embeddings": False,
        "no_op_offload": 0,
        "no_host": False,
        "repack": True,
        "fit_target": 0,
        "fit_min_ctx": 0,
    }


def _result_fields(speed: Speed) -> Fields:
    return {
        "n_prompt": speed.counts.n_prompt,
        "n_gen": speed.counts.n_generate,
        "n_depth": speed.counts.depth,
        "test_time": speed.started,
        "avg_ns": int(mean(speed.samples_ns)),
        "stddev_ns": int(stdev(speed.samples_ns)) if len(speed.samples_ns) > 1 else 0,
        "avg_ts": round(speed.tokens_per_second, 6),
        "stddev_ts": round(speed.deviation, 6),
    }


def _rows(results: Sequence[ModelSpeeds]) -> Iterator[tuple[Fields, Speed]]:
    for model in results:
        for speed in model.speeds:
            yield speed_fields(model, speed), speed


def _plain(value: Value) -> str:
    """Write a value as llama-bench does before it is quoted: bools as 0 and 1, fractions with six digits."""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def _json_row(fields: Fields, speed: Speed) -> dict[str, object]:
    samples_ts = [round(sample, 3) for sample in speed.samples]
    return {**fields, "samples_ns": list(speed.samples_ns), "samples_ts": samples_ts}


def _json(results: Sequence[ModelSpeeds]) -> str:
    return json.dumps([_json_row(*row) for row in _rows(results)], indent=2)


def _jsonl(results: Sequence[ModelSpeeds]) -> str:
    return "\n".join(json.dumps(_json_row(*row)) for row in _rows(results))


def _csv(results: Sequence[ModelSpeeds]) -> str:
    rows = [fields for fields, _ in _rows(results)]
    text = io.StringIO()
    text.write(",".join(rows[0] if rows else ()) + "\n")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([_plain(value) for value in row.values()] for row in rows)
    return text.getvalue().removesuffix("\n")


def _sql(results: Sequence[ModelSpeeds]) -> str:
    rows = [fields for fields, _ in _rows(results)]
    names = ", ".join(rows[0] if rows else ())
    columns = ",\n".join(f"  {name} {_SQL_TYPES[type(value)]}" for name, value in (rows[0] if rows else {}).items())
    lines = [f"CREATE TABLE IF NOT EXISTS llama_bench (\n{columns}\n);\n"]
    for row in rows:
        values = ", ".join("'" + _plain(value).replace("'", "''") + "'" for value in row.values())
        lines.append(f"INSERT INTO llama_bench ({names}) VALUES ({values});")
    return "\n".join(lines)


# Columns of the table: heading, and width, negative where aligned to the left. These show what is not the default.
_SETTING_COLUMNS = {
    "n_batch": ("n_batch", 7),
    "n_ubatch": ("n_ubatch", 8),
    "type_k": ("type_k", 6),
    "type_v": ("type_v", 6),
    "flash_attn": ("fa", 3),
    "devices": ("dev", -12),
}
_FIXED_COLUMNS = {
    "model": ("model", -30),
    "size": ("size", 10),
    "params": ("params", 10),
    "backend": ("backend", -10),
}
_PLACE_COLUMNS = {"n_gpu_layers": ("ngl", 3), "n_threads": ("threads", 7)}
_LAST_COLUMNS = {"test": ("test", 15), "t/s": ("t/s", 20)}


def _markdown(results: Sequence[ModelSpeeds]) -> str:
    rows = list(_rows(results))
    columns = _columns(results)
    lines = [
        _line(columns, {name: heading for name, (heading, _) in columns.items()}),
        "|"
        + "|".join(f" {'-' * (abs(width) - 1)}{':' if width > 0 else '-'} " for _, width in columns.values())
        + "|",
        *(_line(columns, _cells(fields, speed)) for fields, speed in rows),
        "",
    ]
    if any(speed.has_drifted for _, speed in rows):
        lines += [
            f"\\* repetitions differ by more than {DRIFT_LIMIT:.0%}: something else ran, or the clock changed",
            "",
        ]
    builds = dict.fromkeys(f"build: {model.build.commit} ({model.build.number})" for model in results)
    return "\n".join([*lines, *builds])


def _columns(results: Sequence[ModelSpeeds]) -> dict[str, tuple[str, int]]:
    """Choose columns as llama-bench does: layers on a GPU or threads, and settings that are not the default."""
    backends = " ".join(model.build.backends for model in results)
    is_cpu = any(name in backends for name in ("CPU", "BLAS", "ZenDNN"))
    settings = {speed.settings for speed in chain(*(model.speeds for model in results))}
    shown = {"n_threads"} if is_cpu or any(each.n_threads for each in settings) else set()
    shown |= set() if is_cpu else {"n_gpu_layers"}
    places = {name: column for name, column in _PLACE_COLUMNS.items() if name in shown}
    defaults = {
        name: _settings_fields(model, SpeedSettings())[name] for model in results for name in _SETTING_COLUMNS
    }
    used = [_settings_fields(model, speed.settings) for model in results for speed in model.speeds]
    varied = {
        name: column
        for name, column in _SETTING_COLUMNS.items()
        if any(fields[name] != defaults[name] for fields in used)
    }
    return {**_FIXED_COLUMNS, **places, **varied, **_LAST_COLUMNS}


def _cells(fields: Fields, speed: Speed) -> dict[str, str]:
    size, count = int(fields["model_size"]), int(fields["model_n_params"])
    return {
        **{name: _plain(value) for name, value in fields.items()},
        "model": " ".join(str(fields["model_type"]).split()).replace("\\", "\\\\").replace("|", "\\|"),
        "size": f"{size / 2**20:.2f} MiB" if size < 1 << 30 else f"{size / 2**30:.2f} GiB",
        "params": f"{count / 1e6:.2f} M" if count < 10**9 else f"{count / 1e9:.2f} B",
        "backend": str(fields["backends"]),
        "test": speed.test,
        "t/s": f"{speed.tokens_per_second:.2f} ± {speed.deviation:.2f}" + (" \\*" if speed.has_drifted else ""),
    }


def _line(columns: dict[str, tuple[str, int]], cells: dict[str, str]) -> str:
    padded = (
        cells[name].rjust(width) if width > 0 else cells[name].ljust(-width) for name, (_, width) in columns.items()
    )
    return "|" + "|".join(f" {cell} " for cell in padded) + "|"
