"""The pages say what the code does: links, commands, suites, the worked example, and the generated tables.

``python tests/test_docs.py`` writes the generated tables anew.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import rich_click as click

from raybench import records, registry
from raybench.plan import expand
from raybench.records import Activations, DetectionRow, EpochRow, Predictions, TrialRow
from raybench.suite import SuiteFile, build, load, report_of, shipped_suites
from raybench.yamlfile import Complaints, parse_yaml

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page for pattern in ("README.md", "CONTRIBUTING.md", "docs/*.md", "benchmarks/*.md", "cluster/*.md", "results/*.md")
    for page in ROOT.glob(pattern)
)  # fmt: skip
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
AGAIN = "run: python tests/test_docs.py"

INSTALL = [
    "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e . "
    "&& .venv/bin/raybench run suites/quickstart.yaml",
    "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[dev]' && .venv/bin/pytest -n 2",
]
FORBIDDEN = r"/work\b|/tmp/venv|/tmp/helper|/root/|/home/(?!you/|ray/)\w|pypi-more|TODO|FIXME"


# ---------------------------------------------------------------------------------------------------------------------
# Generated tables

KEYS = {
    "dataset": "Which images, and how they are divided.",
    "dataset.validation": "Images that choose the epoch: a part of the training images, the dataset's own (`split`), or"
    " the test images themselves (`test`; every table is then marked).",
    "model": "A name, or a mapping with `name` and the model's options. May be left out where the model is an axis.",
    "augmentation": "A name, or a list of parts that are applied in order.",
    "train": "How the network is trained, and which epoch is tested.",
    "train.optimizer": "A name, or a mapping.",
    "train.optimizer.name": "",
    "train.optimizer.weight_decay": "As torch's optimizer of this name understands it.",
    "train.early_stopping": "Stop when `metric` has not improved by more than `min_delta` for `patience` epochs in a"
    " row. A mapping; `{}` takes the defaults below.",
    "train.early_stopping.metric": "",
    "train.early_stopping.patience": "Epochs without an improvement before training stops.",
    "train.early_stopping.min_delta": "A smaller change is no improvement.",
    "resources": "What one trial asks of the cluster.",
    "repeat": "What is repeated to see the spread.",
    "reference[].mean": "Of the accuracies, 0 to 1, as the three below.",
    "reference[].std": "",
    "reference[].min": "",
    "reference[].max": "",
    "reference[].n": "Trials.",
}
"""Meanings of keys whose field has none, or has one that is for readers of the code."""

COLUMNS = {
    "trial_id": "Identity of the trial: [what is in it](suites.md#what-a-trials-id-is).",
    "suite": "Name of the suite; with `--smoke`, followed by `-smoke`.",
    "dataset": "Label of the axis `dataset`, or the dataset's name.",
    "model": "Label of the axis `model`, or the model's name.",
    "augmentation": "Label of the axis `augmentation`, or the names of its parts.",
    "seed": "The value of `repeat.seed`.",
    "axes": "Stands for one column per further axis, called as the axis.",
    "status": "See [above](#statuses).",
    "train_accuracy": "Of `best_epoch`, measured as `train_loss` is.",
    "val_loss": "Mean loss over the validation images at `best_epoch`.",
    "val_accuracy": "Share of the validation images that were right at `best_epoch`.",
    "test_loss": "Mean loss over the test images, with the weights of `best_epoch`.",
    "train_images": "Number of images in training.",
    "validation_images": "Number of validation images.",
    "test_images": "Number of test images.",
    "parameters": "Number of weights of the network. Keras counts batch norm's running statistics too, this does not.",
    "error_class": "Of a failed trial: {error_classes}.",
    "traceback": "Of a failed trial; at most its last 20,000 characters.",
    "schema_version": "Version of these columns.",
    "dataset_fingerprint": "Hash of all images, labels and class names of the dataset, wherever its files lie.",
    "weights_fingerprint": "Hash of the weights that training started from; null for a random start.",
    "threads": "`resources.cpus`.",
    "workers": "Processes that trained the trial.",
    "device": "Name of the GPU or CPU.",
    "host": "Host name.",
    "git_dirty": "Whether tracked files there differed from that commit.",
    "epochs.train_loss": "Mean loss over the images as they were trained on.",
    "epochs.train_accuracy": "Measured as `train_loss` is.",
    "epochs.val_loss": "Mean loss over the validation images after the epoch.",
    "epochs.val_accuracy": "Share of the validation images that were right after the epoch.",
    "epochs.test_accuracy": "Known when `test_loss` is.",
    "predictions.trial_id": "As in `trials/`.",
    "predictions.label": "int16: the true class.",
    "predictions.prediction": "int16: the predicted class.",
    "ood.trial_id": "As in `trials/`.",
    "activations.trial_id": "As in `trials/`.",
    "activations.score": "As in `ood/`.",
    "activations.layer": "As in `ood/`.",
}
"""Meanings of columns whose field has none."""


def keys_table() -> str:
    """Return every key of a suite as a Markdown table, from the JSON Schema."""
    schema = SuiteFile.model_json_schema()
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, kind, default, meaning in _keys(schema, schema["$defs"], ""):
        lines.append(f"| `{key}` | {kind} | {default} | {meaning} |")
    return "\n".join(lines)


def _keys(section: dict[str, Any], defs: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, said in section["properties"].items():
        key = f"{prefix}{name}"
        options = [_resolved(option, defs) for option in said.get("anyOf", [said])]
        items = [_resolved(option["items"], defs) for option in options if "items" in option and prefix == ""]
        sections = [option for option in options if "properties" in option]
        sections += [option for option in options for option in option.get("anyOf", []) if "properties" in option]
        kinds = ", ".join(dict.fromkeys(kind for option in options for kind in _kinds(option)))
        default = "required" if name in section.get("required", ()) else _default(said.get("default"))
        meaning = KEYS[key] if key in KEYS else said.get("description", "")
        assert meaning or key in KEYS, f"{key} has no description: give its field one"
        yield key, kinds, default, _markdown(meaning)
        for below in sections if key != "ood.dataset" else []:  # the keys of `dataset` once more
            yield from _keys(below, defs, f"{key}.")
        for below in items:
            if "properties" in below and "name" not in below["properties"]:
                yield from _keys(below, defs, f"{key}[].")


def _resolved(option: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    return defs[option["$ref"].rpartition("/")[2]] if "$ref" in option else option


def _kinds(option: dict[str, Any]) -> Iterator[str]:
    """Yield the types that a key may have, as words."""
    if "anyOf" in option:  # a name, or a mapping
        for part in option["anyOf"]:
            yield from _kinds(part)
        return
    if "enum" in option:
        yield from (f"`{value}`" for value in option["enum"])
        return
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = " and ".join(f"{sign} {option[bound]:g}" for bound, sign in bounds.items() if bound in option)
    kind = {"object": "mapping", "array": "list", "string": "text", "boolean": "`true`, `false`"}.get(
        option["type"], option["type"]
    )
    if kind != "null":
        yield f"{kind} {limits}".strip()


def _default(value: Any) -> str:
    """Return a default as a suite would have it; a section's is that of its keys."""
    if isinstance(value, dict) and value:
        own = [f"{key}: {part}" for key, part in value.items() if part is not None]
        return f"`{{{own[0]}}}`" if len(own) == 1 else "as below"
    if isinstance(value, list) and value:
        return f"`{value[0]['name']}`"
    if isinstance(value, str) and value:
        return f"`{value}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{json.dumps(value)}`"


def columns_table(row: type, prefix: str = "") -> str:
    """Return every column of one kind of file as a Markdown table, from the row class and the texts in its source."""
    texts = _field_texts(row)
    lines = ["| column | type | repeats | meaning |", "|---|---|---|---|"]
    for field in fields(row):
        meaning = texts.get(field.name) or COLUMNS.get(prefix + field.name, COLUMNS.get(field.name, ""))
        classes = ", ".join(f"`{name}`" for name in records.ErrorClass.__args__)  # type: ignore[attr-defined]
        meaning = meaning.format(error_classes=classes) if "{" in meaning else meaning
        if not meaning and field.name.endswith("_version"):
            meaning = f"Version of {field.name.removesuffix('_version')}."
        assert meaning, f"{row.__name__}.{field.name} has no description: write one under the field"
        kind = "any" if field.name == "axes" else _kind(str(field.type))
        repeats = "no" if field.metadata.get("measured") else "yes"
        lines.append(f"| `{field.name}` | {kind} | {repeats} | {_markdown(meaning)} |")
    return "\n".join(lines)


def suites_table() -> str:
    """Return every shipped suite as a Markdown table, in the order of `raybench list suites`."""
    lines = ["| report | suite | trials | what it is |", "|---|---|---|---|"]
    for suite in sorted(map(load, shipped_suites().values()), key=report_of):
        lines.append(
            f"| {report_of(suite)} | [`{suite.name}`](suites/{suite.name}.yaml) | {suite.trials} | {suite.about} |"
        )
    return "\n".join(lines)


def arrays_table(kind: str, row: type) -> str:
    """Return the columns of a kind of file that has many rows for a trial, whose class holds arrays."""
    texts = _field_texts(row)
    lines = ["| column | meaning |", "|---|---|"]
    for name in ("trial_id", *(field.name for field in fields(row))):
        meaning = COLUMNS.get(f"{kind}.{name}") or texts[name]
        lines.append(f"| `{name}` | {_markdown(meaning)} |")
    return "\n".join(lines)


def _markdown(text: str) -> str:
    """Return a text from the source as one line of Markdown."""
    return re.sub(r"(?<!`)--[a-z-]+", r"`\g<0>`", " ".join(text.split()).replace("``", "`"))


def _field_texts(row: type) -> dict[str, str]:
    """Return field -> the string that stands under it in the source of ``row``."""
    (klass,) = ast.parse(inspect.getsource(row)).body
    assert isinstance(klass, ast.ClassDef)
    texts: dict[str, str] = {}
    for above, below in zip(klass.body, klass.body[1:], strict=False):
        if isinstance(above, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(above.target, ast.Name)
            texts[above.target.id] = str(below.value.value)
    return texts


def _kind(annotation: str) -> str:
    words = {"str": "text", "int": "integer", "float": "number", "bool": "boolean"}
    kind, _, optional = annotation.partition(" | ")
    return words.get(kind, "text") + (", null" if optional else "")


def metrics_table() -> str:
    from raybench.gauges import METRICS, exported

    lines = ["| in Prometheus | tags | meaning |", "|---|---|---|"]
    for name, metric in METRICS.items():
        tags = ", ".join(f"`{tag}`" for tag in metric.tags)
        lines.append(f"| `{exported(name)}` | {tags} | {metric.about} |")
    return "\n".join(lines)


GENERATED = {
    "docs/monitoring.md": {"metrics": metrics_table},
    "README.md": {"suites": suites_table},
    "docs/suites.md": {"keys": keys_table},
    "docs/results.md": {
        "trials": lambda: columns_table(TrialRow),
        "epochs": lambda: columns_table(EpochRow, "epochs."),
        "predictions": lambda: arrays_table("predictions", Predictions),
        "ood": lambda: columns_table(DetectionRow, "ood."),
        "activations": lambda: arrays_table("activations", Activations),
    },
}
"""Page -> what stands between its ``<!-- generated: NAME -->`` and ``<!-- end -->``."""


def with_tables(page: str, text: str) -> str:
    """Return the page with its generated tables made anew."""
    for name, table in GENERATED[page].items():
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        assert begin in text, f"{page} has no place for the table {name!r}: {begin}{end}"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{table()}\n{end}{rest.partition(end)[2]}"
    return text


@pytest.mark.parametrize("page", GENERATED)
def test_generated_tables_are_up_to_date(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text == with_tables(page, text), AGAIN


# ---------------------------------------------------------------------------------------------------------------------
# Reading a page


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def file(self) -> str:
        """The file that it shows, named in its first line, or nothing."""
        found = re.match(r"# (\w+\.(py|yaml))\n", self.text)
        return found[1] if found else ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, *languages: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, text[: found.start()].count("\n") + 1, found[2], found[3])
        for found in re.finditer(r"^(```+)(\w*)\n(.*?)^\1$", text, re.MULTILINE | re.DOTALL)
        if not languages or found[2] in languages
    ]


def prose(page: Path) -> str:
    """Return the page without its fenced blocks."""
    return re.sub(r"^(```+).*?^\1$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    seen: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#{1,6} (.*)$", prose(page), re.MULTILINE):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        count = seen[slug] = seen.get(slug, -1) + 1
        found.add(f"{slug}-{count}" if count else slug)
    return found


def commands() -> Iterator[tuple[Block, list[str]]]:
    """Yield the words after ``raybench`` of every command of the pages."""
    for page in NAMES:
        for block in blocks(page, "sh", "console"):
            text = block.text.replace("\\\n", " ")
            if block.language == "console":
                shown = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
                text = "\n".join(line.partition(" | ")[0] for line in shown)
            for line in text.splitlines():
                yield from ((block, command) for command in _of_raybench(line))


def _of_raybench(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(re.sub(r"\d?>+\s*\S+", "", line), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    command: list[str] | None = None
    for word in [*lexer, ";"]:
        if set(word) <= set("|&;<>"):
            if command is not None:
                yield command
            command = None
        elif command is not None:
            command.append(word)
        elif Path(word).name == "raybench":
            command = []


# ---------------------------------------------------------------------------------------------------------------------
# Tests over all pages


@pytest.mark.parametrize("page", NAMES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if not re.match(r"\w+:", link):
            target, _, anchor = link.partition("#")
            linked = (path.parent / target) if target else path
            assert linked.exists(), f"{page}: {link}: no such file"
            if anchor:
                assert anchor in anchors(linked), f"{page}: {link}: no such heading"


@pytest.mark.parametrize("page", NAMES)
def test_pages_name_no_private_place(page: str) -> None:
    found = re.search(FORBIDDEN, (ROOT / page).read_text(encoding="utf-8"))
    assert found is None, f"{page}: {found and found[0]}"


@pytest.mark.parametrize("page", NAMES)
def test_what_pages_name_of_raybench_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    names = {name for name in re.findall(r"\braybench(?:\.\w+)+", text) if not name.endswith(".json")}
    for module, imported in re.findall(r"^from (raybench[.\w]*) import (.+)$", text, re.MULTILINE):
        names |= {f"{module}.{name.strip()}" for name in imported.split(",")}
    for name in names:
        pkgutil.resolve_name(name)


def test_sample_queries_leave_out_trials_that_have_not_finished() -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:python|sh)\n(.*?)^```", text, re.M | re.S)
    queries = [block for block in blocks if re.search("mean|avg", block)]
    assert len(queries) == 3
    assert [query for query in queries if not re.search("status.*completed.*stopped_early", query)] == []


def test_commands_parse() -> None:
    from raybench.cli import app

    seen = 0
    for block, words in commands():
        if words and not words[0].startswith("-"):
            name, *rest = words
            assert name in app.commands, f"{block}: raybench has no command {name!r}"
            try:
                app.commands[name].make_context(name, rest)
            except click.ClickException as error:
                pytest.fail(f"{block}: raybench {shlex.join(words)}: {error.format_message()}")
            seen += 1
    assert seen > 20


def test_suites_on_the_pages_load(tmp_path: Path) -> None:
    """A block with a name and a dataset is a suite, and any other a part of one; further tests run what is a file."""
    suites = [block for page in NAMES for block in blocks(page, "yaml") if not block.file]
    assert len(suites) > 5
    for block in suites:
        document, _ = parse_yaml(block.text, str(block))
        if {"name", "dataset"} <= document.keys():
            path = tmp_path / "suite.yaml"
            path.write_text(block.text, encoding="utf-8")
            suite = load(path)
        else:
            document = {"name": "part", "dataset": {"name": "digits"}, "model": "mlp", **document}
            if "model" in document.get("compare", {}):
                del document["model"]
            suite = build(document, Complaints(str(block)), tmp_path)
        assert expand(suite)


def test_plans_are_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command of docs/suites.md, where nothing is trained, but those that go on in a pipe."""
    from raybench.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "suites").symlink_to(ROOT / "suites")
    for block in blocks("docs/suites.md", "yaml"):
        if name := block.file or "".join(f"{found}.yaml" for found in re.findall(r"^name: (\w+)$", block.text, re.M)):
            (tmp_path / name).write_text(block.text, encoding="utf-8")
    seen = 0
    for block in blocks("docs/suites.md", "console"):
        for command, printed in re.findall(r"^\$ raybench ([^|\n]*)\n(.*?)(?=^\$|\Z)", block.text, re.M | re.S):
            monkeypatch.setattr(sys, "argv", ["raybench", *shlex.split(command)])
            with pytest.raises(SystemExit):
                main()
            said = "".join(capsys.readouterr())
            assert [line.rstrip() for line in said.splitlines()] == printed.splitlines(), f"{block}: {command}"
            seen += 1
    assert seen >= 5


def test_the_install_commands_are_the_ones_that_ci_runs() -> None:
    shell = [block.text.strip() for block in blocks("README.md", "sh")]
    assert shell[:2] == INSTALL
    assert "/bin/pytest " in shell[1]
    assert "grep -m1 '/bin/pytest ' README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# The worked examples of README.md and docs/extending.md


def write_files(folder: Path, *pages: str) -> dict[str, str]:
    """Write the files that the pages show, and return their texts."""
    files = {block.file: block.text for page in pages for block in blocks(page, "python", "yaml") if block.file}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return files


def shown_commands(page: str) -> list[tuple[str, str]]:
    """Return each command of a page's consoles, and what is printed below it."""
    found = (re.findall(r"^\$ ([^\n]*)\n(.*?)(?=^\$|\Z)", b.text, re.M | re.S) for b in blocks(page, "console"))
    return [command for commands in found for command in commands]


@pytest.mark.ray
def test_the_worked_example_of_the_readme_prints_what_it_shows(tmp_path: Path) -> None:
    assert write_files(tmp_path, "README.md").keys() == {"mine.py", "mine.yaml"}
    shown = shown_commands("README.md")
    assert [command for command, _ in shown] == ["raybench validate mine.yaml", "raybench run mine.yaml 2>/dev/null"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYBENCH_"))}
    environment |= {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    for command, printed in shown:
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert [line.rstrip() for line in done.stdout.rstrip().splitlines()] == printed.splitlines(), command


def test_the_commands_of_extending_print_what_they_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from raybench.cli import main

    files = write_files(tmp_path, "README.md", "docs/extending.md")
    assert files.keys() == {"mine.py", "mine.yaml", "more.py", "more.yaml", "make_stripes.py", "debug.py"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for module in ("mine", "more"):
        monkeypatch.setitem(sys.modules, module, None)  # so that what is imported below is taken out again
        del sys.modules[module]
    for names in (registry.MODELS, registry.AUGMENTATIONS, registry.DATASETS):
        monkeypatch.setattr(names, "_entries", dict(names._entries))

    shown = shown_commands("docs/extending.md")
    assert len(shown) == 5
    for command, printed in shown:
        program, *arguments = shlex.split(command)
        if program == "python":
            exec(files[arguments[0]], {})
        else:
            monkeypatch.setattr(sys, "argv", [program, *arguments])
            with pytest.raises(SystemExit):
                main()
        assert "".join(capsys.readouterr()) == printed, command


if __name__ == "__main__":
    for name in GENERATED:
        path = ROOT / name
        path.write_text(with_tables(name, path.read_text(encoding="utf-8")), encoding="utf-8")
