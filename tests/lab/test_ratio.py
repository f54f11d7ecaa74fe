"""The mask ratio that is predicted before training: the rules, the classifier, and that a prediction stays frozen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mrp import api
from mrp.batch import Batch
from mrp.build import build_step
from mrp.cli import main
from mrp.config import ConfigError, Tree, build
from mrp.data.order import keys
from mrp.lab.ratio import compare, masked_classifier, predict, rules
from mrp.methodkit import count_visible
from mrp.models.masking import random_mask
from mrp.run import Run, find_recipe, load
from mrp.schedules import Length

SMALL = (
    "backbone={width: 32, depth: 2, heads: 2, patch: 2}", "objective.decoder={width: 16, depth: 1, heads: 2}",
    "length=4 steps", "batch=32", "optim.warmup=1 steps", "diagnose.every=0 steps",
)  # fmt: skip
WORDS = [*SMALL, "--ratios", ".3", ".75", "--images", "40", "--pairs", "1"]


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lab") / "ratio"
    main(["lab", "ratio", "predict", "demo", *WORDS, "--out", str(out)])
    return out


def test_balance_hides_as_much_as_possible_before_the_label_error_has_risen_as_much() -> None:
    ratios = [0.1, 0.3, 0.5, 0.7, 0.9]
    errors = [0.10, 0.11, 0.13, 0.25, 0.80]  # .05 for whole images, .9 by chance
    merits = rules.merits(ratios, errors, [0.0] * 5, 0.05, 0.9)
    assert merits["balance"] == pytest.approx([r - (e - 0.05) / 0.85 for r, e in zip(ratios, errors, strict=True)])
    assert rules.best(ratios, merits["balance"]) == 0.7


def test_lesson_wants_pairs_of_which_one_tells_the_class() -> None:
    ratios = [0.3, 0.6, 0.9]
    assert rules.best(ratios, rules.merits(ratios, [0.1, 0.4, 0.8], [0.1, 0.3, 0.2], 0.0, 0.9)["lesson"]) == 0.6


def test_rank_correlation() -> None:
    assert rules.rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert rules.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rules.rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert rules.rank_correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(0.75**0.5), "equal values share their rank"
    assert rules.rank_correlation([1, 1, 1], [1, 2, 3]) == 0


@pytest.mark.parametrize("patches", [16, 64, 196])
def test_mae_hides_as_many_patches_as_the_classifier(patches: int) -> None:
    for hidden in range(1, patches):
        assert count_visible(patches, compare.mask_ratio(patches, hidden)) == patches - hidden
    assert predict.hidden_counts(patches, (0.001, 0.5, 0.999)) == [1, patches // 2, patches - 1]


def classifier() -> masked_classifier.Objective:
    method = {"name": masked_classifier.__file__, "classes": 10}
    values = load("demo", SMALL).model_dump(mode="json") | {"objective": method}
    objective: Any = build_step(build(Run, Tree(values, {}))).objective
    return objective  # type: ignore[no-any-return]


def test_the_classifier_sees_the_visible_patches_and_nothing_else() -> None:
    objective = classifier().eval()
    torch.nn.init.normal_(objective.head.weight)
    images = torch.randn(3, 1, 8, 8)
    mask = random_mask(torch.arange(3), 16, 10)
    shown = (~mask).view(3, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    scores = objective.predict(images, mask, 6)
    assert torch.equal(scores, objective.predict(images * shown, mask, 6))
    assert not torch.equal(scores, objective.predict(images * ~shown, mask, 6))


def test_every_step_draws_how_much_is_visible_and_all_counts_come_up_equally() -> None:
    objective, counts = classifier(), []
    for step in range(1600):
        objective.before_step(step, Length(1600, 11, 4))
        counts.append(objective.num_visible)
    seen = torch.tensor(counts).bincount(minlength=17)
    assert seen[0] == 0
    assert seen[1:].min() > 60, "100 of each are expected, and 10 are the deviation"
    batch = Batch(torch.randn(4, 1, 8, 8), torch.from_numpy(keys(0, 0, torch.arange(4).numpy())), torch.arange(4))
    assert (~objective.mask(batch.keys)).sum(1).tolist() == 4 * counts[-1:]
    assert objective(batch).loss.item() == pytest.approx(2.302585), "the head begins at zero"


def test_a_prediction_is_made_once_and_before_mae(predicted: Path, tmp_path: Path) -> None:
    before = (predicted / "prediction.json").read_bytes()
    assert (predicted / "prediction.png").stat().st_size > 1000
    main(["lab", "ratio", "predict", "demo", *WORDS, "--out", str(predicted)])
    assert (predicted / "prediction.json").read_bytes() == before
    with pytest.raises(ConfigError, match="with other options"):
        predict.freeze(predict.Options("demo", SMALL, images=41), predicted)
    (tmp_path / predict.MAE).mkdir()
    with pytest.raises(ConfigError, match="nothing can be predicted any more"):
        predict.freeze(predict.Options("demo", SMALL), tmp_path)
    with pytest.raises(ConfigError, match="holds no prediction"):
        compare.compare(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"--ratios: 1.5 was given"):
        predict.freeze(predict.Options("demo", SMALL, ratios=(0.5, 1.5)), tmp_path / "new")
    with pytest.raises(ConfigError, match="take a recipe of mae"):
        predict.freeze(predict.Options("supervised_tiny_digits"), tmp_path / "new")


def test_a_recipe_that_says_something_else_by_now_is_refused(tmp_path: Path) -> None:
    recipe, out = tmp_path / "own.yaml", tmp_path / "out"
    recipe.write_text(f"base: {find_recipe('demo')}\nobjective: {{decoder: {{width: 16, depth: 1, heads: 2}}}}\n")
    options = predict.Options(str(recipe), (SMALL[0], *SMALL[2:]), (0.5,), "1 steps", images=20, pairs=1)
    predict.freeze(options, out)
    recipe.write_text(recipe.read_text().replace("width: 16", "width: 24"))
    for again in (lambda: predict.freeze(options, out), lambda: compare.compare(out, 1)):
        with pytest.raises(ConfigError, match=r"has objective\.decoder\.width = 24 by now, .* made for 16; restore"):
            again()
    assert not (out / predict.MAE).exists()


def test_a_prediction_that_was_changed_is_refused(predicted: Path, tmp_path: Path) -> None:
    for name in (predict.PREDICTION, predict.HASH):
        (tmp_path / name).write_bytes((predicted / name).read_bytes())
    assert predict.frozen(tmp_path) == predict.frozen(predicted)
    prediction = json.loads((tmp_path / predict.PREDICTION).read_text())
    prediction["best"]["balance"] = prediction["ratios"][0]
    (tmp_path / predict.PREDICTION).write_text(json.dumps(prediction))
    with pytest.raises(ConfigError, match="was changed after it was written"):
        compare.compare(tmp_path, 1)


def test_the_comparison_goes_on_where_it_stopped(predicted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["lab", "ratio", "compare", "--seeds", "1", "--out", str(predicted)])
    result = json.loads((predicted / "results.json").read_text())
    assert result["sha256"] == predict.frozen(predicted)[1]
    assert [row["hidden"] for row in result["measured"]] == result["prediction"]["hidden"] == [5, 12]
    assert (predicted / "ratio.png").stat().st_size > 1000
    assert [api.read(predicted / "mae" / f"{hidden}-of-16-0").objective.mask_ratio for hidden in (5, 12)] == [
        0.3125,
        0.75,
    ]  # type: ignore[attr-defined]
    monkeypatch.setattr(compare, "train", lambda *_: pytest.fail("it is trained already"))
    assert compare.compare(predicted, 1) == result


def test_outcomes_are_counted_seed_by_seed() -> None:
    prediction = {
        "ratios": [0.2, 0.5, 0.8],
        "hidden": [3, 8, 13],
        "merits": {"balance": [0, 2, 1]},
        "best": {"balance": 0.5},
    }
    rows = [
        {"seed": seed, "hidden": hidden, "knn": {"accuracy": accuracy}, "linear": {"accuracy": 0.5}}
        for seed, accuracies in enumerate(([0.1, 0.3, 0.2], [0.3, 0.2, 0.1]))
        for hidden, accuracy in zip((3, 8, 13), accuracies, strict=True)
    ]
    knn, linear, half, *_ = compare.result(prediction, "hash", rows)["outcomes"]
    assert knn["rank correlation"] == pytest.approx([1, -0.5])
    assert knn["ratios off"] == [0, 1]
    assert knn["points gained"] == pytest.approx([10, 0])
    assert linear["rank correlation"] == [0, 0]
    assert half["rule"] == "nearest to 0.5", "which has to be beaten"
    assert half["ratios off"] == [0, 1]
