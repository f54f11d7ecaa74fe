"""Whether the data are what the recipe takes them for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from mrp.build import check_classes, open_validation
from mrp.data.decode import DecodeError, decode
from mrp.data.shardtool.statistics import Sums, moments, sums_of
from mrp.data.source import Partial, Source, listed
from mrp.data.subset import Subset, fixed_sample
from mrp.data.survey import digest_of
from mrp.doctor.case import Case
from mrp.doctor.finding import Finding, error, ok, warning
from mrp.evaluate.contract import Setting
from mrp.evaluate.labels import BLANKS, one_sided
from mrp.evaluate.tables import Tables
from mrp.evaluators import make
from mrp.outside import SUFFIX
from mrp.plan import plan_order

_DECODED, _HASHED_TRAIN, _HASHED_TEST = 256, 5000, 1000  # images that are looked at
_SECONDS = 8.0  # after which a sample is large enough
_SHIFT, _SPREAD = 0.4, 1.4  # of pixels that are normalised: mean from 0, and factor of the deviation from 1
_SYMMETRIC = 0.5  # mean and deviation that take pixels to -1 to 1, whatever the data
_ENLARGED, _WASTED = 1.5, 8.0  # times the size of the images to the size that is trained on, and the reverse
_COMMON = 0.01  # of the test images, which are in the training data by more than chance


def images(case: Case) -> Iterator[Finding]:
    """Counts the training images, and the files beside them that are not taken for images."""
    yield ok("images", f"{len(case.source):,}")
    if case.source.left_out:
        yield warning("other files", case.source.left_out, "rename those that are images")


def test_data(case: Case) -> Iterator[Finding]:
    """Opens the test data; what is wrong with them is an error of its own."""
    test = case.test
    if test is not None and test.content == case.source.content:
        yield error(
            "test data",
            "data.test are the images of data.train, so that what is measured says nothing about other images",
            "give other images as data.test, or data.test=null",
        )
    else:
        alike = test is not None and test.identity == case.source.identity
        names = ", of the same names as those of data.train" if alike else ""
        yield ok("test data", "none" if test is None else f"{len(test):,} images{names}")


def classes(case: Case) -> Iterator[Finding]:
    """Compares the classes of the data with those of the recipe, and of the test data."""
    check_classes(case.run, case.source)
    open_validation(case.run, case.source)
    if case.source.classes:
        wanted = getattr(case.run.objective, "classes", None) is not None
        yield ok("classes", f"{listed(case.source.classes)}{', as many as the recipe has' if wanted else ''}")


def tags(case: Case) -> Iterator[Finding]:
    """Counts the images that have each tag, of which an image may have several."""
    for name, source in (("data.train", case.source), ("data.test", case.test)):
        if source is None or not source.tags:
            continue
        having, lacking = ((source.tagged == answer).sum(0) for answer in (1, 0))
        rarest, odd = int(having.argmin()), one_sided(source)
        text = (
            f"{name}: {listed(source.tags)}; the rarest is '{source.tags[rarest]}', which {having[rarest]:,} of "
            f"{having[rarest] + lacking[rarest]:,} images have"
        )
        if odd:
            cannot = "learned" if source is case.source else "judged"
            remedy = f"add such images, or leave these tags out; {BLANKS}"
            yield warning("tags", f"{text}; {odd}, which cannot be {cannot}", remedy)
        else:
            yield ok("tags", text)


def labels(case: Case) -> Iterator[Finding]:
    """Looks at the range of the labels."""
    for name, source in (("data.train", case.source), ("data.test", case.test)):
        if source is None or not source.classes:
            continue
        numbers, most = np.asarray(source.labels), len(source.classes)
        wrong = np.flatnonzero((numbers < 0) | (numbers >= most))
        if len(wrong):
            first = int(wrong[0])
            yield error(
                "labels",
                f"{name}: {len(wrong):,} of {len(numbers):,} labels are outside of 0 to {most - 1}, first "
                f"{int(numbers[first])} of {source.where(first)}",
                "mend the data, or name all classes",
            )
        else:
            yield ok("labels", f"{name}: all from 0 to {most - 1}, {len(np.unique(numbers)):,} of them used")


def mixture(case: Case) -> Iterator[Finding]:
    """Orders the samples as the run would: of a mixture, each source has a part in what is taken together."""
    if "source" not in case.faults and case.plan.coupled_batch is not None:
        plan_order(case.run.model_copy(update={"coupled_batch": case.plan.coupled_batch}), case.source)
    yield from ()


def evaluators(case: Case) -> Iterator[Finding]:
    """Builds what measures the run while it trains: each refuses data and methods that it is not made for.

    Those of a user's own are left to the run, which gives them more than the doctor has. No process is joined.
    """
    if not case.run.evaluations or "source" in case.faults:
        return
    alone: Any = SimpleNamespace(device=case.machine.device, num_processes=1, process_index=0, is_main_process=True)
    setting = Setting(
        data=case.run.data, train=case.source, test=case.test, processes=alone, batch=case.plan.micro_batch, workers=0,
        folder=case.folder, tables=Tables(case.folder / "features"), paints=case.step.objective.paints,
    )  # fmt: skip
    if case.test is not None and not len(case.test.shard_sizes):  # names in shards may have to be fetched
        setting.groups(case.test)  # raises where the pattern of groups does not fit the names
    wanted = {name: one for name, one in case.run.evaluations.items() if not name.endswith(SUFFIX)}
    for name, section in wanted.items():
        make(name, section, setting)
    yield ok("evaluators", ", ".join(case.run.evaluations))


def shards(case: Case) -> Iterator[Finding]:
    """Compares the number of shards with those who read them."""
    source, lanes = case.source, case.run.data.lanes
    count = len(source.shard_sizes)
    if not count or (isinstance(source, Subset) and not len(source.source.shard_sizes)):  # a part of a folder
        return
    readers = max(lanes, case.processes)
    found = f"{count} shards, {lanes} lanes, {case.processes} processes"
    if count < readers:
        fewer = max(1, len(source) // (2 * readers))
        yield warning(
            "shards",
            f"{found}: too few, so that several of them read the same shard at a time, and a node has to fetch what "
            "others fetch too",
            f"make them anew and smaller: mrp shards build FOLDER OUT --shard-size {fewer}",
        )
    elif case.processes % lanes and lanes % case.processes:
        yield warning(
            "shards",
            f"{found}: a process's slice of a batch lies in several lanes that others read too",
            "take data.lanes that divide the processes, or the reverse",
        )
    else:
        yield ok("shards", found)


def _for_seconds(source: Source, most: int) -> Iterator[tuple[Subset, int]]:
    """Yields so many numbers of a fixed sample with the sample, or those that can be looked at in some seconds."""
    end = time.monotonic() + _SECONDS
    some = fixed_sample(source, min(most, len(source)))
    for number in range(len(some)):
        yield some, number
        if time.monotonic() > end:
            return


def decoded(case: Case) -> Iterator[Finding]:
    """Decodes a sample of the training images, and compares their pixels and sizes with the recipe's."""
    source, data = case.source, case.run.data
    sums, shapes, bad = np.zeros((3, data.num_channels)), list[tuple[int, int]](), list[str]()
    for some, number in _for_seconds(source, _DECODED):
        try:
            image = some.read(number)[0]
            pixels = decode(image, data.num_channels)
        except DecodeError as fault:
            bad.append(f"{some.where(number)}: {fault}")
            continue
        sums += sums_of(pixels) * (image.present if isinstance(image, Partial) else 1)
        shapes.append((pixels.shape[1], pixels.shape[2]))
    count = len(shapes) + len(bad)
    if bad:
        say = error if len(bad) > count / 10 else warning
        yield say(
            "decoding",
            f"{len(bad)} of {count} sampled images cannot be decoded, first {bad[0]}",
            "mend or remove them; "
            + (
                "up to data.damaged of them are replaced by others of their shard"
                if source.replacement(0) is not None
                else "a run ends at the first one; on shards of a folder ('mrp shards build') it goes on without it"
            ),
        )
    else:
        yield ok("decoding", f"{count} sampled images of {len(source):,}, none damaged")
    if shapes:
        yield statistics(case, sums)
        yield sizes(case, shapes)


def statistics(case: Case, sums: Sums) -> Finding:
    """Compares the mean and deviation of pixels with those that the recipe normalises them by."""
    data, about = case.run.data, "mean and std"
    mean, std = np.array(data.mean), np.array(data.std)
    # Of a channel that no sample has, nothing else is known.
    sums = np.where(sums[0], sums, [np.ones_like(mean), mean, mean**2 + std**2])
    mean, std = map(np.array, moments(sums))
    shift, spread = (mean - data.mean) / data.std, std / data.std
    meant = ("mean", mean), ("std", np.where(std > 0, std, data.std))  # a channel of one value has no deviation
    words = (f"{key}=[{','.join(f'{value:.3g}' for value in values)}]" for key, values in meant)
    measured = " ".join(f"data.{word}" for word in words)
    if max(data.mean) > 1 >= max(mean):
        return error(
            about, "data.mean is above 1, and pixels are counted from 0 to 1", f"divide by 255; here {measured}"
        )
    usual = set(data.mean) == set(data.std) == {_SYMMETRIC}
    if not usual and (max(abs(shift)) > _SHIFT or max(spread) > _SPREAD or min(spread) < 1 / _SPREAD):
        return warning(
            about,
            f"normalised by the recipe's numbers the sampled pixels have mean {_list(shift)} and deviation "
            f"{_list(spread)}, where 0 and 1 are meant",
            f"if these are the data that the recipe is for, set {measured}"
            if case.run.init is None
            else f"leave it if the weights of init were trained so; else set {measured}",
        )
    return ok(about, f"the sampled pixels have mean {_list(shift)} and deviation {_list(spread)} after normalisation")


def _list(values: Any) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def sizes(case: Case, found: list[tuple[int, int]]) -> Finding:
    """Compares the size of the images with the size that is trained on."""
    wanted = case.run.data.shape
    height, width = (int(np.median(sides)) for sides in zip(*found, strict=True))
    scale = max(wanted[0] / height, wanted[1] / width) if height and width else 1.0
    text = f"{height} x {width} pixels (median), trained on as {wanted[0]} x {wanted[1]}"
    if scale > _ENLARGED:
        remedy = f"set data.size={min(height, width)} with a backbone.patch that divides it, or take larger images"
        return warning("image size", f"{text}: enlarged {scale:.3g} times, which adds work and no detail", remedy)
    if min(height / wanted[0], width / wanted[1]) > _WASTED:
        remedy = f"pack them smaller: mrp shards build FOLDER OUT --max-side {2 * max(wanted)}"
        return warning("image size", f"{text}: most of what is decoded is thrown away", remedy)
    return ok("image size", text)


def overlap(case: Case) -> Iterator[Finding]:
    """Looks for test images in the training data, by the content of a sample of both."""
    test, source = case.test, case.source
    if test is None or test.content == source.content:
        return
    seen, common, trained, tested = dict[int, str](), list[tuple[str, str]](), 0, 0
    for some, number in _for_seconds(source, _HASHED_TRAIN):
        trained += 1
        with contextlib.suppress(DecodeError):
            seen[digest_of(some.read(number)[0])] = some.where(number)
    for some, number in _for_seconds(test, _HASHED_TEST):
        tested += 1
        with contextlib.suppress(DecodeError):
            if (known := seen.get(digest_of(some.read(number)[0]))) is not None:
                common.append((some.where(number), known))
    whole = trained == len(source) and tested == len(test)
    what = "all images compared" if whole else f"{tested:,} test images compared with {trained:,} training images"
    if not common:
        yield ok("overlap", f"{what} by content, none in common")
        return
    share = len(common) / tested * len(source) / trained
    say = error if share > _COMMON else warning
    yield say(
        "overlap",
        f"{what} by content: {len(common):,} test images are in the training data, such as {common[0][0]} (also "
        f"{common[0][1]})",
        "take them out of data.train: what is measured on them is no result",
    )


CHECKS = (images, test_data, classes, tags, labels, shards)
MEASURES = (decoded, overlap)
