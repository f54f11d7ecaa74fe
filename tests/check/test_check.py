"""`mrp check`: a sound file passes every check, and each fault is found by the check that looks for it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mrp.check import augmentations, evaluators, objectives, optimizers, sources, trackers
from mrp.check.files import check
from mrp.check.outcome import Failed, Outcome, Skipped, tried
from mrp.check.tiny import tiny_run
from mrp.cli import main
from mrp.config import ConfigError
from mrp.data.augmentations import AUGMENTATIONS
from mrp.data.config import Augment
from mrp.data.sources import SOURCES
from mrp.trackers import TRACKERS
from tests import forked
from tests.data.test_augmentations import DIMMER
from tests.data.test_own_source import STRIPES
from tests.integration.test_outside_parts import OPTIMIZER, TRACKER
from tests.integration.test_own_evaluator import EVALUATOR

METHOD = """
from typing import Literal
import torch
from torch import nn
import mrp
from mrp.config import Node
from mrp.models.masking import below
from mrp.models.vit import embed, encode, pool

class Config(Node):
    name: Literal["mine"] = "mine"

class Objective(mrp.Objective):
    def __init__(self, config, backbone):
        super().__init__(backbone)
        self.head = nn.Linear(backbone.embed_dim, 4)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, batch):
        turns = below(4, batch.keys, 7)
        latent = pool(self.backbone, encode(self.backbone, embed(self.backbone, batch.images), keys=batch.keys).tokens)
        loss = nn.functional.cross_entropy(self.head(latent).float(), turns)
        return mrp.Output(loss=loss, metrics={"loss": loss.detach()})

    def after_step(self, step, updated):
        self.count += updated
"""


def outcomes(tmp_path: Path, text: str, *words: str) -> dict[str, Outcome]:
    path = tmp_path / "mine.py"
    path.write_text(text)
    return {outcome.check: outcome for _, outcome in check(path, words)}


def broken(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    "backbone",
    [{"name": "vit_tiny_patch16_dinov3_qkvb"} | dict.fromkeys(("width", "depth", "heads")), {"norm": "post"}],
)
def test_a_backbone_of_any_kind_is_not_what_is_checked(tmp_path: Path, backbone: dict[str, Any]) -> None:
    (tmp_path / "mine.py").write_text(METHOD)
    objectives.the_backbone_is_timms(tiny_run({"name": str(tmp_path / "mine.py")}, backbone=backbone))


@pytest.mark.parametrize(
    ("check", "old", "new", "fault"),
    [
        (objectives.every_parameter_learns, "self.register", "self.idle = nn.Linear(2, 2)\n        self.register",
         "no gradient reaches objective.idle"),
        (objectives.every_parameter_learns, "loss = nn", "loss = 0 / 0 * nn", "ZeroDivisionError"),
        (objectives.outputs_are_detached, "loss.detach()", "loss", r"metrics\['loss'\] carries a gradient"),
        (objectives.a_sample_meets_its_own_randomness, "below(4, batch.keys, 7)", "torch.arange(len(batch.keys)) % 4",
         "with the images in another order the loss of a sample is another"),
        (objectives.the_backbone_is_timms, "self.head =", "backbone.extra = nn.Linear(2, 2)\n        self.head =",
         "not those of timm's ViT: extra.bias"),
        (objectives.it_overfits, "self.head(latent)", "0 * self.head(latent)", "in 150 steps the loss went from"),
        (objectives.it_is_one_graph, "turns =", "if float(batch.images.mean()) > 9: return\n        turns =",
         "it cannot be compiled"),
        (objectives.micro_batches_add_up, "turns)", "turns, reduction='sum')", "is another in micro-batches"),
        (objectives.features_need_no_mask, "    def after_step",
         "    def features(self, batch):\n        return batch.keys[:, None].float()\n\n    def after_step",
         "with other keys the features are others"),
        (objectives.nothing_moves_while_held_back, "+= updated", "+= 1", "objective.count moved"),
        (objectives.stochastic_depth_reaches_it, ", keys=batch.keys)", ")", "backbone.drop_path does nothing"),
    ],
)  # fmt: skip
def test_a_fault_of_a_method_is_found(tmp_path: Path, check, old: str, new: str, fault: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.py"
    path.write_text(METHOD)
    sound = tried(check, path, tiny_run({"name": str(path)}))
    assert sound.status == "ok", sound
    path.write_text(broken(METHOD, old, new))
    found = tried(check, path, tiny_run({"name": str(path)}))
    assert found.status == "failed"
    assert re.search(fault, found.detail), found
    assert found.remedy
    assert "\n" not in found.detail


def test_a_compiled_step_with_another_loss_is_found_in_bf16_too(tmp_path: Path) -> None:
    text = broken(METHOD, "loss = nn", "loss = (1.005 if torch.compiler.is_compiling() else 1.0) * nn")
    (tmp_path / "mine.py").write_text(text)
    run = tiny_run({"name": str(tmp_path / "mine.py")}, precision="bf16")
    found = tried(objectives.it_is_one_graph, tmp_path / "mine.py", run)
    assert found.detail == "the compiled step gives another loss"


def test_a_resume_that_forgets_is_found(tmp_path: Path) -> None:
    text = broken(METHOD, "loss = nn", "self.calls = getattr(self, 'calls', 0) + 1\n        loss = self.calls * nn")
    path = tmp_path / "mine.py"
    path.write_text(text)
    found = tried(objectives.a_resumed_run_is_the_same, path, tiny_run({"name": str(path)}))
    assert (found.status, found.remedy) == ("failed", "keep what changes in a buffer; count no steps yourself")


@pytest.mark.slow
def test_two_processes_that_differ_are_found(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(METHOD)
    assert tried(objectives.two_processes_are_one, path, tiny_run({"name": str(path)})).status == "ok"
    path.write_text(broken(METHOD, "loss = nn", "loss = latent.mean(0).norm() + nn"))
    found = tried(objectives.two_processes_are_one, path, tiny_run({"name": str(path)}))
    assert found.detail.startswith("two processes have the loss ")
    path.write_text(broken(METHOD, "loss = nn", "assert len(latent) == 8, 'eight'\n        loss = nn"))
    found = tried(objectives.two_processes_are_one, path, tiny_run({"name": str(path)}))
    assert found.detail == "a process of two ended with: AssertionError: eight"


@pytest.mark.parametrize(
    ("check", "old", "new", "fault"),
    [
        (sources.samples_are_images, "astype(np.uint8)", "astype(np.float64)", "sample 0 is float64 of shape"),
        (sources.samples_are_images, "), index % 2", "), 1 - index % 2", "read(0) has the label 1 and labels[0] is 0"),
        (sources.samples_are_images, 'classes = ("across", "along")',
         'tags = ("along",)\n    tagged = np.full((64, 1), 2)', "its tagged holds 2"),
        (sources.the_identity_is_of_the_data, "{split}", "{id(self)}", "opened twice, it has two identities"),
        (sources.a_sample_is_the_same_each_time, "row = (np.arange(8) * (index + 1)",
         "self.count += 1\n        row = (np.arange(8) * (index + self.count)", "is another image when others"),
        (sources.it_is_sent_to_workers, "self.count = ", "self.open = lambda: 0\n        self.count = ",
         "it cannot be sent to a worker"),
        (sources.a_misspelt_option_is_one_line, "class Config(Node):",
         "class Config(Node):\n    model_config = {'extra': 'allow'}", "an option that it does not have is accepted"),
        (augmentations.images_keep_their_form, "(image.dtype)", "(torch.int32)", "a tensor of torch.int32 and shape"),
        (augmentations.images_keep_their_form, "return ", "return 0 / 0 * ", "ZeroDivisionError"),
        (augmentations.all_follows_from_the_key, "next(draws(key))", "torch.rand(())", "under key 1 an image is"),
        (augmentations.it_is_sent_to_workers, "    def __call__", "    def __reduce__(self):\n"
         "        return object.__reduce__(self)\n\n    def __call__", "it cannot be sent to a worker"),
        (augmentations.a_misspelt_option_is_one_line, "class Config(Change):",
         "class Config(Change):\n    model_config = {'extra': 'allow'}", "an option that it does not have is accepted"),
    ],
)  # fmt: skip
def test_a_fault_of_a_source_or_an_augmentation_is_found(  # type: ignore[no-untyped-def]
    tmp_path: Path, check, old: str, new: str, fault: str
) -> None:
    parts, text = (SOURCES, STRIPES) if check in sources.CHECKS else (AUGMENTATIONS, DIMMER)
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert tried(check, path, parts.read({"name": str(path)})).status == "ok"
    path.write_text(broken(text, old, new))
    found = tried(check, path, parts.read({"name": str(path)}))
    assert found.status == "failed"
    assert fault in found.detail


@pytest.mark.parametrize("name", ["digits"])
def test_sources_of_mrp_do_what_they_must(name: str) -> None:
    for each in sources.CHECKS:
        each(SOURCES.read({"name": name}))


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_augmentations_of_mrp_do_what_they_must(name: str) -> None:
    for each in augmentations.CHECKS:
        each(cast(Augment, AUGMENTATIONS.read(name)))


@pytest.mark.parametrize("name", ["adamw", "lars", "muon", "sgd"])
@pytest.mark.parametrize("check", optimizers.CHECKS)
def test_optimizers_of_mrp_do_what_they_must(name: str, check) -> None:  # type: ignore[no-untyped-def]
    check(tiny_run(optimizers.METHOD, optim={"name": name, "lr": {"lars": 1.0, "sgd": 0.1}.get(name, 1e-3)}))


def test_an_optimizer(tmp_path: Path) -> None:
    sound = outcomes(tmp_path, OPTIMIZER, "lr=0.01")
    assert {outcome.status for outcome in sound.values()} == {"ok"}
    backwards = outcomes(tmp_path, broken(OPTIMIZER, "- change", "+ change"), "lr=0.01")
    assert [outcome.check for outcome in backwards.values() if outcome.status == "failed"] == [
        "Every parameter moves, and the loss of one batch falls"
    ]


def test_a_tracker(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("SUFFIX = '.txt'\n")
    statuses = {name: outcome.status for name, outcome in outcomes(tmp_path, TRACKER).items()}
    assert statuses.pop("It takes pictures and the best values at the end, if it says so") == "skipped"
    assert set(statuses.values()) == {"ok"}
    found = outcomes(tmp_path, broken(TRACKER, 'values["loss"]', 'values["los"]'))
    assert "mine.py, line 18: KeyError: 'los'" in [outcome.detail for outcome in found.values()]


def test_a_tracker_whose_pictures_fail_or_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside.py").write_text("SUFFIX = '.txt'\n")
    pictures = (
        TRACKER + "\n    def picture(self, step, name, array):\n        self.path.write_bytes(array.tobytes(), 7)\n"
    )
    found = outcomes(tmp_path, pictures)["It takes pictures and the best values at the end, if it says so"]
    assert found.status == "failed"
    assert "TypeError" in found.detail
    monkeypatch.setattr(trackers, "_PATIENCE", 0.5)
    waits = broken(
        TRACKER, "    def close", "        import time; time.sleep(30 if not self.path.exists() else 0)\n    def close"
    )
    waits = broken(
        waits,
        'with self.path.open("a") as file:',
        'if self.path.parent.is_dir():\n          with self.path.open("a") as file:',
    )
    (stuck,) = [one for one in outcomes(tmp_path, waits).values() if one.status == "failed"]
    assert "it has not come to an end after" in stuck.detail


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's own thread
@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_our_trackers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    section = TRACKERS.read(name)
    for each in trackers.CHECKS:
        each(section)


@pytest.mark.slow
def test_an_evaluator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forking = SimpleNamespace(run=lambda command, **_: forked.mrp(command[3:]))
    monkeypatch.setattr(evaluators, "subprocess", forking)
    (tmp_path / "near.py").write_text(EVALUATOR)
    trial = evaluators.Trial(str(tmp_path / "near.py"), {"radius": 2.0}, tmp_path)
    for each in evaluators.CHECKS:
        each(trial)
    text = broken(EVALUATOR, '{"share": float(near.float().mean())}', "{\"share\": float('nan')}")
    (tmp_path / "nan.py").write_text(text)
    odd = evaluators.Trial(str(tmp_path / "nan.py"), {}, tmp_path / "other")
    with pytest.raises(Failed, match="nan/share is nan; return finite numbers"):
        evaluators.it_measures_inside_training(odd)


def test_the_verb_prints_a_table_and_fails_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "stripes.py"
    path.write_text(STRIPES)
    main(["check", str(path), "count=32"])
    assert "6 checks, none failed" in capsys.readouterr().out
    path.write_text(broken(STRIPES, "{split}", "{id(self)}"))
    with pytest.raises(SystemExit) as ended:
        main(["check", str(path)])
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert "hash what the data are" in " ".join(shown.out.split())
    assert re.search(r"stripes\.py: [12] of 6 checks failed; mend what the table names\n$", shown.err)


def test_a_file_without_a_part_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="defines none of Objective, Source, Augmentation, Evaluator, Opti"):
        outcomes(tmp_path, "x = 1\n")


def test_a_check_may_not_apply(tmp_path: Path) -> None:
    def never() -> None:
        """It applies."""
        raise Skipped("no reason")

    assert tried(never, tmp_path) == Outcome("It applies", "skipped", "no reason")
