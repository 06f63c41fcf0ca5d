"""Commands that ask trials that are over, by their kept weights: gradcam, ood."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from raybench.cli.base import (
    app,
    data_option,
    format_option,
    progress,
    results_option,
    show,
    stored,
    stored_argument,
    warn,
)
from raybench.cli.figures import cell_argument, output_option, trial_option, with_images
from raybench.errors import SuiteError, UserError

if TYPE_CHECKING:
    from raybench.figures import Results
    from raybench.grid import Trial
    from raybench.store import Store
    from raybench.suite import OutOfDistribution, Suite


@app.command()
@stored_argument
@cell_argument
@results_option
@data_option
@output_option
@trial_option
@click.option("--layer", metavar="NAME", help="Module whose maps are looked at.  [default: the last convolution]")
@click.option("--count", type=click.IntRange(min=1), default=16, show_default=True, metavar="N", help="So many images.")
@click.option("--right", "which", flag_value="right", help="Only images that the trial got right.")
@click.option("--wrong", "which", flag_value="wrong", help="Only images that it got wrong.")
def gradcam(
    suite: str,
    cell: tuple[str, ...],
    results: str | Path,
    data_dir: Path,
    output: Path,
    trial: str | None,
    layer: str | None,
    count: int,
    which: str | None,
) -> None:
    """Draw what in test images speaks for the class that a trial predicts (Grad-CAM), from its kept weights.

    Of the first finished trial whose weights were kept (`keep_weights: best`), of those that AXIS=VALUE words leave.
    The images are read from --data-dir, and not downloaded. The file's path is printed. Needs captum:
    [bold]pip install 'raybench\\[explain]'[/bold].
    """
    from raybench.figures import collect, draw, save
    from raybench.figures.style import check_suffix

    named = bool(output.suffix) and not output.is_dir()
    if named:
        check_suffix(output)
    store, choice = stored(suite, results)
    found = collect(store, choice, cell)
    options = looked(found, store, data_dir, trial, layer, count, which or "any")
    path = output if named else output / f"{choice.suite.name}-gradcam.png"
    save(draw("gradcam", found, **options), path)
    print(path)


def looked(
    results: Results, store: Store, data_dir: Path, trial: str | None, layer: str | None, count: int, which: str
) -> dict[str, Any]:
    """Return the options of a Grad-CAM figure of one trial."""
    one = _trial(results, store, trial)
    need_torch()
    from raybench.live import busy
    from raybench.revisit import Images, look
    from raybench.suite import import_modules

    import_modules(results.suite)
    with busy(progress(), "looking"):
        looks = look(one, store, Images(data_dir), count=count, which=which, layer=layer)  # type: ignore[arg-type]
    return {
        "images": looks.images,
        "maps": looks.maps,
        "true": [looks.classes[number] for number in looks.true],
        "predicted": [looks.classes[number] for number in looks.predicted],
        "caption": [f"trial {one.name} ({one.id}), layer {looks.layer}"],
    }


def need_torch() -> None:
    """Raise `UserError` where PyTorch is not installed, as on a machine that only reads results."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("this asks trained networks, and needs PyTorch: pip install torch torchvision") from None


@app.command()
@stored_argument
@results_option
@data_option
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="NAME[/FOLDER]",
    help="The images from outside, in place of the suite's `ood`. Repeatable: they stand beside each other.",
)
@click.option("--layer", "layers", multiple=True, metavar="NAME", help="With --dataset: this layer. Repeatable.")
@format_option
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw histograms of the scores of one trial."
)
@click.option(
    "--samples", type=click.Path(path_type=Path), metavar="FILE", help="Draw images that its best score told."
)
@trial_option
def ood(
    suite: str,
    results: str | Path,
    data_dir: Path,
    datasets: tuple[str, ...],
    layers: tuple[str, ...],
    format: str,
    plot: Path | None,
    samples: Path | None,
    trial: str | None,
) -> None:
    """Say how well trained networks tell images from outside of their data, by the suite's `ood`.

    Finished trials whose weights were kept (`keep_weights: best`) are looked at once, and nothing is trained: by the
    mean activation of each layer, the largest softmax and the energy. What is stored already is only printed; answers
    for several datasets are kept beside each other. Images that are not in --data-dir are downloaded, as for
    [bold]raybench run[/bold].
    """
    from raybench.cells import find_cells
    from raybench.figures import collect, draw, save
    from raybench.figures.style import check_suffix
    from raybench.ood import name_of, table

    for path in filter(None, (plot, samples)):
        check_suffix(path)
    store, choice = stored(suite, results)
    need_torch()

    from raybench.live import busy
    from raybench.revisit import Images, detect
    from raybench.store import read_snapshot
    from raybench.suite import import_modules

    import_modules(choice.suite)  # they may register what --dataset names
    asked = _asked(choice.suite, datasets, layers)
    if len(asked) > 1 and (plot or samples):
        raise UserError(f"{'--plot' if plot else '--samples'}: draws images of one dataset: give --dataset once")
    trials = choice.trials(store.ended(failed=True))
    images = Images(data_dir, download=True)
    store.open(read_snapshot(store.folder))
    try:
        with busy(progress(), "loading the images") as say:
            for of_these in asked:
                detect(of_these, trials, store, images, say)
        rows, damaged = store.read("ood")
    finally:
        store.close()
    warn(*damaged)
    cells = find_cells(store.read()[0], choice.suite, trials, choice.seeds())
    show(table(rows, cells, choice.suite.name, asked), format)
    if plot or samples:
        found = collect(store, choice)
        of = {"trial": _trial(found, store, trial).id, "dataset": name_of(asked[0].dataset)}
        if plot:
            save(draw("activations", found, **of), plot)
        if samples:
            save(draw("outside", with_images(found, data_dir), **of), samples)


def _trial(results: Results, store: Store, word: str | None) -> Trial:
    """Return the trial that ``word`` names, or the first of the table that has finished and whose weights are kept."""
    from raybench.figures.classes import find_trial
    from raybench.figures.results import finished

    if word:
        return find_trial(results, word)
    kept = store.kept_weights()
    for trial in finished(results):
        if trial.id in kept:
            return trial
    raise UserError(
        f"{store.folder}: no finished trial has its weights: a suite keeps them with `keep_weights: best`, from then on"
    )


def _asked(suite: Suite, datasets: tuple[str, ...], layers: tuple[str, ...]) -> list[OutOfDistribution]:
    """Return what the options say, or the suite; what it says of a dataset that is named holds for that too."""
    from raybench.ood import name_of
    from raybench.suite import OutOfDistribution, find_dataset

    if not datasets:
        if layers:
            raise UserError("--layer: goes with --dataset; the suite names its own under ood.layers")
        if suite.ood is None:
            raise SuiteError(
                f"{suite.name}: its last run had no `ood`: name the images with --dataset, or add"
                " `ood: {dataset: svhn}` to the suite and run it again, which trains nothing again"
            )
        return [suite.ood]
    asked = []
    for name in dict.fromkeys(datasets):
        if suite.ood and name == name_of(suite.ood.dataset):
            asked.append(suite.ood.model_copy(update={"layers": [*layers]} if layers else {}))
        else:
            asked.append(OutOfDistribution(dataset=find_dataset(name), layers=[*layers] or "activations"))
    return asked
