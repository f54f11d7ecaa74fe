"""The documentation is true: links lead somewhere, and every command works, on tiny data and models.

A block of commands is fenced as `sh`. Its lines are executed in order, one folder per page, as a reader would; `mrp`
runs in this process. Paths that only the reader has (`/data/...`, `runs/...`) are miniature sets and runs made here;
models are shrunk. RESOLVED lists, with the reason, what cannot run here: of that the words and the recipe are read. A
block of Python or YAML whose first line is `# NAME.py` is that file; the other blocks of Python are executed too.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

from mrp.cli import _read, main, parser
from mrp.config import ConfigError
from mrp.run import Run, load
from tools import reference

ROOT = Path(__file__).resolve().parent.parent
LINKED = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
# Measurements are records of a day, whose commands stay as they were.
PAGES = {str(path.relative_to(ROOT)): path for path in LINKED if path.parent.name != "measurements"}
LANGUAGES = ("sh", "python", "yaml", "json", "text")
PROGRAMS = ("mrp", "make", "python", "python3", "pip", "torchrun", "accelerate", "source", "git", "cd")
# What is read and not executed, and why. Of several that match a command the first one counts.
RESOLVED = {
    r"mrp demo": "a whole run of minutes; its parts are executed one by one",
    r"mrp submit": "needs SLURM",
    r"mrp adapt (?!.*--plan-only)": "measures the machine and trains; tests/integration/test_adapt.py tries it",
    r"mrp doctor": "measures the machine for a minute; tests/doctor tries it",
    r"mrp .*track\.name": "a tracker of others, tried by its own tests",
    r"mrp .*--processes": "starts processes, as tests/processes does",
    r"mrp finetune .*data\.labels": "needs a table of tags; tests/integration/test_finetune_tags.py trains on such",
    r"mrp .*(hf|s3|https?):": "needs a network",
    r"mrp .*--watch": "does not end by itself",
    r"mrp .*--protocol paper": "trains for 90 epochs",
    r"mrp judge .*--suite (imagenet|robustness|transfer|dense|retrieval)": "many measurements, each with its own test",
    r"mrp lab": "experiments of hours, each tried at toy size by tests/lab",
    r"mrp evaluate .*--test": "test sets of their own layouts, which tests/integration/test_evaluate.py makes",
    r"mrp .*\.(pth|safetensors)": "published weights, which tests/interop imitates",
    r"mrp import": "weights of others, which tests/interop makes",
    r"mrp shards build \S+\.tar\b": "ImageNet's archives, which tests/data/test_imagenet.py imitates",
}
LINK = re.compile(r"\]\(\s*([^)\s]+)\s*\)")
DATA = re.compile(r"(?<![\w.])(/data/[\w./-]+|cifar-10\d*-binary\.tar\.gz)")
SMALL = [
    "length=2 steps", "optim.warmup=0 steps", "batch=16", "precision=fp32", "machine.workers=0", "machine.compile=no",
    "diagnose.every=null", "checkpoint.every=2 steps", "track.every=1",
]  # fmt: skip
BACKBONE = ["backbone.width=32", "backbone.depth=1", "backbone.heads=2"]
UNNAMED = ["backbone.name=null", "backbone.patch=16"]
DECODER = "objective.decoder={width: 16, depth: 1, heads: 2}"


class Block(NamedTuple):
    """A fenced block of a page."""

    line: int
    language: str
    text: str


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page, also inside lists."""
    for found in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        indent, language, content = found.groups()
        lines = [line.removeprefix(indent) for line in content.splitlines()]
        yield Block(text[: found.start()].count("\n") + 1, language, "\n".join(lines))


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a block as words, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            end = words.index("&&")
            yield words[:end]
            words = words[end + 1 :]
        if words:
            yield words


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^( *)```\w*\n.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and as the site write them."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title)).strip().lower() for title in titles]
    return {title.replace(" ", "-") for title in plain} | {re.sub(r"[-\s]+", "-", title) for title in plain}


@pytest.mark.parametrize("path", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(prose(path.read_text("utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        page = path.parent / file if file else path
        assert page.exists(), f"{path.name} links to {file}, which does not exist"
        if anchor:
            assert anchor in anchors(page.read_text("utf-8")), f"{path.name} links to {target}, without such a heading"
        # The site holds docs/ alone, so a page of it can link to nothing else.
        if path.is_relative_to(ROOT / "docs"):
            assert page.resolve().is_relative_to(ROOT / "docs"), f"{path.name} links to {file}, outside of the site"


def test_every_page_can_be_found() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))

    def pages(entry: Any) -> Iterator[str]:
        for item in entry if isinstance(entry, list) else entry.values():
            yield from [item] if isinstance(item, str) else pages(item)

    shown = list(pages(site["nav"]))
    assert len(shown) == len(set(shown))
    assert not [page for page in shown if not (ROOT / "docs" / page).is_file()]
    found = {ROOT / "docs" / page for page in shown} | {ROOT / "CHANGELOG.md", ROOT / "README.md"}
    for path in LINKED:
        found |= {(path.parent / target).resolve() for target in LINK.findall(path.read_text("utf-8"))}
    lost = [str(path.relative_to(ROOT)) for path in LINKED if path not in found]
    assert not lost, f"{lost}: in no navigation (mkdocs.yml), and no page links there"


def test_messages_that_are_explained_are_those_of_the_code() -> None:
    source = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "mrp").rglob("*.py")))
    source = re.sub(r"[\"']\s*\n\s*f?[\"']", "", source)  # a message goes on over several lines
    source = re.sub(r"\{[^{}]*\}", "...", source)
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    shown = [
        piece for row in re.findall(r"^\| (.*?) \| ", text, re.MULTILINE) for piece in re.findall(r"`([^`]+)`", row)
    ]
    parts = [part.strip(" '") for piece in shown for part in re.split(r"\.\.\.|\d+|\bN\b|'", piece)]
    strange = [part for part in parts if len(part) > 8 and part not in source]
    assert not strange


@pytest.mark.parametrize("name", PAGES)
def test_a_block_says_what_it_is(name: str) -> None:
    text = PAGES[name].read_text("utf-8")
    for block in blocks(text):
        assert block.language in LANGUAGES, f"{name}:{block.line}: a block of {block.language or 'no language'}"
        if block.language == "yaml":
            keys = yaml.safe_load(block.text)  # several lines of one key each are several examples
            assert set(keys) <= {*Run.model_fields, "base", "places", "measure"}, f"{name}:{block.line}: {list(keys)}"
    loose = re.findall(rf"\n\n    ((?:{'|'.join(PROGRAMS)}) .*)", prose(text))
    assert not loose, f"{name}: a command in an indented block is executed by no test; fence it as sh: {loose}"


def verbs() -> dict[str, argparse.ArgumentParser]:
    """The parser of every verb, and of the verbs inside it (`shards build`)."""
    found: dict[str, argparse.ArgumentParser] = {}

    def add(prefix: str, inner: argparse.ArgumentParser) -> None:
        for action in inner._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, verb in action.choices.items():
                    found[f"{prefix}{name}"] = verb
                    add(f"{prefix}{name} ", verb)

    add("", parser())
    return found


@pytest.mark.parametrize("name", PAGES)
def test_commands_in_sentences_and_synopses_name_what_exists(name: str) -> None:
    text = PAGES[name].read_text("utf-8")
    spans = re.findall(r"`(mrp [^`]+)`", prose(text).replace("\n", " "))
    spans += [line for block in blocks(text) if block.language == "text" for line in block.text.splitlines()]
    known = verbs()
    for span in spans:
        words = re.findall(r"[\w/.=:{},*-]+", span.split(" # ")[0])
        if words[:1] != ["mrp"] or len(words) < 2 or words[1].startswith("--"):
            continue
        longest = (" ".join(words[1:end]) for end in (4, 3, 2))  # of verbs with verbs of their own
        verb = next((name for name in longest if name in known), words[1])
        if re.fullmatch(r"VERB|[.]+|mine|--?\w+", verb):
            continue
        assert verb in known, f"{name}: `{span}`: there is no verb {verb}"
        flags = {flag for action in known[verb]._actions for flag in action.option_strings}
        strange = {word.split("=")[0] for word in words if word.startswith("--")} - flags
        assert not strange, f"{name}: `{span}`: mrp {verb} does not know {strange}"


def image(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Miniature data, and runs of two steps."""
    root = tmp_path_factory.mktemp("docs")
    for number in range(48):
        image(root / "data" / "folder" / f"n0000000{number % 4}" / f"{number}.png", number)
        image(root / "data" / "val" / f"n0000000{number % 4}" / f"{number}.png", 48 + number)
    main(
        [
            "shards",
            "build",
            str(root / "data/folder"),
            str(root / "data/shards"),
            "--shard-size",
            "16",
            "--workers",
            "1",
        ]
    )
    more = {
        "mae": ["demo", "evaluate={knn: {every: 2 steps}}", "average={decay: 0.9}"],
        "umae": ["umae_tiny_digits"],
        "data2vec": ["data2vec_tiny_digits", "objective.layers=1"],
        "photographs": [
            "mae_vit_base_in1k",
            f"data.train={root}/data/folder",
            f"data.test={root}/data/folder",
            DECODER,
            *UNNAMED,
        ],
    }
    for name, words in more.items():
        few = [] if name == "photographs" else ["data.fraction=0.2"]
        main(["pretrain", *words, *SMALL, *BACKBONE, *few, "--folder", str(root / "runs" / name)])
        main(["probe", str(root / "runs" / name), "--evaluator", "knn"])  # for what compares results
    words = ["finetune_tiny_digits", f"init={root}/runs/mae", "backbone=null", *SMALL, "data.fraction=0.2"]
    main(["finetune", *words, "--folder", str(root / "runs/classifier")])
    return root


class Reader:
    """Someone who types the commands of a page, in a folder of their own."""

    def __init__(self, place: Path, here: Path) -> None:
        self.place, self.here = place, here
        shutil.copytree(ROOT / "examples", here / "examples")
        for number, name in enumerate(("cat.jpg", "dog.png", "photographs/a.png", "photographs/b.png")):
            image(here / name, number)
        (here / "files.json").write_text(json.dumps([[str(next(place.glob("data/folder/*/*.png"))), 0]] * 64))

    def write(self, block: Block) -> bool:
        """Writes a block to the file that its first line names, if it does."""
        named = re.match(r"# (\w+\.(py|yaml))\b", block.text)
        if named:
            (self.here / named[1]).write_text(self.given(block.text), "utf-8")
        return named is not None

    def python(self, block: Block, page: str) -> None:
        """Executes a block of Python, on few images and for few steps."""
        if "mrp.pretrain(" not in block.text:
            self.make_runs(re.findall(r"\"(runs/[\w-]+)\"", block.text))
        import torch

        few = 'length="2 steps", optim={"warmup": "0 steps"}, data={"fraction": 0.2}'
        code = self.given(block.text).replace('length="20 epochs"', few)
        exec(compile(code, f"{page}:{block.line}", "exec"), {"images": torch.rand(4, 1, 8, 8)})

    def make_runs(self, names: list[str]) -> None:
        """Copies a run in miniature to each name."""
        kinds = {"finetune": "classifier", "classifier": "classifier", "data2vec": "data2vec"}
        kinds |= dict.fromkeys(("in1k", "official", "cifar", "xray", "own"), "photographs") | {"umae": "umae"}
        for name in names:
            kind = next((kind for part, kind in kinds.items() if part in name), "mae")
            if not (self.here / name).exists():
                shutil.copytree(self.place / "runs" / kind, self.here / name)

    def given(self, text: str) -> str:
        """The text with miniature data in the place of the reader's."""
        text = DATA.sub(self._miniature, text)
        return re.sub(r"\b30000\b", "2", text)  # the only step at which a run in miniature has a checkpoint

    def _miniature(self, found: re.Match[str]) -> str:
        """Images to test on are others than those to train on."""
        kind = "shards" if "shards" in found[0] else "val" if "/val" in found[0] else "folder"
        return str(self.place / "data" / kind)

    def execute(self, words: list[str]) -> None:
        """Executes a command of mrp."""
        outputs = [words[at + 1] for at, word in enumerate(words) if word in ("--folder", "--out")]
        self.make_runs([run for word in words if word not in outputs for run in re.findall(r"runs/[\w-]+", word)])
        if words[1] == "runs":
            self.make_runs(["runs/mae"])
        own = any(re.match(r"data\.train=(?!.*(in1k|cifar|CIFAR))", word) for word in words)
        words = self.shrunk([self.given(word) for word in words], own)
        try:
            main(words[1:])
        except SystemExit as end:
            if end.code:
                pytest.fail(f"{shlex.join(words)}: exit code {end.code}")

    def shrunk(self, words: list[str], own: bool) -> list[str]:
        """The command with a small model, few steps and miniature data, where it trains.

        With data of one's own the command itself says how many classes there are.
        """
        if words[1] not in ("pretrain", "finetune", "config"):
            return words
        goes_on = any(word.startswith("init=") for word in words)
        run = recipe(words)
        small = [*SMALL, "backbone=null"] if goes_on else [*SMALL, *(UNNAMED if run.backbone.name else []), *BACKBONE]
        if hasattr(getattr(run.objective, "decoder", None), "width"):
            small.append(DECODER)
        if run.mix.together is not None:
            small.append("mix.together=null")
        if getattr(run.objective, "classes", None) is not None and run.data.train != "digits" and not own:
            small.append("objective.classes=4")  # of the miniature folder
        for split in ("train", "test"):
            given = getattr(run.data, split)
            if isinstance(path := getattr(given, "path", given), str) and path != "digits" and not Path(path).exists():
                small.append(f"data.{split}={self.place}/data/folder")
        return [*words, *small]


def recipe(words: list[str]) -> Run:
    """The recipe of a command with the values that replace its own, except for the weights to start from."""
    options = _read(words[1:])
    return load(options.recipe, [word for word in options.overrides if not word.startswith("init=")])


def resolve(words: list[str]) -> None:
    """Reads a command as its program would, without executing it."""
    if words[0] in ("torchrun", "accelerate"):
        words = words[words.index("-m") + 1 :]
    if words[0] == "mrp":
        if getattr(_read(words[1:]), "recipe", None):
            recipe(words)
    elif words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets), words
    elif words[0] == "python":
        source = (ROOT / words[1]).read_text("utf-8")
        missing = [word for word in words[2:] if word.startswith("--") and f'"{word}"' not in source]
        assert not missing, f"{words[1]} does not know {missing}"
    elif words[0] == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        extras = {extra for word in words for extra in re.findall(r"\[([\w-]+)\]", word)}
        assert extras <= set(project["optional-dependencies"]), words
    else:
        assert words[0] in PROGRAMS, f"no test executes or reads {shlex.join(words)}"


@pytest.mark.parametrize(
    "name", [name for name in PAGES if re.search("```(sh|python)", PAGES[name].read_text("utf-8"))]
)
def test_every_command_works(name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reader = Reader(place, tmp_path)
    # A file that a page shows below the commands that use it is there when they are typed.
    for block in [block for block in blocks(PAGES[name].read_text("utf-8")) if not reader.write(block)]:
        where = f"{name}:{block.line}"
        if block.language == "python":
            reader.python(block, name)
        for words in commands(block.text) if block.language == "sh" else ():
            text = shlex.join(words)
            print(f"{where}: {text}")
            try:
                if words[0] == "mrp" and not any(re.match(key, text) for key in RESOLVED):
                    reader.execute(words)
                else:
                    resolve(words)
            except ConfigError as error:
                pytest.fail(f"{where}: {text}: {error}")


def test_no_reason_is_left_over() -> None:
    texts = [page.read_text("utf-8") for page in PAGES.values()]
    every = [shlex.join(w) for t in texts for b in blocks(t) if b.language == "sh" for w in commands(b.text)]
    unused = [pattern for pattern in RESOLVED if not any(re.match(pattern, command) for command in every)]
    assert not unused


@pytest.mark.parametrize("path", reference.PAGES, ids=lambda path: path.name)
def test_the_reference_is_that_of_the_code(path: Path) -> None:
    assert path.read_text("utf-8") == reference.PAGES[path](), "run 'make docs'"
