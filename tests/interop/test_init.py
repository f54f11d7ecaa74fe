"""What a run starts with: the weights of another, the backbone that follows from them, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.nn import functional

from mrp.build import build_optimizer, build_step
from mrp.checkpoint import checkpoints
from mrp.checkpoint import layout as tensors
from mrp.checkpoint.saver import save_now
from mrp.config import ConfigError, compose, dump
from mrp.exchange.export import export
from mrp.exchange.importing import import_weights
from mrp.folder import CLASSES, CONFIG
from mrp.interop import init
from mrp.models import vit
from mrp.optim import average
from mrp.processes import wrapping
from mrp.run import Run, load, recipes

TINY = ["backbone.width=16", "backbone.depth=2", "backbone.heads=2", "objective.decoder.width=16"]
OFFICIAL = Path(__file__).parent.parent / "reference" / "cases"
MODEL = "model.safetensors"


def made(folder: Path, *words: str, recipe: str = "demo") -> Path:
    """A run of which nothing but its first checkpoint is there."""
    run = load(recipe, words)
    step = build_step(run)
    folder.mkdir()
    (folder / CONFIG).write_text(dump(run.resolved()))
    averaged = {name: tensor + 1 for name, tensor in average.Average(average.Config(), step).tensors().items()}
    save_now(folder, 5, step, build_optimizer(run.optim, step), {}, 1, {average.GROUP: averaged})
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("init") / "mae", *TINY, "seed=7")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = checkpoints.newest(folder)
    assert found is not None
    return {name.removeprefix("objective."): tensor for name, tensor in found.weights().items()}


def started(run: Run, classes: tuple[str, ...] = ()) -> tuple[Any, str]:
    step = build_step(run)
    assert run.init is not None
    return step.objective, init.start(run.init, run.name, step, classes)


def test_a_recipe_takes_its_backbone_from_the_checkpoint(pretrained: Path) -> None:
    run = load("finetune_tiny_digits", ["backbone=null", "backbone.drop_path=0.2", f"init={pretrained}"])
    assert (run.backbone.width, run.backbone.depth, run.backbone.drop_path) == (16, 2, 0.2)
    objective, said = started(run)
    theirs, own = weights(pretrained), objective.state_dict()
    same = [name for name in own if name.startswith("backbone.") and not name.startswith("backbone.fc_norm.")]
    assert all(torch.equal(own[name], theirs[name]) for name in same)
    assert said.endswith("): backbone; new: backbone.fc_norm, head; not taken: backbone.norm, decoder")
    assert "(mae, step 5)" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["backbone.depth=3"], "backbone.depth: 3 is stated, but the weights of .* have depth 2"),
        (["backbone={name: vit_tiny_patch16_224}"], "backbone.name: vit_tiny_patch16_224 is stated, .* width 16"),
        (["backbone={patch: 4}"], r"backbone.patch: 4 is stated, but the weights of .* have patch \(2, 2\)"),
        (["backbone={registers: 4}"], "backbone.registers: 4 is stated, but the weights of .* have 0"),
        (["backbone={widht: 4}"], "backbone.widht: unknown key"),
        (["backbone=null", "data.channels=3", "data.mean=0.3", "data.std=0.3"], "data.channels: 3, but .* images of 1"),
        (["backbone=null", "init.weights=teacher"], "holds no teacher"),
        (["backbone=null", "init.weight=teacher"], "init.weight: unknown key; did you mean 'weights'"),
    ],
)
def test_what_does_not_fit_the_checkpoint_is_named(pretrained: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("finetune_tiny_digits", ["backbone=null", f"init={pretrained}", *words])


def test_what_the_checkpoint_says_too_may_be_stated(pretrained: Path) -> None:
    run = load("demo", [*TINY, f"init={pretrained}"])
    assert run.backbone == load("demo", TINY).backbone
    assert load("demo", [*TINY, f"init={pretrained}", "backbone.positions=learned"]).backbone.positions == "learned"


def test_a_recipe_fits_the_run_that_its_head_names() -> None:
    found = {}
    for path in [*recipes().glob("finetune_*_in1k.yaml"), *recipes().glob("linear_*_in1k.yaml")]:
        (name,) = re.findall(r" init=runs/(\w+)", path.read_text())
        found[path.stem] = init._agreed(compose(path).values["backbone"], load(name).backbone, name)
    assert found["finetune_simmim_vit_base_in1k"]["relative_bias"] == "per_block"
    assert len(found) > 10


def test_the_number_at_which_a_layer_scale_begins_need_not_agree() -> None:
    theirs = vit.Config(
        width=16, depth=2, heads=2, patch=2, layer_scale=0.1
    )  # as read from a file, which does not tell
    assert init._agreed({"layer_scale": 1e-4}, theirs, "weights")["layer_scale"] == 1e-4
    with pytest.raises(ConfigError, match=r"layer_scale: 0\.0001 is stated, but the weights of weights have None"):
        init._agreed({"layer_scale": 1e-4}, theirs.model_copy(update={"layer_scale": None}), "weights")


def test_the_same_method_goes_on_with_all_of_its_parts(tmp_path: Path) -> None:
    small = ["backbone.width=16", "backbone.depth=2", "backbone.heads=2", "objective.layers=1"]
    place = made(tmp_path / "data2vec", *small, "seed=7", recipe="data2vec_tiny_digits")
    objective, said = started(load("data2vec_tiny_digits", [*small, f"init={place}"]))
    theirs = weights(place)
    own = objective.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in own.items())
    assert said.endswith("new: nothing; not taken: nothing")


@pytest.mark.parametrize(
    ("words", "classes", "reason"),
    [
        ([], ("a", "b", "c"), None),
        ([], ("0", "1", "2"), None),  # what they are called is not known
        ([], ("a", "c", "b"), "the head tells other classes apart, such as 'b' at number 1"),
        (["objective.pool=cls"], ("a", "b", "c"), "the head was trained with objective.pool: mean"),
        (["objective.frozen=true"], ("a", "b", "c"), "the head was trained with objective.frozen: false"),
    ],
)
def test_a_head_goes_on_with_the_features_and_classes_that_it_knows(
    pretrained: Path, tmp_path: Path, words: list[str], classes: tuple[str, ...], reason: str | None
) -> None:
    """A linear probe of a fine-tuned model would begin with the head that fine-tuning has trained."""
    few = ["backbone=null", "objective.classes=3"]
    tuned = made(tmp_path / "tuned", *few, f"init={pretrained}", "seed=7", recipe="finetune_tiny_digits")
    (tuned / CLASSES).write_text(json.dumps(["a", "b", "c"]))
    objective, said = started(load("finetune_tiny_digits", [*few, *words, f"init={tuned}"]), classes)
    is_taken = torch.equal(objective.head.weight, weights(tuned)["head.weight"])
    assert is_taken == (reason is None)
    assert said.endswith("not taken: nothing") if reason is None else reason in said


@pytest.mark.parametrize(
    ("before", "tags", "reason"),
    [
        (["objective.loss=tags"], ("a", "b", "c"), None),
        (["objective.loss=tags"], ("a", "c", "b"), "the head tells other tags apart, such as 'b' at number 1"),
        (["objective.loss=binary"], ("a", "b", "c"), None),
        ([], ("a", "b", "c"), "the head was trained with objective.loss: cross_entropy"),
    ],
)
def test_a_head_goes_on_with_the_tags_that_it_knows(
    pretrained: Path, tmp_path: Path, before: list[str], tags: tuple[str, ...], reason: str | None
) -> None:
    few = ["backbone=null", "objective.classes=3"]
    tuned = made(tmp_path / "tuned", *few, *before, f"init={pretrained}", "seed=7", recipe="finetune_tiny_digits")
    (tuned / CLASSES).write_text(json.dumps(["a", "b", "c"]))
    objective, said = started(load("finetune_tiny_digits", [*few, "objective.loss=tags", f"init={tuned}"]), tags)
    assert torch.equal(objective.head.weight, weights(tuned)["head.weight"]) == (reason is None)
    assert reason is None or reason in said


def test_whether_the_head_of_others_tells_tags_can_be_said_at_import(pretrained: Path, tmp_path: Path) -> None:
    few = ["backbone=null", "objective.classes=3"]
    tuned = made(tmp_path / "tuned", *few, f"init={pretrained}", "seed=7", recipe="finetune_tiny_digits")
    (tuned / CLASSES).write_text(json.dumps(["a", "b", "c"]))
    theirs = tmp_path / "theirs"
    export(tuned, "timm", theirs, "student")
    for said, words in ((None, []), ("tags", ["objective.loss=tags"])):
        import_weights(str(theirs), tmp_path / f"imported {said}", words=words)
    for source, tags, reason in (
        (theirs, "abc", "whether the head tells tags is unknown (if it does, say so: mrp import SOURCE"),
        (tmp_path / "imported None", "abc", "whether the head tells tags is unknown"),
        (tmp_path / "imported tags", "abc", None),
        (tmp_path / "imported tags", "acb", "the head tells other tags apart, such as 'b' at number 1"),
    ):
        run = load("finetune_tiny_digits", [*few, "objective.loss=tags", f"init={json.dumps(str(source))}"])
        objective, said = started(run, tuple(tags))
        assert torch.equal(objective.head.weight, weights(tuned)["head.weight"]) == (reason is None)
        assert said.endswith("not taken: nothing") if reason is None else reason in said
        assert "cross_entropy" not in said


def test_a_teacher_that_is_not_given_starts_where_its_student_does(pretrained: Path) -> None:
    words = ["backbone=null", "objective.layers=1", f"init={pretrained}"]
    objective, said = started(load("data2vec_tiny_digits", words))
    student = objective.backbone.state_dict()
    teacher = objective.teacher.backbone.state_dict()
    assert all(torch.equal(tensor, student[name]) for name, tensor in teacher.items())
    assert torch.equal(student["blocks.0.attn.qkv.weight"], weights(pretrained)["backbone.blocks.0.attn.qkv.weight"])
    assert "not taken: decoder" in said


def test_a_teacher_starts_with_the_last_norm_of_its_student_where_a_classifier_has_none(tmp_path: Path) -> None:
    words = [word for word in TINY if word.startswith("backbone")]
    tuned = made(tmp_path / "tuned", *words, "objective.pool=mean", recipe="supervised_tiny_digits")
    objective, said = started(load("data2vec_tiny_digits", ["backbone=null", "objective.layers=1", f"init={tuned}"]))
    student, teacher = objective.backbone.state_dict(), objective.teacher.backbone.state_dict()
    assert all(torch.equal(tensor, student[name]) for name, tensor in teacher.items())
    assert "backbone, teacher; new: backbone.norm, head, mask_token; not taken: backbone.fc_norm, head" in said


def test_a_decoder_of_another_size_is_new_and_said_to_be(pretrained: Path) -> None:
    _, said = started(load("demo", [*TINY, "objective.decoder.width=8", f"init={pretrained}"]))
    assert said.endswith("backbone, backbone.norm; new: decoder; not taken: decoder")


def test_the_average_is_another_origin(pretrained: Path) -> None:
    words = ["finetune_tiny_digits", ["backbone=null", f"init={pretrained}", "init.weights=average"]]
    run = load(*words)  # type: ignore[arg-type]
    objective, _ = started(run)
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(objective.backbone.state_dict()[name], weights(pretrained)[f"backbone.{name}"] + 1)
    student = load("finetune_tiny_digits", ["backbone=null", f"init={pretrained}"])
    assert run.identity("x") != student.identity("x")


def test_pixels_in_other_units_than_those_of_the_weights_are_named(pretrained: Path) -> None:
    same, other = (
        started(load("demo", [*TINY, "backbone=null", f"init={pretrained}", *words]))[1]
        for words in ([], ["data.mean=0.5", "data.std=0.25"])
    )
    assert "normalised" not in same
    assert other.endswith(
        "; pixels are normalised by mean 0.5 and std 0.25, those of the weights were by mean 0.3 and std 0.375"
    )


def test_another_size_has_to_be_asked_for(pretrained: Path) -> None:
    words = ["backbone=null", "data.size=12", f"init={pretrained}"]
    with pytest.raises(
        ConfigError, match=r"data.size: its grid of patches is 6x6, that of the weights is 4x4; set init.res"
    ):
        started(load("finetune_tiny_digits", words))
    words = [
        "backbone=null",
        "backbone.positions=learned",
        "data.size=12",
        f"init.from={pretrained}",
        "init.resample=true",
    ]
    objective, _ = started(load("finetune_tiny_digits", words))
    assert objective.backbone.pos_embed.shape == (1, 37, 16)
    theirs = {k.removeprefix("backbone."): w for k, w in weights(pretrained).items() if k.startswith("backbone.")}
    expected = vit.resampled(objective.backbone, theirs, (4, 4))["pos_embed"]
    assert torch.equal(objective.backbone.pos_embed, expected)


def test_fixed_positions_are_interpolated_too(pretrained: Path) -> None:
    """The weights are used to their own positions, and MAE's official probe interpolates them at another size."""
    words = ["backbone=null", "data.size=12", f"init.from={pretrained}", "init.resample=true"]
    run = load("linear_tiny_digits", words)
    assert run.backbone.positions == "sincos"
    objective, _ = started(run)
    before = weights(pretrained)["backbone.pos_embed"]
    patches = before[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    theirs = functional.interpolate(patches, (6, 6), mode="bicubic", align_corners=False)  # as MAE's code does
    assert torch.equal(objective.backbone.pos_embed[:, 1:], theirs.flatten(2).mT)
    assert torch.equal(objective.backbone.pos_embed[:, :1], before[:, :1])


def test_the_file_of_the_weights_is_an_origin_too(pretrained: Path) -> None:
    checkpoint_folder = pretrained / "checkpoints" / "step-00000005"
    runs = [load("demo", [*TINY, f"init={path}"]) for path in (checkpoint_folder, checkpoint_folder / MODEL)]
    assert runs[0].identity("x") == runs[1].identity("x")


def test_a_shared_bias_becomes_that_of_each_block(tmp_path: Path) -> None:
    small = ["backbone.width=16", "backbone.depth=2", "backbone.heads=2", "backbone.positions=none"]
    place = made(tmp_path / "simmim", *small, "backbone.relative_bias=shared", recipe="simmim_tiny_digits")
    words = ["backbone={relative_bias: per_block}", "data.size=12", f"init={{from: {place}, resample: true}}"]
    objective, _ = started(load("finetune_tiny_digits", ["backbone=null", *words]))
    assert [len(block.rel_pos_bias.relative_position_bias_table) for block in objective.backbone.blocks] == [124, 124]


def test_an_official_checkpoint_is_an_origin_like_any_other() -> None:
    place = OFFICIAL / "vit_cls" / "checkpoint.pth"
    words = ["backbone=null", "backbone.heads=4", "data.size=32", "data.channels=3", "data.mean=0.5", "data.std=0.5"]
    run = load("finetune_tiny_digits", [*words, f"init={place}"])
    assert (run.backbone.width, run.backbone.depth, run.backbone.heads) == (48, 3, 4)
    _, said = started(load("finetune_tiny_digits", [*words, "objective.pool=cls", f"init={place}"]))
    assert said.endswith("(classify, step 0): backbone, backbone.norm, head; new: nothing; not taken: nothing")
    _, said = started(run)
    assert "(classify, step 0): backbone; new: backbone.fc_norm, head; not taken: backbone.norm, head; the " in said
    _, said = started(load("finetune_tiny_digits", [*words, "objective={classes: 4, pool: cls}", f"init={place}"]))
    assert said.endswith("(classify, step 0): backbone, backbone.norm; new: head; not taken: head")
    with pytest.raises(ConfigError, match=r"add backbone\.heads=N"):
        load("finetune_tiny_digits", [*words[:1], *words[2:], f"init={place}"])


@pytest.mark.parametrize("channels", [1, 4, 12])
def test_colours_are_spread_over_other_channels(tmp_path: Path, channels: int) -> None:
    place = made(tmp_path / "colours", *TINY, "data.channels=3", "data.mean=0.5", "data.std=0.25", recipe="demo")
    words = [*TINY, f"data.channels={channels}", "data.mean=0.5", "data.std=0.25"]
    with pytest.raises(ConfigError, match=f"data.channels: {channels}, but .* images of 3; .* init.channels=spread"):
        load("demo", [*words, f"init={place}"])
    run = load("demo", [*words, f"init={{from: {place}, channels: spread}}"])
    objective, said = started(run)
    assert said.endswith("new: decoder; not taken: decoder")
    before = build_step(load(str(place / CONFIG), []))
    before.load_state_dict({f"objective.{name}": tensor for name, tensor in weights(place).items()}, strict=False)
    grey = torch.randn(2, 1, 8, 8)
    old, new = (
        vit.embed(backbone, grey.expand(-1, count, -1, -1))
        for backbone, count in ((before.objective.backbone, 3), (objective.backbone, channels))
    )
    torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-5)
    same = load("demo", [*TINY, "data.channels=[a,b,c]", "data.mean=0.5", "data.std=0.25", f"init={place}"])
    assert started(same)[1].endswith("new: nothing; not taken: nothing")


def test_the_content_counts_not_the_place(pretrained: Path, tmp_path: Path) -> None:
    shutil.copytree(pretrained, tmp_path / "copy")
    first, second = (load("demo", [*TINY, f"init={place}"]) for place in (pretrained, tmp_path / "copy"))
    assert first.identity("x") == second.identity("x") != load("demo", TINY).identity("x")
    other = made(tmp_path / "other", *TINY, "seed=8")
    assert load("demo", [*TINY, f"init={other}"]).identity("x") != first.identity("x")


def test_a_run_that_is_there_already_needs_its_origin_no_more(pretrained: Path, tmp_path: Path) -> None:
    place, folder = tmp_path / "origin", tmp_path / "run"
    shutil.copytree(pretrained, place)
    words = ["backbone=null", f"init={place}"]
    before = load("finetune_tiny_digits", words)
    folder.mkdir()
    (folder / CONFIG).write_text(dump(before.resolved()))
    shutil.rmtree(place)
    assert load("finetune_tiny_digits", words, folder).resolved() == before.resolved()
    assert load(folder / CONFIG).resolved() == before.resolved()
    with pytest.raises(ConfigError, match="there is no such file or folder"):
        load("finetune_tiny_digits", words)
    made(place, *TINY, "seed=8")
    with pytest.raises(ConfigError, match=r"init.from: .* holds other weights than when this run was first started"):
        started(load("finetune_tiny_digits", words, folder))


def test_a_content_that_is_given_has_to_be_met(pretrained: Path) -> None:
    words = [f"init={{from: {pretrained}, content: {'0' * 64}}}"]
    with pytest.raises(ConfigError, match="holds other weights"):
        started(load("demo", [*TINY, *words]))


def test_without_an_origin_nothing_changes() -> None:
    run = load("demo")
    assert run.init is None
    assert init.completed(init.Tree({"seed": 1}, {})) == init.Tree({"seed": 1}, {})


def test_a_step_that_is_sharded_starts_with_the_same_weights(pretrained: Path, tmp_path: Path) -> None:
    run = load("finetune_tiny_digits", ["backbone=null", f"init={pretrained}"])
    whole, said = started(run)
    sharded = build_step(run)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        wrapping.shard(sharded, "cpu", 1)
        assert run.init is not None
        assert init.start(run.init, run.name, sharded) == said
        found = {
            name: tensors.whole(tensor) for name, tensor in sharded.get_submodule("objective").state_dict().items()
        }
    finally:
        distributed.destroy_process_group()
    assert all(torch.equal(tensor, found[name]) for name, tensor in whole.state_dict().items())


def test_a_checkpoint_s_weights_are_taken_in_their_folder_and_known_elsewhere(pretrained: Path, tmp_path: Path) -> None:
    found = checkpoints.newest(pretrained)
    assert found is not None
    words = ["backbone=null", f"init={found.folder / MODEL}"]
    assert load("finetune_tiny_digits", words).backbone.width == 16
    shutil.copy(found.folder / MODEL, tmp_path)
    with pytest.raises(ConfigError, match=r"is the model\.safetensors of a checkpoint of mrp without its folder"):
        load("finetune_tiny_digits", ["backbone=null", f"init={tmp_path / MODEL}"])
