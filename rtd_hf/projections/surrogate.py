"""A network that stands for a projection of vision tokens where there are none: what text-only training works with."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .networks import word_layers


class WordSurrogate(nn.Module):
    """
    What a projection makes of vision tokens, from the global embedding (and the context) alone.

    Context-I2W and FTI4CIR read vision tokens, and a text has none; they were not published with RTD, and this way to
    join them is ours. CLIP pulls texts and pictures into one space, so a network that was taught on pictures to say
    from their embeddings what the projection makes of their tokens can be given a text's embedding. It has the form of
    SEARLE's projection, and serves training only; at inference the projection itself reads the picture.

    Args:
        input_dim (`int`): Width D of the embeddings.
        hidden_dim (`int`): Width of the hidden layers.
        output_dim (`int`): Width of what it says.
        takes_context (`bool`, *optional*, defaults to `False`): Read a context embedding beside the image embedding.
        bounded (`bool`, *optional*, defaults to `False`): What it says lies between 0 and 1.
    """

    def __init__(
        self, input_dim: int, hidden_dim: int, output_dim: int, *, takes_context: bool = False, bounded: bool = False
    ):
        super().__init__()
        self.takes_context, self.bounded = takes_context, bounded
        self.layers = word_layers(input_dim * (1 + takes_context), hidden_dim, output_dim, 0.0)

    def forward(self, embeds: torch.Tensor, context_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """`(B, D)` and `(B, D)` to `(B, output_dim)`."""
        outputs = self.layers(torch.cat([embeds, context_embeds], dim=-1) if self.takes_context else embeds)
        return outputs.sigmoid() if self.bounded else outputs

    def fit(
        self,
        embeds: torch.Tensor,
        targets: torch.Tensor,
        context_embeds: torch.Tensor | None = None,
        *,
        steps: int = 2000,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        seed: int = 0,
        on_step: Callable[[int, float], None] | None = None,
    ) -> float:
        """
        Learns what the projection makes of pictures, by the mean squared error (AdamW, cosine schedule to 0).

        Args:
            embeds (`torch.Tensor` of shape `(N, D)`): Image embeddings, not normalised.
            targets (`torch.Tensor` of shape `(N, output_dim)`): What the projection makes of them.
            context_embeds (`torch.Tensor` of shape `(N, D)`, *optional*): The contexts in which it does.
            steps, batch_size (`int`), learning_rate (`float`): Of the fit.
            seed (`int`, *optional*, defaults to 0): Draws the batches.
            on_step (`Callable[[int, float], None]`, *optional*): Is told the step and its loss, for a progress bar.

        Returns:
            `float`: the share of the targets' variance that it explains, on a tenth of the rows that it was not shown.

        Raises:
            ValueError: there are fewer than 20 rows, or one of the tensors has another number of them.
        """
        numbers = [len(part) for part in (embeds, targets, context_embeds) if part is not None]
        if len(set(numbers)) != 1 or numbers[0] < 20 or (context_embeds is None) == self.takes_context:
            raise ValueError(
                f"`embeds`, `targets`{' and `context_embeds`' if self.takes_context else ''} must have one row each "
                f"for at least 20 pictures, but have {numbers}."
            )
        device = next(self.parameters()).device
        parts = [embeds, targets, *([context_embeds] if self.takes_context else [])]
        embeds, targets, *context = (part.float().to(device) for part in parts)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(embeds), generator=generator).to(device)
        held_back, shown = order[: len(order) // 10], order[len(order) // 10 :]
        optimizer = torch.optim.AdamW(self.parameters(), lr=learning_rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        with torch.enable_grad():
            for step in range(steps):
                rows = shown[torch.randint(len(shown), (batch_size,), generator=generator).to(device)]
                loss = F.mse_loss(self(embeds[rows], *(part[rows] for part in context)), targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                if on_step is not None:
                    on_step(step, loss.item())
        with torch.no_grad():
            residual = self(embeds[held_back], *(part[held_back] for part in context)) - targets[held_back]
        spread = targets[held_back] - targets[held_back].mean(dim=0)
        return 1 - (residual.square().sum() / spread.square().sum()).item()
