"""Signs of collapse in the features of one fixed set of held-out images, and the alarm when they last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mrp.batch import Batch, Output
from mrp.config import Stopped
from mrp.data.order import keys
from mrp.data.subset import Subset, fixed_sample
from mrp.evaluate import contract, geometry, neighbours
from mrp.evaluate.config import Diagnose as Config
from mrp.evaluate.contract import Pause, Result, Setting
from mrp.evaluate.gathering import Columns, evaluating, gathered, in_order
from mrp.evaluate.readout import features_of
from mrp.files import step_name
from mrp.monitor.metrics import METRICS, each_line
from mrp.processes.join import from_first

_LARGEST_BATCH = 128
_NEIGHBOURS = 10


class Alarm:
    """When features count as collapsed: counts how often in a row each threshold was crossed, from a step on."""

    def __init__(self, config: Config, start: int) -> None:
        self._config = config
        self._start = start
        self._crossed: dict[str, int] = {}

    def check(self, step: int, values: Mapping[str, float]) -> str | None:
        """Returns what is wrong, in one sentence, when a threshold has just been crossed `patience` times in a row."""
        if step < self._start:
            return None
        fault = None
        for name, lower_is_worse, limit in (
            ("features/rank_me", True, self._config.min_rank),
            ("features/spread", True, self._config.min_spread),
            ("features/loss_over_variance", False, self._config.max_loss_over_variance),
        ):
            if name not in values:
                continue
            value = float(values[name])  # a value that is not finite stands in the metrics as text
            good = value > limit if lower_is_worse else value < limit  # NaN is never good
            self._crossed[name] = 0 if good else self._crossed.get(name, 0) + 1
            if self._crossed[name] == self._config.patience:
                side = "below" if lower_is_worse else "above"
                fault = f"{name} has been {value:.4g}, {side} {limit:g}, {self._config.patience} times in a row"
        return fault


class Evaluator(contract.Evaluator):
    """Measures the features with and without masks; every process takes its part and all get the result."""

    # The last two need a target's variance, and labels.
    values = (
        "rank_me", "participation_ratio", "feature_variance", "spread", "uniformity", "log_uniformity", "alignment",
        "loss", "loss_over_variance", "knn",
    )  # fmt: skip

    label = "features"
    of_average = False  # it watches the weights that are trained

    def __init__(self, config: Config, setting: Setting) -> None:
        self._config, self._setting = config, setting
        source = setting.test_or_train
        world = setting.processes.num_processes
        self._count = min(config.images, len(source))
        share = -(-self._count // world)
        batches = -(-share // _LARGEST_BATCH)
        self._batch = -(-share // batches)
        self._taken = self._batch * batches * world  # more than there are, where these do not divide them
        sample = Subset(source, np.resize(fixed_sample(source, self._count).chosen, self._taken))
        self._labelled = bool(source.classes)
        self._loader = setting.loader(sample, self._batch, sample.next_in_source)
        self._alarm = None
        if setting.training is not None:
            start = max(setting.training.warmup, setting.training.in_steps(config.after))
            self._alarm = Alarm(config, start)
            self._refuse_collapsed(self._alarm)

    def _refuse_collapsed(self, alarm: Alarm) -> None:
        """Has the alarm check what a resumed run has measured so far, and stops a run that has collapsed before."""
        folder, faults = self._setting.folder, []
        if self._setting.processes.is_main_process:
            checked = ((line["step"], alarm.check(line["step"], line)) for line in each_line(folder / METRICS))
            faults = [f"step {step}: {fault}" for step, fault in checked if fault]
        first = from_first(next(iter(faults), None))  # the others may have read the file before that process cut it
        if first and self._config.action == "stop":
            raise Stopped(
                f"{folder}: the features had collapsed at {first}; "
                "start again with --folder FOLDER, or go on regardless with diagnose.action=warn"
            )

    def measure(self, model: nn.Module, step: int, pause: Pause) -> Result:
        """Measures the model, and raises the alarm when the features have collapsed."""
        values, features = self._measure(model, pause)
        if self._alarm is None:
            return Result(values)
        named = {f"{self.label}/{name}": value for name, value in values.items()}
        fault = from_first(self._alarm.check(step, named))
        if fault is None:
            return Result(values)
        folder = self._setting.folder
        evidence = folder / "alarms" / step_name(step)
        if self._setting.processes.is_main_process:
            evidence.mkdir(parents=True, exist_ok=True)
            (evidence / "diagnostics.json").write_text(json.dumps(named, indent=1))
            save_file({"features": features.contiguous()}, evidence / "features.safetensors")
        alarm = f"{folder}: the features have collapsed at step {step}: {fault}; evidence in {evidence}"
        return Result(values, alarm=alarm, stop=self._config.action == "stop")

    def _measure(self, model: nn.Module, pause: Pause) -> tuple[dict[str, float], Tensor]:
        """Returns the numbers, and the features of whole images that they were computed from.

        Rows are in the order of the sample, whatever the number of processes: neighbours are looked for by halves.
        """
        processes, scalars = self._setting.processes, list[Tensor]()
        start = processes.process_index * (self._taken // processes.num_processes)

        def of_batch(batch: Batch) -> Columns:
            rows, metrics = _rows(model, batch)
            counted = self._count - start - len(scalars) * self._batch  # of this batch and those behind it
            scalars.append(metrics * min(max(counted, 0), self._batch))
            return rows

        with evaluating(model):
            parts = gathered(self._loader, self._taken, processes, pause, "batches of diagnostics", of_batch)
            whole, first, second, labels = (column[: self._count] for column in in_order(parts))
        loss, reconstruction, variance = (processes.reduce(torch.stack(scalars).sum(0), "sum") / self._count).tolist()
        values = {
            "rank_me": geometry.rank_me(whole),
            "participation_ratio": geometry.participation_ratio(whole),
            "feature_variance": geometry.feature_variance(whole),
            "spread": geometry.spread(whole),
            "uniformity": geometry.gram_uniformity(first),
            "log_uniformity": geometry.uniformity(first),
            "alignment": geometry.alignment(first, second),
            "loss": loss,
        }
        if variance > 0:
            values["loss_over_variance"] = reconstruction / variance
        if self._labelled:
            # The share of one half of the images whose class the neighbours in the other half name.
            (answers,) = neighbours.predict(whole[::2], labels[::2], whole[1::2], [_NEIGHBOURS])
            values["knn"] = float((answers == labels[1::2]).double().mean())
        return values, whole


def _rows(model: nn.Module, batch: Batch) -> tuple[Columns, Tensor]:
    """Returns features of the whole images and under two masks each, labels; loss, reconstruction, target variance."""
    first: Output = model(batch)
    other_keys = torch.from_numpy(keys(1, 0, batch.keys.cpu().numpy())).to(batch.keys.device)
    second: Output = model(replace(batch, keys=other_keys))
    whole = features_of(model, batch)
    masked = [output.features if output.features is not None else whole for output in (first, second)]
    labels = batch.labels
    if labels is None or labels.ndim > 1:  # neighbours name classes, and no tags
        labels = torch.zeros_like(batch.keys)
    reconstruction = first.metrics.get("reconstruction", first.loss)  # without uniformity's penalty and the like
    variance = first.metrics.get("target_variance", torch.zeros_like(first.loss))
    metrics = torch.stack([value.float() for value in (first.loss, reconstruction, variance)])
    return (whole.float(), *(features.float() for features in masked), labels), metrics
