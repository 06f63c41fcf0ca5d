"""The commands that need no Ray: what they print, where, and with which exit status."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from made import Raybench

from raybench import __version__, plan, run
from raybench import suite as suites
from raybench.cli import base
from raybench.grid import Trial
from raybench.records import EpochRow, Outcome, Predictions, TrialRow
from raybench.registry import AUGMENTATIONS, DATASETS, MODELS
from raybench.store import Store

COMMANDS = [
    *("run", "plan", "validate", "summarize", "explain", "check", "stats", "compare", "plot", "report"),
    *("list", "doctor", "compact", "schema", "completion"),
]


def shown(value: str | list[str]) -> str:
    """Name a case of a test by its arguments alone."""
    return " ".join(value) if isinstance(value, list) else ""


def python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, **options)


SUITE = """\
name: small
about: two models
dataset: {name: digits}
compare: {model: [mlp, small_cnn]}
search: {lr: [1e-3, 1e-2]}
confirm: none
repeat: {seed: 2}
"""


def predictions(*said: int) -> Predictions:
    return Predictions(
        index=np.arange(4, dtype=np.int32),
        label=np.array([0, 1, 1, 0], np.int16),
        prediction=np.array(said, np.int16),
        logits=np.eye(2, dtype=np.float16)[list(said)] * np.float16(1 + said[0]),
    )


BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
"""An environment in which Python writes to a file or pipe when there is enough, or the program ends."""
PREDICTIONS = [predictions(0, 1, 0, 1), predictions(1, 1, 1, 0)]
"""Right on two images and on three; together on three, since the second is surer of itself."""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with the rows of the two finished trials of mlp at 0.001."""
    (tmp_path / "small.yaml").write_text(SUITE)
    suite = suites.load(tmp_path / "small.yaml")
    store = Store(tmp_path / "results", suite)
    store.open({"document": suite.document, "source": suite.source, "sets": [], "only": {}, "limit": None})
    for trial in plan.expand(suite, {"model": ["mlp"], "lr": ["1e-3"]}):
        row = TrialRow(
            trial_id=trial.id,
            suite="small",
            dataset="digits",
            model="mlp",
            augmentation="none",
            seed=trial.seed,
            lr=0.001,
            status="completed",
            epochs=4,
            selection="val_accuracy",
            validation="fraction 0.1",
            test_accuracy=0.5 + trial.seed / 4,
            settings=json.dumps(trial.settings),
        )
        epochs = tuple(
            EpochRow(
                trial_id=trial.id,
                epoch=epoch,
                train_loss=1.0,
                train_accuracy=0.5,
                val_loss=1.0,
                val_accuracy=0.5,
                test_accuracy=accuracy,
                lr=0.001,
            )
            for epoch, accuracy in enumerate((row.test_accuracy, 0.25 if trial.seed else 1.0, 0.125), 1)
        )
        store.write(Outcome(row=row, epochs=epochs, predictions=PREDICTIONS[trial.seed]))
    store.close()
    return tmp_path / "results"


# ---------------------------------------------------------------------------------------------------------------------
# Help and usage


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_command(raybench: Raybench, flag: str) -> None:
    status, out, err = raybench(flag)
    assert (status, err) == (0, "")
    assert all(f"\n│ {command} " in out for command in COMMANDS)
    assert "raybench run suites/quickstart.yaml" in out
    assert "[bold]" not in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_is_explained(raybench: Raybench, command: str) -> None:
    status, out, err = raybench(command, "--help")
    assert (status, err) == (0, "")
    assert f" {command} [OPTIONS]" in out
    assert "[bold]" not in out


def test_version(raybench: Raybench) -> None:
    assert raybench("--version") == (0, f"raybench, version {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plann"], "No such command 'plann'."),
        (["plan"], "Missing argument 'SUITE'."),
        (["validate"], "Missing argument 'SUITE...'."),
        (["plan", "quickstart", "--limt", "3"], "No such option '--limt'."),
        (["plan", "quickstart", "--limit", "0"], "Invalid value for '--limit'"),
        (["plan", "quickstart", "--limit", "few"], "Invalid value for '--limit'"),
        (["stats", "quickstart", "--confidence", "nan"], "Invalid value for '--confidence': nan is not a number."),
        (["run", "quickstart", "--checkpoint-every", "nan"], "Invalid value for '--checkpoint-every': nan is"),
        (["run", "quickstart", "--max-concurrent", "0"], "Invalid value for '--max-concurrent'"),
        (["run", "quickstart", "--max-trials", "0"], "Invalid value for '--max-trials'"),
        (
            ["summarize", "quickstart", "--results", ""],
            "Invalid value for '--results': must be a folder, or",
        ),
        (["list", "modles"], "'modles' is not one of"),
        (["summarize", "quickstart", "--format", "xml"], "Invalid value for '--format'"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
    ],
    ids=shown,
)
def test_wrong_usage(raybench: Raybench, arguments: list[str], message: str) -> None:
    status, out, err = raybench(*arguments)
    assert (status, out) == (2, "")
    assert "Usage:" in err
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "quikstart"], "quikstart: no such suite file; did you mean 'quickstart'?"),
        (
            ["plan", "quickstart", "--changes", "--measure"],
            "--json, --changes and --measure: each is a plan of its own: give one of them",
        ),
        (["run", "quikstart"], "quikstart: no such suite file; did you mean 'quickstart'?"),
        (["validate", "quikstart"], "quikstart: no such suite file; did you mean 'quickstart'?"),
        (["summarize", "quikstart"], "quikstart: no such suite file; did you mean 'quickstart'?"),
        (["plan", "quickstart", "--only", "seed"], "--only seed: must be axis=value, e.g. seed=0"),
        (["plan", "quickstart", "--only", "sed=0"], "--only sed: is no axis of quickstart; did you mean 'seed'?"),
        (["run", "quickstart", "--only", "model=x"], "--only model=x: no such value; known: mlp, small_cnn"),
        (["plan", "quickstart", "--set", "lr"], "--set lr: must be key.path=value, e.g. train.epochs=2"),
        (
            ["validate", "quickstart", "--set", "train.epoch=1"],
            "--set train.epoch=1: train.epoch: unknown key; did you mean 'epochs'?",
        ),
        (
            ["summarize", "quickstart"],
            "results/quickstart: no results here: run the suite first, or name its folder with --results",
        ),
        *(
            (
                ["run", "quickstart", "--budget", time],
                f"--budget {time}: must be a time such as 90m, 2h or 1h30m; the units are d, h, m and s",
            )
            for time in ("2", "h", "2w", "1.5h", "30m1h", "-1h", "0s", "2 h", "")
        ),
        (["summarize", "."], ".: no results here: run the suite first, or name its folder with --results"),
    ],
    ids=shown,
)
def test_a_mistake_is_one_line_on_stderr(raybench: Raybench, arguments: list[str], message: str) -> None:
    assert raybench(*arguments) == (2, "", f"raybench: {message}\n")


def test_a_mistake_in_a_file_names_its_place(raybench: Raybench) -> None:
    Path("s.yaml").write_text("name: s\ndataset: {name: digts}\nmodel: mlp\n")
    message = "raybench: s.yaml:2:11: dataset.name: unknown dataset 'digts'; did you mean 'digits'?\n"
    for command in ("plan", "validate", "run"):
        assert raybench(command, "s.yaml") == (2, "", message)


def test_a_folder_of_results_may_have_another_name(
    raybench: Raybench, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for the one beside it that is called as the suite, if any."""
    said = raybench("summarize", "results/small").out
    assert "mlp,0.001,2,2,0.625," in raybench("summarize", "results/small", "--format", "csv").out
    shutil.copytree(results / "small", "kept/small of before")
    shutil.copytree(results / "small", results / "copy")
    for file in (results / "small/trials").iterdir():
        file.unlink()
    assert raybench("summarize", "kept/small of before") == (0, said, "")
    assert raybench("summarize", "results/copy") == (0, said, "")
    assert raybench("summarize", "copy") == (0, said, "")
    (Path("copy") / "other things").mkdir(parents=True)
    assert raybench("summarize", "copy") == (0, said, ""), "of results, not of this folder"
    monkeypatch.chdir("results/copy")
    assert raybench("summarize", ".") == (0, said, "")


def test_the_same_from_a_shell(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("name: s\ndataset: {name: digits}\n")
    command = [sys.executable, "-m", "raybench.cli", "plan", "s.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "raybench: s.yaml:1:1: model: is missing: name one under `model:` or several under `compare: {model: [...]}`\n"
    )


def test_an_interruption_says_how_to_go_on(raybench: Raybench, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "expand", interrupt)
    status, out, err = raybench("plan", "quickstart")
    assert (status, out) == (130, "")
    assert err.lstrip() == "raybench: interrupted; the same command again goes on where this one stopped\n"


def test_a_sigterm_is_as_ctrl_c(raybench: Raybench, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any time, not only while trials run."""
    monkeypatch.setattr(plan, "expand", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
    status, out, err = raybench("plan", "quickstart")
    assert (status, out) == (130, "")
    assert err.lstrip() == "raybench: interrupted; the same command again goes on where this one stopped\n"


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_leaves_no_import_half_done_that_another_thread_may_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    code = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.3)\nos.mkdir('whole')\n"
    (tmp_path / f"slow_to_import_{threads}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(threading, "active_count", lambda: threads)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), base._interruptible():
            importlib.import_module(f"slow_to_import_{threads}")
            time.sleep(10)
    finally:
        assert signal.signal(signal.SIGINT, before) == signal.default_int_handler
    assert Path("whole").exists() == (threads > 1)


def test_an_interruption_is_one_whatever_a_library_makes_of_it(
    raybench: Raybench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pydantic says that a schema could not be built."""

    def expand(*arguments: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except KeyboardInterrupt:
            raise ValueError("no schema") from None

    monkeypatch.setattr(plan, "expand", expand)
    status, out, err = raybench("plan", "quickstart")
    assert (status, out) == (130, "")
    assert err.lstrip() == "raybench: interrupted; the same command again goes on where this one stopped\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_a_closed_pipe_is_no_error() -> None:
    """Nor does its exit status say that a trial failed."""
    for words in ("plan table1 --json", "plan quickstart"):  # the second is written as the command ends
        code = f"{sys.executable} -m raybench.cli {words} | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, env=BUFFERED)
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
@pytest.mark.parametrize("words", [["plan", "table1", "--json"], ["plan", "quickstart"], ["--version"]], ids=shown)
def test_stdout_on_a_full_disk_is_one_line(words: list[str]) -> None:
    command = [sys.executable, "-m", "raybench.cli", *words]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=BUFFERED)
    assert (done.returncode, done.stderr) == (2, "raybench: stdout: No space left on device\n")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_what_is_closed_is_nobody_elses(tmp_path: Path) -> None:
    """A file with the number of stderr would have what Ray's own processes and libraries print in it."""
    code = """
import os
from raybench.cli import app, main
@app.command()
def look():
    with open(__file__ + ".seen", "w") as file:
        print(file.fileno(), *(os.readlink(f"/proc/self/fd/{number}") for number in range(3)), file=file)
main()
"""
    (tmp_path / "look.py").write_text(code)
    command = f"{sys.executable} {tmp_path}/look.py look <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command]).returncode == 0
    number, *places = (tmp_path / "look.py.seen").read_text().split()
    assert int(number) > 2 and places == ["/dev/null"] * 3


@pytest.mark.parametrize(("module", "spared"), [("torch", True), ("triton", False)])
def test_python_need_not_look_through_everything_when_a_command_ends(module: str, spared: bool) -> None:
    """It may where triton was loaded, which would list as leaks what it finds to be still there."""
    code = f"""
import atexit, gc, sys
atexit.register(lambda: print(gc.get_freeze_count() > 1000))
from raybench import cli
sys.modules[{module!r}] = None
sys.argv[0] = "raybench"
cli.main()
"""
    done = python(code, "--version")
    assert (done.returncode, done.stdout.splitlines()[-1], done.stderr) == (0, str(spared), "")


@pytest.mark.parametrize(
    ("time", "seconds"), [("45s", 45), ("90m", 5400), ("2h", 7200), ("1h30m", 5400), ("1d2h3m4s", 93784)]
)
def test_times(time: str, seconds: float) -> None:
    assert base.seconds_of(time) == seconds


@pytest.mark.parametrize(("end", "said", "status"), [("spent", "budget spent", 3), ("interrupted", "interrupted", 130)])
def test_a_run_that_stops_says_what_is_left_and_how_to_go_on(
    raybench: Raybench, results: Path, monkeypatch: pytest.MonkeyPatch, end: str, said: str, status: int
) -> None:
    given: list[run.Options] = []

    def stops(choice: Any, store: Any, options: run.Options, console: Any) -> str:
        given.append(options)
        return end

    monkeypatch.setattr(run, "run_missing", stops)
    done = raybench("run", "small.yaml", "--budget", "1h", "--max-trials", "5", "--format", "csv")
    assert done.status == status and "mlp,0.001,2,2,0.625," in done.out
    assert done.err == (
        "stored in results/small: trials, epochs, predictions\n"
        f"{said}, 6 trials to go: the same command goes on from here\n"
    )
    assert (given[0].budget, given[0].max_trials) == (3600, 5)
    Path("results/small/weights").mkdir()
    Path("results/small/weights/t0.safetensors").write_bytes(b"")
    assert "stored in results/small: trials, epochs, predictions, weights\n" in raybench("run", "small.yaml").err


def test_what_cannot_be_read_or_written_is_named(raybench: Raybench, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("small.yaml").write_text(SUITE)
    whole = "rows stored so far are whole; run again"
    for place, said in (
        ("data/train/a/1.png", "data/train/a/1.png: Permission denied"),
        (str(Path("results/small/trials/t.parquet").absolute()), f"results/small: Permission denied: {whole}"),
        (None, f"results/small: Permission denied: {whole}"),
    ):
        error = PermissionError(errno.EACCES, "Permission denied", place)
        monkeypatch.setattr(run, "run_missing", Mock(side_effect=error))
        assert raybench("run", "small.yaml") == (2, "", f"raybench: {said}\n")


def test_results_that_are_removed_during_a_run_are_not_called_whole(
    raybench: Raybench, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("small.yaml").write_text(SUITE)
    monkeypatch.setattr(
        run, "run_missing", lambda *_: os.rename("results/small/trials/.t.tmp", "results/small/trials/t")
    )
    said = "raybench: results/small: a part of it was removed during the run: run again\n"
    assert raybench("run", "small.yaml") == (2, "", said)


def test_what_cannot_be_read_is_named_where_results_are_in_object_storage(
    raybench: Raybench, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("small.yaml").write_text(SUITE)
    error = PermissionError(errno.EACCES, "Permission denied", "data/train/a/1.png")
    monkeypatch.setattr(run, "run_missing", Mock(side_effect=error))
    assert raybench("run", "small.yaml", "--results", bucket) == (
        2,
        "",
        "raybench: data/train/a/1.png: Permission denied\n",
    )


WORDS = """\
name: words
about: "see [report], a [/b] c, [bold]d :warning:"
dataset: digits
model: mlp
compare: {sort: {"[/x]": {}, "[blue]y :key:": {lr: 0.1}}}
"""


def test_words_of_a_suite_are_no_markup(raybench: Raybench) -> None:
    Path("words.yaml").write_text(WORDS)
    first = "words  see [report], a [/b] c, [bold]d :warning:"
    status, out, err = raybench("plan", "words.yaml")
    assert (status, err) == (0, "") and out.splitlines()[0] == first
    table = [line.split("  ")[0].strip() for line in out.splitlines()[1:4]]
    assert table == ["sort", "[/x]", "[blue]y :key:"]
    out = raybench("plan", "words.yaml", "--changes").out
    assert [line.split("  ")[0].strip() for line in out.splitlines()[1:4]] == ["sort", "[/x]", "[blue]y :key:"]
    status, _, err = raybench("run", "words.yaml", "--results", "[old]", "--address", "ray://nowhere")
    assert status == 2 and err.splitlines()[0] == first
    Path("[old]/words/trials/t.parquet").write_bytes(b"no Parquet")
    status, _, err = raybench("run", "words.yaml", "--results", "[old]", "--address", "ray://nowhere")
    assert err.startswith("[old]/words/trials/t.parquet: ")


def test_the_place_of_results_is_no_markup(raybench: Raybench, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("small.yaml").write_text(SUITE)
    monkeypatch.setattr(run, "run_missing", lambda choice, store, options, console: "finished")
    assert raybench("run", "small.yaml", "--results", "[old]").err == (
        "stored in [old]/small: trials, epochs, predictions\n"
    )


# ---------------------------------------------------------------------------------------------------------------------
# plan and validate


def test_plan_shows_cells_and_what_is_left(raybench: Raybench) -> None:
    status, out, err = raybench("plan", "quickstart")
    assert (status, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0].startswith("quickstart digits")
    assert "model augmentation seeds done left" in lines
    assert [line for line in lines if line.startswith(("mlp ", "small_cnn "))] == (
        ["mlp none 3 0 3", "mlp mild 3 0 3", "small_cnn none 3 0 3", "small_cnn mild 3 0 3"]
    )
    assert "12 trials (model 2 x augmentation 2 x seed 3), 0 done, 12 to run" in lines


def test_plan_of_one_trial(raybench: Raybench) -> None:
    Path("one.yaml").write_text("name: one\ndataset: digits\nmodel: mlp\n")
    lines = raybench("plan", "one.yaml").out.splitlines()
    assert lines[0] == "one" and "1 trial (seed 1), 0 done, 1 to run" in lines


def test_plan_counts_what_is_done(raybench: Raybench, results: Path) -> None:
    out = raybench("plan", "small.yaml").out
    assert "8 trials (model 2 x lr 2 x seed 2), 2 done, 6 to run" in out
    assert raybench("plan", "small.yaml", "--results", "elsewhere").out.count(" 0 done, 8 to run") == 1
    listed = json.loads(raybench("plan", "small.yaml", "--json", "--only", "model=mlp").out)
    assert [trial["status"] for trial in listed] == ["completed", "to run", "completed", "to run"]


def test_plan_as_json_is_the_plan(raybench: Raybench) -> None:
    status, out, err = raybench("plan", "quickstart", "--json")
    assert (status, err) == (0, "")
    trials = plan.expand(suites.load(suites.find_suite("quickstart")))
    assert json.loads(out) == [
        {"trial_id": t.id, "labels": t.labels, "status": "to run", "settings": t.settings} for t in trials
    ]


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (["--limit", "1"], [("mlp", "none", 0)]),
        (["--only", "seed=1", "--only", "model=mlp"], [("mlp", "none", 1), ("mlp", "mild", 1)]),
        (["--only", "seed=1", "--only", "seed=2", "--limit", "1"], [("mlp", "none", 1)]),
        (["--set", "compare.model=[model1]", "--set", "repeat.seed=1"], [("model1", "none", 0), ("model1", "mild", 0)]),
    ],
)
def test_plan_of_a_part(raybench: Raybench, options: list[str], labels: list[tuple[Any, ...]]) -> None:
    listed = json.loads(raybench("plan", "quickstart", "--json", *options).out)
    assert [tuple(trial["labels"].values()) for trial in listed] == labels


def test_plan_of_changes_is_a_table_of_settings(raybench: Raybench) -> None:
    status, out, err = raybench("plan", "quickstart", "--changes", "--only", "augmentation=mild", "--only", "seed=0")
    assert (status, err) == (0, "")
    assert [line.split() for line in out.splitlines()[1:]] == [
        ["model", "augmentation", "setting", "before", "after"],
        ["mlp", "mild"],
        ["small_cnn", "mild", "model.name", "mlp", "small_cnn"],
    ]


def test_plan_measures_what_is_to_run(raybench: Raybench, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raybench import connect, measure, trial

    cluster = connect.Cluster((connect.Node({"CPU": 2}, {}),))
    monkeypatch.setattr(connect, "connect", lambda address: contextlib.nullcontext(cluster))
    monkeypatch.setattr(measure.Meter, "cost", lambda *_: measure.Cost(3600, 1_500_000_000))
    monkeypatch.setattr(trial, "device_name", lambda device: "a machine")
    status, out, err = raybench("plan", "small.yaml", "--measure")
    assert (status, err) == (0, "")
    assert [" ".join(line.split()) for line in out.splitlines()[-6:]] == [
        "",
        "measured on a machine with the suite's images, all epochs, none slowed by others:",
        "model to run epochs a trial CPU hours memory",
        "mlp 2 40 1:00:00 2 1.50 GB",
        "small_cnn 4 80 1:00:00 4 1.50 GB",
        "6 trials, 120 epochs, 6 CPU hours: 3:00:00 on 2 CPUs and 0 GPUs, without Ray's start",
    ]
    alone = raybench("plan", "small.yaml", "--measure", "--max-concurrent", "1").out
    assert alone.endswith("6 CPU hours: 6:00:00 on 2 CPUs and 0 GPUs, without Ray's start\n")


def test_plan_measures_on_gpus_what_asks_for_them(
    raybench: Raybench, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raybench import connect, measure, trial

    cluster = connect.Cluster((connect.Node({"CPU": 2, "GPU": 1}, {}),))
    monkeypatch.setattr(connect, "connect", lambda address: contextlib.nullcontext(cluster))
    monkeypatch.setattr(measure, "speed", lambda *_: measure.Speed(3600, (0,), 0, 1_500_000_000))
    monkeypatch.setattr(trial, "device_name", lambda device: f"this {device}")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    variants = "{variant: {small: {}, large: {batch_size: 8, resources: {gpus: 0.5}}}}\nmodel: mlp"
    mixed = SUITE.replace("{model: [mlp, small_cnn]}", variants).replace("name: small", "name: mixed")
    Path("mixed.yaml").write_text(mixed)
    for options, lines in (
        (
            [],
            [
                "measured on this cpu and this cuda with the suite's images, all epochs, none slowed by others:",
                "variant to run epochs a trial CPU hours GPU hours memory",
                "small 4 80 1:00:00 4 0 1.50 GB",
                "large 4 80 1:00:00 0 2 1.50 GB",
                "8 trials, 160 epochs, 4 CPU hours and 2 GPU hours: 4:00:00 on 2 CPUs and 1 GPUs, without Ray's start",
            ],
        ),
        (
            ["--only", "variant=large"],
            [
                "measured on this cuda with the suite's images, all epochs, none slowed by others:",
                "variant to run epochs a trial GPU hours memory",
                "large 4 80 1:00:00 2 1.50 GB",
                "4 trials, 80 epochs, 2 GPU hours: 2:00:00 on 2 CPUs and 1 GPUs, without Ray's start",
            ],
        ),
    ):
        status, out, err = raybench("plan", "mixed.yaml", "--measure", *options)
        assert (status, err) == (0, "")
        assert [" ".join(line.split()) for line in out.splitlines()[-len(lines) :]] == lines


def test_plan_of_a_smoke_run_is_another(raybench: Raybench) -> None:
    plain, smoke = (json.loads(raybench("plan", "quickstart", "--json", *more).out) for more in ([], ["--smoke"]))
    assert not {trial["trial_id"] for trial in plain} & {trial["trial_id"] for trial in smoke}
    shown = raybench("plan", "quickstart", "--smoke").out
    assert shown.startswith("quickstart-smoke  ") and "at most 1 epoch of two batches\n" in shown
    phases = ["--set", "train.epochs=15", "--set", "train.phases=[{epochs: 7}, {epochs: 8}]"]
    assert "at most 2 epochs of two batches\n" in raybench("plan", "quickstart", "--smoke", *phases).out


def test_plan_says_what_the_trials_need_and_how_long_the_longest_is(raybench: Raybench) -> None:
    grid = ["--set", "compare={model: [mlp], train.epochs: [2, 7]}"]
    assert (
        "\neach trial: 1 process of 1 CPU and 0 GPUs, at most 7 epochs\n" in raybench("plan", "quickstart", *grid).out
    )
    variants = "{short: {train: {epochs: 2}}, long: {train: {epochs: 7}}, wide: {resources: {workers: 2}}}"
    grid = ["--set", f"compare={{model: [mlp], variant: {variants}}}"]
    lines = raybench("plan", "quickstart", *grid).out.splitlines()
    assert [line for line in lines if "CPU" in line] == [
        "6 of the trials: 1 process of 1 CPU and 0 GPUs, at most 7 epochs",
        "3 of the trials: 2 processes of 1 CPU and 0 GPUs, at most 10 epochs",
    ]


def test_plan_leaves_nothing_behind(raybench: Raybench) -> None:
    raybench("plan", "quickstart")
    assert list(Path().iterdir()) == []


def test_validate_looks_at_every_suite(raybench: Raybench) -> None:
    assert raybench("validate", "quickstart", "table1") == (0, "quickstart: ok, 12 trials\ntable1: ok, 45 trials\n", "")
    assert raybench("validate", "ood") == (0, "ood: ok, 1 trial\n", "")
    status, out, err = raybench("validate", "nope", "quickstart", "no.yaml")
    assert (status, out) == (2, "quickstart: ok, 12 trials\n")
    assert [line.partition(";")[0] for line in err.splitlines()] == (
        ["raybench: nope: no such suite file", "raybench: no.yaml: no such suite file"]
    )


def test_validate_checks_the_options_of_models_and_augmentations(raybench: Raybench) -> None:
    Path("s.yaml").write_text(SUITE)
    status, out, err = raybench("validate", "s.yaml", "--set", "model.hiden=[3]")
    assert (status, out) == (2, "")
    assert err == "raybench: s.yaml: model 'mlp' has no option 'hiden'; did you mean 'hidden'?\n"
    status, out, err = raybench("validate", "s.yaml", "--set", "augmentation={shift: {up: 3}}")
    assert (status, out) == (2, "")
    assert err.startswith("raybench: s.yaml: augmentation 'shift' has no option 'up'")


# ---------------------------------------------------------------------------------------------------------------------
# summarize


def test_summarize_reads_a_suite_or_a_folder(raybench: Raybench, results: Path) -> None:
    status, out, err = raybench("summarize", "small", "--format", "csv")
    assert (status, err) == (0, "")
    assert "mlp,0.001,2,2,0.625," in out
    for name in ("results/small", str(results / "small")):
        assert raybench("summarize", name, "--format", "csv") == (0, out, "")


def test_summarize_reads_results_from_elsewhere(
    raybench: Raybench, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = raybench("summarize", "small", "--format", "json")
    results.rename(results.parent / "moved")
    assert raybench("summarize", "small").status == 2
    assert raybench("summarize", "small", "--format", "json", "--results", "moved") == expected
    monkeypatch.setenv("RAYBENCH_RESULTS", "moved")
    assert raybench("summarize", "small", "--format", "json") == expected


@pytest.mark.parametrize("format", base.FORMATS)
def test_summarize_writes_every_format_to_stdout(raybench: Raybench, results: Path, format: str) -> None:
    status, out, err = raybench("summarize", "small", "--format", format)
    assert (status, err) == (0, "")
    assert "0.625" in out
    assert out.endswith("\n")


def test_compact_says_which_files_it_left(raybench: Raybench, results: Path) -> None:
    damaged = next((results / "small" / "trials").glob("*.parquet"))
    damaged.write_bytes(b"torn")
    status, out, err = raybench("compact", "small")
    assert (status, out) == (0, f"{results / 'small'}: 1 trial merged\n".replace(f"{Path.cwd()}/", ""))
    assert damaged.name in err and damaged.read_bytes() == b"torn"


def test_summarize_says_on_stderr_which_files_are_damaged(raybench: Raybench, results: Path) -> None:
    damaged = next((results / "small" / "trials").glob("*.parquet"))
    damaged.write_bytes(b"torn")
    status, out, err = raybench("summarize", "small", "--format", "csv")
    assert status == 0
    assert damaged.name in err
    assert damaged.name not in out


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--rows", "model", "--columns", "lr"], "model,0.001_n,0.001_planned,0.001_mean,"),
        (["--by", "model"], "mlp,2,4,0.625,"),
        (["--rows", "lr, model"], "0.001,mlp,2,2,0.625,"),
        (["--metric", "epochs"], "mlp,0.001,2,2,4.0,0.0,4.0,4.0\n"),
        (["--metric", "macro_f1"], "mlp,0.001,2,2,0.616666"),  # (1/2 + 11/15) / 2
        (["--rule", "last"], "mlp,0.001,2,2,0.125,"),
        (["--rule", "peek"], "mlp,0.001,2,2,0.875,0.1767766952966369,0.75,1.0,4.0,0.625,0.25\n"),
        (["--ensemble"], "mlp,0.001,2,2,0.625,0.1767766952966369,0.75,0.75,0.125\n"),
    ],
    ids=shown,
)
def test_summarize_looks_at_results_in_other_ways(
    options: list[str], line: str, raybench: Raybench, results: Path
) -> None:
    status, out, err = raybench("summarize", "small", *options, "--format", "csv")
    warning = (
        "WARNING: rule peek: every trial's epoch was chosen on the test images that it is judged on, numbers are"
        " optimistic\n"
    )
    assert (status, err) == (0, warning if "peek" in options else "")
    assert line in out


def test_ensembles_stand_alone(raybench: Raybench, results: Path) -> None:
    message = (
        "raybench: --ensemble: combines the trials of each cell at the epoch that was stored: leave out --rows,"
        " --columns, --metric and --rule\n"
    )
    for option in (["--by", "model"], ["--columns", "lr"], ["--metric", "loss"], ["--rule", "last"]):
        assert raybench("summarize", "small", "--ensemble", *option) == (2, "", message)


def test_what_is_asked_for_is_checked_before_anything_is_read(raybench: Raybench) -> None:
    assert raybench("summarize", "nothing", "--rule", "pek") == (
        (2, "", "raybench: --rule pek: no such rule; did you mean 'peek'?\n")
    )
    assert raybench("summarize", "nothing", "--metric", "los").err == (
        "raybench: --metric los: no such metric; did you mean 'loss'?\n"
    )


def test_explain_says_where_a_number_comes_from(raybench: Raybench, results: Path) -> None:
    status, out, err = raybench("explain", "small", "model=mlp", "lr=1e-3")
    assert (status, err) == (0, "")
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[:2] == [
        "small: model=mlp, lr=0.001",
        "mean 0.6250, std 0.1768 (ddof=1), min 0.5000, max 0.7500, n = 2 of 2 planned",
    ]
    source = results.parent / "small.yaml"
    assert lines[-1] == f"raybench run {source} --only model=mlp --only lr=0.001"
    stored = json.loads(raybench("explain", "results/small", "model=mlp", "lr=1e-3", "--format", "json").out)
    assert [(row["seed"], row["in_mean"], row["test_accuracy"]) for row in stored["rows"]] == [
        (0, "yes", 0.5),
        (1, "yes", 0.75),
    ]


def test_explain_in_another_place_names_it(raybench: Raybench, results: Path) -> None:
    results.rename(results.parent / "moved")
    out = raybench("explain", "moved/small", "model=mlp", "lr=1e-3").out
    assert "small.yaml --only model=mlp --only lr=0.001 --results moved\n" in out


def test_explain_asks_for_one_cell(raybench: Raybench, results: Path) -> None:
    assert raybench("explain", "small", "model=mlp") == (
        (2, "", "raybench: model=mlp: names 2 cells: say also lr=0.001|0.01\n")
    )


NUMBERS_ONLY = [
    ["summarize", "small"],
    ["summarize", "small", "--metric", "macro_f1"],
    ["summarize", "small", "--ensemble"],
    ["explain", "small", "model=mlp", "lr=0.001"],
]


@pytest.mark.parametrize("words", NUMBERS_ONLY, ids=shown)
def test_results_are_read_where_neither_torch_nor_ray_is(words: list[str], results: Path) -> None:
    code = """
import sys
for name in ("torch", "torchvision", "timm", "ray", "sklearn"):
    sys.modules[name] = None  # importing it raises
from raybench import cli
sys.argv[0] = "raybench"
cli.main()
"""
    done = python(code, *words, "--format", "csv", cwd=results.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 2


# ---------------------------------------------------------------------------------------------------------------------
# list, schema, completion


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("models", [*MODELS.names(), "timm:<name>"]),
        ("augmentations", [*AUGMENTATIONS.names(), "torchvision:<name>", "timm:<policy>"]),
        ("datasets", DATASETS.names()),
    ],
)
def test_list_names_everything_and_says_what_it_is(raybench: Raybench, kind: str, names: list[str]) -> None:
    status, out, err = raybench("list", kind)
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines() if not line.startswith(" ")]
    assert [words[0] for words in lines[1:]] == names
    assert all(len(words) > 2 for words in lines[1:])


def test_list_orders_suites_by_report(raybench: Raybench) -> None:
    status, out, err = raybench("list", "suites")
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines() if not line.startswith(" ")]
    assert lines[0] == ["report", "suite", "trials", "about"]
    assert lines[1][:3] == ["–", "quickstart", "12"]
    assert sorted(line[1] for line in lines[1:]) == sorted(suites.shipped_suites())
    assert [line[0] for line in lines[2:]] == sorted(line[0] for line in lines[2:])
    assert ["000", "table1", "45", "CIFAR-10,"] in [line[:4] for line in lines]


def test_a_narrow_terminal_cuts_no_name(raybench: Raybench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    listed = raybench("list", "suites").out.splitlines()
    at = next(number for number, line in enumerate(listed) if "grid_block" in line)
    assert [line[8:18].strip() for line in listed[at : at + 2]] == ["grid_block", "s_kernel"]
    planned = raybench("plan", "table1").out.splitlines()
    assert [line.split() for line in planned[1:4]] == [
        ["augmen"],
        ["model", "tation", "lr", "seeds", "done", "left"],
        ["model1", "none", "0.001", "5", "0", "5"],
    ]
    for words in (("list", "models"), ("list", "augmentations"), ("list", "datasets"), ("list", "suites")):
        assert "…" not in raybench(*words).out


def test_doctor_cuts_no_address(raybench: Raybench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("raybench.doctor.findings", lambda data_dir: [("data: x", "fetch https://host/" + "long/" * 9)])
    status, out, err = raybench("doctor")
    assert (status, err) == (0, "")
    assert "".join(line[9:].strip() for line in out.splitlines()) == "fetchhttps://host/" + "long/" * 9


def test_schema_is_the_file_beside_the_suites(raybench: Raybench) -> None:
    schema = Path(__file__).parent.parent / "suites" / "raybench.schema.json"
    assert raybench("schema") == (0, schema.read_text(encoding="utf-8"), "")


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("bash", 'eval "$(_RAYBENCH_COMPLETE=bash_source raybench)"'),
        ("zsh", 'eval "$(_RAYBENCH_COMPLETE=zsh_source raybench)"'),
        ("fish", "_RAYBENCH_COMPLETE=fish_source raybench | source"),
    ],
)
def test_completion_is_a_line_for_the_start_up_file(raybench: Raybench, shell: str, line: str) -> None:
    assert raybench("completion", shell) == (0, line + "\n", "")


@pytest.mark.parametrize(
    ("words", "offered"),
    [("raybench pl", {"plan"}), ("raybench plan ta", {"table1"}), ("raybench list data", {"datasets"})],
)
def test_commands_and_suites_are_completed(words: str, offered: set[str]) -> None:
    code = "import sys; from raybench import cli; sys.argv[0] = 'raybench'; cli.main()"
    asked = {
        "_RAYBENCH_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = python(code, env={**os.environ, **asked})
    assert (done.returncode, done.stderr) == (0, "")
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} >= offered


# ---------------------------------------------------------------------------------------------------------------------
# stats, compare

MADE_UP = SUITE.replace("search: {lr: [1e-3, 1e-2]}\nconfirm: none\n", "").replace("seed: 2", "seed: 3")


def accuracy(trial: Trial) -> float:
    return 0.5 + trial.seed / 100 + 0.25 * (trial.cell == ("small_cnn",))


def test_stats(raybench: Raybench, store_results: Callable[..., Any]) -> None:
    store_results(Path("results"), MADE_UP, accuracy)
    status, out, err = raybench("stats", "small")
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    # 0.51 -+ 4.303 * 0.01 / sqrt(3)
    assert ["mlp", "3", "0.5100", "0.0100", "0.4852", "0.5348", "b"] in lines
    assert ["small_cnn", "3", "0.7600", "0.0100", "0.7352", "0.7848", "a"] in lines
    # t = 0.25 / (0.01 * sqrt(2 / 3)) = 30.6, -+ 2.776 * 0.00816
    pair = ["mlp", "small_cnn", "3", "3", "+0.2500", "+0.2273", "+0.2727", "6.78e-06", "6.78e-06", "second", "higher"]
    assert pair in lines
    # 6 * 0.125^2 = 0.09375 against 4 * 0.01^2
    assert ["model", "2", "0.996", "0.994"] in lines
    assert raybench("stats", "results/small").out == out
    assert raybench("stats", "small").out == out


def test_tables_of_stats_for_programs(raybench: Raybench, store_results: Callable[..., Any]) -> None:
    store_results(Path("results"), MADE_UP, accuracy)
    made = json.loads(raybench("stats", "small", "--format", "json").out)
    assert list(made) == ["cells", "pairs", "effects"]
    assert made["cells"]["rows"][0]["interval_low"] == pytest.approx(0.51 - 4.303 * 0.01 / 3**0.5, abs=1e-5)
    assert list(json.loads(raybench("stats", "small", "--format", "json", "--table", "pairs").out)) == ["pairs"]
    csv = raybench("stats", "small", "--format", "csv", "--table", "effects").out.splitlines()
    assert csv[0] == "source,values,eta,omega"
    assert [line.split(",")[:2] for line in csv[1:]] == [["model", "2"], ["seed", "3"]]
    labels = [line for line in raybench("stats", "small", "--format", "latex").out.splitlines() if "label" in line]
    assert labels == [rf"\label{{tab:small-{part}}}" for part in ("cells", "pairs", "effects")]


def test_stats_over_images(raybench: Raybench, store_results: Callable[..., Any]) -> None:
    """One trial each: of 100 images, mlp alone has 2 right and small_cnn alone 12; McNemar, 2 of 14 coins or fewer."""

    def of(trial: Trial) -> Any:
        wrong = range(10, 22) if trial.cell == ("mlp",) else range(2)
        return np.isin(np.arange(100), wrong, invert=True)

    store_results(Path("results"), MADE_UP.replace("seed: 3", "seed: 1"), of)
    status, out, err = raybench("stats", "small", "--over", "images", "--format", "json", "--pairs", "mlp", "small_cnn")
    assert (status, err) == (0, "")
    (row,) = json.loads(out)["pairs"]["rows"]
    assert row["p_value"] == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert (row["difference"], row["verdict"]) == (pytest.approx(0.1), "second higher")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "csv"], "--format csv: holds one table: add --table cells, pairs or effects"),
        (["--metric", "test_acuracy"], "--metric test_acuracy: no such metric; did you mean 'test_accuracy'?"),
        (["--pairs", "mlp", "cnn"], "--pairs cnn: is no cell; known: mlp, small_cnn"),
        (["--pairs", "mlp", "mlp"], "--pairs mlp mlp: is one cell: name two"),
        (["--seed", "4"], "--seed 4: nothing is drawn: goes with --interval bootstrap, --over images or both"),
        (["--over", "images", "--interval", "t"], "--interval t: is over seeds; with --over images it is bootstrap"),
    ],
    ids=shown,
)
def test_wrong_questions(
    raybench: Raybench, store_results: Callable[..., Any], arguments: list[str], message: str
) -> None:
    store_results(Path("results"), MADE_UP, accuracy)
    assert raybench("stats", "small", *arguments) == (2, "", f"raybench: {message}\n")


def test_compare(raybench: Raybench, store_results: Callable[..., Any]) -> None:
    for folder, more in (("before", 0), ("after", 0.1)):
        store_results(Path(folder), MADE_UP, lambda t, more=more: accuracy(t) + more * (t.cell == ("mlp",)))
    assert raybench("compare", "before/small", "before/small").status == 0
    status, out, err = raybench("compare", "before/small", "after/small")
    assert (status, err) == (1, "")
    lines = [line.split() for line in out.splitlines()]
    # +0.1 -+ 2.776 * 0.01 * sqrt(2 / 3), t = 12.25 at 4 degrees of freedom
    interval = ["+0.0773", "+0.1227"]
    assert ["mlp", "3", "0.5100", "3", "0.6100", "+0.1000", *interval, "0.000255", "0.000255", "higher"] in lines
    assert "3 of 6 shared trials are identical to the last bit; the others differ in test_accuracy" in out
    made = json.loads(raybench("compare", "before/small", "after/small", "--format", "json").out)
    assert list(made) == ["changes", "cells"]
    assert raybench("compare", "before/small", "after/small", "--confidence", "0.9999").status == 0


def test_compare_two_suites_below_results(raybench: Raybench, store_results: Callable[..., Any]) -> None:
    store_results(Path("results"), MADE_UP, accuracy)
    store_results(Path("results"), MADE_UP.replace("name: small", "name: other"), accuracy)
    status, out, _ = raybench("compare", "small", "other")
    assert (status, "6 of 6 shared trials are identical to the last bit" in out) == (0, True)


def test_compare_with_what_is_not_there(raybench: Raybench, store_results: Callable[..., Any]) -> None:
    store_results(Path("results"), MADE_UP, accuracy)
    message = "other: no such suite file"
    status, out, err = raybench("compare", "small", "other")
    assert (status, out) == (2, "")
    assert err.startswith(f"raybench: {message}")
    assert raybench("compare", "small", "small", "--format", "csv").err == (
        "raybench: --format csv: holds one table: add --table changes or cells\n"
    )


def test_a_damaged_file_is_said(raybench: Raybench, store_results: Callable[..., Any]) -> None:
    _, _, trials = store_results(Path("results"), MADE_UP, accuracy)
    Path(f"results/small/trials/{trials[0].id}.parquet").write_bytes(b"x")
    status, out, err = raybench("stats", "small", "--table", "cells")
    assert (status, "its trial is not counted" in err) == (0, True)
    assert ["mlp", "2/3"] in [line.split()[:2] for line in out.splitlines()]
