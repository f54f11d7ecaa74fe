"""`mrp report`: what a page holds of real runs, whatever they are called, and that it stays small and closed."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrp.cli import main
from mrp.report import charts, document, gallery, single
from mrp.report.series import Chart, Series
from mrp.verbs import report
from tests import browser
from tests.report.test_document import HOSTILE, Elements, references

SMALL = [
    "length=24 steps", "optim.warmup=2 steps", "backbone.depth=2", "backbone.width=24", "backbone.heads=2",
    "track.every=1", "machine.workers=0",
]  # fmt: skip
SECTIONS = [
    "Training", "Features over training", "Results", "Reconstructions of the same held-out images",
    "Attention of the last block, step 24", "Patch features as colours", "Embedding of 256 held-out images, step 24",
    "Not here, and what makes it", "Configuration",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pretrained, a probed and a fine-tuned run."""
    folder = tmp_path_factory.mktemp("reported")
    pretrained = [
        "objective.decoder.depth=1", "diagnose={every: 4 steps, images: 64}", "evaluate={knn: {every: 12 steps}}",
        "checkpoint={every: 8 steps, keep: 3}",
    ]  # fmt: skip
    main(["pretrain", "demo", *SMALL, *pretrained, "--folder", str(folder / "mae")])
    main(["probe", str(folder / "mae"), "--evaluator", "knn"])
    words = [f"init={folder / 'mae'}", "validation.every=12 steps", "checkpoint.best=null", "checkpoint.every=12 steps"]
    main(["finetune", "finetune_tiny_digits", *SMALL, *words, "--folder", str(folder / "tuned")])
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"


def page(*words: object) -> str:
    """The page that these words make."""
    out = Path(str(words[0])).parent / "page.html"
    main(["report", *map(str, words), "--out", str(out)])
    return out.read_text(encoding="utf-8")


def test_a_damaged_file_of_results_is_named_and_the_rest_is_shown(runs: Path) -> None:
    (runs / "mae" / "probe.json").write_text("{")
    for text in (page(runs / "mae"), page(runs / "mae", runs / "tuned")):
        assert "probe.json" in text
        assert "Training" in headings(text)


def test_many_rows_of_results_are_folded(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "rows</summary>" not in page(runs / "tuned")
    monkeypatch.setattr(single, "_ROWS", 1)
    assert "rows</summary>" in page(runs / "mae", runs / "tuned")


def headings(text: str, level: int = 2) -> list[str]:
    return [unescape(re.sub("<[^>]*>", "", one)) for one in re.findall(rf"<h{level}>(.*?)</h{level}>", text)]


def test_the_page_of_a_pretrained_run(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(made / "mae")])
    assert capsys.readouterr().out == f"written to {made / 'mae' / 'report.html'}\n"
    text = (made / "mae" / "report.html").read_text(encoding="utf-8")
    assert headings(text) == SECTIONS
    assert headings(text, 1) == ["mae"]
    titles = " | ".join(headings(text, 3))
    for start in ("Loss ", "Learning rate rose to", "Gradient norm: ", "Throughput: ", "Waiting for the loader: ",
                  "Memory: ", "Accuracy: knn ", "Effective rank (RankMe) ", "Alignment ", "Uniformity ",
                  "Half of the features' variance", "The nearest image is of the same class for"):  # fmt: skip
        assert start in titles
    said = unescape(re.sub("<[^>]*>", " ", text))
    assert "mae (mask ratio 0.75) trains a ViT of 2 blocks of width 24, patches of 2 on digits, images of 8x8" in said
    assert "finished; step 24 of 24" in said
    assert "Best results: kNN (k = 20) " in said
    assert "Classes and their confusions: mrp finetune" in said.replace("  ", " ")
    kept = sorted(path.name for path in (made / "mae" / "pictures").iterdir())
    assert kept == [f"step-{step:08d}.safetensors" for step in (8, 16, 24)]


def test_the_page_of_a_classifier_tells_its_classes_apart(made: Path) -> None:
    text = page(made / "tuned")
    validation = json.loads((made / "tuned" / "validation.json").read_text())["student"]
    right = sum(validation["confusion"][n][n] for n in range(10))
    said = unescape(re.sub("<[^>]*>", "", text))
    assert f"Of 360 test images {100 * right / 360:.1f} % are answered rightly" in said
    matrix = re.findall(r'<table class="confusion">(.*?)</table>', text, re.DOTALL)[0]
    cells = [int(one) for one in re.findall(r"<td[^>]*>(\d+)</td>", matrix)]
    assert np.array_equal(np.reshape(cells, (10, 10)), validation["confusion"])
    assert "Reconstructions: classify predicts no pixels" in said
    assert "classify goes on from reported" in said
    assert "/mae, a ViT of 2 blocks" in said


def test_a_second_page_computes_nothing_and_other_weights_do(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = page(runs / "mae")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model is loaded")

    with monkeypatch.context() as patch:
        patch.setattr(gallery, "load", refuse)
        assert page(runs / "mae") == first
        (runs / "mae" / "pictures" / "step-00000016.safetensors").write_bytes(b"torn")
        with pytest.raises(AssertionError, match="the model is loaded"):
            page(runs / "mae")
    assert page(runs / "mae") == first


def test_hostile_names_are_texts(runs: Path) -> None:
    hostile = runs / "<img src=x onerror=alert(1)>"
    (runs / "tuned").rename(hostile)
    for name, change in {
        "validation.json": lambda text: text.replace('"name": "3"', f'"name": {json.dumps(HOSTILE)}'),
        "environment.json": lambda text: text.replace('"finetune"', json.dumps(HOSTILE)),
        "classes.json": lambda text: text.replace('"3"', json.dumps(HOSTILE)),
        "config.yaml": lambda text: text.replace("project: mrp", f"project: {json.dumps(HOSTILE)}"),
        "metrics.jsonl": lambda text: text.replace('"knn', json.dumps(HOSTILE)[:-1]),
    }.items():
        path = hostile / name
        before = path.read_text(encoding="utf-8")
        path.write_text(change(before), encoding="utf-8")
    for text in (page(hostile), page(hostile, runs / "mae")):
        parser = Elements()
        parser.feed(text)
        assert HOSTILE in " ".join(parser.texts)
        assert [one["src"][:5] for name, one in parser.found if name == "img" and one["src"][:5] != "data:"] == []
        assert not any(key.startswith("on") for _, attributes in parser.found for key in attributes)
        assert sum(name == "script" for name, _ in parser.found) == 1


def test_the_page_is_closed_and_every_picture_has_words(made: Path) -> None:
    for text in (page(made / "mae"), page(made / "tuned"), page(made / "mae", made / "tuned")):
        assert references(text) == []
        parser = Elements()
        parser.feed(text)
        assert all(one.get("alt") for name, one in parser.found if name == "img")
        figures = [one for name, one in parser.found if name == "svg" and one.get("role") == "img"]
        assert figures
        assert all(one.get("aria-label") for one in figures)
        levels = [int(name[1]) for name, _ in parser.found if re.fullmatch("h[1-6]", name)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))


def test_two_runs_on_one_page(made: Path) -> None:
    text = page(made / "mae", made / "tuned")
    assert headings(text) == ["Results", "Training", "Features over training", "Differences of configuration"]
    said = unescape(re.sub("<[^>]*>", " ", text))
    assert re.search(r"Loss, at the end: [\d.]+ \(tuned\) and [\d.]+ \(mae\)", said)
    differences = text.partition("Differences of configuration")[2]
    options = re.findall(r'<th scope="row">(.*?)</th>', differences)
    assert "objective.name" in options
    assert "validation.every (free)" in options
    assert not {"seed", "batch", "backbone.width"} & set(options)  # the same in both
    assert re.search(r"<td>[0-9a-f]{12}\.\.\.</td>", differences)  # init.content


def test_a_page_too_large_has_smaller_pictures_and_says_so(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = single.Told.of(made / "mae")
    noise = np.random.default_rng(0).integers(0, 256, (6, 192, 192, 3), np.uint8)
    for one in told.pictures.pictures:
        one.arrays.update(dict.fromkeys(("input", "seen", "painted", "predicted"), noise))
    monkeypatch.setattr(single.Told, "of", lambda path: told)
    large = single.write(made / "mae")
    monkeypatch.setattr(single, "LIMIT", len(large.encode()) // 2)
    small = single.write(made / "mae")
    assert len(small.encode()) <= single.LIMIT
    assert "Images are shown at 128 pixels" in small or "Images are shown at 96 pixels" in small
    monkeypatch.setattr(single, "LIMIT", 1000)
    with pytest.raises(ValueError, match=r"the report would have 0\.\d MB"):
        single.write(made / "mae")


def test_watching_ends_with_the_run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive, pages = [True, True, False], list[str]()

    def sleep(seconds: float) -> None:
        assert seconds == 7
        pages.append((tmp_path / "page.html").read_text(encoding="utf-8"))

    monkeypatch.setattr(report, "_any_alive", lambda paths: alive.pop(0))
    monkeypatch.setattr(report.time, "sleep", sleep)
    main(["report", str(made / "mae"), "--watch", "7", "--out", str(tmp_path / "page.html")])
    pages.append((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert ['content="7"' in text for text in pages] == [True, True, False]
    assert alive == []


def test_a_run_is_watched_while_it_holds_its_folder(runs: Path) -> None:
    assert not report._any_alive([runs / "mae", runs / "tuned"])
    with (runs / "tuned" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert report._any_alive([runs / "mae", runs / "tuned"])
        assert not report._any_alive([runs / "mae"])


def test_what_went_wrong_is_said_first(runs: Path, planted: Callable[[Path], Any]) -> None:
    planted(runs / "mae")
    text = page(runs / "mae")
    warnings = re.findall(r'<ul class="warnings"[^>]*>(.*?)</ul>', text)[0]
    said = [unescape(one) for one in re.findall("<li>(.*?)</li>", warnings)]
    assert said == [
        "Collapse: diagnose raised its alarm at step 12; the evidence is in alarms/.",
        "Not finite: the loss or the gradient of step 9; 'mrp replay' finds the cause.",
        "The loss has spikes: 1, the first at step 20.",
        "2 samples are no images and were replaced; quarantine.jsonl lists them.",
        "A batch ....",
        "Loader-bound: the steps waited for the loader in 60 % of their time; a loader that is never waited for would "
        "be 2.5 times as fast, now 100 images/s; docs/loading.md says what helps.",
    ]
    assert "resumed at step 16" in text
    assert "step 9 was not finite" in text
    assert "step 20 is a spike" in text


@pytest.fixture
def planted() -> Callable[[Path], Any]:
    """Files that a run leaves where something went wrong."""

    def plant(run: Path) -> None:
        (run / "alarms" / "step-00000012").mkdir(parents=True)
        (run / "incidents" / "step-00000009").mkdir(parents=True)
        (run / "incidents" / "step-00000009" / "incident.json").write_text('{"step": 9}')
        (run / "quarantine.jsonl").write_text("{}\n{}\n")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            line |= {"loader/waiting": 0.6, "images_per_second": 100.0} | ({"spike": 9.0} if line["step"] == 20 else {})
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        environment = json.loads((run / "environment.json").read_text())
        environment["starts"].append(environment["starts"][0] | {"step": 16, "balance": "warning: a batch ..."})
        (run / "environment.json").write_text(json.dumps(environment))

    return plant


@pytest.mark.skipif(browser.PATH is None, reason="there is no Chromium on this machine")
def test_a_browser_shows_the_pages_without_a_complaint(made: Path, tmp_path: Path) -> None:
    """In both colour schemes, on a desk and on a phone, with the script and without it."""
    pages = {"one": [made / "mae"], "classifier": [made / "tuned"], "two": [made / "mae", made / "tuned"]}
    files = {name: tmp_path / f"{name}.html" for name in pages}
    for name, runs in pages.items():
        main(["report", *map(str, runs), "--out", str(files[name])])
    long = "mae_vit_base_patch16_in1k_mask075_seed1_lr1.5e-4_" * 2  # a name that nothing would break by itself
    chart = charts.draw(Chart(long, "loss", [Series.of(f"{long}{n}", [0, 1], [0, n]) for n in (1, 2)]))
    parts = [document.tag("h1", long), document.facts([(long, long)]), document.tag("div", chart, class_="charts")]
    files["long"] = tmp_path / "long.html"
    files["long"].write_text(document.page(long, parts), encoding="utf-8")
    with browser.browser(tmp_path / "profile") as shown:
        for file in files.values():
            for width, scheme in ((1280, "light"), (390, "dark")):
                shown.open(file, width, scheme)
                assert shown.complaints() == []
                elsewhere = [one for one in shown.requests() if not one.startswith("data:")]
                assert elsewhere == [file.as_uri()]
                assert shown.evaluate("document.documentElement.scrollWidth") <= width  # nothing scrolls sideways
                assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == (
                    "rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 27)"
                )
                assert shown.evaluate("[...document.images].every(one => one.complete && one.naturalWidth)")
        _check_script(shown, files["two"])
        shown.open(files["two"], script=False)
        text = "document.body.innerText"
        assert shown.evaluate(f"{text}.includes('Loss, at the end') && {text}.includes('objective.name')")


def _check_script(shown: browser.Browser, file: Path) -> None:
    """A click on the legend hides a series, and the pointer finds the value of the other one."""
    shown.open(file)
    first = "document.querySelector('figure.chart')"
    buttons = f"{first}.querySelectorAll('.legend button')"
    hidden = f"{first}.querySelectorAll('g.series.hidden').length"
    assert shown.evaluate(f"{buttons}.length") == 2
    assert shown.evaluate(f"{buttons}[0].click(), {hidden}") == 1
    assert shown.evaluate(f"{buttons}[0].getAttribute('aria-pressed')") == "false"
    move = f"""(() => {{
        const svg = {first}.querySelector("svg"), box = svg.getBoundingClientRect();
        const place = {{clientX: box.left + box.width / 2, clientY: box.top + 50}};
        svg.dispatchEvent(new PointerEvent("pointermove", place));
        return {first}.querySelector(".value").textContent;
    }})()"""
    assert re.fullmatch(r"tuned: step 1\d: [\d.]+", shown.evaluate(move))
    assert shown.evaluate(f"{buttons}[0].click(), {hidden}") == 0


@pytest.mark.skipif(browser.PATH is None, reason="there is no Chromium on this machine")
@pytest.mark.skipif("MRP_AXE" not in os.environ, reason="MRP_AXE does not name axe-core's axe.min.js")
def test_axe_finds_no_fault(made: Path, tmp_path: Path) -> None:
    """What axe-core checks: contrast, names, order of headings, roles, tables, regions that the keyboard reaches."""
    with browser.browser(tmp_path / "profile") as shown:
        for name, runs in {"one": ["mae"], "classifier": ["tuned"], "two": ["mae", "tuned"]}.items():
            main(["report", *(str(made / run) for run in runs), "--out", str(tmp_path / f"{name}.html")])
            for scheme in ("light", "dark"):
                shown.open(tmp_path / f"{name}.html", 390 if scheme == "dark" else 1280, scheme)
                shown.evaluate(Path(os.environ["MRP_AXE"]).read_text(encoding="utf-8") + "; 0")
                found = shown.evaluate("axe.run().then(found => JSON.stringify([found.passes, found.violations]))")
                passes, violations = json.loads(found)
                assert len(passes) > 15
                assert [(one["id"], one["nodes"][0]["html"]) for one in violations] == []
