"""The settings of a run: what it is asked to do."""

from typing import Any, NamedTuple

from fnn import data, numbers
from fnn.catalog import ACTIVATIONS, OPTIMIZERS
from fnn.data import Reading

NETWORKS = {"mlp": (128, 128), "cnn": (16, 32)}
"""The kinds of networks, each with its hidden widths by default."""
MEMBERS, FEWEST, MOST = 8, 40, 50_000
"""The members by default, for a perceptron and so many examples."""
BATCH, DECAY = 64, 0.01
"""The batch size by default, where there are so many examples; adamw's weight decay by default."""
COLUMNS = ("drop", "keep", "category", "number", "date", "text", "id", "group")
"""The settings that name columns."""


class Settings(NamedTuple):
    """What a run is asked to do; the fields are the options of `fnn train`.

    With hidden, batch_size, weight_decay or members None, the default depends on the network, the
    number of examples or the optimizer: see `completed`. seed decides the split, the initial
    parameters and the order of the examples. With patience, a fifth of the training part is for
    validation.
    target, task and keep, and the fields of `fnn.data.Reading`, say how a table is read.
    weight_decay, for adamw only, is the share of itself that a parameter loses per epoch. network
    is "mlp" or "cnn". Of several members, each leaves out a fold of the training part, which takes
    the place of the fifth: see `fnn.runs._members`. With bins, a number has as many inputs more:
    see `fnn.runs._bins`; with None, several members have them where they help a linear model.
    class_weight, a number per class or "balanced", is what an example's loss is multiplied by: with
    "balanced" the number of examples per class, in the mean, by that of the example's own class.

    >>> Settings(hidden=(64,), epochs=40).patience is None
    True
    """

    hidden: tuple[int, ...] | None = None
    activation: str = "relu"
    optimizer: str = "adamw"
    learning_rate: float = 0.002
    batch_size: int | None = None
    epochs: int = 40
    seed: int = 0
    patience: int | None = None
    target: str | None = None
    task: str | None = None
    separator: str | None = None
    header: bool | None = None
    missing: str = "fill"
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    weight_decay: float | None = None
    network: str = "mlp"
    encoding: str | None = None
    skip: int | None = None
    table: str | None = None
    category: tuple[str, ...] = ()
    number: tuple[str, ...] = ()
    date: tuple[str, ...] = ()
    id: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    time: str | None = None
    members: int | None = None
    bins: int | None = None
    text: tuple[str, ...] = ()
    class_weight: str | tuple[float, ...] | None = None

    @property
    def reading(self) -> Reading:
        """How a table is read."""
        return Reading(*(getattr(self, name) for name in Reading._fields))

    def load(self, source: data.Source) -> data.Dataset:
        """The examples of a source. Raises as `data.load`."""
        return data.load(source, target=self.target, task=self.task, reading=self.reading)

    def completed(self, examples: int) -> "Settings":
        """The settings with the defaults that depend on others, for so many training examples."""
        decay = DECAY if self.weight_decay is None else self.weight_decay
        several = self.network == "mlp" and FEWEST <= examples <= MOST
        return self._replace(
            hidden=NETWORKS[self.network] if self.hidden is None else self.hidden,
            batch_size=self.batch_size or min(BATCH, examples),
            members=self.members or (MEMBERS if several else 1),
            weight_decay=decay if self.optimizer == "adamw" else self.weight_decay,
        )

    def checked(self) -> "Settings":
        """The same settings. Raises ValueError or TypeError where one has no meaning."""
        self._check_names()
        given = lambda *names: {n: v for n in names if (v := getattr(self, n)) is not None}
        for width in self.hidden or ():
            numbers.count("settings", hidden=width)
        numbers.count("settings", epochs=self.epochs, **given("batch_size", "patience", "members"))
        numbers.count("settings", 0, seed=self.seed, **given("skip", "bins"))
        numbers.positive("settings", learning_rate=self.learning_rate)
        numbers.nonnegative("settings", **given("weight_decay"))
        if self.weight_decay is not None and self.optimizer != "adamw":
            raise ValueError(f"weight decay with {self.optimizer}")
        weights = self.class_weight
        for weight in weights if isinstance(weights, tuple) else ():
            numbers.nonnegative("settings", class_weight=weight)
        for name, known in (
            ("class_weight", (None, "balanced", *[weights] * isinstance(weights, tuple))),
            ("activation", ACTIVATIONS),
            ("optimizer", OPTIMIZERS),
            ("task", (None, *data.TASKS)),
            ("separator", (None, *data.SEPARATORS)),
            ("header", (None, False, True)),
            ("missing", data.MISSING),
            ("network", NETWORKS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}")
        if self.seed >= 2**32 or not isinstance(self.target, str | int | None):
            reason = "a seed below 2**32 and a target's name or index"
            raise ValueError(f"settings: expected {reason}, got {self.seed}, {self.target!r}")
        return self

    def _check_names(self) -> None:
        """Raise TypeError for what is no tuple, and for names that are no text."""
        for name in ("hidden", *COLUMNS):
            if not isinstance(value := getattr(self, name), tuple | list) and value is not None:
                raise TypeError(f"settings: expected {name} to be a tuple, got {value!r}")
        names = [word for name in COLUMNS for word in getattr(self, name)]
        for word in (self.encoding, self.table, self.time, *names):
            if not isinstance(word, str | None):
                raise TypeError(f"settings: expected names as text, got {word!r}")

    @classmethod
    def of(cls, saved: dict[str, Any]) -> "Settings":
        """The settings that a run's file holds.

        One with a default that the file lacks did not exist when the file was written: its default
        here is what training did before there was a choice. Raises ValueError for unknown
        settings and for those that `checked` refuses, KeyError for one that every file has.
        """
        if unknown := sorted(saved.keys() - set(cls._fields)):
            raise ValueError(f"unknown settings {', '.join(unknown)}")
        always = {name: saved[name] for name in cls._fields[: cls._fields.index("patience")]}
        numbers.count("settings", batch_size=saved["batch_size"])
        plain: Any = lambda value: tuple(value) if isinstance(value, list) else value
        return cls(**{name: plain(value) for name, value in (saved | always).items()}).checked()
