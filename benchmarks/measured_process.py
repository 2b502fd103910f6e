"""Run a command and measure it: seconds, processor time, and peak memory without pages of mapped files."""

import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage


@dataclass(frozen=True)
class Measured:
    """What a run took. cpu_s: user and system time. peak_bytes: most anonymous resident memory (Linux, sampled)."""

    seconds: float
    cpu_s: float
    peak_bytes: int


def measure(command: Sequence[str | Path]) -> Measured:
    """Run `command`; raises RuntimeError with the end of its output when it fails."""
    before = getrusage(RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    peaks = [0]
    sampler = threading.Thread(target=_sample, args=(process, peaks))
    sampler.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - started
    sampler.join()
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed: {output.decode(errors='replace')[-2000:]}")
    after = getrusage(RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(seconds, cpu_s, max(peaks))


def _sample(process: "subprocess.Popen[bytes]", peaks: list[int]) -> None:
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            lines = status.read_text().splitlines()
        except OSError:  # it has just ended
            return
        peaks += [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")]
        time.sleep(0.01)


def warm(path: Path) -> None:
    """Read a file so that it is in memory, as far as there is room."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
