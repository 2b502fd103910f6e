"""SIGINT while C code runs, which calls back into Python."""

import ctypes
import signal
import threading

import pytest

from gemma4_quant.runner.interrupts import deferred_interrupt


def test_interrupt_in_a_c_callback_is_raised_after_the_call():
    finished = []

    @ctypes.CFUNCTYPE(None)
    def callback():
        signal.raise_signal(signal.SIGINT)
        finished.append("callback")

    def call():
        with deferred_interrupt():
            callback()
            finished.append("call")

    with pytest.raises(KeyboardInterrupt):
        call()
    assert finished == ["callback", "call"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handler_is_restored_after_an_error():
    with pytest.raises(ValueError, match="inside"), deferred_interrupt():
        raise ValueError("inside")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_and_other_handlers_are_left_alone():
    seen = []

    def work():
        with deferred_interrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_interrupt():
            signal.raise_signal(signal.SIGINT)
            seen.append(signal.getsignal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.default_int_handler, signal.SIG_IGN]
