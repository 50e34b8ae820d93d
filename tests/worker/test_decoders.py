"""Image decoders by name, without a checkpoint."""

import shutil
from pathlib import Path

import pytest

from evalsvc.config import Settings
from evalsvc.decoders import load_decoder
from evalsvc.errors import AssetMissing, InvalidData, UnknownName
from evalsvc.miniature import ROOT
from evalsvc.worker.decoders import find_decoder

DECODER = ROOT / "movqgan" / "movqgan_miniature.ckpt"


def test_a_path_has_the_configuration_next_to_it_or_one_of_its_own(tmp_path: Path) -> None:
    expected = load_decoder(DECODER).digest
    shutil.copy(DECODER, tmp_path / "alone.ckpt")
    config = str(DECODER.parent / "config.yaml")
    for path, given in ((DECODER, None), (tmp_path / "alone.ckpt", config)):
        decoder = find_decoder(Settings(), str(path), given).load(False, "float32", "cpu")
        assert decoder.digest == expected


@pytest.mark.parametrize("config", [None, "/secret/config.yaml"])
def test_nothing_outside_the_roots_is_read(config: str | None, tmp_path: Path) -> None:
    settings = Settings(roots=str(DECODER.parent if config else tmp_path))
    path = DECODER if config else tmp_path.parent / "decoder.ckpt"
    with pytest.raises(InvalidData, match="outside the allowed folders"):
        find_decoder(settings, str(path), config)


def test_a_name_is_an_asset(tmp_path: Path) -> None:
    settings = Settings(assets=str(tmp_path))
    with pytest.raises(AssetMissing, match="run: evalsvc assets pull movqgan-67M"):
        find_decoder(settings, "movqgan-67M", None)
    with pytest.raises(UnknownName, match="did you mean 'movqgan-67M'"):
        find_decoder(settings, "movqgan-67m", None)
