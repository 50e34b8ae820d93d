"""The reconstruction task on a worker: selecting images, cutting shards, and computing metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from pydantic import JsonValue

from evalsvc.data.images import ImageSource
from evalsvc.errors import DataChanged, InvalidData
from evalsvc.features import FeatureExtractor
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.metrics.reference_program import ReferenceProgram
from evalsvc.spec.images import program_of
from evalsvc.spec.protocol import MetricValue, Protocol, number_to_json
from evalsvc.tasks.image_codes import ImageCoder
from evalsvc.tasks.image_features import ExtractorSpec, identity_of, open_extractor
from evalsvc.tasks.image_measures import load_program, rounded
from evalsvc.tasks.reconstruction.round_trip import (
    ReconstructionOutput,
    ReconstructionPlan,
    ReconstructionShard,
    RoundTrip,
    joined_use,
    paired_distance,
    reconstruct,
)
from evalsvc.tasks.reconstruction.spec import Reconstruction
from evalsvc.tasks.result_warnings import left_out
from evalsvc.tasks.task import Context, Plan, TaskResult, TaskWarning, Work, cut

ESTIMATOR = "reconstruction/2"
"""Version of the computation of metrics, in the protocol. Another version is another series."""

FRECHET = {2048: "fid", 64: "fid64"}
"""Names of the distances, by tap of the extractor."""


class ReconstructionWork(Work[Reconstruction, ReconstructionShard, ReconstructionOutput]):
    """Plans, runs and merges a reconstruction task."""

    def plan(self, context: Context) -> Plan[ReconstructionShard]:
        """Cut the images into contiguous ranges, without opening them."""
        source = context.images(self.task.images)
        count = self.count(source)
        taps = self._taps(source, count)
        extractor = self._extractor(context) if taps else None
        if extractor is not None:
            taps = self._given(taps, extractor)
        features = {}
        if extractor is not None and taps:
            features = identity_of(extractor, taps[0], self.task.resize)
            self._program()  # fail now, not after the last shard, on a worker without the program
        protocol = {"task": self.task.kind, "estimator": ESTIMATOR, "images": source.digest(range(count))}
        plan = ReconstructionPlan(protocol | self._coder(context).identity(), features, taps)
        shards = [
            ReconstructionShard(stop - start, start, stop, source.digest(range(start, stop)), plan)
            for start, stop in cut(count, self.task.shard_size)
        ]
        return Plan(shards, "images")

    def run(self, context: Context, shard: ReconstructionShard) -> ReconstructionOutput:
        """Encode and decode the shard's images."""
        source, plan = context.images(self.task.images), shard.plan
        coder = self._coder(context)
        images = range(min(shard.start, len(source)), min(shard.stop, len(source)))
        coder.require_planned(source, images, shard.images, plan.protocol["decoder"])
        extractor = self._extractor(context) if plan.taps else None
        if extractor is not None and identity_of(extractor, plan.taps[0], self.task.resize) != plan.features:
            raise DataChanged(
                "the feature extractor has changed since this evaluation was planned, or differs between workers; "
                "install the same on all workers, and evaluate again"
            )
        return reconstruct(context, coder, source, images, RoundTrip(coder, extractor, self.task.resize, plan.taps))

    def merge(
        self, context: Context, shards: Sequence[ReconstructionShard], outputs: Sequence[ReconstructionOutput]
    ) -> TaskResult:
        """Return the metrics. Needs neither images nor decoder, which may be deleted by now."""
        plan, task, outputs = shards[0].plan, self.task.name, list(outputs)
        names = [name for output in outputs for name in output.names]
        columns = {
            "psnr": [value for output in outputs for value in output.psnr],
            "ssim": [value for output in outputs for value in output.ssim],
        }
        items: list[dict[str, JsonValue]] = [
            {"index": index, "image": name, "psnr": number_to_json(psnr), "ssim": number_to_json(ssim)}
            for index, (name, psnr, ssim) in enumerate(zip(names, columns["psnr"], columns["ssim"], strict=True))
        ]
        metrics = [
            *_pixel_metrics(task, columns, Protocol(plan.protocol)),
            *_code_metrics(task, outputs, Protocol(plan.protocol)),
            *self._frechet_metrics(plan, outputs, items),
        ]
        taps = list(plan.taps)
        warnings = self._left_out(taps, len(items))
        return TaskResult(metrics, items, {"images": len(items), "taps": taps}, warnings=warnings)

    def _left_out(self, taps: Sequence[int], count: int) -> list[TaskWarning]:
        """Return warnings for distances that were left out although nobody chose to."""
        if self.task.extractor is None or self.task.taps is not None:
            return []
        reasons = {
            FRECHET[tap]: f"more than {tap:,} images are needed, but there are {count:,}"
            if count <= tap
            else f"{self.task.extractor} gives no features {tap}"
            for tap in sorted(FRECHET)
            if tap not in taps
        }
        return list(left_out(self.task.name, reasons, "add images, or set `taps`"))

    def count(self, source: ImageSource) -> int:
        """Return the number of images to use."""
        samples = self.task.samples
        if samples is not None and samples > len(source):
            raise InvalidData(
                f"{source.path} has {len(source):,} images, but `samples` is {samples:,}; add images or lower `samples`"
            )
        return samples or len(source)

    def _taps(self, source: ImageSource, count: int) -> list[int]:
        """Return the taps with enough images. Features of n ≤ d images do not span d dimensions, so their distance is
        mostly bias."""
        if self.task.extractor is None:
            return []
        if self.task.taps is None:
            return [tap for tap in sorted(FRECHET) if count > tap]
        for tap in self.task.taps:
            if count <= tap:
                raise InvalidData(
                    f"{FRECHET[tap]} needs more than {tap:,} images, but {source.path} gives {count:,}; add images, or "
                    f"remove {tap} from `taps`"
                )
        return sorted(set(self.task.taps))

    def _given(self, taps: Sequence[int], extractor: FeatureExtractor) -> list[int]:
        lacking = [tap for tap in taps if tap not in extractor.taps]
        if lacking and self.task.taps is not None:
            raise InvalidData(
                f"the extractor {self.task.extractor} gives no features {lacking[0]}, but "
                f"{', '.join(map(str, extractor.taps))}; remove {lacking[0]} from `taps`"
            )
        return [tap for tap in taps if tap in extractor.taps]

    def _extractor(self, context: Context) -> FeatureExtractor | None:
        if self.task.extractor is None:
            return None
        return open_extractor(context, ExtractorSpec("inception", self.task.extractor, self.task.resize))

    def _program(self) -> ReferenceProgram | None:
        name = program_of(self.task.extractor)
        return None if name is None else load_program(name)

    def _frechet_metrics(
        self,
        plan: ReconstructionPlan,
        outputs: Sequence[ReconstructionOutput],
        items: Sequence[dict[str, JsonValue]],
    ) -> Iterator[MetricValue]:
        program = self._program()
        for tap in plan.taps:
            name = FRECHET[tap]
            estimate = paired_distance([output.features[tap] for output in outputs], program)
            shares = rounded(estimate)
            for item, share in zip(items, shares or (), strict=False):
                item[name] = share
            estimator = {} if program is None else {"estimator": program.metrics[name].estimator}
            yield MetricValue(
                f"{self.task.name}/{name}",
                estimate.value,
                estimate.stderr,
                estimate.n,
                "distance",
                "lower",
                Protocol({**plan.protocol, **plan.features, **estimator}),
                items=() if shares is None else (name,),
            )

    def _coder(self, context: Context) -> ImageCoder:
        decoder = context.decoder(self.task.decoder, self.task.decoder_config, self.task.decoder_ema)
        return ImageCoder(decoder, self.task.size, self.task.crop, self.task.filter)


def _pixel_metrics(task: str, columns: Mapping[str, Sequence[float]], protocol: Protocol) -> Iterator[MetricValue]:
    for name, unit in (("psnr", "dB"), ("ssim", "similarity")):
        mean = ratio_of_sums(columns[name], [1] * len(columns[name]))
        if mean is not None:
            # The PSNR of exactly restored images is infinite, and so is its mean, without a standard error.
            stderr = mean.stderr if mean.stderr is not None and math.isfinite(mean.stderr) else None
            yield MetricValue(f"{task}/{name}", mean.value, stderr, mean.n, unit, "higher", protocol, None, (name,))


def _code_metrics(task: str, outputs: Sequence[ReconstructionOutput], protocol: Protocol) -> Iterator[MetricValue]:
    use, n = joined_use(outputs), sum(len(output.psnr) for output in outputs)
    yield MetricValue(f"{task}/codebook_use", use.fraction, None, n, "fraction", "none", protocol)
    yield MetricValue(f"{task}/codebook_perplexity", use.perplexity, None, n, "perplexity", "none", protocol)
