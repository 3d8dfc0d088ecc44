"""Which layers moved: how far the weights went, and how unlike what they compute has become."""

import copy
from collections.abc import Sequence

import torch

from ..contexts import evaluating
from ..prompts import PromptTokenizer
from .base import Diagnosis


_GROUPS = {"self_attn": "attention", "attn": "attention", "mlp": "mlp", "norm": "norms"}


def layer_changes(frozen, trained, *, texts: Sequence[str] = (), tokenizer=None) -> Diagnosis:
    r"""
    Compares a trained text encoder with the one it started from, layer by layer.

    - `series["weights"]`: for each layer and kind of weights (`attention`, `mlp`, `norms`), the embeddings and the
      text projection, the relative change \\(|W - W_0| / |W_0|\\) (Frobenius norms over all tensors of the kind);
      `series["whole"]`: the same of all weights of each layer;
    - `series["states"]`, with `texts`: for each layer the linear CKA (Kornblith et al., ICML 2019) of a text's mean
      state under both encoders, 1 where one is a rotation of the other, and their mean cosine.

    Args:
        frozen ([`CLIPTextModelForRTD`] or that of another backbone): The encoder before the training.
        trained (the same): After it. Adapters of PEFT are merged, on a copy.
        texts (`Sequence[str]`, *optional*): To compare states on; some hundreds.
        tokenizer (*optional*): For `texts`.

    Returns:
        [`Diagnosis`]: `metrics`: `relative_change` of all weights, `most_changed_layer` (from 0; -1: what comes before
        the layers, their number: what comes after), `cka_last`.

    Raises:
        ValueError: The encoders have different weights, some are not finite, or `texts` come without a `tokenizer`.
    """
    _check_tokenizer(texts, tokenizer)
    if hasattr(trained, "merge_and_unload"):
        trained = copy.deepcopy(trained).merge_and_unload()
    layers = frozen.config.num_hidden_layers
    moved = _moved(frozen, trained, layers)
    rows = [{"layer": layer, "kind": kind, "change": _share(moved[layer, kind])} for layer, kind in sorted(moved)]
    whole: dict[int, torch.Tensor] = {}
    for (layer, _), squares in moved.items():
        whole[layer] = whole.get(layer, 0) + squares
    most = max(whole, key=lambda layer: _share(whole[layer]))
    metrics = {"relative_change": _share(sum(moved.values())), "most_changed_layer": float(most)}
    series: dict = {"weights": rows, "layers": layers, "whole": [[at, _share(whole[at])] for at in sorted(whole)]}
    if texts:
        series["states"] = _state_changes(frozen, trained, list(texts), tokenizer)
        metrics["cka_last"] = series["states"][-1]["cka"]
    return Diagnosis("layer_changes", metrics, series)


class LayerChanges:
    """
    A callable `(text_encoder) -> {metric: value}`, such as an evaluator of [`RTDTrainer`]: [`layer_changes`] while the
    training goes on.

    - `layers_relative_change`, `layers_most_changed_layer`, and with `texts` `layers_cka_last`, as there;
    - `layers_N_change`: the relative change of all weights of layer N, from 0; `layers_first_change` and
      `layers_last_change` of what comes before and after the layers.

    Args:
        frozen ([`CLIPTextModelForRTD`] or that of another backbone): The encoder before the training. A copy of it is
            kept, because a training changes the weights in place.
        texts (`Sequence[str]`, *optional*): To compare states on; some hundreds.
        tokenizer (*optional*): For `texts`.

    Raises:
        ValueError: `texts` come without a `tokenizer`.
    """

    def __init__(self, frozen, *, texts: Sequence[str] = (), tokenizer=None):
        _check_tokenizer(texts, tokenizer)
        self._frozen = copy.deepcopy(frozen).eval().requires_grad_(False)
        self._texts, self._tokenizer = list(texts), tokenizer

    def __call__(self, text_encoder) -> dict[str, float]:
        """The metrics of an encoder."""
        found = self.measure(text_encoder)
        metrics = {f"layers_{name}": value for name, value in found.metrics.items()}
        names = {-1: "first", found.series["layers"]: "last"}
        for layer, change in found.series["whole"]:
            metrics[f"layers_{names.get(layer, layer)}_change"] = change
        return metrics

    def measure(self, text_encoder) -> Diagnosis:
        """
        [`layer_changes`] of an encoder.

        Args:
            text_encoder: The encoder in training, or adapters around it.

        Returns:
            [`Diagnosis`]
        """
        return layer_changes(self._frozen, text_encoder, texts=self._texts, tokenizer=self._tokenizer)


def _check_tokenizer(texts: Sequence[str], tokenizer) -> None:
    if texts and tokenizer is None:
        raise ValueError("`tokenizer` is missing: `texts` have to be made into tokens.")


def _moved(frozen, trained, layers: int) -> dict[tuple[int, str], torch.Tensor]:
    """For each layer and kind of weights `(|W - W0|^2, |W0|^2)`."""
    before, after = dict(frozen.named_parameters()), dict(trained.named_parameters())
    differing = before.keys() ^ after.keys()
    differing |= {name for name in before.keys() & after.keys() if before[name].shape != after[name].shape}
    if differing:
        raise ValueError(
            f"`frozen` and `trained` must have the same weights, but {len(differing)} differ, such as "
            f"`{min(differing)}`. Give an encoder and what was trained from it."
        )
    moved: dict[tuple[int, str], torch.Tensor] = {}
    for name, weight in before.items():
        old, new = (one.detach().cpu().double() for one in (weight, after[name]))
        squares = torch.stack([(new - old).square().sum(), old.square().sum()])
        if not squares.isfinite().all():
            raise ValueError(f"`frozen` and `trained` must be finite, but `{name}` holds NaN or infinity.")
        place = _place(name, layers)
        moved[place] = moved.get(place, 0) + squares
    return moved


def _share(squares: torch.Tensor) -> float:
    return (squares[0] / squares[1].clamp_min(1e-30)).sqrt().item()


def _place(name: str, layers: int) -> tuple[int, str]:
    """Layer and kind of a parameter by its name."""
    parts = name.split(".")
    if "layers" in parts:
        kind = next((kind for piece, kind in _GROUPS.items() if any(piece in part for part in parts)), "other")
        return int(parts[parts.index("layers") + 1]), kind
    return (-1, "embeddings") if "embeddings" in parts else (layers, "projection" if "norm" not in name else "norms")


@torch.inference_mode()
def _state_changes(frozen, trained, texts: list[str], tokenizer) -> list[dict[str, float]]:
    rows = []
    pairs = zip(mean_states(frozen, texts, tokenizer), mean_states(trained, texts, tokenizer), strict=True)
    for layer, (first, second) in enumerate(pairs):
        cosine = torch.nn.functional.cosine_similarity(first, second).mean().item()
        rows.append({"layer": layer - 1, "cka": linear_cka(first, second), "cosine": cosine})
    return rows


@torch.inference_mode()
def mean_states(encoder, texts: Sequence[str], tokenizer, *, batch_size: int = 64) -> list[torch.Tensor]:
    """
    The mean hidden state over the tokens that the encoder reads of a text (SigLIP: padding too), of the embeddings and
    after each layer.

    Args:
        encoder ([`CLIPTextModelForRTD`]): The encoder.
        texts (`Sequence[str]`): The texts.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        batch_size (`int`, *optional*, defaults to 64): Texts at once.

    Returns:
        `list[torch.Tensor]`: For the embeddings and each layer `(N, H)`, float32, on the CPU.
    """
    layers = next(module for name, module in encoder.named_modules() if name.endswith("encoder.layers"))
    prompts = PromptTokenizer(tokenizer, **encoder.prompt_options())
    device = next(encoder.parameters()).device
    kept: list[list[torch.Tensor]] = [[] for _ in range(len(layers) + 1)]
    taken: dict[int, torch.Tensor] = {}

    def before_first(module, args, kwargs):
        taken[0] = args[0] if args else kwargs["hidden_states"]

    def after(place: int):
        def hook(module, args, output):
            taken[place] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [layers[0].register_forward_pre_hook(before_first, with_kwargs=True)]
    hooks += [layer.register_forward_hook(after(place)) for place, layer in enumerate(layers, start=1)]
    try:
        with evaluating(encoder):
            for first in range(0, len(texts), batch_size):
                batch = prompts.encode(list(texts[first : first + batch_size]))
                encoder(**{name: value.to(device) for name, value in batch.items()})
                mask = batch["attention_mask"][..., None]
                for place, state in taken.items():
                    kept[place].append((state.float().cpu() * mask).sum(1) / mask.sum(1))
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(parts) for parts in kept]


def linear_cka(first: torch.Tensor, second: torch.Tensor) -> float:
    r"""
    Linear centred kernel alignment, \\(|Y^T X|^2 / (|X^T X| |Y^T Y|)\\) of centred \\(X\\) and \\(Y\\).

    Args:
        first, second (`torch.Tensor` of shape `(N, H)`): Row i of both is about the same input.

    Returns:
        `float`: Between 0 and 1; 0 where one of them is the same in every row.
    """
    first, second = (rows.double() - rows.double().mean(0) for rows in (first, second))
    grams = first @ first.T, second @ second.T  # N rows are fewer than widths squared
    return ((grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm()).clamp_min(1e-30)).item()
