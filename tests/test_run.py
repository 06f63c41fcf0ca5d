"""The story of a run as far as it goes without Ray; tests/test_schedule.py has the rest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from raybench import cli

SUITE = """
name: noted
dataset: digits
compare: {model: {deep: {name: "timm:resnet10t", head: {}}}, augmentation: [none, flip]}
"""


def test_notes_on_weights_are_shown_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("noted.yaml").write_text(SUITE, encoding="utf-8")
    # An address that is refused once the trials are prepared.
    monkeypatch.setattr(sys, "argv", ["raybench", "run", "noted.yaml", "--address", "ray://nowhere"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "noted  ",
        "2 trials (model 1 x augmentation 2 x seed 1): 0 finished, 2 to run",
        "WARNING: timm:resnet10t: random weights (pretrained: true for those of the hub, pretrained: false if that is"
        " meant)",
        "raybench: --address ray://nowhere: Ray Client is not supported: use `auto` on the head, or host:6379",
    ]
