"""What is installed and found, for people and for bug reports."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from raybench import __version__
from raybench.data import cache_folder, load
from raybench.errors import UserError
from raybench.registry import DATASETS
from raybench.settings import DatasetSettings

PACKAGES = ("ray", "torch", "torchvision", "timm", "pandas", "pyarrow")


def findings(data_dir: Path) -> Iterator[tuple[str, str]]:
    """Yield (what was looked for, what was found)."""
    yield "raybench", __version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for package in PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, "not installed"
    yield "CPUs", str(os.cpu_count())
    yield "GPUs", _gpus()
    yield "Ray cluster", _cluster()
    yield "cache", f"{cache_folder()}"
    for name in DATASETS.names():
        try:
            source = load(DatasetSettings(name=name), data_dir, download=False)  # type: ignore[call-arg]
            sizes = ", ".join(f"{split} {len(images.labels):,}" for split, images in source.splits.items())
            yield f"data: {name}", f"{sizes}; fingerprint {source.fingerprint}"
        except UserError as error:
            yield f"data: {name}", f"not found: {error}"


def _gpus() -> str:
    try:
        import torch
    except ImportError as error:
        return f"unknown: {error}"
    if not torch.cuda.is_available():
        return "none (torch sees no CUDA device)"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _cluster() -> str:
    address = os.environ.get("RAY_ADDRESS")
    place = os.environ.get("RAY_TMPDIR") or (sys.platform == "linux" and os.environ.get("TMPDIR")) or "/tmp"
    current = Path(place) / "ray" / "ray_current_cluster"
    if address:
        return f"RAY_ADDRESS is {address}"
    if current.is_file():
        return f"`--address auto` would join {current.read_text().strip()}"
    return "none on this machine: `raybench run` starts one for its own time"
