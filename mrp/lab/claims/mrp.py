"""The claims of Pan, Zhou and Yan (ICLR 2023) on why pretraining helps, as predictions about results."""

from __future__ import annotations

from mrp.lab.claims import multiview
from mrp.lab.claims.claim import Bound, Claim, Number, Numbers, difference
from mrp.lab.claims.results import Results

_MULTIVIEW = "mrp lab multiview"
_MULTIVIEW_COST = "1.3 CPU minutes"
_SWEPT = "mrp lab multiview; mrp lab multiview --sweep sigma"
_SWEPT_COST = "2 CPU minutes"
_VIT = (
    "python tools/multiview_vit.py --out runs/multiview_vit --seeds 3 --pretraining 20 --training 15 "
    "k=4 d=27 P=9 s=1 samples=400 tests=300"
)


def _coverage(results: Results) -> Numbers:
    """What the maps of the first run cover, over those of the last one, which is the supervised one."""
    found = results.lab("coverage")
    if not found:
        return {}
    first, last = found["rows"][0], found["rows"][-1]
    options = found["options"]
    over = f"1 seed, {options['images']} images, {options['mosaics']} mosaics"
    numbers = {"share on the wanted quadrants": _mean(first["measures"]["focus"], over)}
    zero = Number(0.0, 0.0, over)
    for name, key in (("more regions", "regions"), ("more objects found, of 2", "objects"), ("more area", "area")):
        numbers[name] = difference(zero, _mean(last["beyond_first"][key], over), over)
    return numbers


def _mean(found: dict[str, float], over: str) -> Number:
    return Number(found["value"], found["error"], over)


_TEACHER, _PATCHES, _SCRATCH = (multiview.kernels(method, "captured") for method in ("teacher", "patches", "scratch"))
_CROWDED = "kernels with two or more"
_MRP, _KINDS = ("teacher", "patches"), ("multi-view", "single-view")
_SINGLE = multiview.accuracy("scratch", "single-view")

CLAIMS = (
    Claim(
        key="features-teacher",
        statement="MRP's kernels capture all discriminative features (teacher-student, data2vec's setting)",
        source="claim 1, theorem on pretraining",
        command=_SWEPT,
        cost=_SWEPT_COST,
        bounds=(Bound("captured share", ">", 0.95),),
        measure=multiview.with_map(
            multiview.with_extremes(multiview.of_default({"captured share": _TEACHER}), _TEACHER, min, ("mu", "sigma"))
        ),
        elsewhere=tuple(Bound(f"min over {name}", ">", 0.95) for name in ("mu", "theta", "m", "sigma")),
        note="Chance alone gives all features from about 10 kernels a class on; above a mask ratio of .77 all kernels "
        "shrink: docs/lab/multiview.md.",
    ),
    Claim(
        key="features-patches",
        statement="The same if patches are reconstructed (MAE's setting)",
        source="claim 1, extension to MAE",
        command=_SWEPT,
        cost=_SWEPT_COST,
        bounds=(Bound("captured share", ">", 0.95),),
        measure=multiview.with_extremes(
            multiview.of_default({"captured share": _PATCHES}), _PATCHES, min, ("mu", "sigma")
        ),
        elsewhere=tuple(Bound(f"min over {name}", ">", 0.95) for name in ("mu", "sigma")),
    ),
    Claim(
        key="one-feature",
        statement="Each kernel captures at most one feature",
        source="claim 2, theorem on pretraining",
        command=_SWEPT,
        cost=_SWEPT_COST,
        bounds=tuple(Bound(f"kernels with two or more, {name}", "<", 0.05) for name in _MRP),
        measure=multiview.with_extremes(
            multiview.of_default(
                {f"kernels with two or more, {name}": multiview.kernels(name, _CROWDED) for name in _MRP}
            ),
            multiview.kernels("teacher", _CROWDED),
            max,
            ("mu", "sigma"),
        ),
        elsewhere=tuple(Bound(f"max over {name}", "<", 0.05) for name in ("mu", "sigma")),
    ),
    Claim(
        key="tuned-accuracy",
        statement="Fine-tuned, it classifies multi-view and single-view samples with vanishing error",
        source="claim 3, theorem on fine-tuning",
        command=_SWEPT,
        cost=_SWEPT_COST,
        bounds=tuple(Bound(f"{kind}, {name}", ">", 0.99) for name in _MRP for kind in _KINDS),
        measure=multiview.with_extremes(
            multiview.of_default(
                {f"{kind}, {name}": multiview.accuracy(name, kind) for name in _MRP for kind in _KINDS}
            ),
            multiview.accuracy("teacher", "single-view"),
            min,
            ("mu", "sigma"),
        ),
        elsewhere=tuple(Bound(f"min over {name}", ">", 0.95) for name in ("mu", "sigma")),
        note="Over mu and sigma: single-view accuracy of the teacher's setting, of which .95 is asked.",
    ),
    Claim(
        key="supervised-features",
        statement="Supervised learning from scratch captures only some features, about one of two a class",
        source="claim 4, theorem on supervised learning",
        command=_MULTIVIEW,
        cost=_MULTIVIEW_COST,
        bounds=(Bound("captured share", ">", 0.25), Bound("captured share", "<", 0.75)),
        measure=multiview.with_extremes(multiview.of_default({"captured share": _SCRATCH}), _SCRATCH, max, ("mu",)),
        elsewhere=(Bound("max over mu", "<", 0.75),),
    ),
    Claim(
        key="supervised-single-view",
        statement="It fails on about half of the single-view samples",
        source="claim 4, theorem on supervised learning",
        command=_MULTIVIEW,
        cost=_MULTIVIEW_COST,
        bounds=(Bound("single-view accuracy", ">", 0.35), Bound("single-view accuracy", "<", 0.65)),
        measure=multiview.with_extremes(multiview.of_default({"single-view accuracy": _SINGLE}), _SINGLE, max, ("mu",)),
        elsewhere=(Bound("max over mu", "<", 0.65),),
    ),
    Claim(
        key="supervised-error",
        statement="Its total error is about 0.5 mu",
        source="claim 4, theorem on supervised learning",
        command=_MULTIVIEW,
        cost=_MULTIVIEW_COST,
        bounds=(Bound("error over 0.5 mu", ">", 0.5), Bound("error over 0.5 mu", "<", 1.5)),
        measure=multiview.relative_error,
        elsewhere=(Bound("min over mu", ">", 0.5),),
    ),
    Claim(
        key="vit",
        statement="The same on a real ViT: from scratch it fails on single-view images, and pretraining helps",
        source="claims 3 and 4, on the same data as images",
        command=_VIT,
        cost="about 1 CPU minute a seed",
        bounds=(Bound("single-view, from scratch", "<", 0.65), Bound("gain of mae", ">", 0.1)),
        measure=multiview.vit,
    ),
    Claim(
        key="coverage",
        statement="Class-activation maps of MRP encoders cover more semantic regions than supervised ones",
        source="claim 5, pictures of class-activation maps",
        command="python tools/small_study.py CIFAR --epochs 1 --methods supervised; "
        "mrp lab coverage runs/study/mae-5-0 runs/study/umae-5-0 runs/study/supervised-1-0 "
        "--images 200 --mosaics 200 --train 1000",
        cost="about 2 CPU minutes, and the runs",
        bounds=(
            Bound("more regions", ">", 0),
            Bound("more objects found, of 2", ">", 0),
            Bound("share on the wanted quadrants", ">", 0.5),
        ),
        measure=_coverage,
        note="Encoders after 1 to 5 epochs of CIFAR-10. The paper's are of ImageNet: `mrp pretrain mae_vit_base_in1k` "
        "and `supervised_vit_base_in1k`, and the same command.",
    ),
)
