"""The command that draws: `python -m minidact.plot FILE --out PICTURE`.

FILE is a training's --log, or what `evaluate --sweep --json` printed.
"""

import argparse

from ..errors import InputError, run_command
from . import check, read, save, sweep, training


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m minidact.plot",
        description="Draws a training's log, or the result of a sweep.",
    )
    p.add_argument("file", help="the --log of train, or the output of evaluate --sweep --json")
    p.add_argument("--out", required=True, help="the picture (.svg, .png, .pdf, ..)")
    return p


def main() -> None:
    options = parser().parse_args()
    check(options.out)
    found = read(options.file)
    try:
        figure = sweep(found) if isinstance(found, dict) else training(found)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{options.file} is damaged: {error!r}") from None
    save(figure, options.out)


if __name__ == "__main__":
    run_command(main)
