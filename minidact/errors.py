"""The one exception that a user's mistake raises, and how a command ends on it."""

import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

from .signals import interruptible


class InputError(Exception):
    """Something that was given to minidact cannot be used; the message says what, and what to do.

    A command prints the message on stderr and ends with exit code 2; Python callers catch this
    one type.
    """


def known(name: str, value: Any, choices: Iterable[str]) -> Any:
    """The value, if it is one of the choices; raises InputError, naming them, if it is not."""
    choices = tuple(choices)
    if value not in choices:
        raise InputError(f"{name} is {value!r}; there are: {', '.join(choices)}")
    return value


def run_command(main: Callable[[], None]) -> None:
    """Runs a command's main(); turns InputError into one sentence on stderr and exit code 2.

    Ctrl-C ends it with exit code 130. Before and after, it just ends the process: see __init__.py.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interruptible():
            main()
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output left (`... | head`): end quietly
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, before)
