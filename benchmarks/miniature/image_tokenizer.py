"""The miniature's image tokenizer: a tiny MoVQGAN, trained with the modules that evaluate it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.nn import functional

from digits import Warp, to_input
from evalsvc.decoders.movqgan import MoVQGAN

CODES = 64
WIDTH = 4
GRID = (8, 8)

CONFIG: dict[str, Any] = {
    "model": {
        "target": "movqgan.models.vqgan.MOVQ",
        "params": {
            "embed_dim": WIDTH,
            "n_embed": CODES,
            "ddconfig": {
                "double_z": False,
                "z_channels": WIDTH,
                "resolution": 32,
                "in_channels": 3,
                "out_ch": 3,
                "ch": 32,
                "ch_mult": [1, 1, 2],
                "num_res_blocks": 1,
                "attn_resolutions": [8],
                "dropout": 0.0,
            },
        },
    },
}
"""In the layout of the authors' files, as far as a reader needs it."""

WARP = Warp(shift=1.5, rotation=8, scale=0.08)
WARPED = 0.75
"""Share of the batches that are warped."""
RATE, BETAS = 2e-3, (0.9, 0.99)
BATCH = 32
UNQUANTISED = 60
"""Steps before the codebook is made from the latents: an encoder that has learned nothing collapses to few codes."""
DECAY = 0.99
"""Of the codebook's moving averages."""
DEAD = 0.05
"""Uses per step below which a code is put on a random latent."""
COMMITMENT = 0.25


def write_config(path: Path) -> None:
    path.write_text(yaml.safe_dump(CONFIG, sort_keys=False))


class MovingCodebook:
    """The codebook as a moving average of the latents assigned to it (arXiv 1711.00937, appendix A)."""

    def __init__(self, model: MoVQGAN, generator: torch.Generator) -> None:
        self.model, self.generator = model, generator
        self.entries = model.quantize.embedding.weight.requires_grad_(False)
        self.uses = torch.ones(CODES)
        self.sums = self.entries.clone()

    def start(self, points: Tensor) -> None:  # [N, C]
        """k-means on the latents."""
        chosen = torch.randperm(len(points), generator=self.generator)[:CODES]
        centres = points[chosen].clone()
        for _ in range(20):
            nearest = torch.cdist(points, centres).argmin(1)
            members = functional.one_hot(nearest, CODES).to(points.dtype)
            counts = members.sum(0)
            centres = torch.where(counts[:, None] > 0, members.T @ points / counts.clamp(min=1)[:, None], centres)
        self.uses = counts.clamp(min=1)
        self._set(torch.arange(CODES), centres)

    def update(self, points: Tensor, codes: Tensor, restart: bool) -> None:  # [N, C], [N]
        members = functional.one_hot(codes, CODES).to(points.dtype)
        self.uses.lerp_(members.sum(0), 1 - DECAY)
        self.sums.lerp_(members.T @ points, 1 - DECAY)
        self.entries.copy_(self.sums / self.uses.clamp(min=1e-3)[:, None])
        dead = (self.uses < DEAD).nonzero()[:, 0]
        if restart and len(dead):
            chosen = torch.randint(len(points), (len(dead),), generator=self.generator)
            self.uses[dead] = 1.0
            self._set(dead, points[chosen])

    def _set(self, rows: Tensor, values: Tensor) -> None:
        self.sums[rows] = values * self.uses[rows, None]
        self.entries[rows] = values


def train(images: Tensor, steps: int, seed: int) -> dict[str, Tensor]:
    """Train on `images` (uint8 [n, 3, 32, 32]) and return the weights, in the authors' names."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = MoVQGAN.from_config(CONFIG["model"]["params"]).train().to(memory_format=torch.channels_last)
    codebook = MovingCodebook(model, generator)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, betas=BETAS, fused=True)
    for index in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((index + 1) / 20, 0.5 * (1 + math.cos(math.pi * index / steps)))
        batch = draw(images, generator)
        optimizer.zero_grad()
        loss = _loss(model, codebook, batch, index, restart=index < 0.8 * steps)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if index % 25 == 0 or index == steps - 1:
            print(f"images step {index}: loss {loss.item():.4f}", flush=True)
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def draw(images: Tensor, generator: torch.Generator) -> Tensor:  # [BATCH, 3, 32, 32] in [-1, 1]
    batch = to_input(images[torch.randint(len(images), (BATCH,), generator=generator)])
    warped = bool(torch.rand((), generator=generator) < WARPED)
    return (WARP.apply(batch, generator) if warped else batch).contiguous(memory_format=torch.channels_last)


def _loss(model: MoVQGAN, codebook: MovingCodebook, batch: Tensor, index: int, restart: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        latents = model.latents(batch).float()
    quantised, commitment = latents, torch.zeros(())
    points = latents.detach().movedim(1, -1).reshape(-1, WIDTH)
    if index == UNQUANTISED:
        codebook.start(points)
    if index >= UNQUANTISED:
        codes = model.nearest(latents)
        entries = model.lookup(codes, GRID)
        commitment = functional.mse_loss(latents, entries)
        quantised = latents + (entries - latents).detach()  # straight through: the gradient passes the codebook by
        codebook.update(points, codes.flatten(), restart)
    with torch.autocast("cpu", torch.bfloat16):
        rendered = model.render(quantised).float()
    return functional.l1_loss(rendered, batch) + functional.mse_loss(rendered, batch) + COMMITMENT * commitment


@torch.no_grad()
def reconstruct(model: MoVQGAN, images: Tensor) -> tuple[Tensor, Tensor]:  # float [B, 3, 32, 32], codes [B, 64]
    codes = model.encode(to_input(images))
    return model.decode(codes), codes
