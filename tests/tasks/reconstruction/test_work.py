import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loss_task import values
from miniature_run import DECODER
from PIL import Image
from safetensors.torch import load_file, save_file
from square_features import SquareFeatures, offer_squares
from task_runs import do_all
from tiny_vision import write_lpips

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.decoders import load_decoder, to_uint8
from evalsvc.errors import AssetMissing, DataChanged, InvalidData, NonFinite
from evalsvc.features import digit_classifier
from evalsvc.features.lpips import LPIPS
from evalsvc.metrics.frechet import frechet_distance
from evalsvc.metrics.reconstruction import psnr, ssim
from evalsvc.miniature import ROOT
from evalsvc.tasks.reconstruction.spec import Reconstruction
from evalsvc.tasks.reconstruction.work import (
    ReconstructionOutput,
    ReconstructionPlan,
    ReconstructionShard,
    ReconstructionWork,
)
from evalsvc.tasks.task import TaskWarning
from evalsvc.worker.context import ShardContext


@pytest.fixture(autouse=True)
def _squares(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.fixture
def context(tmp_path: Path) -> ShardContext:
    return context_of(tmp_path)


def work_on(path: Path, **parameters: Any) -> ReconstructionWork:
    given = {"name": "floor", "images": str(path), "decoder": DECODER, "extractor": "squares"}
    return ReconstructionWork(Reconstruction(**given | parameters))


@pytest.mark.usefixtures("many_cases")
@pytest.mark.parametrize(("batch_tokens", "shard_size"), [(8192, 256), (64 * 9, 23)])
def test_equals_the_definition(digits: Path, tmp_path: Path, batch_tokens: int, shard_size: int) -> None:
    """One image at a time."""
    result = do_all(work_on(digits, shard_size=shard_size), context_of(tmp_path, batch_tokens))
    originals, decoder, found = load_file(digits)["images"], load_decoder(DECODER), values(result)
    codes = torch.cat([decoder.encode(image[None].float() / 127.5 - 1) for image in originals])
    others = torch.cat([to_uint8(decoder.decode(row[None])) for row in codes])
    for name, per_image in (("psnr", psnr(others, originals)), ("ssim", ssim(others, originals))):
        assert [item[name] for item in result.items] == pytest.approx(per_image.tolist(), rel=1e-3)
        assert found[name].value == pytest.approx(float(per_image.mean()), rel=1e-4)
        assert found[name].stderr == pytest.approx(float(per_image.std()) / 70**0.5, rel=1e-2)
    used, counts = codes.unique(return_counts=True)
    share = counts / codes.numel()
    assert found["codebook_use"].value == len(used) / 64
    assert found["codebook_perplexity"].value == pytest.approx(float((-(share * share.log()).sum()).exp()), rel=1e-3)
    sides = [digit_classifier.features(side).double().numpy() for side in (originals, others)]
    moments = [part for side in sides for part in (side.mean(0), np.cov(side, rowvar=False))]
    assert found["fid64"].value == pytest.approx(frechet_distance(*moments), rel=1e-2)
    shares = np.array([item["fid64"] for item in result.items])
    assert found["fid64"].stderr == pytest.approx(shares.std(ddof=1) / 70**0.5, rel=1e-4)


def test_what_is_left_out_is_told(digits: Path, context: ShardContext) -> None:
    result = do_all(work_on(digits), context)
    assert values(result)["psnr"].value > 25, "the miniature's digits are readable"
    assert result.notes == {"images": 70, "taps": [64]}
    words = "fid is left out: more than 2,048 images are needed, but there are 70; add images, or set `taps`"
    assert result.warnings == [TaskWarning("left_out", "floor/fid", words)]
    assert do_all(work_on(digits, taps=(64,)), context).warnings == []


def test_the_protocol_has_what_moves_numbers(digits: Path, tmp_path: Path, context: ShardContext) -> None:
    def ids(**parameters: Any) -> tuple[str, str]:
        plan = work_on(digits, **parameters).plan(context).shards[0].plan
        return str(plan.protocol), str(plan.features)

    plain, (pixels, features) = ids(), ids(resize="tf1-bilinear")
    copy = shutil.copy(digits, tmp_path / "copy.safetensors")
    assert ids(name="other", shard_size=7, samples=70, images=str(copy)) == plain
    for parameters in ({"samples": 69}, {"size": 64}, {"crop": "none"}, {"filter": "bicubic"}):
        assert ids(**parameters)[0] != plain[0]
    assert (pixels == plain[0], features == plain[1]) == (True, False)
    assert ids(extractor=None)[0] == plain[0], "the pixels' series does not depend on the extractor"


def test_a_crop_that_brings_its_filter(digits: Path, context: ShardContext) -> None:
    for given, filter_ in (({}, "bicubic"), ({"filter": "lanczos"}, "lanczos")):
        plan = work_on(digits, crop="center-adm", **given).plan(context).shards[0].plan
        assert plan.protocol["fit"] == {"size": 32, "crop": "center-adm", "filter": filter_}


def test_lpips_is_of_the_pixels_and_has_its_own_series(digits: Path, tmp_path: Path, context: ShardContext) -> None:
    given = {"samples": 5, "extractor": None, "shard_size": 3}
    folder = write_lpips(tmp_path)
    result = do_all(work_on(digits, lpips=str(folder), **given), context)
    found, plain = values(result), values(do_all(work_on(digits, **given), context))
    originals, decoder, lpips = load_file(digits)["images"][:5], load_decoder(DECODER), LPIPS.from_path(folder)
    others = to_uint8(decoder.decode(decoder.encode(originals.float() / 127.5 - 1)))
    assert [item["lpips"] for item in result.items] == pytest.approx(lpips(others, originals).tolist(), rel=1e-3)
    assert (found["lpips"].direction, found["lpips"].items) == ("lower", ("lpips",))
    assert {**found["psnr"].protocol.content, "lpips": lpips.digest} == found["lpips"].protocol.content
    assert (found["psnr"], "lpips" in plain) == (plain["psnr"], False), "the other series go on"
    shard = (work := work_on(digits, lpips=str(folder), **given)).plan(context).shards[0]
    torch.save(torch.load(folder / "vgg.pth") | {"lin0.model.1.weight": torch.ones(1, 64, 1, 1)}, folder / "vgg.pth")
    with pytest.raises(DataChanged, match="LPIPS has changed since this evaluation was planned"):
        work.run(context, shard)


def test_averaged_weights_are_another_decoder(digits: Path, context: ShardContext) -> None:
    [decoder] = (Path(__file__).parents[2] / "golden" / "movqgan" / "micro_lightning_ema").glob("*.ckpt")
    given = {"decoder": str(decoder), "samples": 4}
    raw, averaged = (values(do_all(work_on(digits, decoder_ema=ema, **given), context)) for ema in (False, True))
    assert raw["psnr"].value != averaged["psnr"].value
    assert raw["psnr"].protocol != averaged["psnr"].protocol


def test_distances_need_more_images_than_features(digits: Path, tmp_path: Path, context: ShardContext) -> None:
    """Otherwise the figure is mostly bias. What nobody asked for is left out, and needs no extractor either."""
    assert "fid64" not in values(do_all(work_on(digits, samples=64, extractor="inception"), context))
    assert work_on(digits, extractor=None).plan(context).shards[0].plan.taps == []
    pixels = torch.randint(0, 256, (2050, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_file({"images": pixels}, tmp_path / "noise.safetensors")
    assert work_on(tmp_path / "noise.safetensors", size=16).plan(context).shards[0].plan.taps == [64, 2048]


def test_images_that_come_back_exactly_have_an_infinite_psnr(tmp_path: Path) -> None:
    shard = ReconstructionShard(2, 0, 2, "digest", ReconstructionPlan({}, {}, []))
    output = ReconstructionOutput(["a", "b"], [float("inf"), 30.0], [1.0, 0.5], np.array([3, 1]), {})
    sent = ReconstructionWork.output_codec.unpack(ReconstructionWork.output_codec.pack(output))
    result = work_on(tmp_path).merge(context_of(tmp_path), [shard], [sent])
    assert (values(result)["psnr"].value, values(result)["psnr"].stderr) == (float("inf"), None)
    assert result.items[0] == {"index": 0, "image": "a", "psnr": "Infinity", "ssim": 1.0}


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"samples": 71}, InvalidData, "has 70 images, but `samples` is 71; add images or lower `samples`"),
        ({"size": 30}, InvalidData, "images of 30x30 pixels do not divide into codes of 4x4"),
        ({"decoder": "movqgan-67M"}, AssetMissing, "evalsvc assets pull"),
        ({"extractor": "inception"}, AssetMissing, "evalsvc assets pull"),
        ({"samples": 64, "taps": (64,)}, InvalidData, r"fid64 needs more than 64 images, .* gives 64; .* from `taps`"),
    ],
)
def test_what_is_asked_for_and_not_there(
    digits: Path, context: ShardContext, parameters: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        work_on(digits, **parameters).plan(context)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    (folder := tmp_path / "photographs").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    for name, image in (*zip("abc", pixels, strict=True), ("grey", pixels[0, ..., 0])):
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """A copy of the miniature's decoder."""
    return shutil.copytree(Path(DECODER).parent, tmp_path / "decoder") / Path(DECODER).name


def test_changed_images_and_decoders_are_noticed(photographs: Path, decoder: Path, context: ShardContext) -> None:
    work = work_on(photographs, decoder=str(decoder), shard_size=2)
    first, second = work.plan(context).shards
    shutil.copy(photographs / "a.png", photographs / "c.png")
    work.run(context, first)
    with pytest.raises(DataChanged, match=r"images of .*photographs have changed since this evaluation was planned"):
        work.run(context, second)
    (photographs / "c.png").unlink()
    with pytest.raises(DataChanged, match="images of"):
        work.run(context, second)
    weights = torch.load(DECODER, weights_only=True)
    torch.save({name: tensor * 1.01 for name, tensor in weights.items()}, decoder)
    with pytest.raises(DataChanged, match="the decoder's weights have changed"):
        work.run(context, first)


def test_output_that_is_not_finite_names_the_image(
    photographs: Path, decoder: Path, context: ShardContext, tmp_path: Path
) -> None:
    """Finite weights whose products overflow; as uint8 it would be a black image with a bad figure."""
    weights = torch.load(DECODER, weights_only=True)
    for name in ("decoder.conv_out.weight", "decoder.norm_out.norm_layer.weight"):
        weights[name].fill_(1e38)
    torch.save(weights, decoder)
    with pytest.raises(NonFinite, match=r"photographs, image a\.png: the decoder's output has NaN or infinity"):
        do_all(work_on(photographs, decoder=str(decoder)), context)
    done: list[int] = []
    do_all(work_on(photographs), context_of(tmp_path, 1, done.append))
    assert done == [0, 1, 2, 3, 4], "progress is told between batches"


def test_a_published_program_computes_the_distance(
    digits: Path, inception_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reconstructions and originals; the error is that of the pairs, as evalsvc's own distance has it."""
    monkeypatch.setenv("EVALSVC_ASSETS", str(inception_path.parent))
    settings = Settings.load(devices="cpu", threads=1, data_dir=str(tmp_path / "data"))
    context = ShardContext(CheckpointRef(str(tmp_path / "of no use.pt")), settings, lambda done: None)
    ours, theirs = (
        do_all(work_on(digits, extractor=extractor, taps=[64], **given), context)
        for extractor, given in (("inception", {"resize": "tf1-bilinear"}), ("torch-fidelity", {}))
    )
    own, found = values(ours)["fid64"], values(theirs)["fid64"]
    assert found.value == pytest.approx(own.value, rel=1e-4)
    assert found.value != own.value
    assert found.stderr == pytest.approx(own.stderr, rel=1e-3)
    added = {"estimator": "fid64/1 by torch-fidelity 0.4.0", "program": "torch-fidelity 0.4.0"}
    assert found.protocol.content == {**own.protocol.content, **added}
    assert values(theirs)["psnr"].protocol.id == values(ours)["psnr"].protocol.id, "it has no part in pixels"


def test_an_extractor_that_changed_or_gives_fewer_taps(
    digits: Path, context: ShardContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVIDIA's program tells the last features alone."""
    work = work_on(digits)
    [shard] = work.plan(context).shards
    monkeypatch.setattr(SquareFeatures, "program", {"program": "another release"})
    with pytest.raises(DataChanged, match="the feature extractor has changed"):
        work.run(context, shard)
    monkeypatch.setattr(ShardContext, "extractor", lambda *_: SquareFeatures((2048,)))
    messages = sorted(warning.message for warning in do_all(work_on(digits), context).warnings)
    assert [message.partition(":")[0] for message in messages] == ["fid is left out", "fid64 is left out"]
    assert "squares gives no features 64" in messages[1]
    with pytest.raises(InvalidData, match="squares gives no features 64, but 2048; remove 64 from `taps`"):
        work_on(digits, taps=[64]).plan(context)
