"""`mrp picture`: what it draws of several models, what it leaves out and says so, and hostile images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mrp
from mrp import methodkit as kit
from mrp.cli import main
from mrp.config import ConfigError
from mrp.report import pictures, seen, sheets
from tests.interop.conftest import Make, images, make  # noqa: F401 -- the fixture

WHAT = ("reconstruction", "attention", "pca", "cam")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder of images of every kind."""
    folder, random = tmp_path / "photographs", np.random.default_rng(0)
    folder.mkdir()
    Image.fromarray(random.integers(0, 255, (40, 70, 3), np.uint8)).save(folder / "colour.jpg")
    Image.fromarray(random.integers(0, 255, (16, 16), np.uint8)).save(folder / "grey.png")
    Image.fromarray(random.integers(0, 65535, (30, 20), np.uint16)).save(folder / "deep.png")
    return folder


def picture(*words: object) -> None:
    main(["picture", *map(str, words)])


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_several_models_side_by_side(
    make: Make,  # noqa: F811
    photographs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    backbone = {"class_token": False, "heads": 2, "width": 16}
    runs = [make("mae", name="mae"), make("classify", backbone, "supervised", size=32)]
    for again in ("first", "second"):
        picture(*runs, photographs, "--out", photographs.parent / again, "--ratios", ".5,.75")
    files = [photographs.parent / "first" / f"{name}.png" for name in WHAT]
    out = capsys.readouterr().out
    assert out.splitlines()[:5] == [
        "reconstruction: supervised: classify predicts no pixels",
        *(f"written to {file}" for file in files),
    ]
    for file in files:
        assert file.read_bytes() == (photographs.parent / "second" / file.name).read_bytes()
    cell = 160 + pictures.GAP
    left, widths = pictures.GAP + pictures.MARGIN, [size_of(file)[0] for file in files]
    # the input and 6 columns of MAE; the input, 4 heads and their mean; two inputs, for the sizes differ, and 2 or 4
    assert widths == [left + cell * columns for columns in (6, 6, 4, 6)]
    # below a heading and titles, which are lower than a cell: images and ratios; images and models; images
    for file, rows in zip(files, (6, 6, 3, 3), strict=True):
        assert 0 < size_of(file)[1] - rows * cell < 1.6 * cell


def test_each_column_is_what_its_title_says(make: Make) -> None:  # noqa: F811
    for target in ("pixels", "pixels_norm"):
        model = mrp.load(make("mae", name=target, target=target))
        one = seen.Seen(target, model, (images() * 255).to(torch.uint8))
        page = sheets.PAGES["reconstruction"](sheets.Order([one], ["a", "b", "c"], (0.5, 0.75), None, seed=3), [])
        assert page is not None
        assert page.rows[:3] == ["a\n50 % hidden", "a\n75 % hidden", "b\n50 % hidden"]
        columns = {column.title: column.images for column in page.columns}
        shown, masked = columns["input"], columns["masked"]
        assert torch.equal(shown, one.pixels.repeat_interleave(2, 0))
        hidden = (masked != shown).any(1)
        assert hidden[::2].float().mean((1, 2)).tolist() == pytest.approx([0.5] * 3, abs=0.01)
        assert hidden[1::2].float().mean((1, 2)).tolist() == pytest.approx([0.75] * 3, abs=0.01)
        assert hidden[1::2][hidden[::2]].all(), "more is hidden, and nothing else"
        mask, painted = model.reconstruct(one.images, seed=3)
        assert torch.equal(mask.sum(1), torch.tensor([12, 12, 12])), "the model's own ratio is what it was"
        everywhere = hidden[1::2, None].expand(-1, 3, -1, -1)
        if target == "pixels":
            pasted, prediction = columns["prediction pasted where hidden"], columns["raw prediction"]
            assert len(columns) == 4
            assert "itself" not in page.heading
        else:
            pasted = columns["the same pasted where hidden"]
            prediction = columns["de-normalised: uses the image's own statistics"]
            bare = columns["raw prediction, normalised per patch"][1::2]
            truth = columns["truth, normalised per patch"][1::2]
            patches = kit.patchify((truth - 0.5) * 2 * sheets.CONTRAST, (4, 4))
            assert patches.mean(-1).abs().max() < 1e-5
            assert patches.std(-1).sub(1).abs().max() < 1e-3
            mean, deviation = kit.patch_statistics(kit.patchify(model.batch(one.images).images, (4, 4)))
            undone = kit.patchify((bare - 0.5) * 2 * sheets.CONTRAST, (4, 4)) * deviation + mean
            again = model.module.prepare.undo(kit.unpatchify(undone, (4, 4), (4, 4)))
            assert torch.allclose(again, prediction[1::2], atol=1e-5)
            assert "takes them from the hidden image itself" in page.heading
        assert torch.equal(prediction[1::2], painted)
        assert torch.equal(pasted[1::2][everywhere], painted[everywhere])
        assert torch.equal(pasted[1::2][~everywhere], shown[1::2][~everywhere])


def test_what_several_models_are_given_stands_there_once(make: Make) -> None:  # noqa: F811
    targets = {"first": "pixels_norm", "second": "pixels_norm", "third": "pixels", "fourth": "pixels"}
    models = [(name, mrp.load(make("mae", name=name, target=target))) for name, target in targets.items()]
    models.append(("other", mrp.load(make("simmim", name="other", mask_unit=8))))
    by_model = [seen.Seen(name, model, (images() * 255).to(torch.uint8)) for name, model in models]
    page = sheets.PAGES["reconstruction"](sheets.Order(by_model, ["a", "b", "c"], (0.5,), None, seed=3), [])
    assert page is not None
    titles = [column.title for column in page.columns]
    given = [title for title in titles if not title.endswith(("prediction", "pasted where hidden", "statistics"))]
    assert [title for title in given if "raw" not in title] == [
        "input", "masked", "truth, normalised per patch", "other: masked",
    ]  # fmt: skip
    assert titles.count("second: raw prediction, normalised per patch") == titles.count("fourth: raw prediction") == 1


def test_without_images_its_own_are_taken(make: Make, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    run = make("simmim", {"relative_bias": "shared", "positions": "none"})
    picture(run, "--count", 2, "--what", "pca,reconstruction", "--layer", 1)
    assert capsys.readouterr().out.split() == [
        *("written", "to", str(run / "pictures/reconstruction.png")),
        *("written", "to", str(run / "pictures/pca.png")),
    ]


def test_weights_of_another_project_and_what_they_lack(
    make: Make,  # noqa: F811
    photographs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make("mae")
    main(["export", str(run), "--to", "timm", "--out", str(photographs.parent / "timm")])
    capsys.readouterr()
    picture(photographs.parent / "timm", photographs / "grey.png", "--out", photographs.parent / "out")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("reconstruction: timm: was imported without 'decoder")
    assert [Path(line.split()[-1]).stem for line in lines[1:]] == list(WHAT[1:])
    with pytest.raises(SystemExit):
        picture(photographs.parent / "timm", "--out", photographs.parent / "out")
    assert "has no images of its own; give files or folders after it" in capsys.readouterr().err


def test_bad_images_are_a_line_each(
    make: Make,  # noqa: F811
    photographs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, whole = make("mae"), (photographs / "colour.jpg").read_bytes()
    (photographs / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photographs / "empty.png").touch()
    (photographs / "page.png").write_text("%!PS-Adobe (x) run")
    Image.new("L", (3000, 2)).save(photographs / "thin.png")
    Image.new("L", (8, 8)).save(photographs / "\u56fe $x_ {.png")
    picture(run, photographs, photographs / "gone.png", "--count", 20, "--out", photographs.parent / "out")
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("written")]
    assert [line.partition(": ")[0] for line in lines] == [
        str(photographs / "gone.png"), "cut.jpg", "empty.png", "page.png", "thin.png",
    ]  # fmt: skip
    assert all(line.endswith("; left out") for line in lines)
    assert len(list((photographs.parent / "out").iterdir())) == 4
    with pytest.raises(SystemExit):
        picture(run, photographs / "cut.jpg")
    assert "none of the images can be read: cut.jpg: damaged JPEG" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        picture(run, photographs / "gone.png")
    line = f"none of the images can be read: {photographs / 'gone.png'}: cannot be read: No such file or directory"
    assert line in capsys.readouterr().err


def test_a_ratio_that_leaves_nothing_is_left_out(make: Make, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    run = make("mae")
    picture(run, "--ratios", ".5,.99", "--what", "reconstruction")
    out = capsys.readouterr().out
    assert "reconstruction: run: mask_ratio: 0.99 of 16 patches leaves 0 visible" in out
    with pytest.raises(SystemExit):
        picture(run, "--ratios", ".99", "--what", "reconstruction")
    assert "there is nothing to draw: reconstruction: run: mask_ratio: 0.99" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{photographs}", "{run}"], "is no checkpoint, which comes before the images"),
        (["{run}", "{photographs}", "{run}"], "is no image, and checkpoints come before the images"),
        (["{run}", "{run}"], "the same run is given twice"),
        (["{run}", "{photographs}/empty"], "holds no images; files that count end in .jpg"),
        (["{run}", "--what", "attention,saliency"], "'saliency' was given; allowed: reconstruction, attention, pca, "),
        (["{run}", "--ratios", ".5,1"], "'.5,1' was given; allowed: shares between 0 and 1"),
        (["{run}", "--ratios", "half"], "'half' was given; allowed: shares between 0 and 1"),
        (["{run}", "--layer", "3"], "there is nothing to draw: attention: run: --layer: 3 was given, and .* 1 to 2"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    message: str,
    make: Make,  # noqa: F811
    photographs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (photographs / "empty").mkdir()
    run = make("mae")
    with pytest.raises(SystemExit) as left:
        picture("--what", "attention,pca,cam", *(word.format(run=run, photographs=photographs) for word in words))
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line


def test_evenly_spread_images(photographs: Path) -> None:
    for number in range(20):
        (photographs / f"n{number:02}.png").touch()
    chosen, total = seen.found([photographs], 4)
    assert total == 23
    assert [path.stem for path in chosen] == ["colour", "n04", "n12", "n19"]
    assert len(seen.found([photographs, photographs / "grey.png"], 99)[0]) == 24


def test_a_page_that_is_too_large_is_refused(tmp_path: Path) -> None:
    column = pictures.Column("input", torch.zeros(1, 1, 1, 1).expand(300, 1, 160, 160))
    with pytest.raises(ConfigError, match="page of 172 x 49826 pixels; show fewer images"):
        pictures.write_page([column], tmp_path / "page.png")


def test_text_stands_where_there_is_room(tmp_path: Path) -> None:
    words = "many words that have to be broken " * 4
    columns: list[Any] = [pictures.Column(words, torch.zeros(1, 3, 8, 8), [words]) for _ in range(3)]
    pictures.write_page(columns, tmp_path / "page.png", words * 3, ["a_very_long_name_of_a_photograph_0123456789"])
    with Image.open(tmp_path / "page.png") as image:
        page = np.asarray(image.convert("L")).astype(int)
    ink = (page < 200).any(1)
    edges = np.flatnonzero(np.diff(ink.astype(int)))
    assert page[:, :2].min() == 255, "nothing is cut off at the left"
    assert ink[0] == 0
    cell = page[-160 - pictures.GAP : -pictures.GAP, -160 - pictures.GAP : -pictures.GAP]
    assert (cell[:100] == 0).all()
    assert (cell[140:, :100] == 255).any(), "a caption on white"
    assert len(edges) >= 2 * (5 + 7), "lines of the heading and of the titles do not touch"
