"""Files of a suite that only PyTorch's readers open: images, image tokenizers and feature extractors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from evalsvc.checkpoints.opening import opened_weights
from evalsvc.config import Settings
from evalsvc.data.captions import chosen_captions
from evalsvc.data.images import read_images
from evalsvc.data.tokens import image_indices
from evalsvc.features import load_extractor
from evalsvc.features.lpips import LPIPS
from evalsvc.spec.images import Fit
from evalsvc.spec.paths import Readable, local_data
from evalsvc.spec.suite import TaskSpec, build_task
from evalsvc.tasks.image_reference import stated_in
from evalsvc.tasks.reconstruction.work import ReconstructionWork
from evalsvc.worker.context import find_decoder


def open_by_torch(where: str, path: Path, task: TaskSpec, settings: Settings) -> Iterable[object]:
    """Open the file of a parameter; return the images that a task uses, which are loaded as they are taken."""
    parameters, allow = task.parameters, Readable(settings)
    if where == "reference" and not stated_in(path, allow).images:
        return ()
    if where in ("images", "reference"):
        source = read_images(path, allow)
        used: Sequence[int] = range(len(source))
        named = "data" if where == "images" else "captions" if parameters["reference_of"] == "captions" else ""
        if task.kind == "reconstruction":
            used = range(ReconstructionWork(build_task(task)).count(source))
        elif parameters.get(named):
            listed = Path(local_data(settings, parameters[named]))
            used = list(image_indices(listed, chosen_captions(listed, parameters, allow), source))[
                : parameters.get("limit")
            ]
        return (source.load(index, Fit(64)) for index in used)
    if where in ("decoder", "decoder_config"):
        decoder = find_decoder(settings, parameters["decoder"], parameters["decoder_config"])
        decoder.load(parameters["decoder_ema"], "float32", "cpu")
    elif where in ("extractor", "clip", "dinov2", "classifier", "lpips"):
        kind = {"extractor": "inception", "classifier": "digits"}.get(where, where)
        with opened_weights(path, allow) as pinned:
            LPIPS.from_path(pinned) if where == "lpips" else load_extractor(kind, pinned)
    return ()
