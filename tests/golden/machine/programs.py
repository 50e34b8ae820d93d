"""The programs that compute the golden values, each behind one function: open_lm, MoVQGAN, Inception, lm-eval."""

import contextlib
import json
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import lm_eval
import numpy as np
import torch
import yaml
from cleanfid.resize import build_resizer
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from smoke_images import torch_fidelity_weights
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from evalsvc.checkpoints.weights import read_weights
from evalsvc.miniature import ROOT


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


class OpenLM(nn.Module):
    """A checkpoint of the miniature under open_lm's own Transformer; its call returns the logits [B, T, rows]."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        """`folder` holds the package `open_lm`."""
        super().__init__()
        with _importable(folder):
            from open_lm.model import Transformer, create_params
        settings = yaml.safe_load((checkpoint.parents[1] / "params.txt").read_text())
        settings |= {"model": str(checkpoint.parents[1] / "open_lm_miniature.json"), "attn_name": "torch_attn"}
        self.model = Transformer(create_params(Namespace(**settings)))
        self.model.load_state_dict({name: tensor.float() for name, tensor in read_weights(checkpoint).tensors.items()})
        self.eval().requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(ids)[0]
        return logits


def token_losses(model: nn.Module, ids: list[int]) -> Tensor:  # [T - 1] float64, in nats
    """The loss of each id but the first."""
    logits = model(torch.tensor([ids[:-1]]))[0].double()
    return functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


class MoVQGAN(nn.Module):
    """The miniature's image tokenizer under the authors' own code."""

    def __init__(self, folder: Path) -> None:
        """`folder` holds the package `movqgan`, whose training is not used, nor pytorch_lightning."""
        super().__init__()
        lightning = ModuleType("pytorch_lightning")
        lightning.LightningModule = nn.Module  # type: ignore[attr-defined]
        sys.modules.setdefault("pytorch_lightning", lightning)
        huggingface_hub.cached_download = None  # imported by the authors' package, and gone
        with _importable(folder):
            from movqgan.models.vqgan import MOVQ
        params = yaml.safe_load((ROOT / "movqgan" / "config.yaml").read_text())["model"]["params"]
        self.model = MOVQ(params["ddconfig"], params["n_embed"], params["embed_dim"])
        self.model.load_state_dict(read_weights(ROOT / "movqgan" / "movqgan_miniature.ckpt").tensors)
        self.eval().requires_grad_(False)

    def decode(self, codes: Tensor) -> Tensor:  # [B, 64] → [B, 3, 32, 32], not clamped
        latents = self.model.quantize.embedding(codes).view(len(codes), 8, 8, 4).permute(0, 3, 1, 2).contiguous()
        return self.model.decode(latents)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The codes [B, 64], and how much nearer the nearest entry is than the next one, squared [B, 64]."""
        latents = self.model.quant_conv(self.model.encoder(images)).permute(0, 2, 3, 1).reshape(-1, 4)
        squares = torch.cdist(latents.double(), self.model.quantize.embedding.weight.double()) ** 2
        nearest = squares.topk(2, largest=False).values
        codes = self.model.encode(images)[2][2].view(len(images), -1)
        return codes, (nearest[:, 1] - nearest[:, 0]).view(len(images), -1)


class Inception:
    """torch-fidelity's network; images come to its size as torch-fidelity or as clean-fid resizes them."""

    def __init__(self, weights: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = torch_fidelity_weights(weights, Path(folder) / "inception.pth")
            self.network = FeatureExtractorInceptionV3("n", ["64", "2048"], feature_extractor_weights_path=str(file))
        self.resizer = build_resizer("clean")

    def torch_fidelity(self, images: Tensor) -> dict[int, Tensor]:  # [B, 3, H, W] uint8
        return dict(zip((64, 2048), self.network(images), strict=True))

    def clean_fid(self, images: Tensor, deep: bool = True) -> dict[int, Tensor]:
        """Features of float pixels, which torch-fidelity's own call would resize again."""
        resized = np.stack([self.resizer(image.permute(1, 2, 0).numpy()) for image in images])
        x = (torch.from_numpy(resized).permute(0, 3, 1, 2) - 128) / 128
        found = {}
        for name, module in self.network.named_children():
            if name == "fc" or (name == "Conv2d_3b_1x1" and not deep):
                break
            x = module(x)
            if name == "MaxPool_1":
                found[64] = x.mean((2, 3))
        return found | ({2048: x.flatten(1)} if deep else {})


class PlainLM(TemplateLM):
    """A model for lm-eval that asks one continuation at a time."""

    eot_token_id = 0

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.text = Tokenizer.from_file(str(ROOT / "tokenizer.json"))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        ids: list[int] = self.text.encode(string, add_special_tokens=False).ids
        return ids

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        answers = []
        for _texts, context, continuation in requests:
            ids = torch.tensor([[*context, *continuation]])
            logprobs = self.model(ids[:, :-1])[0, len(context) - 1 :].double().log_softmax(-1)
            targets = ids[0, len(context) :]
            total = float(logprobs[torch.arange(len(targets)), targets].sum())
            answers.append((total, bool((logprobs.argmax(-1) == targets).all())))
        return answers

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError


def ask_cloze(model: nn.Module, questions: int) -> tuple[float, list[list[float]]]:
    """Accuracy by lm-eval, and the log-likelihoods of the four options of each question."""
    definition = yaml.safe_load((ROOT / "cloze.yaml").read_text())
    definition["dataset_kwargs"] = {"data_files": {"test": str(ROOT / "cloze.jsonl")}}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cloze.yaml").write_text(json.dumps(definition))
        manager = TaskManager(include_path=folder, include_defaults=False)
        found = lm_eval.simple_evaluate(
            PlainLM(model), tasks=["cloze"], task_manager=manager, limit=questions, bootstrap_iters=0
        )
    samples = sorted(found["samples"]["cloze"], key=lambda sample: sample["doc_id"])
    return found["results"]["cloze"]["acc,none"], [
        [float(response[0][0]) for response in sample["resps"]] for sample in samples
    ]
