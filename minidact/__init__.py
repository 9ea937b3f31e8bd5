"""minidact: a BERT to read in an evening that computes only as much as a sentence needs."""

import signal
import sys
from typing import TYPE_CHECKING, Any

if sys.argv[:1] == ["-m"] and any(word.startswith("minidact.") for word in sys.orig_argv):
    # one of our commands is being started: until it runs (errors.run_command), Ctrl-C just ends it,
    # and a setting that cannot be is said in a sentence
    from .errors import end_on_import
    from .signals import on_interrupt

    on_interrupt(signal.SIG_DFL)
    sys.excepthook = end_on_import

__version__ = "0.4.0"
__all__ = ["InputError", "Model", "Prediction", "__version__"]

if TYPE_CHECKING:
    from .errors import InputError
    from .model import Model, Prediction


def __getattr__(name: str) -> Any:
    """Loads what is asked for when it is asked for: `import minidact` alone costs nothing."""
    if name in ("Model", "Prediction"):
        from . import model

        return getattr(model, name)
    if name == "InputError":
        from .errors import InputError

        return InputError
    raise AttributeError(f"module 'minidact' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
