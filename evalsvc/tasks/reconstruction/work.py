"""The reconstruction task on a worker: selecting images, cutting shards, and computing metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from evalsvc.data.images import ImageSource
from evalsvc.decoders import to_uint8
from evalsvc.errors import DataChanged, InvalidData, NonFinite
from evalsvc.features import FeatureExtractor
from evalsvc.features.lpips import LPIPS
from evalsvc.files.arrays import Array
from evalsvc.metrics.frechet import counted_once
from evalsvc.metrics.image_metric import Estimate
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.metrics.reconstruction import codebook_use, paired_frechet_shares, psnr, ssim
from evalsvc.metrics.reference_program import ReferenceProgram, statistics_of, with_value
from evalsvc.spec.images import program_of
from evalsvc.spec.protocol import Direction, MetricValue, Protocol, number_to_json
from evalsvc.tasks.image_codes import ImageCoder
from evalsvc.tasks.image_features import ExtractorSpec, identity_of, open_extractor
from evalsvc.tasks.image_measures import load_program, rounded
from evalsvc.tasks.reconstruction.spec import Reconstruction
from evalsvc.tasks.result_warnings import left_out
from evalsvc.tasks.task import Context, Plan, Shard, TaskResult, TaskWarning, Work, cut


@dataclass(frozen=True)
class ReconstructionPlan:
    protocol: Mapping[str, JsonValue]
    """Protocol of the metrics, without the features of distances."""
    features: Mapping[str, str]
    taps: Sequence[int]
    lpips: str | None = None
    """Digest of LPIPS's networks; None if the metric is not measured."""


@dataclass(frozen=True)
class ReconstructionShard(Shard):
    start: int
    stop: int
    images: str
    plan: ReconstructionPlan


@dataclass(frozen=True)
class PairedFeatures:
    originals: Array[np.float32]  # [n, d]
    reconstructions: Array[np.float32]  # [n, d]


@dataclass(frozen=True)
class ReconstructionOutput:
    names: Sequence[str]
    psnr: Sequence[float]
    ssim: Sequence[float]
    code_counts: Array[np.int64]  # [codebook_size]
    features: Mapping[int, PairedFeatures]
    lpips: Sequence[float] = ()


def reconstruct(
    context: Context,
    coder: ImageCoder,
    source: ImageSource,
    images: Sequence[int],
    extractor: FeatureExtractor | None,
    resize: str,
    taps: Sequence[int],
    lpips: LPIPS | None = None,
) -> ReconstructionOutput:
    decoder, grid = coder.decoder, coder.decoder.grid(coder.fit.size, coder.fit.size)
    names = [source.name(index) for index in images]
    psnrs, ssims, distances = list[float](), list[float](), list[float]()
    counts = torch.zeros(decoder.codebook_size, dtype=torch.int64)
    features: dict[int, list[tuple[Tensor, Tensor]]] = {tap: [] for tap in taps}
    context.report(0)
    for pixels, codes in coder.batches(context, source, images):
        decoded = decoder.decode(codes, grid)
        finite = decoded.isfinite().flatten(1).all(dim=1).tolist()
        if not all(finite):
            raise NonFinite(
                f"{source.path}, image {names[len(psnrs) + finite.index(False)]}: the decoder's output has NaN or "
                "infinity; check that its weights fit its configuration"
            )
        originals, reconstructions = pixels.to(decoded.device), to_uint8(decoded)
        psnrs += psnr(reconstructions, originals).tolist()
        ssims += ssim(reconstructions, originals).tolist()
        distances += [] if lpips is None else lpips(reconstructions, originals).tolist()
        counts += torch.bincount(codes.flatten(), minlength=len(counts)).cpu()
        if extractor is not None:
            real, made = (extractor.features(side, resize, taps) for side in (originals, reconstructions))
            for tap in taps:
                features[tap].append((real[tap].cpu(), made[tap].cpu()))
        context.report(len(psnrs))
    paired = {}
    for tap, batches in features.items():
        paired[tap] = PairedFeatures(*(torch.cat(side).numpy() for side in zip(*batches, strict=True)))
    return ReconstructionOutput(names, psnrs, ssims, counts.numpy(), paired, distances)


def paired_distance(parts: Sequence[PairedFeatures], program: ReferenceProgram | None = None) -> Estimate:
    """Compute the Fréchet distance between both sides of all shards, by `program` if there is one. The value is biased
    upwards by about C/n; its standard error is that of `counted_once`."""
    originals = np.concatenate([part.originals for part in parts])
    reconstructions = np.concatenate([part.reconstructions for part in parts])
    estimate = Estimate.of_images(counted_once(paired_frechet_shares(originals, reconstructions), originals.shape[1]))
    if program is None:
        return estimate
    return with_value(estimate, program.distance(statistics_of(reconstructions), statistics_of(originals)))


ESTIMATOR = "reconstruction/2"
"""Version of the computation of metrics, in the protocol. Another version is another series."""

FRECHET = {2048: "fid", 64: "fid64"}

PER_IMAGE = {"psnr": "dB", "ssim": "similarity", "lpips": "distance"}
"""Units of the metrics that are means over images, by the output's field with the numbers."""


class ReconstructionWork(Work[Reconstruction, ReconstructionShard, ReconstructionOutput]):
    def plan(self, context: Context) -> Plan[ReconstructionShard]:
        source = context.images(self.task.images)
        count = self.count(source)
        taps, features = self._taps(source, count), {}
        extractor = self._extractor(context) if taps else None
        if extractor is not None and (taps := self._given(taps, extractor)):
            features = identity_of(extractor, taps[0], self.task.resize)
            self._program()  # fail now, not after the last shard, on a worker without the program
        protocol = {"task": self.task.kind, "estimator": ESTIMATOR, "images": source.digest(range(count))}
        digest = None if self.task.lpips is None else context.lpips(self.task.lpips).digest
        plan = ReconstructionPlan(protocol | self._coder(context).identity(), features, taps, digest)
        shards = [
            ReconstructionShard(stop - start, start, stop, source.digest(range(start, stop)), plan)
            for start, stop in cut(count, self.task.shard_size)
        ]
        return Plan(shards, "images")

    def run(self, context: Context, shard: ReconstructionShard) -> ReconstructionOutput:
        source, plan = context.images(self.task.images), shard.plan
        coder = self._coder(context)
        images = range(min(shard.start, len(source)), min(shard.stop, len(source)))
        coder.require_planned(source, images, shard.images, plan.protocol["decoder"])
        extractor = self._extractor(context) if plan.taps else None
        lpips = None if self.task.lpips is None else context.lpips(self.task.lpips)
        changed = extractor is not None and identity_of(extractor, plan.taps[0], self.task.resize) != plan.features
        if changed or (lpips is not None and lpips.digest != plan.lpips):
            raise DataChanged(
                f"{'the feature extractor' if changed else 'LPIPS'} has changed since this evaluation was planned, or "
                "differs between workers; install the same on all workers, and evaluate again"
            )
        return reconstruct(context, coder, source, images, extractor, self.task.resize, plan.taps, lpips)

    def merge(
        self, context: Context, shards: Sequence[ReconstructionShard], outputs: Sequence[ReconstructionOutput]
    ) -> TaskResult:
        """Return the metrics. Needs neither images nor decoder, which may be deleted by now."""
        plan, outputs = shards[0].plan, list(outputs)
        items: list[dict[str, JsonValue]] = []
        for output in outputs:
            columns = {name: column for name in PER_IMAGE if (column := getattr(output, name))}
            for image, *row in zip(output.names, *columns.values(), strict=True):
                numbers = dict(zip(columns, map(number_to_json, row), strict=True))
                items.append({"index": len(items), "image": image, **numbers})
        metrics = [*self._pixel_metrics(plan, outputs), *self._frechet_metrics(plan, outputs, items)]
        taps = list(plan.taps)
        warnings = self._left_out(taps, len(items))
        return TaskResult(metrics, items, {"images": len(items), "taps": taps}, warnings=warnings)

    def _left_out(self, taps: Sequence[int], count: int) -> list[TaskWarning]:
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
        samples = self.task.samples
        if samples is not None and samples > len(source):
            raise InvalidData(
                f"{source.path} has {len(source):,} images, but `samples` is {samples:,}; add images or lower `samples`"
            )
        return samples or len(source)

    def _taps(self, source: ImageSource, count: int) -> list[int]:
        """Return the taps with enough images: n ≤ d features do not span d dimensions; the distance is mostly bias."""
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

    def _pixel_metrics(
        self, plan: ReconstructionPlan, outputs: Sequence[ReconstructionOutput]
    ) -> Iterator[MetricValue]:
        task, protocol = self.task.name, Protocol(plan.protocol)
        for name, unit in PER_IMAGE.items():
            column = [value for output in outputs for value in getattr(output, name)]
            mean = ratio_of_sums(column, [1] * len(column))
            if mean is not None:
                # The PSNR of exactly restored images is infinite, and so is its mean, without a standard error.
                stderr = mean.stderr if mean.stderr is not None and math.isfinite(mean.stderr) else None
                own = Protocol({**plan.protocol, "lpips": plan.lpips}) if name == "lpips" else protocol
                better: Direction = "lower" if name == "lpips" else "higher"
                yield MetricValue(f"{task}/{name}", mean.value, stderr, mean.n, unit, better, own, None, (name,))
        use = codebook_use(torch.from_numpy(np.sum([output.code_counts for output in outputs], axis=0)))
        n = sum(len(output.psnr) for output in outputs)
        yield MetricValue(f"{task}/codebook_use", use.fraction, None, n, "fraction", "none", protocol)
        yield MetricValue(f"{task}/codebook_perplexity", use.perplexity, None, n, "perplexity", "none", protocol)

    def _frechet_metrics(
        self, plan: ReconstructionPlan, outputs: Sequence[ReconstructionOutput], items: Sequence[dict[str, JsonValue]]
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
