"""The network that SEARLE brought up and others took over."""

from torch import nn


def word_layers(input_dim: int, hidden_dim: int, output_dim: int, dropout: float) -> nn.Sequential:
    """
    The network that turns embeddings into words (Baldrati et al., ICCV 2023).

    Args:
        input_dim (`int`): Width of the embeddings.
        hidden_dim (`int`): Width of the two hidden layers.
        output_dim (`int`): Width of what comes out.
        dropout (`float`): Dropout probability behind the hidden layers.

    Returns:
        `nn.Sequential`: three linear layers, a GELU and a dropout after the first two.
    """
    return nn.Sequential(
        nn.Linear(input_dim, hidden_dim),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden_dim, hidden_dim),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden_dim, output_dim),
    )
