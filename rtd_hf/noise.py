"""Noise that stands in for the gap between pictures and texts."""

import torch

from .options import NOISE_TYPES


def draw_noise(
    shape: tuple[int, int], *, kind: str, scale: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    r"""
    Noise for embeddings, row by row: with \\(z\\) standard normal, \\(\sigma z\\) for `"gaussian"`, and
    \\(\sigma u z\\) for `"scaled_gaussian"`, \\(u\\) uniform between 0 and 1, one for each row (LinCIR, CVPR 2024,
    which RTD takes over).

    Args:
        shape (`tuple[int, int]`): `(N, D)`.
        kind (`str`): Of `NOISE_TYPES`.
        scale (`float`): \\(\sigma\\).
        generator (`torch.Generator`, *optional*): On the CPU.

    Returns:
        `torch.Tensor` of shape `(N, D)`, float32, on the CPU.

    Raises:
        ValueError: There is no such kind.
    """
    if kind not in NOISE_TYPES:
        raise ValueError(f"`kind` must be one of {', '.join(NOISE_TYPES)}, got {kind!r}.")
    if kind == "none" or scale == 0:
        return torch.zeros(shape)
    noise = torch.randn(shape, generator=generator) * scale
    if kind == "scaled_gaussian":
        noise *= torch.rand(shape[0], 1, generator=generator)
    return noise
