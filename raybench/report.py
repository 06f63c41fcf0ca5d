"""One HTML file with all that is stored of a suite: tables, figures, every trial, failures, and where they come from.

The file needs nothing else: no network, no font, no library. Its text comes from suites and errors, so the template
escapes all of it, and the file itself forbids the browser to load or run anything that raybench did not write.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
from markupsafe import Markup

from raybench import __version__
from raybench.axes import Label
from raybench.cells import find_cells
from raybench.check import check_suite, check_trials
from raybench.errors import UserError
from raybench.figures import PLOTS, Results, available, draw, svg
from raybench.grid import Trial
from raybench.inference import tables
from raybench.plan import Choice
from raybench.question import Question
from raybench.records import STATUSES
from raybench.store import Store
from raybench.suite import Suite, command, results_words
from raybench.summarize import summarize
from raybench.table import Column, render
from raybench.yamlfile import write_yaml

TEMPLATE = "report.html.jinja"
SCRIPT = "report.js"
MEASURES = (
    Column("epochs", "epochs"),
    Column("best_epoch", "best epoch"),
    Column("train_accuracy", "train accuracy", ".4f"),
    Column("val_accuracy", "val accuracy", ".4f"),
    Column("test_accuracy", "test accuracy", ".4f"),
    Column("wall_seconds", "seconds", ",.1f"),
    Column("images_per_second", "images/s", ",.0f"),
    Column("device", "device", align="left"),
)
"""What the table of trials shows of a row, besides its labels and status."""
PROVENANCE = {
    "raybench_version": "raybench",
    "python_version": "Python",
    "torch_version": "torch",
    "torchvision_version": "torchvision",
    "timm_version": "timm",
    "ray_version": "Ray",
    "numpy_version": "numpy",
    "git_commit": "commit of the suite's folder",
    "git_dirty": "changed since that commit",
    "device": "device",
    "threads": "threads per trial",
    "workers": "processes per trial",
    "dataset_fingerprint": "dataset fingerprint",
    "weights_fingerprint": "weights fingerprint",
    "schema_version": "schema of the results",
}
"""Column -> what people call it. The host is left out: a report is given to others."""


Row = Mapping[Any, Any]
"""What is stored of a trial: column -> value, None where there is none."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure of the report."""

    kind: str
    about: str
    svg: Markup
    width: float
    """Points: its text is then as large as in a paper."""


@dataclass(frozen=True, slots=True)
class Trials:
    """The table of trials."""

    columns: tuple[Column, ...]
    rows: list[list[tuple[Any, str]]]
    """Value and text of each cell."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a column of provenance says: each value with the number of trials that have it, the most frequent first."""

    name: str
    values: tuple[tuple[str, int], ...]


def report(store: Store, choice: Choice, results: Results, given: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Return the report of what is stored of ``choice``, as the text of an HTML file.

    The same results give the same text: it has no date of its own.

    Args:
        results: what is drawn, `collect(store, choice)`; with the images of the dataset too where they can be had.
        given: options of kinds that are drawn from more than what is stored.

    Raises:
        UserError: if the results cannot be read.
    """
    suite = choice.suite
    rows, _ = store.read()
    trials = results.trials
    found = rows.drop_duplicates("trial_id", keep="last").set_index("trial_id")
    found = found.convert_dtypes().astype(object)  # whole numbers stay whole beside missing ones
    by_id = found.where(found.notna(), None).to_dict("index")
    stored: dict[str, dict[str, Any]] = {
        trial.id: {str(name): value for name, value in by_id[trial.id].items()} for trial in trials if trial.id in by_id
    }
    summary = summarize(rows, suite, trials, seeds=choice.seeds())
    statistics = tables(find_cells(rows, suite, trials, choice.seeds()), suite.name, Question())
    said = itertools.chain.from_iterable(table.warnings for table in (summary, *statistics.values()))
    drawn, not_drawn = _figures(results, given or {})
    script = _source(SCRIPT)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        version=__version__,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=suite.name,
        about=suite.about,
        counts=_counts(stored.values(), choice.planned()),
        warnings=list(dict.fromkeys([*said, *results.damaged])),
        summary=Markup(render(summary, "html")),
        statistics=[Markup(render(table, "html")) for table in statistics.values()],
        findings=[
            str(finding) for finding in (*check_suite(suite), *check_trials(rows[rows["trial_id"].isin(stored)]))
        ],
        figures=drawn,
        not_drawn=not_drawn,
        trials=_trials(suite.searches, trials, stored),
        failures=[(trial, row) for trial in trials if (row := stored.get(trial.id)) and row["status"] == "failed"],
        provenance=_provenance(stored.values()),
        document=_document(suite),
        again=command(
            suite,
            ((axis, value) for axis, values in choice.only.items() for value in values),
            *([] if choice.limit is None else ["--limit", str(choice.limit)]),
            *results_words(str(store.folder.parent)),
        ),
        zip=zip,
    )


def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _counts(stored: Iterable[Row], planned: int) -> str:
    """Say how many trials there are, and how they ended."""
    ended = Counter(row["status"] for row in stored)
    parts = [f"{ended[status]:,} {status.replace('_', ' ')}" for status in STATUSES if ended[status]]
    left = planned - ended.total()
    return f"{planned:,} trials planned: {', '.join([*parts, *([f'{left:,} not run yet'] if left else [])])}"


def _figures(results: Results, given: Mapping[str, Mapping[str, Any]]) -> tuple[list[Drawn], list[tuple[str, str]]]:
    """Return every figure that the results allow, and of the others why they do not."""
    drawn, not_drawn = [], []
    for kind in PLOTS.names():
        if kind not in given and (reason := available(kind, results)):
            not_drawn.append((kind, reason))
        else:
            about = (PLOTS.get(kind).__doc__ or "").strip().partition("\n")[0]
            try:
                figure = draw(kind, results, **given.get(kind, {}))
            except UserError as error:  # images from outside that are not at hand: seen when they are asked for
                not_drawn.append((kind, str(error)))
                continue
            drawn.append(Drawn(kind, about, Markup(svg(figure)), round(72 * figure.get_figwidth(), 1)))
    return drawn, not_drawn


def _trials(staged: bool, trials: Sequence[Trial], stored: Mapping[str, Row]) -> Trials:
    """Return the table of all trials that are known, in the order in which they start."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.labels))
    columns = (
        Column("trial_id", "trial", align="left"),
        *([Column("stage", "stage", align="left")] if staged else []),
        *(Column(name, name, align=_align(trial.labels.get(name) for trial in trials)) for name in names),
        Column("status", "status", align="left"),
        *MEASURES,
    )
    rows = []
    for trial in trials:
        row = stored.get(trial.id, {"status": "not run"})
        values = {**row, "trial_id": trial.id, "stage": trial.stage, **trial.labels}
        rows.append([(values.get(column.name), _text(values.get(column.name), column.format)) for column in columns])
    return Trials(columns, rows)


def _align(labels: Iterable[Label | None]) -> Literal["left", "right"]:
    """Return the side of a column of labels: numbers, which are sorted as such, stand on the right."""
    numbers = all(isinstance(label, int | float) and not isinstance(label, bool) for label in labels)
    return "right" if numbers else "left"


def _text(value: Any, spec: str) -> str:
    return "–" if value is None else format(value, spec)


def _provenance(stored: Iterable[Row]) -> list[Origin]:
    """Return for each column of `PROVENANCE` its values; those of no trial are left out."""
    rows = list(stored)
    origins = []
    for column, name in PROVENANCE.items():
        said = {True: "yes", False: "no"} if column == "git_dirty" else {}
        values = Counter(said.get(row[column], str(row[column])) for row in rows if row[column] is not None)
        if values:
            origins.append(Origin(name, tuple(values.most_common())))
    return origins


def _document(suite: Suite) -> str:
    """Return the suite as YAML, with what ``--set`` said in it, so that the text is a suite file by itself."""
    document = dict(suite.document)
    if suite.trials is None:  # not given, or of another grid than the one that --set made
        document.pop("trials", None)
    return write_yaml(document)
