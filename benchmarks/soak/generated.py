"""Tables whose true cells are known, written as people write them: read as they are, or refused?

Each is read as `fnn describe` and `fnn train` read it, written again in another dialect and read as
`fnn predict` and `fnn evaluate` do; every fiftieth is trained, evaluated and predicted.
"""

import csv
import datetime as dt
import gzip
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fnn import data, runs
from fnn.data import DataError, Encoding, Reading
from fnn.runs.settings import Settings

EVERY = 50
"""One table in this many is trained."""
DAY = dt.date(1970, 1, 1)
MADE: dict[str, Callable[[random.Random], Callable[[], tuple[str, Any]]]] = {}
"""Kinds of columns: each makes a function that gives a cell's text and what it stands for."""
WORDS = ["n.d.", "#DIV/0!", "unknown", "", "NA", "-", "Not available", "<0.5"]
TEXTS = ["red", "dark green", "Blå", 'the "best"', "a; b", "c, d", "två\nrader", "x|y", "été", "Q1"]


def _number(write: Callable[[float], str], digits: int = 2, top: float = 1e6) -> Any:
    def made(rng: random.Random) -> Callable[[], tuple[str, Any]]:
        def cell() -> tuple[str, Any]:
            value = round(rng.uniform(0, top), digits)
            return write(value), value

        return cell

    return made


def _comma(value: float) -> str:
    return f"{value:.2f}".replace(".", ",")


MADE |= {
    "plain": _number(str),
    "whole": _number(lambda v: f"{v:.0f}", 0),
    "scientific": _number(lambda v: f"{v:.8e}"),
    "grouped": _number(lambda v: f"{v:,.2f}"),
    "decimal comma": _number(_comma),
    "grouped by points": _number(
        lambda v: f"{v:,.2f}".replace(",", "_").replace(".", ",").replace("_", ".")
    ),
    "dollars": _number(lambda v: f"${v:,.2f}"),
    "euros": _number(lambda v: f"€ {_comma(v)}"),
    "euros after": _number(lambda v: f"{_comma(v)} €"),
    "percent": _number(lambda v: f"{v:.1f}%", 1, 100),
    "kilometres": _number(lambda v: f"{v:.1f} km", 1, 500),
    "spaces": _number(lambda v: f"{v:,.2f}".replace(",", " ")),
    "hard spaces": _number(lambda v: f"{v:,.2f}".replace(",", "\u00a0")),
    "apostrophes": _number(lambda v: f"{v:,.2f}".replace(",", "'")),
    "at least": _number(lambda v: f"{v:,.0f}+", 0),
}


def _signed(write: Callable[[float], str]) -> Any:
    def made(rng: random.Random) -> Callable[[], tuple[str, Any]]:
        def cell() -> tuple[str, Any]:
            value = round(rng.uniform(-900, 900), 1)
            return (write(-value) if value < 0 else f"{value}"), value

        return cell

    return made


def _dates(form: str, first: int = 1980) -> Any:
    def made(rng: random.Random) -> Callable[[], tuple[str, Any]]:
        def cell() -> tuple[str, Any]:
            day = dt.date(first, 1, 1) + dt.timedelta(rng.randrange(15_000))
            return day.strftime(form), float((day - DAY).days)

        return cell

    return made


def _choice(values: list[str]) -> Any:
    return lambda rng: lambda: (lambda word: (word, word))(rng.choice(values))


def _powers(rng: random.Random) -> Callable[[], tuple[str, Any]]:
    def cell() -> tuple[str, Any]:
        value, power = rng.randrange(1, 990), rng.choice("KM")
        return f"{value}{power}", value * {"K": 1e3, "M": 1e6}[power]

    return cell


MADE |= {
    "minus": _signed(lambda v: f"\u2212{v}"),
    "parentheses": _signed(lambda v: f"({v})"),
    "powers": _powers,
    "iso dates": _dates("%Y-%m-%d"),
    "days first": _dates("%d.%m.%Y"),
    "months first": _dates("%m/%d/%Y"),
    "short years": _dates("%m/%d/%y"),
    "spelt dates": _dates("%d %b %Y"),
    "compact dates": _dates("%Y%m%d"),
    "words": _choice(TEXTS),
    "codes": _choice(["0870", "1200", "0005", "4711"]),
    "large ids": _choice([str(2**53 + i) for i in range(1, 6)]),
    "yes and no": _choice(["yes", "no"]),
}
BLANK = {"words", "codes", "large ids", "yes and no"}
"""Where only "" is blank: other words are values."""


def _table(rng: random.Random) -> tuple[list[str], list[list[str]], list[list[Any]]]:
    """Names, the text of each cell, and what it stands for, None for nothing; the last column is
    the target."""
    n = rng.choice([40, 60, 120, 250])
    kinds = [rng.choice(list(MADE)) for _ in range(rng.randrange(1, 6))] + ["target"]
    share = rng.choice([0, 0, 0.03, 0.2])
    columns = []
    classes = rng.random() < 0.5
    for kind in kinds:
        target = _choice(["sick", "well"]) if classes else MADE["plain"]
        cell = (target if kind == "target" else MADE[kind])(rng)
        word = "" if kind in BLANK else rng.choice(WORDS)
        blank = [kind != "target" and rng.random() < share for _ in range(n)]
        columns.append([(word, None) if gone else cell() for gone in blank])
    names = [f"{kind.split()[0]}_{i}" for i, kind in enumerate(kinds)]
    texts, values = ([list(row) for row in zip(*each, strict=True)] for each in (
        [[text for text, _ in column] for column in columns],
        [[value for _, value in column] for column in columns],
    ))  # fmt: skip
    return names, texts, values


def _content(rng: random.Random, names: list[str], rows: list[list[str]]) -> bytes:
    """The file, in a dialect of its own."""
    out = io.StringIO()
    mark, end = rng.choice(",,;\t|"), rng.choice(["\n", "\r\n"])
    if rng.random() < 0.1:
        out.write(f"sep={mark}{end}")
    elif rng.random() < 0.15 and len(names) > 2:
        out.write(f"Report{end}{end}")
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.writer(out, delimiter=mark, quoting=quoting, lineterminator=end)
    writer.writerow(names)
    numeric = [name.split("_")[0] in ("plain", "whole", "scientific") for name in names]
    if any(numeric) and rng.random() < 0.1:
        writer.writerow(["kg" if one else "" for one in numeric])
    after = [""] if rng.random() < 0.1 else []
    total = names[0].startswith("words") and rng.random() < 0.3
    last = [["Total", *[""] * (len(names) - 1)]] if total else []
    writer.writerows([*row, *after] for row in rows + last)
    name = rng.choice(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "cp1252"])
    try:
        content = out.getvalue().encode(name)
    except UnicodeEncodeError:
        content = out.getvalue().encode()
    return gzip.compress(content) if rng.random() < 0.1 else content


def _check(read: data.Dataset, values: list[list[Any]], what: str) -> None:
    """Whether the cells are what was written."""
    assert len(read.x) == len(values), (what, "rows", len(read.x), len(values))
    for j, column in enumerate(read.columns):
        for i, row in enumerate(values):
            cell, true = read.x[i, j], row[j]
            if column.kind == "category" and not np.isnan(cell):
                same = column.values[int(cell)] == str(true).strip()
            else:
                same = np.isnan(cell) if true is None else true == cell or _near(cell, true)
            assert same, (what, read.features[j], column.kind, true, cell, read.notes)


def _near(cell: float, true: Any) -> bool:
    return not isinstance(true, str) and abs(cell - true) <= 1e-7 * abs(true)


def generated(folder: Path, wanted: int, seed: int) -> dict[str, int]:
    """Tables of one to five columns; refused ones are counted."""
    rng = random.Random(seed)
    counts = {"inputs": 0, "refused": 0, "sound": 0, "trained": 0}
    for number in range(wanted):
        names, texts, values = _table(rng)
        path, later = folder / "a.csv", folder / "b.csv"
        path.write_bytes(_content(rng, names, texts))
        counts["inputs"] += 1
        try:
            read = data.load(path, target=names[-1])
            encoding = Encoding.of(read, read.features)
            _check(read, values, str(path))
            reading = Reading(encoding=read.encoding)
            some = sorted(rng.sample(range(len(texts)), rng.randrange(1, len(texts))))
            later.write_bytes(_content(rng, names, [texts[i] for i in some]))
            again = data.load(later, target=names[-1], like=encoding, reading=reading)
            parts = data.parts(later, encoding, reading=reading, size=rng.choice([500, 1 << 24]))
            x = np.concatenate([part.x for part in parts])
        except DataError as error:
            counts["refused"] += 1
            with open(folder.parent / "refused.txt", "a") as file:
                file.write(f"{names} {error}\n")
            continue
        kept = encoding.aligned(read).x[some]
        assert np.array_equal(x, kept, equal_nan=True), (names, "predict")
        assert np.array_equal(encoding.aligned(again).x, kept, equal_nan=True), (names, "evaluate")
        counts["sound"] += 1
        if number % EVERY == EVERY - 1:
            settings = Settings(hidden=(4,), epochs=1, target=names[-1], keep=read.features)
            run = runs.train(path, settings)
            run.evaluate(path), run.evaluate(later)
            assert len(run.predict(later)) == len(some)
            counts["trained"] += 1
    return counts
