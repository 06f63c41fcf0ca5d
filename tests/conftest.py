"""What several test files share: a cache of their own, the command line, suites, made-up data, object storage."""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Callable, Iterator, Sized
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import Raybench, Result, row_of
from pyarrow import fs

from raybench import cli, plan
from raybench import suite as suites
from raybench.data import Images, Source
from raybench.grid import Trial, identity
from raybench.plan import Choice, snapshot
from raybench.records import Outcome, Predictions
from raybench.registry import MODELS
from raybench.settings import TrialSettings
from raybench.store import Store
from raybench.suite import Suite

REPORTS = Path(__file__).parents[2] / "shared" / "reports"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start Ray come last."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n 2`` two files run side by side, and those with tests that start Ray one after the other: these share
    ports and folders. (Marks of pytest-xdist 3.8 for that are not read by pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    on_ray = {file.name for file in Path(__file__).parent.glob("test_*.py") if "mark.ray" in file.read_text()}

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0]).name
            return "tests on Ray" if file in on_ray else file

    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the user's cache out of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test a cache that is empty."""
    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def fits(own_cache: None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An empty cache, and the number of images that augmentations are fitted on, every time."""
    from raybench.augment import Augmentation

    counts: list[int] = []
    fit = Augmentation.fit

    def counting(self: Augmentation, images: Sized) -> Any:
        counts.append(len(images))
        return fit(self, images)

    monkeypatch.setattr(Augmentation, "fit", counting)
    return counts


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A cluster on this machine, with nothing left of a test file's before."""
    from raybench import connect

    # Left by a cluster that was killed, it misleads Ray's clean-up of worker groups too.
    Path("/tmp/ray/ray_current_cluster").unlink(missing_ok=True)
    with connect.connect("local") as connected:
        yield connected


@pytest.fixture
def raybench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Raybench:
    """``raybench("plan", "quickstart")`` runs the command line in this process and in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("RAYBENCH_RESULTS", "RAYBENCH_DATA", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["raybench", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        result = Result(end.value.code, *capsys.readouterr())
        assert "Traceback" not in result.out + result.err
        return result

    return run


@pytest.fixture
def load_suite(tmp_path: Path) -> Callable[..., tuple[Suite, list[Trial]]]:
    """``load_suite(yaml, *sets)`` returns a suite and its trials."""

    def load(text: str, *sets: str) -> tuple[Suite, list[Trial]]:
        path = tmp_path / "suite.yaml"
        path.write_text(text, encoding="utf-8")
        suite = suites.load(path, sets)
        return suite, plan.expand(suite)

    return load


@pytest.fixture(scope="session")
def source() -> Source:
    """90 + 40 images of 8x8 grey pixels: noise over one of three patterns, learnt within an epoch or two."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 200, (3, 8, 8, 1))

    def images(count: int) -> Images:
        labels = np.arange(count) % 3
        return Images((patterns[labels] + rng.integers(0, 56, (count, 8, 8, 1))).astype(np.uint8), labels)

    return Source({"train": images(90), "test": images(40)}, ("a", "b", "c"), "0123456789abcdef")


@pytest.fixture(scope="session")
def make_trial() -> Callable[..., Trial]:
    """``make_trial(seed, model=..., augmentation=..., dataset={...}, resources={...}, **train)`` returns a trial."""

    def make(
        seed: int = 0,
        *,
        model: Any = "mlp",
        augmentation: Any = "none",
        dataset: dict[str, Any] | None = None,
        resources: dict[str, Any] | None = None,
        **train: Any,
    ) -> Trial:
        settings = TrialSettings.model_validate(
            {
                "dataset": {"name": "digits", "validation": {"size": 30}, **(dataset or {})},
                "model": model,
                "augmentation": augmentation,
                "train": {"epochs": 3, "batch_size": 16, **train},
                "resources": resources or {},
            }
        ).model_dump()
        return Trial(
            id=identity(settings, seed),
            suite="tests",
            labels={"seed": seed},
            cell=(),
            point=(),
            seed=seed,
            settings=settings,
        )

    return make


@pytest.fixture
def add_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    """``add_model(name, builder)`` registers a model until the test ends."""

    def add(name: str, builder: Any) -> None:
        monkeypatch.setitem(MODELS._entries, name, builder)

    return add


@pytest.fixture
def add_mlp(add_model: Callable[[str, Any], None]) -> Callable[[str, Callable[..., Any]], None]:
    """``add_mlp(name, forward)`` registers a model around `mlp`: ``forward(mlp, images)`` returns its logits."""
    from torch import nn

    from raybench import models

    class Around(nn.Module):
        def __init__(self, inner: nn.Module, around: Callable[..., Any]) -> None:
            super().__init__()
            self.inner, self.around = inner, around

        def forward(self, images: Any) -> Any:
            return self.around(self.inner, images)

    return lambda name, forward: add_model(name, lambda *of: Around(models.mlp(*of), forward))


@pytest.fixture(scope="session")
def store_results() -> Callable[..., tuple[Store, Suite, list[Trial]]]:
    """``store_results(root, yaml, of)`` stores a made-up row of every trial and returns the open folder's contents.

    ``of(trial)`` is its test accuracy; or which test images it had right, bool [images], which are then stored too; or
    columns of its row; or None, and the trial has not run.
    """

    def make(root: Path, text: str, of: Callable[[Trial], Any], **others: Any) -> tuple[Store, Suite, list[Trial]]:
        root.mkdir(parents=True, exist_ok=True)
        (root / "suite.yaml").write_text(text, encoding="utf-8")
        suite = suites.load(root / "suite.yaml")
        store, trials = Store(root, suite), plan.expand(suite)
        store.open(snapshot(Choice(suite)))
        for trial in trials:
            if (found := of(trial)) is not None:
                store.write(made_up(trial, found, others))
        store.close()
        return store, suite, trials

    return make


def made_up(trial: Trial, found: Any, others: dict[str, Any]) -> Outcome:
    columns = found if isinstance(found, dict) else {"test_accuracy": float(np.mean(found))}
    predictions = None
    if isinstance(found, np.ndarray):
        images = len(found)
        label = (np.arange(images) % 10).astype(np.int16)
        prediction = np.where(found, label, (label + 1) % 10).astype(np.int16)
        logits = np.zeros((images, 10), np.float16)
        predictions = Predictions(
            index=np.arange(images, dtype=np.int32), label=label, logits=logits, prediction=prediction
        )
    return Outcome(row=row_of(trial, **{**others, **columns}), predictions=predictions)


class Storage:
    """S3 on this machine, by moto, which keeps what it stores while it is switched off."""

    def __init__(self) -> None:
        self.port = 0
        self.on()

    def on(self) -> None:
        server = pytest.importorskip("moto.server", reason="no S3: pip install 'moto[server]', or raybench[dev]")
        self._server = server.ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def off(self) -> None:
        self._server.stop()


@pytest.fixture(scope="session")
def running_storage() -> Iterator[Storage]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    storage = Storage()
    yield storage
    storage.off()


@pytest.fixture
def storage(running_storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Let raybench find the storage, and nothing else, through the environment."""
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ENDPOINT_URL": running_storage.endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    return running_storage


@pytest.fixture
def bucket(storage: Storage) -> str:
    """Return the URI of an empty bucket."""
    name = f"tests-{uuid.uuid4().hex[:8]}"
    fs.FileSystem.from_uri(f"s3://{name}?allow_bucket_creation=true")[0].create_dir(name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def report_text() -> Callable[[str], str]:
    """``report_text("003")`` is the text of a report that suites are of; where it is missing, the test is skipped."""

    def text(number: str) -> str:
        paths = list(REPORTS.glob(f"{number}_*.txt"))
        if not paths:
            pytest.skip(f"the text of report {number} is not in {REPORTS}")
        return paths[0].read_text(encoding="utf-8")

    return text
