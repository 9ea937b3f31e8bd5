"""The one exception that a user's mistake raises, and how a command ends: on it, and on all else.

What a command promises in each case is told in tutorials/when-something-goes-wrong.md.
"""

import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from .signals import interruptible, on_interrupt

# what a terminal obeys, and what turns the direction of writing: both can forge a line
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""The text on one line, with what a terminal would obey written out: "\x1b[2J"."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class InputError(Exception):
    """Something that was given to minidact cannot be used; the message says what, and what to do.

    A command prints the message on stderr and ends with exit code 2; Python callers catch this
    one type.
    """

    def __str__(self) -> str:
        return visible(super().__str__())


def known(name: str, value: Any, choices: Iterable[str]) -> Any:
    """The value, if it is one of the choices; raises InputError, naming them, if it is not."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} is {value!r}; there are: {', '.join(choices)}")
    return value


@contextmanager
def of_rust(what: str) -> Iterator[None]:
    """Whatever the Rust side of a tokenizer raises is an InputError: what, and why.

    It raises bare Exception, and where it panics what no "except Exception" catches.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise InputError(f"{what}: {error}") from None


def run_command(main: Callable[[], None]) -> None:
    """Runs a command's main() and ends in a sentence, never a traceback.

    An OSError here is of a stream: files of their own raise InputError. Ctrl-C ends it with exit
    code 130, unless it is ignored. Before and after, it just ends the process: see __init__.py.
    """
    before = on_interrupt(signal.default_int_handler)
    try:
        with interruptible():
            check_streams()
            main()
        sys.stdout.flush()
    except InputError as error:
        end(error)
    except BrokenPipeError:  # the reader of our output left (`... | head`): end quietly
        pass
    except OSError as error:
        end(f"input or output failed: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        give_up_output()
        signal.signal(signal.SIGINT, before)


def check_streams() -> None:
    """Raises InputError if there is no output to write to; letters it has not become escapes."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  print(file=None) writes to stdout
    if sys.stdout is None:
        raise InputError("there is nowhere to write to: standard output is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def give_up_output() -> None:
    """What cannot be written is given up, so that Python does not fail on it at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end(error: object) -> None:
    """Prints an error as one sentence and ends the process with exit code 2."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def end_on_import(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """sys.excepthook while a command is being imported, which run_command does not see."""
    if isinstance(error, InputError):
        end(error)
    sys.__excepthook__(kind, error, traceback)
