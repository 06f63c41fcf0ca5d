"""The contenders of epoch.py that are written in PyTorch. Each trains as the people who wrote it say it is done.

    python benchmarks/epoch_torch.py KIND WORKERS IMAGES.npz WORK...

KIND is raybench, raybench-bf16, raybench-apart, augmentation, tutorial, timm or gemm, WORK is model2-32 for model2 at
batch 32; one turn is one epoch of IMAGES, without validation; of augmentation, raybench's on its batches alone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rounds import Contender, serve
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from raybench import models
from raybench.data import Images, Source, trial_data
from raybench.settings import TrialSettings
from raybench.train import Training, World
from raybench.trial import fresh_process

MODELS = {"model2": "model2", "resnet18": "timm:resnet18"}
AUGMENTATION = [{"rotation": 20}, {"shift": 0.2}, {"zoom": 0.2}]
"""Of report 000's first approach all but the whitening, which the peers have not got."""
GEMM = 1024
"""Rows and columns of the matrices whose product gives the machine's rate; 512 and 2,048 were no faster."""

PRODUCTS = 100

Turn = Callable[[], Mapping[str, Any]]
Pixels = NDArray[np.uint8]
"""[N, H, W, C]"""


def network(name: str) -> nn.Module:
    """Return raybench's network for 32x32 RGB images: every PyTorch contender trains the same."""
    settings = TrialSettings.model_validate({"dataset": "cifar10", "model": MODELS[name]})
    return models.build(settings.model, (3, 32, 32), 10)


def flop(name: str, batch: int) -> int:
    """Count the floating-point operations of one image's forward and backward pass, in a batch of this size.

    Two for each multiply-add of convolutions and dense layers, as torch counts them; nothing else is counted.
    """
    model, counter = network(name), FlopCounterMode(display=False)
    with counter:
        model(torch.zeros(batch, 3, 32, 32)).sum().backward()
    return counter.get_total_flops() // batch


def raybench(name: str, batch: int, workers: int, pixels: Pixels, labels: NDArray[np.int64], **train: Any) -> Turn:
    """raybench's own loop, the code that runs in a Tune actor."""
    training = _begun(name, batch, pixels, labels, **train)
    epoch = 0

    def turn() -> Mapping[str, Any]:
        nonlocal epoch
        epoch += 1
        begun = time.perf_counter()
        training._train_epoch(epoch)
        return {"seconds": time.perf_counter() - begun, "steps": training.rate.steps // epoch, "images": len(pixels)}

    return turn


def augmentation(name: str, batch: int, workers: int, pixels: Pixels, labels: NDArray[np.int64]) -> Turn:
    """raybench's augmentation of the batches of an epoch, without training: its CPU seconds are ``alone``."""
    training = _begun(name, batch, pixels, labels)
    feed, generator = training.feeds["train"], torch.Generator().manual_seed(0)
    batches = [images for images, _ in feed.batches(torch.split(torch.arange(len(feed)), batch))]

    def turn() -> Mapping[str, Any]:
        begun, cpu = time.perf_counter(), time.process_time()
        for images in batches:
            training.augmentation.train(images, training.augmentation.draw(len(images), generator, "cpu"))
        alone = time.process_time() - cpu
        return {"seconds": time.perf_counter() - begun, "alone": alone, "steps": len(batches), "images": len(pixels)}

    return turn


def _begun(name: str, batch: int, pixels: Pixels, labels: NDArray[np.int64], **train: Any) -> Training:
    """Return a trial of raybench that is about to train."""
    source = Source(
        {"train": Images(pixels, labels), "test": Images(pixels[:500], labels[:500])}, tuple("0123456789"), "epoch.py"
    )
    settings = TrialSettings.model_validate(
        {
            "dataset": {"name": "cifar10", "validation": "test"},
            "model": MODELS[name],
            "augmentation": AUGMENTATION,
            "train": {"batch_size": batch, **train},
            "resources": {"cpus": torch.get_num_threads()},
        }
    )
    with fresh_process(0, settings.resources.cpus):
        training = Training(
            "epoch", 0, settings, trial_data(source, settings.dataset), torch.device("cpu"), World(), {}
        )
        training._begin(settings.train)
    return training


def apart(images: Path, work: str) -> Turn:
    """A trial of raybench on each core, as a sweep runs them unless a suite says otherwise; one turn is one of each."""
    command = [sys.executable, __file__, "raybench", "0", str(images), work]
    trials = [Contender(f"trial {core}", command, {"OMP_NUM_THREADS": "1"}) for core in os.sched_getaffinity(0)]
    for trial in trials:
        trial.start()

    def turn() -> Mapping[str, Any]:
        begun = time.perf_counter()
        for trial in trials:
            trial.tell(work)
        done = [trial.hear() for trial in trials]
        images = sum(one["images"] for one in done)
        return {"seconds": time.perf_counter() - begun, "steps": done[0]["steps"], "images": images}

    return turn


class PilImages(Dataset[tuple[Any, int]]):
    """Images in memory, given out one by one as PIL images, as torchvision.datasets.CIFAR10 does."""

    def __init__(self, pixels: Pixels, labels: NDArray[np.int64], transform: Callable[[Any], Any]) -> None:
        self.data, self.targets, self.transform = pixels, labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def tutorial(name: str, batch: int, workers: int, pixels: Pixels, labels: NDArray[np.int64]) -> Turn:
    """PyTorch's tutorial "Training a classifier": torchvision's transforms, a DataLoader, and the plain loop.

    Its workers are kept from epoch to epoch, which the tutorial does not do.
    """
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomAffine(20, (0.2, 0.2), (0.8, 1.2), interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    )
    loader = DataLoader(
        PilImages(pixels, labels, transform),
        batch_size=batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return _plain_loop(network(name), loader, len(pixels))


def timm(name: str, batch: int, workers: int, pixels: Pixels, labels: NDArray[np.int64]) -> Turn:
    """timm's create_loader with its own random crops and flips, and its prefetcher, before the same plain loop."""
    from timm.data import create_loader

    loader = create_loader(
        PilImages(pixels, labels, lambda image: image),
        input_size=(3, 32, 32),
        batch_size=batch,
        is_training=True,
        scale=(0.64, 1.0),
        ratio=(0.8, 1.25),
        color_jitter=None,
        interpolation="bilinear",
        num_workers=workers,
        persistent_workers=workers > 0,
        device=torch.device("cpu"),
    )
    return _plain_loop(network(name), loader, len(pixels))


def _plain_loop(model: nn.Module, loader: Any, images: int) -> Turn:
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    model.train()

    def turn() -> Mapping[str, Any]:
        begun, steps, running_loss = time.perf_counter(), 0, 0.0
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            steps += 1
        return {"seconds": time.perf_counter() - begun, "steps": steps, "images": images}

    return turn


def gemm() -> Turn:
    """Products of square float32 matrices: the fastest that this machine's threads multiply and add."""
    a, b = torch.randn(GEMM, GEMM), torch.randn(GEMM, GEMM)
    out: Tensor = torch.empty(GEMM, GEMM)

    def turn() -> Mapping[str, Any]:
        begun = time.perf_counter()
        for _ in range(PRODUCTS):
            torch.mm(a, b, out=out)
        return {"seconds": time.perf_counter() - begun, "flop": PRODUCTS * 2 * GEMM**3}

    return turn


def contender(kind: str, workers: int, pixels: Pixels, labels: NDArray[np.int64], work: str) -> tuple[Any, Turn]:
    """Return what a contender says of ``work`` when it is ready, and its turn."""
    name, _, batch = work.partition("-")
    if kind == "gemm":
        return {}, gemm()
    arrays = int(batch), workers, pixels, labels
    if kind.startswith("raybench"):
        turn = raybench(name, *arrays, precision="bf16" if kind == "raybench-bf16" else "float32")
    else:
        turn = {"augmentation": augmentation, "tutorial": tutorial, "timm": timm}[kind](name, *arrays)
    ready = {"parameters": models.parameter_count(network(name))}
    return ready | ({"flop": flop(name, int(batch))} if kind == "raybench" else {}), turn


def main() -> None:
    kind, workers, images, *works = sys.argv[1:]
    with np.load(Path(images)) as stored:
        pixels, labels = stored["pixels"], stored["labels"]
    if kind == "raybench-apart":
        made = {work: ({}, apart(Path(images), work)) for work in works}
    else:
        made = {work: contender(kind, int(workers), pixels, labels, work) for work in works}
    serve({work: ready for work, (ready, _) in made.items()}, {work: turn for work, (_, turn) in made.items()})


if __name__ == "__main__":
    main()
