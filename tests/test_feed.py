"""Batches: in their order, read ahead where that hides something, held where there is room."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from raybench import feed as feeds
from raybench.data import Part, Source, trial_data
from raybench.datasets import Images
from raybench.feed import AHEAD, Feed
from raybench.settings import DatasetSettings


def test_a_streamed_feed_reads_a_little_ahead_and_keeps_the_order(source: Source) -> None:
    part = Part(source.splits["train"], np.arange(90)[::-1].copy())
    streamed, held = (Feed(dataclasses.replace(part, streamed=each), torch.device("cpu")) for each in (True, False))
    asked: list[int] = []

    def positions() -> Iterator[Tensor]:
        for number, at in enumerate(torch.split(torch.randperm(90), 7)):
            asked.append(number)
            yield at

    torch.manual_seed(3)
    expected = list(held.batches(positions()))
    torch.manual_seed(3)
    asked.clear()
    for number, (images, labels) in enumerate(streamed.batches(positions())):
        assert asked[-1] == min(number + AHEAD, 12)
        assert torch.equal(images, expected[number][0])
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(labels, expected[number][1])
    assert number == 12


def test_a_gpu_holds_all_images_unless_they_are_streamed_or_too_many(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that knows shapes and has no values, in the place of a GPU."""
    monkeypatch.setattr(feeds, "_on_device", {})
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    pinned: list[int] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda pixels: pinned.append(len(pixels)) or pixels)
    free = 4 * 90 * 64  # a quarter of it is what the images take
    cases = [("held", False, free), ("streamed", True, free), ("too many", False, free - 1)]
    for case, streamed, memory in cases:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, memory=memory: (memory, 10 * free))
        feed = Feed(Part(source.splits["train"], np.arange(90), streamed), torch.device("meta"))
        is_held = case == "held"
        assert (feed.pixels is not None, feed.at.type) == (is_held, "meta" if is_held else "cpu")
        images, labels = next(feed.batches(torch.split(torch.arange(90, device=feed.at), 16)))
        assert (images.shape, images.device.type) == ((16, 1, 8, 8), "meta")
        assert (labels.shape, labels.device.type) == ((16,), "meta")
        assert bool(pinned) != is_held


def test_splits_with_the_same_rows_are_other_images_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of CINIC-10, all three of them 90,000 images."""
    monkeypatch.setattr(feeds, "_on_device", {})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**9))
    device, rng = torch.device("cpu"), np.random.default_rng(0)

    def source(fingerprint: str) -> Source:
        splits = ("train", "valid", "test")
        images = {name: Images(rng.integers(0, 256, (30, 8, 8, 1), np.uint8), np.arange(30) % 3) for name in splits}
        return Source(images, ("a", "b", "c"), fingerprint)

    for fingerprint in ("one", "other", "one and another"):
        data = trial_data(source(fingerprint), DatasetSettings(name="digits", validation="split"))
        for split, part in {"train": data.train(), "valid": data.validation(), "test": data.test()}.items():
            pixels = feeds._resident(part, device)
            assert pixels is not None and np.array_equal(pixels.numpy(), data.pools[split].pixels)
            assert feeds._resident(part, device) is pixels, "moved there once"
            few = feeds._resident(dataclasses.replace(part, index=part.index[:5]), device)
            assert few is not None and np.array_equal(few.numpy(), data.pools[split].pixels[:5])
        assert len(feeds._on_device) == 6, "those of the last dataset"
        changed = Part(Images(255 - part.images.pixels, part.images.labels), part.index)
        for part in (changed, Part(source("").splits["test"], changed.index)):  # nothing says what these are
            pixels = feeds._resident(part, device)
            assert pixels is not None and np.array_equal(pixels.numpy(), part.images.pixels)
        assert len(feeds._on_device) == 6, "and others are not kept"


def test_what_reading_ahead_raises_is_raised_here(source: Source) -> None:
    feed = Feed(Part(source.splits["train"], np.arange(90), streamed=True), torch.device("cpu"))
    with pytest.raises(IndexError, match="index 90 is out of bounds"):
        next(feed.batches([torch.tensor([90])]))
