"""What the verbs print."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from mrp.build import measure_cost
from mrp.cli import _read, main
from mrp.run import load, recipes


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
    *_, summary, title, probe, report, export = capsys.readouterr().out.splitlines()
    loss = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
    assert re.fullmatch(rf"{run}: complete at step 3, loss {loss:.4f}; this command took \d+ s", summary)
    assert title == "next:"
    for line in (probe, report, export):
        options = _read(line.partition("  # ")[0].split()[1:])
        assert str(run) in (getattr(options, "run", None), *getattr(options, "runs", ()))
    (run / "metrics.jsonl").unlink()
    main(["pretrain", "demo", *words, "--folder", str(run)])
    assert f"{run}: complete, no loss logged; this command took" in capsys.readouterr().out
