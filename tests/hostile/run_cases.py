"""Run groups of hostile cases in this process, under limits: `python run_cases.py SET`.

Writes a line of JSON before and after each case. Memory is limited to what a run of the sound model needs and 500 MB
more, computing to 5 seconds a reader; who breaks a limit is ended by the system, and the parent knows in which case.
Of the GGUF metadata values, each of which costs llama.cpp a start, a sample is run unless `--all` follows.
"""

import faulthandler
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import companion_cases
import gguf_cases
import json_cases
import safetensors_cases
from adapters import write_adapter
from cases import Case, Cases
from projector_checkpoints import write_multimodal
from tiny_models import write_tiny_gguf, write_tiny_importance

from gemma4_quant.adapter_conversion import convert_adapter
from gemma4_quant.calibration import CalibrationOptions, calibrate
from gemma4_quant.calibration.importance import read_importance
from gemma4_quant.conversion import convert
from gemma4_quant.converters.projector import load_projector
from gemma4_quant.errors import Gemma4QuantError
from gemma4_quant.ggml import FileType
from gemma4_quant.inspection import inspect
from gemma4_quant.projector_conversion import convert_projector
from gemma4_quant.quantization import quantize
from gemma4_quant.verification import verify

EXTRA_BYTES = 500 << 20
SECONDS = 5.0

Reader = Callable[[Path, Path], object]
"""Read what is at the first path, write below the second, a directory."""


@dataclass(frozen=True)
class Bench:
    """What readers need beside the case: a sound model, the checkpoint it was made from, and a text."""

    model: Path
    checkpoint: Path
    text: Path


def checkpoint_readers(_bench: Bench) -> dict[str, Reader]:
    return {
        "inspect": lambda path, _out: inspect(path),
        "convert": lambda path, out: convert(path, out / "out.gguf", "bf16", n_threads=1),
        "quantize": lambda path, out: quantize(path, out / "out.gguf", FileType.Q8_0, n_threads=1),
    }


def gguf_readers(bench: Bench) -> dict[str, Reader]:
    return {
        "inspect": lambda path, _out: inspect(path),
        "quantize": lambda path, out: quantize(path, out / "out.gguf", FileType.Q8_0, n_threads=1),
        "calibrate": lambda path, out: calibrate(
            path, [bench.text], output=out / "i.gguf", options=CalibrationOptions(n_ctx=16, n_threads=1)
        ),
    }


def adapter_readers(bench: Bench) -> dict[str, Reader]:
    base = bench.checkpoint
    return {
        "merge": lambda path, out: convert(base, out / "out.gguf", "bf16", adapters=[path], n_threads=1),
        "convert": lambda path, out: convert_adapter(path, out / "lora.gguf", base=base, n_threads=1),
    }


def projector_readers(_bench: Bench) -> dict[str, Reader]:
    return {
        "load": lambda path, _out: load_projector(path),
        "convert": lambda path, out: convert_projector(path, out / "mmproj.gguf", "bf16", n_threads=1),
    }


def verify_readers(bench: Bench) -> dict[str, Reader]:
    return {"verify": lambda path, _out: verify(path, bench.checkpoint, n_threads=1)}


def importance_readers(bench: Bench) -> dict[str, Reader]:
    return {
        "read": lambda path, _out: read_importance(path),
        "quantize": lambda path, out: quantize(
            bench.model, out / "out.gguf", FileType.Q8_0, importance=path, n_threads=1
        ),
    }


@dataclass(frozen=True)
class CaseSet:
    """Groups of cases for the same readers. sound: makes the undamaged input in the directory of the sound model."""

    groups: Mapping[str, Cases]
    make_readers: Callable[[Bench], dict[str, Reader]]
    sound: Callable[[Path], Path] = lambda directory: directory / "model.gguf"


def _write_sound_adapter(directory: Path) -> Path:
    return write_adapter(directory / "adapter", [(companion_cases.WEIGHT, (64, 32))])


def _write_sound_importance(directory: Path) -> Path:
    return write_tiny_importance(directory / "importance.gguf", directory / "model.gguf")


SETS: Mapping[str, CaseSet] = {
    "JSON": CaseSet(
        {
            "config fields": json_cases.config_cases,
            "fields of small files": json_cases.small_file_cases,
            "tokenizers": json_cases.tokenizer_cases,
            "whole JSON files": json_cases.whole_file_cases,
            "JSON bombs": json_cases.bomb_cases,
        },
        checkpoint_readers,
        lambda directory: directory / "checkpoint",
    ),
    "checkpoint": CaseSet(
        {
            "safetensors headers": safetensors_cases.header_cases,
            "indexes": safetensors_cases.index_cases,
            "traps": safetensors_cases.trap_cases,
            "model cards": safetensors_cases.card_cases,
        },
        checkpoint_readers,
        lambda directory: directory / "checkpoint",
    ),
    "GGUF": CaseSet(
        {
            "GGUF structure": gguf_cases.structure_cases,
            "GGUF cuts": gguf_cases.cut_cases,
            "GGUF documents": gguf_cases.document_cases,
            "GGUF metadata": gguf_cases.all_metadata_cases if "--all" in sys.argv else gguf_cases.metadata_cases,
        },
        gguf_readers,
    ),
    "companions": CaseSet({"adapters": companion_cases.adapter_cases}, adapter_readers, _write_sound_adapter),
    "projectors": CaseSet(
        {"projectors": companion_cases.projector_cases},
        projector_readers,
        lambda directory: write_multimodal(directory / "projector"),
    ),
    "splits": CaseSet({"splits": companion_cases.split_cases}, gguf_readers),
    "verify": CaseSet(
        {"verify": gguf_cases.few_metadata_cases, "verify documents": gguf_cases.document_cases}, verify_readers
    ),
    "importance": CaseSet({"importance": gguf_cases.importance_cases}, importance_readers, _write_sound_importance),
}


def main(name: str) -> None:
    """Run the cases of a set."""
    faulthandler.enable()
    case_set = SETS[name]
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        bench = _warm_up(work / "sound", case_set)
        _limit_memory()
        readers = case_set.make_readers(bench)
        for number, (group, cases) in enumerate(case_set.groups.items()):
            (work / f"{number}").mkdir()
            for case in cases(work / f"{number}"):
                _tell({"begins": case.name, "group": group})
                for reader in list(readers)[: 1 if case.is_quick else None]:
                    _tell(_run(case, reader, readers[reader], work / "out"))
    _tell({"done": name, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10})


def _warm_up(directory: Path, case_set: CaseSet) -> Bench:
    """Read a sound model with every reader, so that libraries and kernels are loaded before memory is limited."""
    model = write_tiny_gguf(directory)
    text = directory / "text.txt"
    text.write_text("abc abd ab cab " * 10)
    bench = Bench(model, directory / "checkpoint", text)
    sound = case_set.sound(directory)
    for read in case_set.make_readers(bench).values():
        (directory / "out").mkdir()
        read(sound, directory / "out")
        _empty(directory / "out")
    return bench


def _limit_memory() -> None:
    status = Path("/proc/self/status")
    if status.exists():  # elsewhere memory is not limited
        (used,) = (int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmData"))
        limit = (used << 10) + EXTRA_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _run(case: Case, name: str, read: Reader, out: Path) -> dict[str, Any]:
    out.mkdir()
    started = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # no handler: SIGPROF ends the process
    outcome: dict[str, Any] = {"case": case.name, "reader": name, "error": None, "crash": None}
    try:
        read(case.path, out)
    except Gemma4QuantError as error:
        outcome["error"] = f"{type(error).__name__}: {error}"
        outcome["left"] = [path.name for path in out.iterdir()]
    except BaseException:  # noqa: BLE001 - whatever comes is what the test is after
        outcome["crash"] = traceback.format_exc()[-3000:]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    outcome["seconds"] = time.process_time() - started
    beside = case.path if os.path.isdir(case.path) else case.path.parent
    outcome["names"] = [case.path.name, *(path.name for path in beside.iterdir())]
    _empty(out)
    return outcome


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def _tell(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
