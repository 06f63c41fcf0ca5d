"""Every suite that ships: whole, with its report's numbers, and able to run."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image
from test_datasets import noise, write_image, write_parquet

from raybench import cli, plan
from raybench.backbones import needs_pretrained
from raybench.datasets import CIFAR10, CINIC10
from raybench.store import Store
from raybench.suite import Suite, json_schema, load, report_of, shipped_suites
from raybench.summarize import PUBLISHED
from raybench.yamlfile import parse_yaml

every_suite = pytest.mark.parametrize("path", shipped_suites().values(), ids=lambda path: path.stem)


def document(path: Path) -> Any:
    return parse_yaml(path.read_text(encoding="utf-8"), path.name)[0]


# ---------------------------------------------------------------------------------------------------------------------
# The files


@every_suite
def test_a_suite_is_whole(path: Path) -> None:
    read = load(path)
    trials = plan.expand(read)
    assert read.name == path.stem
    assert plan.Choice(read).planned() == read.trials, "`trials` says how many there are"
    assert read.about
    for row in read.reference if read.draw is None else ():  # what is drawn hits no published point
        assert any(all(trial.labels.get(axis, label) == label for axis, label in row.items()) for trial in trials)
    jsonschema.validate(document(path), json_schema())


@every_suite
def test_a_suite_says_what_it_is(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    assert header[:2] == ["# yaml-language-server: $schema=raybench.schema.json", "#"]
    assert f"# Command    raybench run suites/{path.name}" in header
    parts = ("What", "Command", "Expected", "Hardware") if report_of(load(path)) else ("What", "Command")
    assert [line[2:13].strip() for line in header if re.match(r"# [A-Z]\w+ {3,}", line)] == [*parts]


@pytest.mark.parametrize(
    "path", [path for path in shipped_suites().values() if "extends" in document(path)], ids=lambda path: path.stem
)
def test_a_suite_that_extends_others_trains_the_same_trials(path: Path) -> None:
    """They add none and change none: a fault that is mended in one is mended in all."""
    extended = document(path)["extends"]
    files = [extended] if isinstance(extended, str) else extended
    theirs = {trial.id for file in files for trial in plan.expand(load(path.parent / file))}
    assert {trial.id for trial in plan.expand(load(path))} <= theirs


@every_suite
def test_published_numbers_are_those_of_the_report(path: Path, report_text: Callable[[str], str]) -> None:
    """The statistics of a row stand in one line of the report, as shares or in percent."""
    suite = load(path)
    if not suite.reference:
        pytest.skip("publishes no numbers")
    lines = [numbers_of(line) for line in report_text(report_of(suite)).splitlines()]
    for row in suite.reference:
        printed = {row[key] for key in ("mean", "std", "min", "max") if key in row}
        assert any(printed <= line for line in lines), f"no line has the numbers of {row}"
        assert "epochs" not in row or any(row["epochs"] in line for line in lines), row


def shown_as(suite: Suite) -> dict[str, str]:
    """Return the column of the table for each key of a published row."""
    return {key: PUBLISHED[key].name if key in PUBLISHED else key for key in suite.reference[0]}


def numbers_of(line: str) -> set[float]:
    found = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", line)]
    return {*found, *(round(number / 100, 6) for number in found)}


# ---------------------------------------------------------------------------------------------------------------------
# Every suite runs


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A --data-dir with noise: cifar10 as the hub has it, cinic10 as its archive has it."""
    folder = tmp_path_factory.mktemp("data")
    # Suites hold out 5,000 images: 520 of them ten times over, because making noise takes long.
    pixels = np.tile(noise(520, 32, 32, 3), (10, 1, 1, 1))
    for split, count in (("train", 5200), ("test", 100)):
        file = folder / "cifar10" / "plain_text" / f"{split}-00000-of-00001.parquet"
        write_parquet(file, pixels[:count], np.arange(count) % 10, names=CIFAR10.classes)
    for split, label, number in product(("train", "valid", "test"), CIFAR10.classes, range(2)):
        write_image(folder / "cinic10" / split / label / f"{number}.png", Image.fromarray(noise(32, 32, 3)))
    return folder


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Ray's own, as in test_schedule.py
@every_suite
def test_a_suite_runs(
    path: Path,
    cluster: object,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`raybench run SUITE --smoke` with one seed on 20 images of noise, those of 224x224 in batches of four: on a CPU,
    batches of 64 would take a minute."""
    from raybench import connect

    monkeypatch.setattr(connect, "connect", lambda *_, **__: contextlib.nullcontext(cluster))
    monkeypatch.setattr(CINIC10, "per_split", 20)
    sets = ["dataset.train_size=20", "dataset.test_size=20"]
    sets += ["train.batch_size=4"] if '"size": 224' in json.dumps(load(path).document) else []
    options = ["--smoke", "--only", "seed=0", *(word for text in sets for word in ("--set", text))]
    options += ["--max-concurrent", "1", "--format", "json"]  # each further actor loads torch for itself
    places = ["--data-dir", str(images), "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["raybench", "run", str(path), *options, *places])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert end.value.code == 0, err

    suite = load(path, sets, smoke=True)
    store = Store(tmp_path, suite)
    trials = plan.expand(suite, {"seed": ["0"]}, ended=store.ended())
    rows = json.loads(out)["rows"]
    if suite.draw:  # nobody draws the published points again: they stand below
        below = [{key: row[column] for key, column in shown_as(suite).items()} for row in rows[len(trials) :]]
        assert below == list(suite.reference)
        rows = rows[: len(trials)]
    names = suite.names("compare", "search" if suite.searches else "compare")
    assert [[row[axis] for axis in names] for row in rows] == [
        [trial.labels[axis] for axis in names] for trial in trials
    ]
    assert [(row["n"], row["planned"]) for row in rows] == [(1, 1)] * len(trials)
    for row in rows:
        labels = {axis: row[axis] for axis in names}
        fitting = (r for r in suite.reference if all(labels.get(key) == r[key] for key in r.keys() - PUBLISHED.keys()))
        published = {key: value for key, value in next(fitting, {}).items() if key in PUBLISHED}
        shown = {key: row.get(column.name) for key, column in PUBLISHED.items()}
        assert {key: value for key, value in shown.items() if value is not None} == published
    random = [needs_pretrained(trial.typed().model) for trial in trials]
    assert ("smoke run: pretrained weights are not loaded\n" in err) == any(random)
    stored, _ = store.read("trials", ["weights_fingerprint"])
    assert stored["weights_fingerprint"].isna().all()
