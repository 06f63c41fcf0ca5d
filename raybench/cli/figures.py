"""Commands that draw what is stored, and print it class by class: plot, classes."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from raybench.cli.base import app, data_option, format_option, results_option, show, stored, stored_argument, warn
from raybench.errors import DataError, UserError
from raybench.registry import PLOTS

if TYPE_CHECKING:
    import numpy as np

    from raybench.data import Source
    from raybench.figures import Results
    from raybench.grid import Trial
    from raybench.settings import DatasetSettings
    from raybench.suite import Suite

NEED_NAMES = ("confusion", "class_report")
NEED_IMAGES = ("gallery", "outside")
trial_option = click.option(
    "--trial", metavar="ID", help="Of this trial alone: its id, or the beginning of it, or its name."
)
output_option = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="FILE_OR_FOLDER",
    help="PNG, SVG or PDF, by its suffix; in a folder SUITE-KIND.png.  [default: this folder]",
)
cell_argument = click.argument("cell", metavar="[AXIS=VALUE]...", nargs=-1)


class Plot(click.RichCommand):
    """A command whose help ends with the kinds of figures there are."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        listed = "\n\n".join(f"[bold]{name}[/bold]: {line}" for name, line in figures().items())
        self.epilog = f"KIND is one of\n\n{listed}"
        super().format_help(ctx, formatter)  # type: ignore[arg-type]


def figures() -> dict[str, str]:
    """Return the kinds of figures, and what each is: the first lines of docstrings, which are read, not imported."""
    package = Path(__file__).parents[2]
    found = {}
    for name in PLOTS.names():
        module, function = PLOTS.where(name)
        tree = ast.parse(package.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8"))
        node = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
        found[name] = (ast.get_docstring(node) or "").partition("\n")[0]
    return found


@app.command(cls=Plot)
@click.argument("kind", metavar="KIND", shell_complete=lambda *_: PLOTS.names())
@stored_argument
@cell_argument
@results_option
@data_option
@output_option
@click.option(
    "--metric",
    metavar="NAME",
    help="E.g. `loss` or `epochs`, as in `summarize`; of curves, `loss` or `accuracy` alone.",
)
@click.option("--axis", metavar="AXIS", help="box: of this axis alone. curves: a line per value of it.")
@click.option("--rows", metavar="AXIS", help="heatmap, grid: the axis downwards.")
@click.option("--columns", metavar="AXIS", help="heatmap, grid: the axis to the right.")
@click.option("--panels", metavar="AXIS", help="grid: the axis with a heat map per value.")
@click.option("--band", type=click.Choice(["range", "std"]), help="curves: min to max, or mean ± std.")
@trial_option
@click.option("--dataset", metavar="NAME", help="activations, outside: of these images from outside, of several asked.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="gallery, gradcam, outside: so many images.")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="gallery: of the draw of the images.")
def plot(
    kind: str,
    suite: str,
    cell: tuple[str, ...],
    results: str | Path,
    data_dir: Path,
    output: Path,
    **options: Any,
) -> None:
    """Draw a figure from what a suite's last run stored: nothing is trained again.

    AXIS=VALUE words keep a part of the plan: [bold]raybench plot confusion table1 model=model2[/bold]. Only finished
    trials enter means. The file's path is printed. Images and names of classes are read from --data-dir, and not
    downloaded. Neither torch nor Ray is needed but for gradcam, which is [bold]raybench gradcam[/bold].
    """
    PLOTS.check(kind)
    given = {name: value for name, value in options.items() if value is not None}
    if kind == "gradcam":
        from raybench.cli.weights import gradcam

        if unknown := given.keys() - {"trial", "count"}:
            raise UserError(f"--{min(unknown)}: is no option of gradcam, which has --trial and --count")
        context = click.get_current_context()
        assert context is not None
        context.invoke(gradcam, suite=suite, cell=cell, results=results, data_dir=data_dir, output=output, **given)
        return
    from raybench.figures import check, collect, draw, save
    from raybench.figures.style import check_suffix

    if output.suffix and not output.is_dir():
        check_suffix(output)
    store, choice = stored(suite, results)
    found = collect(store, choice, cell)
    with naming_damage(found):
        if kind in NEED_IMAGES:
            check(kind, replace(found, images=_nothing), given)  # what is not stored, no folder can give
            gallery = kind == "gallery"
            found = with_data(found, data_dir, given.get("trial", "")) if gallery else with_images(found, data_dir)
        elif kind in NEED_NAMES:
            found = with_names(found, data_dir)
        figure = draw(kind, found, **given)
    path = output if output.suffix and not output.is_dir() else output / f"{choice.suite.name}-{kind}.png"
    save(figure, path)
    print(path)


@app.command()
@stored_argument
@cell_argument
@results_option
@data_option
@trial_option
@format_option
def classes(
    suite: str, cell: tuple[str, ...], results: str | Path, data_dir: Path, trial: str | None, format: str
) -> None:
    """Print precision, recall, F1 and support of every class, from stored predictions: means over the seeds of a cell.

    AXIS=VALUE words keep a part of the plan: [bold]raybench classes table1 model=model2 augmentation=none[/bold].
    """
    from raybench.figures import collect
    from raybench.figures.classes import class_table

    store, choice = stored(suite, results)
    found = collect(store, choice, cell)
    with naming_damage(found):
        table = class_table(with_names(found, data_dir), trial or "")
    show(table, format)


@contextlib.contextmanager
def naming_damage(results: Results) -> Iterator[None]:
    """Say at the end which files cannot be read: of those of predictions this is known when they are needed."""
    try:
        yield
    finally:
        warn(*results.damaged)


def with_data(results: Results, data_dir: Path, trial: str = "") -> Results:
    """Return ``results`` `with_images`, once those of a trial have been looked for.

    Args:
        trial: the trial whose images are shown, by default the first that has predictions.

    Raises:
        DataError: if they are not there, or are others than those that it was tested on.
    """
    from raybench.figures.images import looked_at

    found = with_images(results, data_dir)
    if looked := looked_at(results, trial):
        assert found.images is not None
        found.images(looked[0], looked[1]["index"].to_numpy()[:1])
    return found


def with_images(results: Results, data_dir: Path) -> Results:
    """Return ``results`` with the names of the classes, and with the images of the datasets in ``data_dir``, those from
    outside too. A dataset is looked for when it is asked for; a `DataError` then says that it is not there, or has
    other images than those that the trial was tested on or asked about."""
    from raybench.data import Part, in_shape, sized
    from raybench.suite import OutOfDistribution

    source_of = _sources(results, data_dir)

    def images(trial: Trial, index: np.ndarray) -> np.ndarray:
        return source_of(trial).splits["test"].pixels[index]

    def foreign(trial: Trial, settings: str, fingerprint: str, index: np.ndarray) -> np.ndarray:
        outside = OutOfDistribution.model_validate_json(settings).dataset
        shape = source_of(trial).shape
        source = _load(results.suite, sized(outside, shape), data_dir)
        if source.fingerprint != fingerprint:
            raise DataError(
                f"{data_dir}: has other {outside.name} images (fingerprint {source.fingerprint}) than those that"
                f" {trial.name} was asked about ({fingerprint}): name their folder with --data-dir"
            )
        return in_shape(Part(source.splits["test"], index), shape)[:]

    return replace(_named(results, source_of), images=images, foreign=foreign)


def _nothing(trial: Trial, index: np.ndarray) -> np.ndarray:
    raise NotImplementedError


def with_names(results: Results, data_dir: Path) -> Results:
    """Return ``results`` with the names of the classes of datasets in ``data_dir``; say which are not there."""
    return _named(results, _sources(results, data_dir))


def _named(results: Results, source_of: Callable[[Trial], Source]) -> Results:
    from raybench.figures.results import dataset_of

    known: dict[str, tuple[str, ...]] = {}

    def classes(trial: Trial) -> tuple[str, ...]:
        dataset = dataset_of(trial)
        if dataset not in known:
            known[dataset] = results.classes(trial)  # nothing without predictions
            try:
                known[dataset] = known[dataset] and source_of(trial).classes
            except UserError as error:
                warn(f"classes have no names here: {error}")
        return known[dataset]

    return replace(results, classes=classes)


def _sources(results: Results, data_dir: Path) -> Callable[[Trial], Source]:
    """Return what loads the dataset of a trial, each once."""
    from raybench.figures.results import dataset_of

    sources: dict[str, Source] = {}
    known = results.rows.dropna(subset="dataset_fingerprint")
    prints = dict(zip(known["trial_id"], known["dataset_fingerprint"], strict=True))

    def source_of(trial: Trial) -> Source:
        key, name = dataset_of(trial), trial.settings["dataset"]["name"]
        if key not in sources:
            sources[key] = _load(results.suite, trial.typed().dataset, data_dir)
        source = sources[key]
        if trial.id in prints and prints[trial.id] != source.fingerprint:
            raise DataError(
                f"{data_dir}: has other {name} images (fingerprint {source.fingerprint}) than those that"
                f" {trial.name} was tested on ({prints[trial.id]}): name their folder with --data-dir"
            )
        return source

    return source_of


def _load(suite: Suite, settings: DatasetSettings, data_dir: Path) -> Source:
    from raybench.data import load
    from raybench.registry import DATASETS
    from raybench.suite import import_modules

    if settings.name not in DATASETS.names():
        import_modules(suite)
    return load(settings, data_dir, download=False)
