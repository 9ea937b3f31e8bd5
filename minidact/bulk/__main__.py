"""Any amount of text, on one machine or many: `python -m minidact.bulk --data 'DIR/*.jsonl' ..`.

The rows of all files are cut into parts. A part's answers are written to the side and moved into
place, so what is there is whole, and is not done again. Every part is one task; on a cluster (Dask)
those of a worker that is lost are done by another.
"""

import argparse
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import InputError, run_command
from ..fast import threads
from ..files import alone_in, make_directory, write_file
from ..infer import load_model, load_slow
from ..mechanisms.record import Knob
from ..options import add_knob, add_model_options, fill, how_to_answer
from .part import How, Part, Total, work
from .rows import base_of, inputs, read

OWN = {
    "workers": Knob(0, "start so many processes on this machine; 0: this one works alone", 0, 4096),
    "part_size": Knob(5000, "texts of a part, the unit that is done or not done", 1, 10**9),
}
MANIFEST = "bulk.json"  # in --out: what the answers are answers to
EXTRA = "--workers and --cluster need pip install 'minidact[cluster]'"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m minidact.bulk",
        description="Answers all texts of many files, on one machine or many; called again, it "
        "goes on where it was.",
    )
    add = p.add_argument
    add("--data", required=True, help="a file, a directory, or a glob in quotes: .jsonl, .csv, "
        ".tsv, .txt (a text per line), each perhaps .gz, .bz2 or .xz, and .parquet")  # fmt: skip
    add("--out", required=True, help="a directory for the answers, a .jsonl file for every part")
    add("--cluster", help="address of a Dask scheduler, whose workers see the same files")
    for name, knob in OWN.items():
        add_knob(p, name, knob)
    add_model_options(p)
    return p


def main() -> None:
    options = parser().parse_args()
    fill(options, OWN)
    asked = how_to_answer(options)
    name = os.path.abspath(options.model) if os.path.isdir(options.model or "") else options.model
    how = How(name, options.bits, asked | {"batch_size": options.batch_size})
    if options.cluster and options.workers:
        raise InputError("a cluster has its workers already: leave out --workers")
    files = inputs(options.data, Path(options.out))
    shared = options.cluster or options.workers
    load = load_slow if shared else load_model
    model = load(how.model, asked, how.bits)  # wrong options are seen here
    out = make_directory(options.out)
    with alone_in(out), ExitStack() as stack:
        parts = list(cut(files, options.part_size, out, base_of(options.data)))
        told = {"part_size": options.part_size, "weights": model.digest, "bits": how.bits}
        knobs = vars(model.knobs(**asked)) | {"batch_size": options.batch_size}
        check_manifest(out, told | {"knobs": knobs}, files, parts)
        todo = [part for part in parts if not part.out.exists()]
        if len(todo) < len(parts):
            print(f"{len(parts) - len(todo)} of {len(parts)} parts are there already")
        if shared:
            done = on_cluster(cluster(options, stack), todo, how)
        else:
            done = ((part, work(part, how, model)) for part in todo)
        begin, total = time.perf_counter(), Total()
        count = sum(part.rows for part in todo)
        with tqdm(total=count, unit="text", smoothing=0, disable=None) as bar:
            for part, counted in done:
                total = total.plus(counted)
                bar.update(part.rows)
        print(summary(total, time.perf_counter() - begin))


def cut(files: list[Path], size: int, out: Path, base: Path) -> Iterator[Part]:
    """The parts of all files, whose rows are counted first; their places in out are as in base."""
    for file in tqdm(files, desc="counting", unit="file", leave=False, disable=None):
        begins, rows = [], 0
        for rows, row in enumerate(read(file), 1):
            if rows % size == 1 % size:
                begins.append(row.place)
        name = (out / file.relative_to(base)).absolute()
        for number, begin in enumerate(begins):
            place = name.with_name(f"{name.name}-{number:05}.jsonl")
            yield Part(file, begin, min(size, rows - number * size), place)


def check_manifest(out: Path, told: dict[str, Any], data: list[Path], parts: list[Part]) -> None:
    """Notes in --out what its answers are to; raises InputError if they are to something else.

    Files may come along. Those that were there must be as they were, and in the same place.
    """
    place, told = out / MANIFEST, json.loads(json.dumps(told))
    files: dict[str, dict[str, Any]] = {}
    for part in parts:
        about = {"answers": str(part.out.parent.relative_to(out.absolute()))}
        rows = files.get(str(part.file), {"rows": 0})["rows"] + part.rows
        files[str(part.file)] = about | {"rows": rows}
    for name in tqdm(files, desc="reading", unit="file", leave=False, disable=None):
        with open(name, "rb") as file:
            files[name]["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    if place.exists():
        try:
            before = json.loads(place.read_text())
            known = before.pop("files")
            there = {str(file) for file in data}  # one without a row has no part
            same = before == told and all(
                files.get(f) == about for f, about in known.items() if f in there
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{place} is damaged") from None
        taken = {(about["answers"], Path(file).name) for file, about in known.items()}
        new = {(files[f]["answers"], Path(f).name) for f in files if f not in known}
        if not same or taken & new:
            raise InputError(
                f"{out} holds the answers of another model, with other options, or to other files "
                f"({MANIFEST} says which): choose another --out"
            )
        files = known | files
    write_file(place, json.dumps(told | {"files": files}, indent=1).encode())


def cluster(options: argparse.Namespace, stack: ExitStack) -> Any:
    """A client of the cluster that is named, or of processes started here, each with its share."""
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise InputError(EXTRA) from None
    if options.cluster:
        try:
            return stack.enter_context(Client(options.cluster, timeout=10))
        except (OSError, ValueError) as error:
            raise InputError(f"there is no Dask scheduler at {options.cluster}: {error}") from None
    os.environ["NUMBA_NUM_THREADS"] = str(max(1, threads.cores() // options.workers))
    machine = LocalCluster(
        n_workers=options.workers, threads_per_worker=1, dashboard_address=None, memory_limit=0,
        silence_logs=logging.CRITICAL,
    )  # fmt: skip
    return stack.enter_context(Client(stack.enter_context(machine)))


def on_cluster(client: Any, parts: list[Part], how: How) -> Iterator[tuple[Part, Total]]:
    """Yields parts and their totals as they are done; raises InputError for one that cannot be."""
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    futures = {client.submit(work, part, how, pure=False): part for part in parts}
    for future in as_completed(futures):
        try:
            yield futures[future], future.result()
        except KilledWorker:
            name = futures[future].out.name
            raise InputError(f"the workers that were to answer {name} were lost") from None


def summary(total: Total, seconds: float) -> str:
    said = f"{total.texts} texts, {total.errors} errors, {total.texts / seconds:.0f} texts/s"
    if not total.texts:
        return said
    return (
        f"{said}, {total.layers / total.texts:.2f} layers a text, "
        f"{total.macs / total.macs_full:.0%} of the multiply-adds"
    )


if __name__ == "__main__":
    run_command(main)
