"""Ctrl-C and its kin: noted where work must not be cut in two, and told as what they are."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# what asks a program to end; a terminal that is closed sends SIGHUP, which Windows has not
STOPS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


@contextmanager
def noted(*signals: int) -> Iterator[list[int]]:
    """While the block lasts these signals do nothing but add their number to the list it is given.

    Those that are ignored (by nohup, say) stay ignored. Only the main thread is ever interrupted:
    in another one the list stays empty.
    """
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    heeded = [n for n in signals if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda n, _: seen.append(n)) for number in heeded}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def later(number: int) -> Iterator[None]:
    """While the block lasts a signal that has a handler waits; then it comes, once."""
    if not callable(signal.getsignal(number)):
        yield
        return
    with noted(number) as seen:
        yield
    if seen:
        signal.raise_signal(number)


def on_interrupt(handler: Any) -> Any:
    """Sets what Ctrl-C does, and returns what it did before. Where it is ignored it stays so."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)
    return before


@contextmanager
def ending() -> Iterator[None]:
    """While the block lasts Ctrl-C just ends the process: for where it has nothing to lose yet.

    Numba swallows KeyboardInterrupt in places while it compiles.
    """
    before = on_interrupt(signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C inside of a kernel is KeyboardInterrupt; Numba makes a SystemError of it."""
    try:
        yield
    except SystemError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
