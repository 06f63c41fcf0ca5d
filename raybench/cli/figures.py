"""Commands that draw what is stored, and print it class by class: plot, classes."""

from __future__ import annotations

import ast
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
    warn(*found.damaged)
    if kind in NEED_IMAGES:
        check(kind, replace(found, images=_nothing), given)  # what is not stored, no folder can give
        found = with_data(found, data_dir)
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
    warn(*found.damaged)
    show(class_table(with_names(found, data_dir), trial or ""), format)


def with_data(results: Results, data_dir: Path) -> Results:
    """Return ``results`` with the names of the classes, and with the images of the dataset in ``data_dir``; those from
    outside are looked for when they are asked for.

    Raises:
        DataError: if it is not there, or has other images than those that the trials were tested on.
    """
    from raybench.data import Part, in_shape, sized
    from raybench.suite import OutOfDistribution

    trials = results.trials
    sources: dict[str, Source] = {}
    known = results.rows.dropna(subset="dataset_fingerprint")
    prints = dict(zip(known["trial_id"], known["dataset_fingerprint"], strict=True))

    def source_of(trial: Trial) -> Source:
        settings = trial.typed().dataset
        key = settings.model_dump_json()
        if key not in sources:
            sources[key] = _load(results.suite, settings, data_dir)
        source = sources[key]
        if trial.id in prints and prints[trial.id] != source.fingerprint:
            raise DataError(
                f"{data_dir}: has other {settings.name} images (fingerprint {source.fingerprint}) than those that"
                f" {trial.name} was tested on ({prints[trial.id]}): name their folder with --data-dir"
            )
        return source

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

    first = next((trial for trial in trials if trial.id in prints), trials[0])
    return replace(results, classes=source_of(first).classes, images=images, foreign=foreign)


def _nothing(trial: Trial, index: np.ndarray) -> np.ndarray:
    raise NotImplementedError


def with_names(results: Results, data_dir: Path) -> Results:
    """Return ``results`` with the names of the classes if the dataset is in ``data_dir``, else say that it is not."""
    if not results.classes:
        return results
    try:
        return replace(with_data(results, data_dir), images=None, foreign=None)
    except UserError as error:
        warn(f"classes have no names here: {error}")
        return results


def _load(suite: Suite, settings: DatasetSettings, data_dir: Path) -> Source:
    from raybench.data import load
    from raybench.registry import DATASETS
    from raybench.suite import import_modules

    if settings.name not in DATASETS.names():
        import_modules(suite)
    return load(settings, data_dir, download=False)
