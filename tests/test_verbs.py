"""What the verbs print."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from mrp.build import measure_cost
from mrp.cli import _read, main
from mrp.config import ConfigError
from mrp.probing import Probed
from mrp.run import load, recipes
from mrp.verbs import _words, finetune, pretrain, probe, report


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, dict[str, str]]:
    """The configuration that is shown, and what is said to follow from it."""
    main(["config", *words])
    text = capsys.readouterr().out
    return text, dict(re.findall(r"^#   ([^:]+): +(.+)$", text, re.MULTILINE))


def test_config_shows_every_option_and_what_follows(capsys: pytest.CaptureFixture[str]) -> None:
    text, follows = shown(capsys, "demo", "batch=100", "optim.per=50", "length=20 epochs", "optim.warmup=2 epochs")
    run = load("demo", ["batch=100", "optim.per=50", "length=20 epochs", "optim.warmup=2 epochs"])
    assert yaml.safe_load(text) == run.resolved()
    cost = measure_cost(run)
    assert follows["parameters"] == f"{cost.parameters / 1e6:.2f} M, of which {cost.trainable / 1e6:.2f} M are trained"
    assert follows["peak learning rate"] == "0.003"
    assert follows["images"] == "1,437"
    assert follows["steps per epoch"] == "14 (37 images left out)"
    assert follows["steps"] == "280, of which 28 warm up; a checkpoint every 350"
    assert float(follows["FLOPs of the run"]) == pytest.approx(cost.training_flops * 280 * 100, rel=0.01)


def test_config_plans_for_several_processes(capsys: pytest.CaptureFixture[str]) -> None:
    _, follows = shown(capsys, "demo", "batch=96", "machine.micro_batch=8", "--processes", "4")
    assert follows["processes"].startswith("4 (")
    assert follows["micro-batch"] == "8 images per process, accumulated 3 times"


def test_config_does_without_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", "data.train=nowhere", "data.test=null"]
    _, follows = shown(capsys, *words, "length=5 epochs", "optim.warmup=500 steps")
    assert follows["steps"].startswith("unknown, since data.train: 'nowhere' does not exist")
    assert "images" not in follows
    assert "memory per process" in follows


def test_recipes_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    entries = [line for line in lines if line.startswith("  ")]
    assert sorted(line.split()[0] for line in entries) == sorted(path.stem for path in recipes().glob("*.yaml"))
    assert all(re.fullmatch(r"  \S+ +\S.{20,}", line) for line in entries)
    purposes = [line.partition(":")[0].split()[0] for line in lines if line and line not in entries]
    assert purposes == ["try", "pretrain", "fine-tune", "probe", "train"]
    place = {line.split()[0].rstrip(":"): number for number, line in enumerate(lines) if line}
    assert place["try"] < place["linear_tiny_digits"] < place["pretrain"] < place["mae_vit_base_in1k"]
    assert place["mae_vit_base_in1k"] < place["fine-tune"] < place["finetune_mae_vit_base_in1k"] < place["probe"]
    assert place["linear_mae_vit_base_in1k"] < place["train"] < place["supervised_vit_base_in1k"]
    assert all("unmeasured" in line for line in entries if "_huge_" in line)


def test_recipes_and_what_follows_from_one_are_json_for_scripts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["recipes", "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert listed["pretrain"]["mae_vit_base_in1k"] == "MAE, ViT-B/16 on ImageNet-1K, 800 epochs."
    monkeypatch.setattr("mrp.processes.container.usable_cores", lambda: 8)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    main(["config", "demo", "--json", "machine.workers=auto", "--processes", "2"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"] == load("demo", ["machine.workers=auto"]).resolved()
    assert shown["follows"]["images"] == "1,437"
    assert shown["follows"]["workers"].startswith("3 per process")


def test_pretrain_ends_with_what_came_out_and_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["batch=64", "length=3 steps", "optim.warmup=1 steps", "backbone={depth: 1, width: 16, heads: 2}"]
    main(["pretrain", "demo", *words, "--folder", str(run)])
    *_, summary, title, probe_line, report_line, export = capsys.readouterr().out.splitlines()
    loss = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
    assert re.fullmatch(rf"{run}: complete at step 3, loss {loss:.4f}; this command took \d+ s", summary)
    assert title == "next:"
    for line in (probe_line, report_line, export):
        options = _read(line.partition("  # ")[0].split()[1:])
        assert str(run) in (getattr(options, "run", None), *getattr(options, "runs", ()))
    assert "--evaluator" not in probe_line
    (run / "metrics.jsonl").unlink()
    main(["pretrain", "demo", *words, "--folder", str(run)])
    assert f"{run}: complete, no loss logged; this command took" in capsys.readouterr().out
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"data": config["data"] | {"test": None}}))
    assert f"  mrp probe {run} --evaluator geometry  # measure its features" in pretrain.summary(run, 1.0)


def test_finetune_names_classes_without_a_test_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    share = {"accuracy": 0.5, "low": 0.3, "high": 0.7}
    classes = [{"name": name, "accuracy": each} for name, each in (("a", 0.5), ("rare", None), ("c", 0.25))]
    student = {"images": 20, "accuracy": share, "accuracy5": share, "loss": 1.0, "classes": classes}
    average = student | {"classes": [{"name": name, "accuracy": 0.9996} for name in "abc"]}
    (tmp_path / "validation.json").write_text(json.dumps({"step": 3, "student": student, "average": average}))
    finetune.show(tmp_path / "validation.json")
    assert "worst classes: a 99.96 %, b 99.96 %, c 99.96 %\n" in capsys.readouterr().out  # of what is loaded
    (tmp_path / "validation.json").write_text(json.dumps({"step": 3, "student": student}))
    finetune.show(tmp_path / "validation.json")
    shown = capsys.readouterr().out
    assert "top-1" in shown
    assert "top-5" not in shown  # of three classes
    assert "worst classes: c 25.0 %, a 50.0 %\nclasses without a test image: 1 (rare)\n" in shown


def test_numbers_without_labels_stand_beside_those_of_the_untrained_backbone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are no accuracies, so a table of accuracies would be an empty one."""

    def measured(value: float, *bounds: float) -> dict[str, Any]:
        low, high = bounds or (None, None)
        numbers = {"rank_me": {"value": value, "low": low, "high": high, "share": False}}
        return {"geometry": {"rank_me": value, "measures": numbers}}

    results = {"trained": measured(12.5, 11, 14), "untrained": measured(3.25)}
    probe._print("runs/mine", Probed(Path("probe.json"), results))
    shown = capsys.readouterr().out
    assert "accuracy" not in shown
    assert ["geometry", "rank_me", "12.5 (11 to 14)", "3.25"] in [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines()
    ]


def test_what_is_not_all_is_not_rounded_to_all() -> None:
    assert _words.measured({"value": 0.9996, "low": 0.999, "high": 1.0, "share": True}) == "99.96 % (99.9 to 100.0)"
    assert probe._listed({"lr 0.1": 0.99996}) == "lr 0.1: 99.996"


def test_a_report_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"--out: {tmp_path} is a folder; give a file, such as {tmp_path}/report.html"
    ):
        report.draw([Path("runs/mine")], tmp_path)


def test_images_of_shards_that_are_replaced_are_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, run = tmp_path / "images", tmp_path / "run"
    images.mkdir()
    noise = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(noise.integers(0, 256, (8, 8), dtype=np.uint8)).save(images / f"{number:02}.png")
    (images / "03.png").write_bytes((images / "03.png").read_bytes()[:-30])
    (images / "04.png").rename(images / "04")
    main(["shards", "build", str(images), str(tmp_path / "shards")])
    said = capsys.readouterr().err
    assert (
        f"warning: {images}: files left out as no images, by the endings of their names: 1 without one; rename" in said
    )
    words = ["batch=4", "length=4 steps", "optim.warmup=1 steps", "backbone={depth: 1, width: 16, heads: 2}"]
    words += [f"data.train={tmp_path / 'shards'}", "data.test=null", "checkpoint.every=2 steps"]
    main(["pretrain", "demo", *words, "--folder", str(run), "--quiet"])
    lines = [line for line in capsys.readouterr().err.splitlines() if "no images" in line]
    told = "warning: 1 samples are no images, and others are shown in their place; "
    assert lines == [f"{told}{run / 'quarantine.jsonl'} names them"]
