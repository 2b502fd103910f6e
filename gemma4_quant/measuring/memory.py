"""How much memory this process holds, and the most it has held."""

import ctypes
import os
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = b"5"  # proc(5): sets the peak to what is resident now


class MemoryWatch:
    """Watches the memory of this process from its creation on: resident pages, those of mapped files included.

    Linux keeps the peak itself. On macOS it is the most that `look` saw, so call it when much is in use. Elsewhere
    nothing is known, and the peak is None.
    """

    def __init__(self) -> None:
        """Remember what is resident now."""
        self._before = resident_bytes()
        self._seen = self._before or 0
        self.restart()

    def restart(self) -> None:
        """Forget the peak so far, but not what was resident at creation."""
        self._seen = resident_bytes() or 0
        try:
            with _RESET.open("wb", buffering=0) as file:
                file.write(_RESET_PEAK)
            self._is_kept = True
        except OSError:  # another system, or one that does not allow it
            self._is_kept = False

    def look(self) -> None:
        """Note what is resident now."""
        self._seen = max(self._seen, resident_bytes() or 0)

    def peak_bytes(self) -> int | None:
        """Return by how much the most resident memory since the last restart exceeds what there was at creation."""
        self.look()
        if self._before is None:
            return None
        kept = _status_bytes("VmHWM") if self._is_kept else None
        return max(0, max(self._seen, kept or 0) - self._before)


def resident_bytes() -> int | None:
    """Return the resident memory of this process; None where that cannot be found out."""
    if sys.platform == "darwin":
        return _darwin_bytes()
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:")), None)


def _darwin_bytes() -> int | None:
    """Ask proc_pid_rusage for `struct rusage_info_v0` (sys/resource.h): 16 bytes of UUID, then numbers of 64 bits."""
    resident, n_numbers = 6, 10
    answer = (ctypes.c_uint64 * (2 + n_numbers))()
    try:
        code = ctypes.CDLL(None).proc_pid_rusage(os.getpid(), 0, ctypes.byref(answer))
    except (OSError, AttributeError):
        return None
    return int(answer[2 + resident]) if code == 0 else None
