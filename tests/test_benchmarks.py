"""The benchmarks that compare: they train the same networks the same number of steps, and their tables add up.

No time is asserted. RAYBENCH_PEER_PYTHON names a Python with benchmarks/requirements.txt, for the rows of Keras.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import coverage
import epoch
import epoch_torch
import gpu
import kill
import numpy as np
import pandas as pd
import pytest
import search
import step
import sweep
import torch
from rounds import TICKS, Contender, Usage, ratios, spread, table
from torch import nn

from raybench import models, stats
from raybench.registry import MODELS
from raybench.suite import load

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PEER = os.environ.get("RAYBENCH_PEER_PYTHON")


def cells(markdown: str) -> list[list[str]]:
    """Return the rows of all tables in a text, the lines below their heads left out."""
    lines = [line for line in markdown.splitlines() if line.startswith("|") and "--" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_spread_ratios_and_table() -> None:
    assert spread([3, 1, 1000.26], 1) == "3.0 (1.0 to 1,000.3)"
    assert ratios([6, 3], [2, 4]) == [3, 0.75]
    assert table(("a", "b"), [("x", 1)]) == "| a | b |\n|---|--:|\n| x | 1 |"


def test_the_cpu_time_of_grandchildren_counts() -> None:
    burn = "import time\nwhile time.process_time() < 0.5: pass\ntime.sleep(0.4)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    begun = time.time()
    with Usage([sys.executable, "-c", code]) as usage:
        pass
    assert usage.process.returncode == 0
    assert 0.5 <= usage.cpu < 1.5
    assert usage.cpu_until(begun) == 0 and usage.cpu_until(time.time()) == usage.cpu


def test_cpu_time_grows_evenly_between_two_looks() -> None:
    usage = Usage([])
    usage.looks = [(10.0, TICKS), (12.0, 3 * TICKS)]
    assert [usage.cpu_until(moment) for moment in (9, 10, 10.5, 12, 13)] == [0, 1, 1.5, 3, 3]


def test_a_contender_answers_in_turns_and_says_where_it_ends() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); from rounds import serve; print('noise')\n"
        "serve({'a': 1}, {'one': lambda: {'did': 'one'}, 'two': lambda: {'did': 'two'}})"
    )
    contender = Contender("it", [sys.executable, "-c", code])
    contender.start()
    assert contender.ready == {"a": 1}
    assert [contender.turn(work)["did"] for work in ("two", "one")] == ["two", "one"]
    with pytest.raises(SystemExit, match="it ended: "):
        contender.turn("three")
    contender.stop()


# ---------------------------------------------------------------------------------------------------------------------
# epoch.py


@pytest.mark.parametrize("kind", ["raybench", "raybench-bf16", "augmentation", "tutorial", "timm"])
def test_every_contender_trains_the_same_network_as_many_steps(kind: str) -> None:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (64, 32, 32, 3), np.uint8), np.arange(64) % 10
    ready, turn = epoch_torch.contender(kind, 0, pixels, labels, "model2-32")
    assert ready["parameters"] == 550_826
    for _ in range(2):
        done = turn()
        assert (done["steps"], done["images"]) == (2, 64)
        assert done["seconds"] > 0
    assert ("alone" in done) == (kind == "augmentation")  # no turn that is compared does more than train


def test_an_image_of_model2_is_231_megaflop() -> None:
    """Counted by hand: multiply-adds of the forward pass twice, and twice that backward but for the first layer."""
    sizes = [(32, 3, 32), (32, 32, 32), (16, 32, 64), (16, 64, 64), (8, 64, 128), (8, 128, 128)]
    layers = [side * side * 9 * inputs * outputs for side, inputs, outputs in sizes] + [4 * 4 * 128 * 128, 128 * 10]
    assert epoch_torch.flop("model2", 4) == 2 * (3 * sum(layers) - layers[0])


def test_the_table_of_an_epoch_adds_up() -> None:
    def contender(name: str, *turns: tuple[float, float], **ready: float) -> Contender:
        made = Contender(name, [])
        made.ready = {"model2-32": ready}
        made.turns = {"model2-32": [{"seconds": s, "cpu": cpu, "images": 100, "steps": 4} for s, cpu in turns]}
        return made

    ours = contender("raybench", (1, 2), (2, 2), (4, 2), flop=1e9)
    augmented = contender("augmentation", (1, 1), (1, 1), (1, 1))
    for turn, seconds in zip(augmented.turns["model2-32"], (0.02, 0.08, 0.04), strict=True):
        turn["alone"] = seconds
    gemm = contender("gemm", (1, 2), (1, 2), (1, 2))
    for turn in gemm.turns["model2-32"]:
        turn["flop"] = 2e11
    text = epoch.report([ours, augmented, contender("tutorial-0", (2, 4), (2, 8), (2, 8)), gemm], "model2-32")
    assert text.startswith("**model2, batch 32**: 100 images, 4 steps, 3 rounds")
    head, first, other = cells(text)
    assert len(head) == len(first) == len(other) == 5
    assert first == ["raybench", "50 (25 to 100)", "1", "50 (50 to 50)", "1"]
    assert other[1:] == ["50 (50 to 50)", "1.00 (0.50 to 2.00)", "12 (12 to 25)", "4.00 (2.00 to 4.00)"]
    assert "By wall-clock time raybench does 50 GFLOP/s (1000.0 MFLOP an image) and GEMM 200: 25 (12 to 50) %." in text
    assert "By CPU time raybench does 50 GFLOP/s (1000.0 MFLOP an image) and GEMM 100: 50 (50 to 50) %." in text
    assert "Augmentation takes 2.0 (1.0 to 4.0) % of the CPU time of an epoch." in text


def run_epoch(*arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / "epoch.py"), "--images", "64", "--rounds", "1", "--cores", "1"]
    done = subprocess.run([*command, "--model", "model2", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_epoch_beside_the_tutorial_with_workers() -> None:
    head, *rows = cells(run_epoch("--batch", "32", "--only", "tutorial-2"))
    assert [row[0] for row in rows] == ["raybench", "PyTorch tutorial, DataLoader with 2 workers"]
    assert all(len(row) == len(head) and all(row) for row in rows)


@pytest.mark.skipif(PEER is None, reason="RAYBENCH_PEER_PYTHON names no Python with benchmarks/requirements.txt")
def test_an_epoch_beside_keras() -> None:
    text = run_epoch("--peer-python", str(PEER), "--batch", "32", "--only", "keras-generator", "keras-layers")
    head, *rows = cells(text)  # the script itself refuses other networks or another number of steps
    assert [row[0] for row in rows] == ["raybench", "Keras ImageDataGenerator", "Keras preprocessing layers"]
    assert all(len(row) == len(head) and all(row) for row in rows)


# ---------------------------------------------------------------------------------------------------------------------
# coverage.py


def test_many_bootstraps_at_once_are_those_of_raybench() -> None:
    values = np.random.default_rng(1).standard_normal((5, 3))
    found = coverage.bootstrap(values, np.random.default_rng(2))
    for number, own in enumerate(values.T):
        assert found[:, number] == pytest.approx(stats.bootstrap_interval(own, seed=3), abs=0.05)


def test_intervals_cover_what_the_docs_say() -> None:
    text = (BENCHMARKS.parent / "docs" / "statistics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\d+) % \| (\d+) % \|$", text, re.MULTILINE)
    assert tuple(int(n) for n, _, _ in rows) == coverage.SIZES
    for n, *said in rows:
        assert [100 * share for share in coverage.coverage(int(n), 2000)] == pytest.approx([*map(int, said)], abs=2)
    assert f"five values covers {rows[1][1]} %" in (stats.mean_interval.__doc__ or "")


# ---------------------------------------------------------------------------------------------------------------------
# step.py


@pytest.mark.parametrize(
    ("operations", "kind"),
    [
        ("aten::mkldnn_convolution", "convolutions, dense"),
        ("aten::convolution_backward", "convolutions, dense"),
        ("aten::addmm", "convolutions, dense"),
        ("autograd::engine::evaluate_function: NativeBatchNormBackward0", "batch norm"),
        ("aten::native_batch_norm_backward", "batch norm"),
        ("aten::max_pool2d_with_indices_backward", "pooling"),
        ("aten::threshold_backward", "activations, dropout"),
        ("aten::_fused_adam_", "optimizer"),
        ("Optimizer.step#Adam.step", "optimizer"),
        ("aten::grid_sampler_2d", step.REST),
        ("aten::relu > aten::clamp_min", "activations, dropout"),
        ("aten::dropout > aten::mul", "activations, dropout"),
        ("aten::convolution_backward > aten::_to_copy > aten::copy_", "copies"),
        ("torch::autograd::AccumulateGrad > aten::add_", step.REST),
    ],
)
def test_kinds_of_operations(operations: str, kind: str) -> None:
    called = None
    for name in operations.split(" > "):
        called = SimpleNamespace(name=name, cpu_parent=called)
    assert step.kind_of(called) == kind


def test_the_time_of_a_step_is_divided_among_kinds_that_all_occur() -> None:
    shares = step.shares("model2", batch=8, steps=2, rounds=2)
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share > 0 for share in shares.values())
    assert max(shares, key=lambda kind: shares[kind]) == "convolutions, dense"


# ---------------------------------------------------------------------------------------------------------------------
# sweep.py, search.py


def test_the_table_of_a_sweep_adds_up() -> None:
    ours, other = sweep.Way("raybench", 2, 4), sweep.Way("shell", 1, 4)
    ours.seconds, ours.start, ours.end, ours.cpu = [12.0], [5.0], [1.0], [16.0]
    other.seconds, other.start, other.end, other.cpu = [24.0], [3.0], [0.0], [42.0]
    text = sweep.report([ours, other], [{"seconds": 2.0, "cpu": 3.0}] * 4, [10.0])
    assert text.startswith(
        "Training alone: 8.0 s for 4 trials, 12.0 of CPU; side by side, in 2 processes without Ray: 10.0"
    )
    _, first, second = cells(text)
    # Of two further trials ((12 - 5 - 1) s x 2 slots - 8 s) / 2 and (16 - 12) / 2; of three (21 x 1 - 8) / 3 and 30 / 3
    assert first[4:] == ["5.0 (5.0 to 5.0)", "1.0 (1.0 to 1.0)", "2.00 (2.00 to 2.00)", "2.00 (2.00 to 2.00)", "1.0"]
    assert second[4:] == [
        "3.0 (3.0 to 3.0)",
        "0.0 (0.0 to 0.0)",
        "4.33 (4.33 to 4.33)",
        "10.00 (10.00 to 10.00)",
        "5.0",
    ]
    assert (
        "12.0 (12.0 to 12.0) s in all, of which 5.0 (5.0 to 5.0) to the first batch and 1.0 (1.0 to 1.0) after" in text
    )
    # 12 / (5 + 8 / 2), 12 / (5 + 4 + 1); 12 / (5 + 10 / 2), 12 / (5 + 5 + 1)
    one, other_one = (line for line in text.splitlines() if line.startswith("Of training"))
    assert "one after the other, 4.0 s on 2 slots: in all 1.33 times start-up and training, 1.20 times them" in one
    assert "side by side, 5.0 s on 2 slots: in all 1.20 times start-up and training, 1.09 times them" in other_one


@pytest.mark.ray
def test_all_ways_of_a_sweep_train_the_same_trials_to_the_same_accuracies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))  # it registers a model here, too
    ways, alone, beside = sweep.sweep(trials=2, groups=1, rounds=1, epochs=1, hidden=8)
    names = ["raybench", *(f"shell loop, {slots} at a time" for slots in sorted({1, sweep.CORES}))]
    assert [way.name for way in ways] == [*names, "one worker group per trial"]
    assert len(alone) == 2 and len(beside) == 1 and beside[0] > 0
    for way in ways:  # `sweep` itself compares the accuracies
        assert len(way.accuracies) == way.trials
        assert len(way.seconds) == len(way.start) == len(way.end) == len(way.cpu) == 1
        assert 0 < way.start[0] < way.start[0] + way.end[0] < way.seconds[0] and way.cpu[0] >= 0


def test_what_a_search_found_and_cost() -> None:
    def trial(model: str, lr: float, accuracy: float, epochs: int, stage: str = "grid", status: str = "completed"):
        return {
            "model": model,
            "lr": lr,
            "val_accuracy": accuracy,
            "epochs_run": epochs,
            "stage": stage,
            "status": status,
        }

    full = pd.DataFrame([trial("a", lr, score, 9) for lr, score in ((0.1, 0.5), (0.1, 0.7), (0.2, 0.64), (0.2, 0.6))])
    found = pd.DataFrame([trial("a", 0.1, 0.5, 1, "search", "pruned"), trial("a", 0.2, 0.64, 9, "confirm")])
    ((head, row),) = [cells(search.report(found, full))]
    assert row == ["a", "0.2", "0.2", "0.6200", "0.6200", "0.0000", "0.0400"]
    assert len(head) == len(row)
    used = SimpleNamespace(seconds=10.0, cpu=20.0)
    _, ours, theirs = cells(search.costs([("search", used, found), ("grid", used, full)]))
    assert ours == ["search", "2", "1", "10", "0.28", "10", "20"]
    assert theirs == ["grid", "4", "0", "36", "1.00", "10", "20"]


def test_rows_that_lie_there_at_the_end_of_a_sweep_are_not_counted_as_before_a_kill(tmp_path: Path) -> None:
    at_end, ended = kill.Seen(), kill.Sweep(tmp_path / "sweep")
    ended.before = {"gone": b"its row"}
    ended.check(at_end)
    assert (at_end.rows, at_end.lost) == (0, 1)


@pytest.mark.parametrize("name", ["search", "precision"])
def test_the_suites_of_benchmarks_are_right(name: str) -> None:
    suite = load(BENCHMARKS / f"{name}.yaml")
    assert suite.name == name
    assert re.search(r"# Command +\S", (BENCHMARKS / f"{name}.yaml").read_text())


# ---------------------------------------------------------------------------------------------------------------------
# gpu.py, but for what needs a GPU


def test_operations_that_compute_nothing_are_no_kernels() -> None:
    with gpu.Launches() as mode:
        turned = torch.ones(4, 2).t().contiguous()  # the transpose is none, its copy is one
        torch.empty(3).detach().add_(turned[0, 0])
    assert mode.seen == {"ones": 1, "clone": 1, "add_": 1}


def test_the_operations_of_a_step_are_counted() -> None:
    network = models.model2((3, 32, 32), 10)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    plain, augmented = gpu.launches("float32", []), gpu.launches("float32", gpu.AFFINE)
    assert plain["convolution"] == plain["convolution_backward"] == convolutions > 3
    assert plain["_fused_adam_"] == 1 and plain["grid_sampler_2d"] == 0
    assert (augmented - plain)["grid_sampler_2d"] == 1 and not plain - augmented
    assert gpu.launches("bf16", [])["_to_copy"] > 2 * convolutions


def test_what_follows_two_dashes_is_for_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    commands: list[list[str]] = []
    row = {"status": "completed", "epochs_run": 3, "train_images": 1000, "device": "a GPU"}

    def run(command: list[str]) -> SimpleNamespace:
        commands.append(command)
        rows = [{**row, "started_at": "2020-01-01T00:00:00+00:00"}, *2 * [{**row, "started_at": "9999"}]]
        (tmp_path / "table1" / "trials").mkdir(parents=True)
        pd.DataFrame([*rows, {**rows[1], "status": "failed"}]).to_parquet(tmp_path / "table1" / "trials" / "a.parquet")
        return SimpleNamespace(returncode=3)

    words = ["table1", "--data-dir", "d", "--share", "6", "--results", str(tmp_path), "--", "--set", "train.epochs=3"]
    arguments = gpu.arguments_of(words)
    assert arguments.options == ["--set", "train.epochs=3"]
    assert gpu.arguments_of(["small"]).options == []
    (tmp_path / "none" / "table1" / "trials").mkdir(parents=True)
    monkeypatch.setattr(subprocess, "run", lambda command: SimpleNamespace(returncode=2))
    gpu.table1(gpu.arguments_of(["table1", "--results", str(tmp_path / "none")]))
    assert capsys.readouterr().out == "table1 ended with 2 after 0 s, 8 trials at a time\n"
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(time, "perf_counter", iter([10.0, 100.0]).__next__)
    gpu.table1(arguments, minutes=1.5)
    suite = str(BENCHMARKS.parent / "suites" / "table1.yaml")
    (command,) = commands
    assert command == [
        *(sys.executable, "-m", "raybench.cli", "run", suite, "--data-dir", "d"),
        *("--set", "resources.gpus=0.1666", "--set", "train.cuda_graph=true", "--results", str(tmp_path)),
        *("--budget", "90s", "--set", "train.epochs=3"),
    ]
    assert capsys.readouterr().out.splitlines() == [
        "table1 ended with 3 after 90 s, 6 trials at a time",
        "3 trials, 1 failed, 9 epochs: 100 images/s in all",
        "trained on: a GPU",
    ]


def test_timms_own_script_is_asked_for_the_size_that_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    script = tmp_path / "benchmark.py"
    script.write_text(
        "import json, pathlib, sys\n"
        f"pathlib.Path({str(tmp_path / 'words')!r}).write_text(' '.join(sys.argv[1:]))\n"
        "print('Benchmarking ...\\n--result\\n' + json.dumps({'train_samples_per_sec': 250.5}, indent=4))\n"
    )
    arguments = gpu.arguments_of(["large", "--timm", str(script), "--large-ways", "bf16"])
    assert gpu.timm_rates(arguments) == [250.5] and gpu.timm_rates(gpu.arguments_of(["large"])) == []
    assert (tmp_path / "words").read_text() == (
        "--model resnet50 --bench train --channels-last --batch-size 256 --img-size 224 --no-retry"
        " --amp --amp-dtype bfloat16"
    )
    script.write_text("""print('--result\\n{"model": "resnet50", "error": "CUDA out of memory"}')""")
    assert gpu.timm_rates(arguments) == []
    script.write_text("raise SystemExit(2)")
    assert gpu.timm_rates(arguments) == []
    assert capsys.readouterr().out.splitlines() == [
        f"{script} failed: CUDA out of memory",
        f"{script} failed: it ended with 2",
    ]
    peer = [250.0, 260.0]
    monkeypatch.setattr(gpu, "contender", lambda name, way, *sizes: Contender(name, [way, *map(str, sizes)]))
    monkeypatch.setattr(gpu, "measured", lambda contenders, rounds: {contenders[0].name: [230.0, 210.0, 220.0]})
    monkeypatch.setattr(gpu, "timm_rates", lambda asked: [peer.pop(0)])
    gpu.large(arguments)
    _, ours, theirs = cells(capsys.readouterr().out)
    assert ours == ["bf16", "220 (210 to 230)", "0.86"]
    assert theirs == ["timm's benchmark.py, bf16, before and after", "255 (250 to 260)", ""]


def test_contenders_train_at_once_and_the_first_so_many_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); from rounds import serve\n"
        "serve({}, {'epoch': lambda: {'images': 100}})"
    )
    made = [Contender(name, [sys.executable, "-c", code]) for name in ("one", "other")]
    turns: list[int] = []
    at_once = gpu._at_once
    monkeypatch.setattr(gpu, "_at_once", lambda contenders: (turns.append(len(contenders)), at_once(contenders))[1])
    rates = gpu.together(made, [1, 2], rounds=2)
    assert turns == [2, 1, 1, 2, 2] and {count: len(found) for count, found in rates.items()} == {1: 2, 2: 2}
    assert all(one.process.returncode == 0 for one in made)


@pytest.mark.parametrize("works", [True, False])
def test_mps_runs_meanwhile_where_processes_reach_the_gpu_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    said = tmp_path / "said"
    control = tmp_path / "nvidia-cuda-mps-control"
    control.write_text(f'#!/bin/sh\n[ "$1" = -d ] && echo "-d $CUDA_MPS_PIPE_DIRECTORY" >> {said} || cat >> {said}\n')
    control.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setattr(gpu, "gpu", lambda: "a GPU" if works else None)
    with gpu.mps() as shared:
        folder = os.environ.get("CUDA_MPS_PIPE_DIRECTORY")
        assert shared == works and (folder is not None) == works
        lines = said.read_text().splitlines()
        assert lines == ([f"-d {folder}"] if works else [lines[0], "quit"])
    assert said.read_text().splitlines() == [lines[0], "quit"] and "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    with gpu.mps(wanted=False) as shared:
        assert not shared and len(said.read_text().splitlines()) == 2
