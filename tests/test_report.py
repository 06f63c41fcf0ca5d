"""The report: what it says, that it runs nothing it was given, and what a reader sees of it in a browser."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import Raybench

from raybench import ood, plan
from raybench import suite as suites
from raybench.figures import collect
from raybench.grid import Trial
from raybench.plan import Choice
from raybench.records import Activations, EpochRow, Outcome, Predictions, TrialRow
from raybench.registry import PLOTS, Registry
from raybench.report import SCRIPT, _source, report
from raybench.store import Store
from raybench.suite import OutOfDistribution, shipped_suites
from raybench.yamlfile import Complaints, parse_yaml

HOSTILE = "</script></style><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
SUITE = """
name: small
about: "{about}"
dataset: {{name: digits}}
compare:
  model: {{plain: mlp, "{label}": {{name: mlp, hidden: [8]}}}}
  augmentation: {{none: none, mild: {{shift: 0.05}}}}
search: {{lr: [1e-3, 1e-2]}}
confirm: none
repeat: {{seed: 2}}
reference:
  - {{model: plain, augmentation: none, n: 5, mean: 0.8, std: 0.01, min: 0.79, max: 0.81}}
"""


def outcome(trial: Trial, *, images: int = 100, classes: int = 10, **columns: Any) -> Outcome:
    """Return what a trial might leave behind: made numbers, the same for the same trial."""
    rng = np.random.default_rng(int(trial.id, 16))
    epochs = int(rng.integers(6, 14))
    label = np.arange(images, dtype=np.int16) % classes
    logits = rng.normal(size=(images, classes)).astype(np.float16)
    logits[np.arange(images), label] += np.float16(1.5)
    prediction = logits.argmax(1).astype(np.int16)
    accuracy = float((prediction == label).mean())
    learnt = accuracy * (1 - np.exp(-np.arange(1, epochs + 1) / 3))
    columns = {
        "trial_id": trial.id,
        "suite": trial.suite,
        "stage": trial.stage,
        "dataset": trial.settings["dataset"]["name"],
        "model": str(trial.labels["model"]),
        "augmentation": str(trial.labels["augmentation"]),
        "seed": trial.seed,
        "lr": float(trial.labels["lr"]),
        "status": "stopped_early",
        "epochs": epochs,
        "best_epoch": epochs - 2,
        "selection": "val_accuracy",
        "validation": "test" if trial.settings["dataset"]["validation"] == "test" else "fraction 0.1",
        "train_loss": 0.5,
        "train_accuracy": accuracy,
        "val_loss": 0.6,
        "val_accuracy": accuracy,
        "test_loss": 0.7,
        "test_accuracy": accuracy,
        "train_images": 1000,
        "validation_images": images,
        "test_images": images,
        "settings": json.dumps(trial.settings),
        "dataset_fingerprint": "a584e13000eb5ccb",  # of digits
        "threads": 1,
        "workers": 1,
        "wall_seconds": 10 + trial.seed + epochs / 10,
        "images_per_second": 1000.5 + trial.seed,
        "device": "a CPU",
        "raybench_version": "0.1.0",
        "torch_version": "2.15.0",
        "git_commit": "abc",
        "git_dirty": False,
        **columns,
    }
    row = TrialRow(**columns)
    rows = tuple(
        EpochRow(trial_id=trial.id, epoch=number, train_loss=1 - value, train_accuracy=value, val_loss=1.1 - value,
                 val_accuracy=value, lr=row.lr, seconds=1.0)
        for number, value in enumerate(learnt.tolist(), 1)
    )  # fmt: skip
    if row.status == "failed":
        nothing = dict.fromkeys(("best_epoch", "train_accuracy", "val_accuracy", "test_accuracy", "images_per_second"))
        return Outcome(row=dataclasses.replace(row, **nothing), epochs=rows[:2])
    index = np.arange(images, dtype=np.int32)
    predictions = Predictions(index=index, label=label, logits=logits, prediction=prediction)
    return Outcome(row=row, epochs=rows, predictions=predictions)


Special = Callable[[int], dict[str, Any] | None]
"""What is special of a trial, by its number; None if it did not run."""


def run(folder: Path, choice: Choice, special: Special = lambda number: {}, **given: Any) -> Store:
    """Store what a run of ``choice`` might."""
    store = Store(folder, choice.suite)
    store.open(plan.snapshot(choice))
    for number, trial in enumerate(choice.trials({})):
        if (columns := special(number)) is not None:
            store.write(outcome(trial, **given, **columns))
    store.close()
    return store


def made(store: Store, choice: Choice) -> str:
    return report(store, choice, collect(store, choice))


def small(folder: Path, about: str = "two models", label: str = "narrow", *sets: str) -> Choice:
    (folder / "small.yaml").write_text(SUITE.format(about=about, label=label))
    return Choice(suites.load(folder / "small.yaml", sets))


def without_torch(folder: Path, *commands: str) -> None:
    """Run commands in ``folder``, in a process that finds neither torch nor Ray; each must end well."""
    code = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "ray"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from raybench import cli
for command in sys.argv[1:]:
    sys.argv = ["raybench", *command.split()]
    try:
        cli.main()
    except SystemExit as end:
        assert end.code == 0, command
"""
    done = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")


class Page(HTMLParser):
    """What a file of HTML has: elements with their attributes, its scripts, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem is None:
            self.text += data

    def said(self) -> str:
        return " ".join(self.text.split())


# ---------------------------------------------------------------------------------------------------------------------
# What it says


@pytest.fixture(scope="module")
def table1(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of table1 with 2,000 test images: 43 of 45 trials finished, one failed, one did not run."""
    choice = Choice(suites.load(shipped_suites()["table1"]))
    error = {"status": "failed", "error_class": "out_of_memory", "error": "no memory", "traceback": "Traceback: here"}

    special: dict[int, dict[str, Any] | None] = {7: error, 9: {"torch_version": "2.14.0"}, 20: None}
    return made(run(tmp_path_factory.mktemp("table1"), choice, lambda n: special.get(n, {}), images=2000), choice)


def test_45_trials_are_a_small_file(table1: str) -> None:
    assert len(table1.encode()) < 10 * 2**20


def test_it_says_what_was_planned_and_how_it_ended(table1: str) -> None:
    said = Page(table1).said()
    assert "45 trials planned: 43 stopped early, 1 failed, 1 not run yet" in said
    assert "WARNING: validation images = TEST images: the epoch was chosen on the test set" in said
    assert "std: sample standard deviation (ddof=1)" in said
    assert "model=model3, augmentation=aug1: std 0.010 cannot be" in said
    assert "model2/aug1/0.001/s0: out_of_memory no memory" not in said
    assert "model3/aug1/0.001/s0: out_of_memory no memory" in said
    assert "Traceback: here" in said
    assert "torch 2.15.0 (43), 2.14.0 (1)" in said
    assert re.search(r" raybench run table1 --results \S+$", said)


def test_every_trial_has_a_row(table1: str) -> None:
    body = re.search(r'<table class="trials">.*?<tbody>(.*?)</tbody>', table1, re.DOTALL)
    assert body
    rows = [Page(row).said() for row in body[1].split("</tr>")[:-1]]
    trials = Choice(suites.load(shipped_suites()["table1"])).trials({})
    assert [row.split()[:5] for row in rows] == [
        [trial.id, *(str(trial.labels[name]) for name in ("model", "augmentation", "lr", "seed"))] for trial in trials
    ]
    assert rows[20].endswith(" not run – – – – – – – –")
    first = outcome(trials[0], images=2000).row
    accuracy = f"{first.test_accuracy:.4f}"
    assert rows[0].endswith(
        f" stopped_early {first.epochs} {first.best_epoch} {accuracy} {accuracy} {accuracy} {first.wall_seconds:.1f}"
        " 1,000 a CPU"
    )


def test_every_figure_is_there_or_the_reason_why_not(hostile: str) -> None:
    page = Page(hostile)
    drawn = [str(found["id"]).removeprefix("figure-") for tag, found in page.elements if tag == "figure"]
    assert {"curves", "grid", "confusion", "gallery"} <= set(drawn)
    assert len([tag for tag, _ in page.elements if tag == "svg"]) == len(drawn)
    others = [kind for kind in PLOTS.names() if kind not in drawn]
    assert f"Not drawn: {', '.join(others)} " in page.said()
    assert all(re.search(rf"{kind}: (is|needs) ", page.said()) for kind in others)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of the time."""
    monkeypatch.setattr("raybench.report.PLOTS", Registry("figure", {}))


def test_nothing_is_stored_yet(tmp_path: Path) -> None:
    choice = small(tmp_path)
    page = Page(made(run(tmp_path, choice, lambda n: None), choice))
    assert "16 trials planned: 16 not run yet" in page.said()
    assert "There is nothing to draw yet." in page.said()
    assert "box: no planned trial has finished" in page.said()
    assert not [found for tag, found in page.elements if tag == "figure" or found.get("id") == "failures"]


@pytest.mark.usefixtures("no_figures")
def test_damaged_files_are_a_warning(tmp_path: Path) -> None:
    choice = small(tmp_path)
    store = run(tmp_path, choice)
    damaged = store.folder / "trials" / f"{choice.trials({})[0].id}.parquet"
    damaged.write_bytes(b"torn")
    said = Page(made(store, choice)).said()
    assert f"WARNING: {damaged}: not a readable result" in said
    assert "16 trials planned: 15 stopped early, 1 not run yet" in said


@pytest.mark.usefixtures("no_figures")
def test_trials_of_a_search_say_their_stage(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(SUITE.format(about="", label="narrow").replace("confirm: none", ""))
    choice = Choice(suites.load(tmp_path / "search.yaml"))
    html = made(run(tmp_path, choice), choice)
    assert "search: no winner is known yet" not in Page(html).said()
    stages = re.findall(r'<td class="left">(search|confirm)</td>', html)
    assert (stages.count("search"), stages.count("confirm")) == (4, 8)


# ---------------------------------------------------------------------------------------------------------------------
# The suite, and how to run it again


@pytest.mark.usefixtures("no_figures")
def test_the_suite_that_is_shown_plans_the_same_trials(tmp_path: Path) -> None:
    choice = small(tmp_path, "two models", "narrow", "repeat.seed=2", "train.epochs=7")
    html = made(run(tmp_path, choice), choice)
    shown = re.search(r'<section id="suite">.*?(<pre.*?</pre>)', html, re.DOTALL)
    assert shown
    document, _ = parse_yaml(Page(shown[1]).text, "report")
    again = suites.build(document, Complaints("report"), tmp_path)
    assert [trial.id for trial in plan.expand(again)] == [trial.id for trial in choice.trials({})]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("only", "limit", "options"),
    [({}, None, ""), ({"seed": ["0", "1"]}, 3, " --only seed=0 --only seed=1 --limit 3")],
)
def test_the_command_to_run_it_again(
    only: dict[str, list[str]], limit: int | None, options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    choice = Choice(small(Path()).suite, only, limit)
    said = Page(made(run(Path("results"), choice, lambda n: None), choice)).said()
    assert said.endswith(f" raybench run small.yaml{options}")
    said = Page(made(run(Path("other place"), choice, lambda n: None), choice)).said()
    assert said.endswith(f" raybench run small.yaml{options} --results 'other place'")


@pytest.mark.usefixtures("no_figures")
def test_the_command_has_what_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small(Path())
    choice = Choice(suites.load(Path("small.yaml"), ["dataset.validation={size: 50}"], smoke=True))
    said = Page(made(run(Path("results"), choice, lambda n: None), choice)).said()
    assert "raybench run small.yaml --set 'dataset.validation={size: 50}' --smoke" in said
    assert "WARNING: smoke run: numbers mean nothing" in said


# ---------------------------------------------------------------------------------------------------------------------
# What it was given is shown, and never run


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a suite and of errors that would rather be a program, made where neither torch nor Ray is."""
    folder = tmp_path_factory.mktemp("hostile")
    choice = small(folder, HOSTILE, "<script>hacked=1</script>")
    error = {"status": "failed", "error_class": "error", "error": HOSTILE, "traceback": HOSTILE}
    run(folder / "results", choice, lambda n: error if n == 3 else {"device": HOSTILE})
    without_torch(folder, "report small -o hostile.html")
    return (folder / "hostile.html").read_text(encoding="utf-8")


def test_text_is_escaped(hostile: str) -> None:
    page = Page(hostile)
    assert page.scripts == [_source(SCRIPT)]
    assert not [found for tag, found in page.elements if tag == "img" or any(name.startswith("on") for name in found)]
    assert page.text.count(HOSTILE) > 10  # about, labels, device, error, traceback, suite


def test_the_browser_is_told_to_run_only_the_script_of_raybench(hostile: str) -> None:
    page = Page(hostile)
    (policy,) = (found["content"] for _, found in page.elements if found.get("http-equiv") == "Content-Security-Policy")
    own = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{own}'"


def test_it_needs_no_other_file(table1: str) -> None:
    elements = Page(table1).elements
    links = [found[name] or "" for _, found in elements for name in ("src", "href", "xlink:href") if name in found]
    assert [link for link in links if not link.startswith(("#", "data:"))] == []
    assert "@import" not in table1
    assert re.findall(r"url\((?!#)", table1) == []


def test_ids_are_unique_and_links_lead_somewhere(table1: str) -> None:
    elements = Page(table1).elements
    ids = [found["id"] for _, found in elements if "id" in found]
    assert len(set(ids)) == len(ids)
    links = {str(found["href"])[1:] for tag, found in elements if tag == "a" and "href" in found}
    assert links <= set(ids)


# ---------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def raybench(raybench: Raybench, tmp_path: Path) -> Raybench:
    """``raybench("report", "small")`` runs the command line in a folder with results of ``small``."""
    run(tmp_path / "results", small(tmp_path))
    return raybench


def test_the_command_prints_where_the_report_is(raybench: Raybench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raybench.report.PLOTS", Registry("figure", {"box": "raybench.figures.grids:box"}))
    assert raybench("report", "small") == (0, "results/small/report.html\n", "")
    assert raybench("report", "results/small", "-o", "new/first.html") == (0, "new/first.html\n", "")
    text = Path("new/first.html").read_text(encoding="utf-8")
    assert '<figure id="figure-box">' in text
    assert text == Path("results/small/report.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["results"], "raybench: results: no results here: run the suite first"),
        (["small", "-o", "small.yaml/report.html"], "small.yaml"),
    ],
)
def test_a_mistake_is_one_line(raybench: Raybench, arguments: list[str], message: str) -> None:
    status, out, err = raybench("report", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(
    "commands",
    [
        ["summarize small", "check small.yaml", "stats small --over=images", "compare small small"],
        ["plot curves small", "plot gallery small", "classes small"],
    ],
)
def test_what_is_stored_is_read_without_torch_and_ray(commands: list[str], tmp_path: Path) -> None:
    run(tmp_path / "results", small(tmp_path))
    without_torch(tmp_path, *commands)


def test_scores_of_images_from_outside_are_drawn_and_reported_without_torch(tmp_path: Path) -> None:
    choice = small(tmp_path)
    store, trial = run(tmp_path / "results", choice), choice.trials({})[1]
    scores = Activations(
        score="energy",
        layer=None,
        outside="svhn",
        dataset=np.repeat(["in", "out"], 20),
        index=np.tile(np.arange(20, dtype=np.int32), 2),
        judged=np.tile([False, True], 20),
        value=np.arange(40, dtype=np.float32),
    )
    digits = dataclasses.replace(scores, outside="digits")
    store.open()
    for name, fingerprint, of in (("svhn", "fedc", scores), ("digits", "a584e13000eb5ccb", digits)):
        outside = OutOfDistribution.model_validate({"dataset": name})
        store.write_detection(trial.id, ood.rows_of(trial.id, outside, fingerprint, [of], {}), [of])
    store.close()
    without_torch(
        tmp_path,
        "plot activations small -o drawn.svg",
        "plot outside small --dataset digits -o samples.svg",
        "report small -o report.html",
    )
    assert "from outside (digits), told rightly" in (tmp_path / "samples.svg").read_text()
    drawn = (tmp_path / "drawn.svg").read_text()
    assert f"trial {trial.name} ({trial.id}); images from outside: svhn" in drawn and "(n = 10)" in drawn
    assert '<figure id="figure-activations">' in (tmp_path / "report.html").read_text()


# ---------------------------------------------------------------------------------------------------------------------
# In a browser


class Browser:
    """Chromium, without a window and without a network."""

    def __init__(self, folder: Path, program: str, driver: str) -> None:
        webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install 'raybench[dev]'")
        options = webdriver.ChromeOptions()
        options.binary_location = program
        for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run",
                     "disable-background-networking", "disable-component-update", "disable-sync",
                     f"user-data-dir={folder / 'profile'}"):  # fmt: skip
            options.add_argument(f"--{word}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.folder, self.by = folder, "css selector"
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(driver))

    def open(self, html: str, width: int = 1280) -> None:
        """Open a page in a window ``width`` pixels wide, as a telephone's where that is narrow."""
        file = self.folder / "report.html"
        file.write_text(html, encoding="utf-8")
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)  # forget what was said of other pages
        self.driver.get(file.as_uri())

    def do(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        return self.driver.find_element(self.by, selector)

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [message for message in messages if message["method"] == "Network.requestWillBeSent"]
        return [message["params"]["request"]["url"] for message in asked]

    def column(self, title: str) -> list[str]:
        """Return the cells that are shown below a title of the table of trials."""
        script = """
            const heads = [...document.querySelectorAll("table.trials th")];
            const at = heads.findIndex(head => head.textContent === arguments[0]);
            const rows = [...document.querySelectorAll("table.trials tbody tr")];
            return rows.filter(row => row.checkVisibility()).map(row => row.cells[at].textContent);"""
        return self.do(script, title)

    def head(self, title: str) -> Any:
        heads = self.driver.find_elements(self.by, "table.trials th")
        return next(head for head in heads if head.get_attribute("textContent") == title)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no chromium and chromedriver here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SE_OFFLINE", "true")  # selenium would fetch a driver
        opened = Browser(tmp_path_factory.mktemp("browser"), program, driver)
        yield opened
        opened.driver.quit()


def test_it_opens_without_an_error_or_a_request(browser: Browser, table1: str) -> None:
    browser.open(table1)
    assert browser.driver.get_log("browser") == []
    assert [url for url in browser.requests() if not url.startswith(("data:", "file:"))] == []


@pytest.mark.parametrize("width", [1280, 390])
def test_every_figure_is_seen_and_the_page_is_not_wider_than_the_window(
    width: int, browser: Browser, table1: str
) -> None:
    browser.open(table1, width)
    script = """return [...document.querySelectorAll("figure svg")].map(svg => {
        const box = svg.getBoundingClientRect();
        return svg.checkVisibility() && box.width > 200 && box.height > 100
            && [...svg.querySelectorAll("path, text")].some(part => part.getBoundingClientRect().width > 0);
    });"""
    seen = browser.do(script)
    assert seen == [True] * table1.count("<figure ")
    assert len(seen) > 3
    assert browser.do("return innerWidth") == width
    assert browser.do("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_numbers_are_sorted_as_numbers_and_missing_ones_come_last(browser: Browser, table1: str) -> None:
    browser.open(table1)
    before = browser.column("test accuracy")
    browser.head("test accuracy").find_element(browser.by, "button").click()
    after = browser.column("test accuracy")
    assert after == [*sorted((text for text in before if text != "–"), key=float), "–", "–"]
    assert browser.head("test accuracy").get_attribute("aria-sort") == "ascending"
    browser.head("seconds").find_element(browser.by, "button").send_keys("\ue007")  # the Enter key
    assert browser.head("test accuracy").get_attribute("aria-sort") is None
    browser.head("seconds").find_element(browser.by, "button").send_keys("\ue007")
    assert browser.head("seconds").get_attribute("aria-sort") == "descending"
    seconds = browser.column("seconds")
    assert seconds == [*sorted((text for text in seconds if text != "–"), key=float, reverse=True), "–"]


def test_every_table_can_be_sorted(browser: Browser, table1: str) -> None:
    browser.open(table1)
    heads = browser.do("""return [...document.querySelectorAll("table")].map(
        table => table.tHead && [...table.tHead.rows].at(-1).querySelectorAll("th > button").length)""")
    assert [count for count in heads if count] == heads[:-1]  # all but provenance, which is no list
    browser.find("#summary th[data-name=mean] button").click()
    means = browser.do(
        "return [...document.querySelectorAll('#summary tbody tr')].map(row => row.cells[3].textContent)"
    )
    assert means == sorted(means)


def test_words_are_sorted_by_the_alphabet(browser: Browser, table1: str) -> None:
    browser.open(table1)
    browser.head("augmentation").find_element(browser.by, "button").click()
    assert browser.column("augmentation") == ["aug1"] * 15 + ["aug2"] * 15 + ["none"] * 15
    assert browser.column("seed") == [str(seed) for seed in range(5) for _ in range(3)] * 3  # as it was before


def test_the_filter_keeps_the_trials_that_have_all_words(browser: Browser, table1: str) -> None:
    browser.open(table1)
    browser.find("#filter").send_keys("AUG2 model3")
    assert browser.column("model") == ["model3"] * 5
    assert browser.column("augmentation") == ["aug2"] * 5
    assert browser.find("#shown").text == "5 of 45 trials"
    browser.find("#filter").clear()
    browser.find("#filter").send_keys("not run")
    assert browser.column("status") == ["not run"]
    browser.find("#filter").send_keys("\ue003" * len("not run"))  # the Backspace key
    assert len(browser.column("model")) == 45


def test_paper_says_by_which_words_trials_were_left_out(browser: Browser, table1: str) -> None:
    browser.open(table1)
    media = "Emulation.setEmulatedMedia"
    try:
        browser.driver.execute_cdp_cmd(media, {"media": "print"})
        assert not browser.find(".filter").is_displayed(), "all trials are there"
        browser.driver.execute_cdp_cmd(media, {"media": ""})
        browser.find("#filter").send_keys("model3")
        browser.driver.execute_cdp_cmd(media, {"media": "print"})
        assert browser.find("#filter").is_displayed()
        assert browser.find("#shown").text == "15 of 45 trials"
    finally:
        browser.driver.execute_cdp_cmd(media, {"media": ""})


def test_true_and_false_are_sorted_as_words(browser: Browser, tmp_path: Path) -> None:
    text = SUITE.replace("small", "booleans").replace("[1e-3, 1e-2]", "[1e-3]").format(about="", label="narrow")
    axis = "train.optimizer.nesterov: [true, false]\n"
    text = text.replace("  augmentation:", f"  {axis}  augmentation:").partition("reference")[0]
    (tmp_path / "booleans.yaml").write_text(f"{text}train: {{optimizer: {{name: sgd, momentum: 0.9}}}}\n")
    choice = Choice(suites.load(tmp_path / "booleans.yaml"))
    browser.open(made(run(tmp_path / "results", choice, lambda number: None), choice))
    browser.head("train.optimizer.nesterov").find_element(browser.by, "button").click()
    assert browser.column("train.optimizer.nesterov") == ["False"] * 8 + ["True"] * 8


def test_a_failed_trial_leads_to_its_traceback(browser: Browser, table1: str) -> None:
    browser.open(table1)
    assert not browser.find("#failures pre").is_displayed()
    browser.find("td a.failed").click()
    assert browser.find("#failures pre").text == "Traceback: here"
    assert browser.find("#failures pre").is_displayed()


def test_a_program_in_a_suite_does_not_run(browser: Browser, hostile: str) -> None:
    browser.open(hostile)
    assert browser.do("return window.hacked === undefined && document.images.length === 0")
    assert browser.driver.get_log("browser") == []
    browser.open(hostile.replace("</main>", f"{HOSTILE}</main>"))  # had it not been escaped
    assert browser.do("return window.hacked === undefined && document.images.length === 1")
    assert len(browser.driver.get_log("browser")) >= 2  # what the page forbade
