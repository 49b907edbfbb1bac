"""Public tables: `fnn train` as it is, and the pipeline that people write in scikit-learn.

The pipeline fills blanks with the median, makes text one-hot, standardises numbers, and trains
MLPClassifier or MLPRegressor, all with their defaults; of values, standardised ones are learned
too, and the better of the two counts. Both learn the same examples and are measured on the same
others, a fifth, for each seed; what is compared are the means over the seeds.

fnn passes where its accuracy is no more than 0.02 lower, and its RMSE no more than 5% higher.
"""

import contextlib
import json
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import polars
from click.testing import CliRunner
from polars import selectors
from sklearn import datasets
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.metrics import accuracy_score, root_mean_squared_error
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks.report import table as aligned
from fnn import cli, data
from fnn.runs.evaluation import HELD_OUT

LOWER, HIGHER = 0.02, 0.05
"""By how much the accuracy may be lower, and by which share the RMSE may be higher."""
MANY = 20_000
"""Tables of more rows than this are trained with `FEW` seeds: scikit-learn takes minutes."""
SEEDS, FEW = 5, 2
MOST = 50_000
"""The most rows that are used of a table, the first ones of a random order."""


class Public(NamedTuple):
    """A table: its file in the folder, or the name of a bundled set; its target; what is left out.

    The columns left out say the target in other words (`alive` of `survived`), or name the row.
    """

    source: str
    target: str
    without: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Such as titanic: survived."""
        return f"{self.source}: {self.target}"


BUNDLED = ("digits", "wine", "breast_cancer", "diabetes")
TABLES = [
    *(Public(name, "target") for name in BUNDLED),
    # github.com/mwaskom/seaborn-data
    Public("titanic", "survived", ("alive",)),
    Public("penguins", "species"),
    Public("mpg", "mpg", ("name",)),
    Public("tips", "tip"),
    Public("healthexp", "Life_Expectancy"),
    Public("taxis", "fare", ("pickup", "dropoff", "tip", "total")),
    # ISLP/data of the package ISLP
    Public("OJ", "Purchase"),
    Public("Smarket", "Direction", ("Today",)),
    Public("Weekly", "Direction", ("Today",)),
    Public("Default", "default"),
    Public("Caravan", "Purchase"),
    Public("Boston", "medv"),
    Public("Carseats", "Sales"),
    Public("College", "Outstate"),
    Public("Credit", "Balance", ("ID",)),
    Public("Hitters", "Salary"),
    Public("Wage", "wage", ("logwage",)),
    Public("Bikeshare", "bikers", ("casual", "registered")),
    Public("NYSE", "log_volume", ("date",)),
    # seaborn-data's largest
    Public("diamonds", "cut"),
    Public("diamonds", "price"),
]


def run(quick: bool, folder: Path | None = None) -> dict:
    """Of each table that is there, both means, and whether fnn passes."""
    found = []
    for public in TABLES:
        path = None if public.source in BUNDLED else (folder or Path()) / f"{public.source}.csv"
        if path is not None and not path.exists():
            click.echo(f"{public.name}: skipped, there is no {path}", err=True)
            continue
        frame = _read(public, path)
        if not (quick and len(frame) > MANY):
            found.append(compare(public, frame, quick))
            click.echo(f"{public.name}: {found[-1]['difference']:+.3g}", err=True)
    print(shown(found))
    return {"tables": found}


def shown(found: list[dict]) -> str:
    """A row per table: both means, their difference, and whether fnn passes."""
    headings = ["table", "rows", "seeds", "measure", "fnn", "scikit-learn", "difference", "passes"]
    rows = [
        [r["table"], r["rows"], len(r["fnn"]), r["measure"], _mean(r["fnn"]),
         _mean(r["scikit-learn"]), _difference(r), "yes" if r["passes"] else "NO"]
        for r in found
    ]  # fmt: skip
    return aligned(headings, rows)


def compare(public: Public, frame: polars.DataFrame, quick: bool) -> dict:
    """The accuracy or the RMSE of both for each seed."""
    seeds = range(1 if quick else FEW if len(frame) > MANY else SEEDS)
    with tempfile.TemporaryDirectory() as name:
        source = public.source
        if public.source not in BUNDLED:
            source = str(Path(name, f"{public.source}.csv"))
            frame.write_csv(source)
        target = None if public.source in BUNDLED else public.target
        everything = data.load(source, target=target)
        rows = everything._replace(x=np.arange(len(frame))[:, None], features=(), columns=())
        ours, theirs = [], []
        for seed in seeds:
            train, test = (part.x[:, 0] for part in data.split(rows, HELD_OUT, seed))
            ours.append(_trained(source, target, seed, Path(name, "run")))
            text = ~selectors.numeric()
            cells = frame.drop(public.target).with_columns(text.cast(polars.String).fill_null("?"))
            y = frame[public.target].to_numpy()
            fitted = _classified if everything.classes else _predicted
            theirs.append(fitted(cells[train], y[train], cells[test], y[test], seed))
    k = len(everything.classes)
    both = np.array(theirs).T  # one row per pipeline
    best = both[0] if k else min(both, key=np.mean)
    mine, other = np.mean(ours), np.mean(best)
    difference = mine - other if k else mine / other - 1
    return {
        "table": public.name,
        "rows": len(frame),
        "measure": "accuracy" if k else "RMSE",
        "fnn": ours,
        "scikit-learn": best.tolist(),
        "difference": float(difference),
        "passes": bool(difference >= -LOWER if k else difference <= HIGHER),
    }


def _trained(source: str, target: str | None, seed: int, out: Path) -> float:
    """The accuracy or the RMSE of `fnn train`'s defaults, as `fnn evaluate` has it."""
    chosen = [] if target is None else ["--target", target]
    commands = [
        ["train", source, *chosen, "--seed", str(seed), "--out", str(out), "--overwrite"],
        ["evaluate", str(out), source, "--json"],
    ]
    for command in commands:
        result = CliRunner().invoke(cli.fnn, command)
        if result.exit_code:
            raise RuntimeError(f"fnn {' '.join(command)}: {result.output}")
    found = json.loads(result.stdout)
    return found["accuracy"] if "accuracy" in found else found["rmse"]


def _classified(
    x: polars.DataFrame, y: np.ndarray, test_x: polars.DataFrame, test_y: np.ndarray, seed: int
) -> tuple[float]:
    model = make_pipeline(_encoder(x), MLPClassifier(random_state=seed))
    with _unconverged():
        return (accuracy_score(test_y, model.fit(x, y).predict(test_x)),)


def _predicted(
    x: polars.DataFrame, y: np.ndarray, test_x: polars.DataFrame, test_y: np.ndarray, seed: int
) -> tuple[float, float]:
    """With the values as they are, and standardised."""
    plain = MLPRegressor(random_state=seed)
    scaled = TransformedTargetRegressor(plain, transformer=StandardScaler())
    with _unconverged():
        models = [make_pipeline(_encoder(x), each).fit(x, y) for each in (plain, scaled)]
    plain_rmse, scaled_rmse = (
        root_mean_squared_error(test_y, model.predict(test_x)) for model in models
    )
    return plain_rmse, scaled_rmse


def _encoder(x: polars.DataFrame) -> object:
    numbers = x.select(selectors.numeric()).columns
    return make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numbers),
        (OneHotEncoder(handle_unknown="ignore"), [c for c in x.columns if c not in numbers]),
        sparse_threshold=0,
    )


@contextlib.contextmanager
def _unconverged():
    """People leave the number of iterations as it is, and so do the warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _read(public: Public, path: Path | None) -> polars.DataFrame:
    """The rows that have a target, at most `MOST` of them."""
    if path is None:
        bundled = getattr(datasets, f"load_{public.source}")()
        columns = {f"{i}": column for i, column in enumerate(bundled.data.T)}
        return polars.DataFrame({**columns, "target": bundled.target})
    frame = polars.read_csv(path, null_values=["NA", "?"], infer_schema_length=None)
    frame = frame.drop(public.without).drop_nulls(public.target)
    if len(frame) > MOST:
        frame = frame.sample(MOST, shuffle=True, seed=0)
    return frame


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _difference(result: dict) -> str:
    shown = result["difference"]
    return f"{shown:+.4f}" if result["measure"] == "accuracy" else f"{shown:+.1%}"
