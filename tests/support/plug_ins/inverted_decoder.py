"""A decoder of another package: MoVQGAN's negative."""

from torch import Tensor

from evalsvc.decoders.movqgan import MoVQGAN


class Inverted(MoVQGAN):
    targets = ("inverted.Decoder",)
    telltale = ""

    def decode(self, codes: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        return -super().decode(codes, grid)
