"""The claims of Pan, Zhou and Yan (ICLR 2023) on why pretraining helps, as predictions about results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mrp.lab.claims import Bound, Claim, Measure, Number, Numbers, difference, over_seeds
from mrp.lab.claims_results import Results

_MULTIVIEW = "mrp lab multiview"
_MULTIVIEW_COST = "about 1.5 CPU minutes"
_VIT = (
    "python tools/multiview_vit.py --out runs/multiview_vit --seeds 3 --pretraining 20 --training 15 "
    "k=4 d=27 P=9 s=1 samples=400 tests=300"
)

Pick = Callable[[dict[str, Any]], Any]  # from the methods of a comparison, a mean and its interval


def _kernels(method: str, measure: str) -> Pick:
    return lambda methods: methods[method]["kernels"][measure]


def _accuracy(method: str, measure: str) -> Pick:
    return lambda methods: methods[method]["accuracy"][measure]


def _of_default(wanted: dict[str, Pick]) -> Measure:
    """Numbers of the comparison at the default constants."""

    def measure(results: Results) -> Numbers:
        found = results.lab("multiview")
        if not found:
            return {}
        constants = found["constants"]
        over = f"{constants['seeds']} seeds, mu = {constants['mu']:g}"
        return {name: _spread(of(found["methods"]), over, constants["seeds"]) for name, of in wanted.items()}

    return measure


def _spread(found: dict[str, float], over: str, seeds: int) -> Number:
    return Number(found["mean"], found["half"], over, seeds)


def _with_extremes(inner: Measure, of: Pick, which: Callable[..., Any], sweeps: tuple[str, ...]) -> Measure:
    """Besides, the smallest or largest value of one number over sweeps: how far from the defaults a claim carries."""

    def measure(results: Results) -> Numbers:
        numbers = inner(results)
        for sweep in sweeps:
            found = results.lab("multiview", f"sweep_{sweep}.json")
            if found:
                extreme = which(found["values"], key=lambda value: float(of(value)["mean"]))
                seeds = found["constants"]["seeds"]
                over = f"{seeds} seeds, {sweep} = {extreme['value']:g}"
                numbers[f"{which.__name__} over {sweep}"] = _spread(of(extreme), over, seeds)
        return numbers

    return measure


def _with_map(inner: Measure) -> Measure:
    """Besides, the smallest captured share on the map of mask ratio and kernels a class."""

    def measure(results: Results) -> Numbers:
        numbers, found = inner(results), results.lab("multiview", "map.json")
        for name, held in (("theta", "m"), ("m", "theta")):
            cells = [cell for cell in found.get("cells", ()) if cell[held] == found["constants"][held]]
            if cells:
                worst = min(cells, key=lambda cell: float(cell["kernels"]["captured"]["mean"]))
                seeds = found["constants"]["seeds"]
                over = f"{seeds} seeds, {name} = {worst[name]:g}"
                numbers[f"min over {name}"] = _spread(worst["kernels"]["captured"], over, seeds)
        return numbers

    return measure


def _relative_error(results: Results) -> Numbers:
    """The error of supervised learning as a multiple of 0.5 mu, at the default and where it is least."""
    found, sweep = results.lab("multiview"), results.lab("multiview", "sweep_mu.json")
    if not found:
        return {}
    seeds, mu = found["constants"]["seeds"], found["constants"]["mu"]
    numbers = {"error over 0.5 mu": _multiple(found["methods"], mu, seeds)}
    if sweep:
        multiples = [_multiple(value, value["value"], seeds) for value in sweep["values"]]
        numbers["min over mu"] = min(multiples, key=lambda number: number.value)
    return numbers


def _multiple(methods: dict[str, Any], mu: float, seeds: int) -> Number:
    error = methods["scratch"]["accuracy"]["total error"]
    return Number(2 * error["mean"] / mu, 2 * error["half"] / mu, f"{seeds} seeds, mu = {mu:g}", seeds)


def _vit(results: Results) -> Numbers:
    """Single-view accuracy of real ViTs on the rendered data, and what pretraining adds."""
    found = results.read("multiview_vit", "results.json")
    if not found:
        return {}
    single = found["tests"].index("test_single")
    columns = {name: [seed[single] for seed in rows] for name, rows in found["accuracy"].items()}
    scratch = columns.pop("scratch")
    numbers = {"single-view, from scratch": over_seeds(scratch, "rendered images")}
    for name, column in columns.items():
        gains = [after - before for after, before in zip(column, scratch, strict=True)]
        numbers[f"gain of {name}"] = over_seeds(gains, "rendered images")
    return numbers


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


_TEACHER, _PATCHES, _SCRATCH = (_kernels(method, "captured") for method in ("teacher", "patches", "scratch"))
_SINGLE = _accuracy("scratch", "single-view")

CLAIMS = (
    Claim(
        key="features-teacher",
        statement="MRP's kernels capture all discriminative features (teacher-student, data2vec's setting)",
        source="claim 1, theorem on pretraining",
        command=_MULTIVIEW,
        cost=_MULTIVIEW_COST,
        bounds=(Bound("captured share", ">", 0.95),),
        measure=_with_map(_with_extremes(_of_default({"captured share": _TEACHER}), _TEACHER, min, ("mu", "sigma"))),
        elsewhere=tuple(Bound(f"min over {name}", ">", 0.95) for name in ("mu", "theta", "m", "sigma")),
        note="Chance alone gives all features from about 10 kernels a class on; above a mask ratio of .77 all kernels "
        "shrink: docs/lab/multiview.md.",
    ),
    Claim(
        key="features-patches",
        statement="The same if patches are reconstructed (MAE's setting)",
        source="claim 1, extension to MAE",
        command=_MULTIVIEW,
        cost=_MULTIVIEW_COST,
        bounds=(Bound("captured share", ">", 0.95),),
        measure=_with_extremes(_of_default({"captured share": _PATCHES}), _PATCHES, min, ("mu", "sigma")),
        elsewhere=tuple(Bound(f"min over {name}", ">", 0.95) for name in ("mu", "sigma")),
    ),
    Claim(
        key="one-feature",
        statement="Each kernel captures at most one feature",
        source="claim 2, theorem on pretraining",
        command=_MULTIVIEW,
        cost=_MULTIVIEW_COST,
        bounds=tuple(Bound(f"kernels with two or more, {name}", "<", 0.05) for name in ("teacher", "patches")),
        measure=_of_default(
            {
                f"kernels with two or more, {name}": _kernels(name, "kernels with two or more")
                for name in ("teacher", "patches")
            }
        ),
    ),
    Claim(
        key="tuned-accuracy",
        statement="Fine-tuned, it classifies multi-view and single-view samples with vanishing error",
        source="claim 3, theorem on fine-tuning",
        command=_MULTIVIEW,
        cost=_MULTIVIEW_COST,
        bounds=tuple(
            Bound(f"{kind}, {name}", ">", 0.99)
            for name in ("teacher", "patches")
            for kind in ("multi-view", "single-view")
        ),
        measure=_of_default(
            {
                f"{kind}, {name}": _accuracy(name, kind)
                for name in ("teacher", "patches")
                for kind in ("multi-view", "single-view")
            }
        ),
    ),
    Claim(
        key="supervised-features",
        statement="Supervised learning from scratch captures only some features, about one of two a class",
        source="claim 4, theorem on supervised learning",
        command=_MULTIVIEW,
        cost=_MULTIVIEW_COST,
        bounds=(Bound("captured share", ">", 0.25), Bound("captured share", "<", 0.75)),
        measure=_with_extremes(_of_default({"captured share": _SCRATCH}), _SCRATCH, max, ("mu", "sigma")),
        elsewhere=(Bound("max over mu", "<", 0.75),),
    ),
    Claim(
        key="supervised-single-view",
        statement="It fails on about half of the single-view samples",
        source="claim 4, theorem on supervised learning",
        command=_MULTIVIEW,
        cost=_MULTIVIEW_COST,
        bounds=(Bound("single-view accuracy", ">", 0.35), Bound("single-view accuracy", "<", 0.65)),
        measure=_with_extremes(_of_default({"single-view accuracy": _SINGLE}), _SINGLE, max, ("mu",)),
        elsewhere=(Bound("max over mu", "<", 0.65),),
    ),
    Claim(
        key="supervised-error",
        statement="Its total error is about 0.5 mu",
        source="claim 4, theorem on supervised learning",
        command=_MULTIVIEW,
        cost=_MULTIVIEW_COST,
        bounds=(Bound("error over 0.5 mu", ">", 0.5), Bound("error over 0.5 mu", "<", 1.5)),
        measure=_relative_error,
        elsewhere=(Bound("min over mu", ">", 0.5),),
    ),
    Claim(
        key="vit",
        statement="The same on a real ViT: from scratch it fails on single-view images, and pretraining helps",
        source="claims 3 and 4, on the same data as images",
        command=_VIT,
        cost="about 1 CPU minute a seed",
        bounds=(Bound("single-view, from scratch", "<", 0.65), Bound("gain of mae", ">", 0.1)),
        measure=_vit,
    ),
    Claim(
        key="coverage",
        statement="Class-activation maps of MRP encoders cover more semantic regions than supervised ones",
        source="claim 5, pictures of class-activation maps",
        command="mrp lab coverage MAE UMAE SUPERVISED --images 200 --mosaics 200 --train 1000",
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
