"""Holding back Ctrl-C while llama.cpp computes.

Python runs signal handlers when a C function calls back into it. What a handler raises there cannot cross C:
ctypes drops it, and the interruption would be lost.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Note SIGINT inside the block, and raise KeyboardInterrupt at its end instead.

    Only where SIGINT would raise KeyboardInterrupt now: elsewhere than on the main thread, or with another handler
    than Python's own, nothing changes.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    interrupted = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if interrupted:
            raise KeyboardInterrupt
