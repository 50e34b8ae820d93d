import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from metric_items import value_of_items
from miniature_run import DECODER
from PIL import Image
from safetensors.torch import load_file, save_file
from square_features import SquareFeatures, offer_squares
from task_stages import do_all
from torch import Tensor

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.decoders import load_decoder, to_uint8
from evalsvc.errors import AssetMissing, DataChanged, InvalidData, NonFinite
from evalsvc.features import digit_classifier
from evalsvc.metrics.frechet import frechet_distance
from evalsvc.metrics.reconstruction import psnr, ssim
from evalsvc.miniature import ROOT
from evalsvc.spec.protocol import MetricValue
from evalsvc.tasks.reconstruction.spec import Reconstruction
from evalsvc.tasks.reconstruction.work import (
    ReconstructionOutput,
    ReconstructionPlan,
    ReconstructionShard,
    ReconstructionWork,
)
from evalsvc.tasks.task import TaskResult
from evalsvc.worker.context import ShardContext

GOLDEN = Path(__file__).parents[2] / "golden" / "movqgan"


@pytest.fixture(autouse=True)
def _squares(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_squares(monkeypatch)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 70 of the miniature's images: enough for 64 features."""
    path = tmp_path_factory.mktemp("digits") / "images.safetensors"
    save_file({"images": load_file(ROOT / "images.safetensors")["images"][:70].clone()}, path)
    return path


def context_of(
    tmp_path: Path, batch_tokens: int = 8192, report: Callable[[int], None] = lambda done: None
) -> ShardContext:
    checkpoint = CheckpointRef(str(tmp_path / "of no use.pt"))
    settings = Settings(devices="cpu", threads=1, batch_tokens=batch_tokens, data_dir=str(tmp_path / "data"))
    return ShardContext(checkpoint, settings, report)


def work_on(images: Path, **parameters: Any) -> ReconstructionWork:
    given = {"name": "floor", "images": str(images), "decoder": DECODER, "extractor": "squares"}
    return ReconstructionWork(Reconstruction(**given | parameters))


def evaluate(work: ReconstructionWork, context: ShardContext) -> TaskResult:
    return do_all(work, context)


def values(result: TaskResult) -> dict[str, MetricValue]:
    return {metric.name.partition("/")[2]: metric for metric in result.metrics}


@pytest.fixture(scope="module")
def one_by_one(digits: Path) -> tuple[Tensor, Tensor]:
    decoder = load_decoder(DECODER)
    codes = torch.cat([decoder.encode(image[None].float() / 127.5 - 1) for image in load_file(digits)["images"]])
    return codes, torch.cat([to_uint8(decoder.decode(row[None])) for row in codes])


@pytest.mark.usefixtures("many_cases")
@pytest.mark.parametrize(("batch_tokens", "shard_size"), [(8192, 256), (64 * 9, 23)])
def test_equals_the_definition(
    digits: Path, one_by_one: tuple[Tensor, Tensor], tmp_path: Path, batch_tokens: int, shard_size: int
) -> None:
    result = evaluate(work_on(digits, shard_size=shard_size), context_of(tmp_path, batch_tokens))
    originals, (codes, others) = load_file(digits)["images"], one_by_one
    found = values(result)
    for name, per_image in (("psnr", psnr(others, originals)), ("ssim", ssim(others, originals))):
        assert [item[name] for item in result.items] == pytest.approx(per_image.tolist(), rel=1e-3)
        assert found[name].value == pytest.approx(float(per_image.mean()), rel=1e-4)
        assert found[name].stderr == pytest.approx(float(per_image.std()) / 70**0.5, rel=1e-2)
        assert found[name].value == pytest.approx(value_of_items(found[name].to_json(), result.items), rel=1e-12)
    used, counts = codes.unique(return_counts=True)
    share = counts / codes.numel()
    assert found["codebook_use"].value == len(used) / 64
    assert found["codebook_perplexity"].value == pytest.approx(float((-(share * share.log()).sum()).exp()), rel=1e-3)
    sides = [digit_classifier.features(side).double().numpy() for side in (originals, others)]
    moments = [part for side in sides for part in (side.mean(0), np.cov(side, rowvar=False))]
    assert found["fid64"].value == pytest.approx(frechet_distance(*moments), rel=1e-2)
    assert found["fid64"].value == pytest.approx(value_of_items(found["fid64"].to_json(), result.items), rel=1e-4)
    shares = np.array([item["fid64"] for item in result.items])
    assert found["fid64"].stderr == pytest.approx(shares.std(ddof=1) / 70**0.5, rel=1e-4)
    assert result.notes == {"images": 70, "taps": [64]}
    [warning] = result.warnings
    assert (warning.code, warning.metric) == ("left_out", "floor/fid")
    assert warning.message == (
        "fid is left out: more than 2,048 images are needed, but there are 70; add images, or set `taps`"
    )
    assert evaluate(work_on(digits, taps=(64,)), context_of(tmp_path)).warnings == []


def test_metrics_have_units_directions_and_errors(digits: Path, tmp_path: Path) -> None:
    found = values(evaluate(work_on(digits), context_of(tmp_path)))
    described = {name: (metric.unit, metric.direction, metric.stderr is not None) for name, metric in found.items()}
    assert described == {
        "psnr": ("dB", "higher", True),
        "ssim": ("similarity", "higher", True),
        "codebook_use": ("fraction", "none", False),
        "codebook_perplexity": ("perplexity", "none", False),
        "fid64": ("distance", "lower", True),
    }
    assert {metric.n for metric in found.values()} == {70}
    assert found["psnr"].value > 25, "the miniature's digits are readable"


def test_the_protocol_has_what_moves_the_numbers_and_nothing_else(digits: Path, tmp_path: Path) -> None:
    def ids(**parameters: Any) -> dict[str, str]:
        images = parameters.pop("images", digits)
        context = context_of(tmp_path)
        plan = work_on(images, **parameters).plan(context).shards[0].plan
        return {"pixels": str(plan.protocol), "features": str(plan.features)}

    plain = ids()
    copy = shutil.copy(digits, tmp_path / "copy.safetensors")
    assert ids(name="other", shard_size=7, samples=70, images=Path(copy)) == plain
    for parameters in ({"samples": 69}, {"size": 64}, {"crop": "none"}, {"filter": "bicubic"}):
        assert ids(**parameters)["pixels"] != plain["pixels"]
    assert ids(resize="tf1-bilinear")["pixels"] == plain["pixels"]
    assert ids(resize="tf1-bilinear")["features"] != plain["features"]
    assert ids(extractor=None)["pixels"] == plain["pixels"], "the pixels' series does not depend on the extractor"


def test_averaged_weights_are_another_decoder(digits: Path, tmp_path: Path) -> None:
    golden = GOLDEN / "micro_lightning_ema"
    decoder = str(next(golden.glob("*.ckpt")))
    raw, averaged = (
        values(evaluate(work_on(digits, decoder=decoder, decoder_ema=ema, samples=4), context_of(tmp_path)))
        for ema in (False, True)
    )
    assert raw["psnr"].value != averaged["psnr"].value
    assert raw["psnr"].protocol != averaged["psnr"].protocol


def test_distances_need_more_images_than_features(digits: Path, tmp_path: Path) -> None:
    """Otherwise the figure is mostly bias. What nobody asked for is left out, and needs no extractor either."""
    context = context_of(tmp_path)
    few = work_on(digits, samples=64, extractor="inception")
    assert "fid64" not in values(evaluate(few, context))
    for taps, message in (
        ((64,), r"fid64 needs more than 64 images, but .*images\.safetensors gives 64; add images, or remove 64 from"),
        ((2048, 64), "fid needs more than 2,048 images, "),
    ):
        with pytest.raises(InvalidData, match=message):
            work_on(digits, samples=64, taps=taps).plan(context)
    assert work_on(digits, extractor=None).plan(context).shards[0].plan.taps == []


def test_the_full_tap_is_called_fid(tmp_path: Path) -> None:
    path = tmp_path / "noise.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file({"images": torch.randint(0, 256, (2050, 3, 16, 16), dtype=torch.uint8, generator=generator)}, path)
    assert work_on(path, size=16).plan(context_of(tmp_path)).shards[0].plan.taps == [64, 2048]


def test_images_that_come_back_exactly_have_an_infinite_psnr(tmp_path: Path) -> None:
    shard = ReconstructionShard(2, 0, 2, "digest", ReconstructionPlan({}, {}, []))
    output = ReconstructionOutput(["a", "b"], [float("inf"), 30.0], [1.0, 0.5], np.array([3, 1]), {})
    sent = ReconstructionWork.output_codec.unpack(ReconstructionWork.output_codec.pack(output))
    result = work_on(tmp_path).merge(context_of(tmp_path), [shard], [sent])
    assert (values(result)["psnr"].value, values(result)["psnr"].stderr) == (float("inf"), None)
    assert result.items[0] == {"index": 0, "image": "a", "psnr": "Infinity", "ssim": 1.0}


def test_what_is_asked_for_and_not_there(digits: Path, tmp_path: Path) -> None:
    context = context_of(tmp_path)
    with pytest.raises(InvalidData, match="has 70 images, but `samples` is 71; add images or lower `samples`"):
        work_on(digits, samples=71).plan(context)
    with pytest.raises(InvalidData, match="images of 30x30 pixels do not divide into codes of 4x4"):
        work_on(digits, size=30).plan(context)
    with pytest.raises(InvalidData, match="does not exist"):
        work_on(tmp_path / "none").plan(context)
    for parameters in ({"decoder": "movqgan-67M"}, {"extractor": "inception"}):
        with pytest.raises(AssetMissing, match="evalsvc assets pull"):
            work_on(digits, **parameters).plan(context)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    for name, image in zip("abc", pixels, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    Image.fromarray(pixels[0, ..., 0]).save(folder / "grey.png")
    return folder


def test_changed_images_and_decoders_are_noticed_by_the_shard(photographs: Path, tmp_path: Path) -> None:
    context = context_of(tmp_path)
    folder = shutil.copytree(Path(DECODER).parent, tmp_path / "decoder")
    work = work_on(photographs, decoder=str(folder / Path(DECODER).name), shard_size=2)
    first, second = work.plan(context).shards
    shutil.copy(photographs / "a.png", photographs / "c.png")
    work.run(context, first)
    with pytest.raises(DataChanged, match=r"images of .*photographs have changed since this evaluation was planned"):
        work.run(context, second)
    (photographs / "c.png").unlink()
    (photographs / "grey.png").unlink()
    with pytest.raises(DataChanged, match="images of"):
        work.run(context, second)
    weights = torch.load(DECODER, weights_only=True)
    torch.save({name: tensor * 1.01 for name, tensor in weights.items()}, folder / Path(DECODER).name)
    with pytest.raises(DataChanged, match="the decoder's weights have changed"):
        work.run(context, first)


def test_output_that_is_not_finite_names_the_image(photographs: Path, tmp_path: Path) -> None:
    """Finite weights whose products overflow; as uint8 it would be a black image with a bad figure."""
    weights = torch.load(DECODER, weights_only=True)
    for name in ("decoder.conv_out.weight", "decoder.norm_out.norm_layer.weight"):
        weights[name] = torch.full_like(weights[name], 1e38)
    folder = shutil.copytree(Path(DECODER).parent, tmp_path / "decoder")
    torch.save(weights, folder / Path(DECODER).name)
    with pytest.raises(NonFinite, match=r"photographs, image a\.png: the decoder's output has NaN or infinity"):
        evaluate(work_on(photographs, decoder=str(folder / Path(DECODER).name)), context_of(tmp_path))


def test_progress_is_reported_between_batches(photographs: Path, tmp_path: Path) -> None:
    done: list[int] = []
    context = context_of(tmp_path, 1, done.append)
    work = work_on(photographs)
    shard = work.plan(context).shards[0]
    work.run(context, shard)
    assert done == [0, 1, 2, 3, 4]


def test_a_published_program_computes_the_distance(
    digits: Path, inception_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reconstructions and originals; the error is that of the pairs, as evalsvc's own distance has it."""
    monkeypatch.setenv("EVALSVC_ASSETS", str(inception_path.parent))
    context = ShardContext(
        CheckpointRef(str(tmp_path / "of no use.pt")),
        Settings.load(devices="cpu", threads=1, data_dir=str(tmp_path / "data")),
        lambda done: None,
    )
    ours, theirs = (
        evaluate(work_on(digits, extractor=extractor, taps=[64], **given), context)
        for extractor, given in (("inception", {"resize": "tf1-bilinear"}), ("torch-fidelity", {}))
    )
    own, found = values(ours)["fid64"], values(theirs)["fid64"]
    assert found.value == pytest.approx(own.value, rel=1e-4)
    assert found.value != own.value
    assert found.stderr == pytest.approx(own.stderr, rel=1e-3)
    assert found.value == pytest.approx(value_of_items(found.to_json(), theirs.items), rel=1e-4)
    added = {"estimator": "fid64/1 by torch-fidelity 0.4.0", "program": "torch-fidelity 0.4.0"}
    assert found.protocol.content == {**own.protocol.content, **added}
    assert values(theirs)["psnr"].protocol.id == values(ours)["psnr"].protocol.id, "it has no part in pixels"


def test_taps_that_the_extractor_does_not_give(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's program tells the last features alone."""
    monkeypatch.setattr(ShardContext, "extractor", lambda *_: SquareFeatures((2048,)))
    result = evaluate(work_on(digits), context_of(tmp_path))
    assert {warning.message.partition(":")[0] for warning in result.warnings} == {
        "fid is left out",
        "fid64 is left out",
    }
    assert any("squares gives no features 64" in warning.message for warning in result.warnings)
    with pytest.raises(InvalidData, match="squares gives no features 64, but 2048; remove 64 from `taps`"):
        work_on(digits, taps=[64]).plan(context_of(tmp_path))


def test_an_extractor_that_another_worker_does_not_have_is_noticed(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, context = work_on(digits), context_of(tmp_path)
    [shard] = work.plan(context).shards
    monkeypatch.setattr(SquareFeatures, "program", {"program": "another release"})
    with pytest.raises(DataChanged, match="the feature extractor has changed"):
        work.run(context, shard)
