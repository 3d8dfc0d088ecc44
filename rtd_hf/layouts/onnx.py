"""The text encoder as an ONNX graph in which the pseudo-word is an input."""

import json
import warnings
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from ..hub.export import save_tokenizer
from .base import LAYOUTS, Layout, Parts, whole_folder


INSTALL = "pip install 'rtd_hf[onnx]'"
FILE = "text_encoder.onnx"
OPSET = 20
_LARGEST_FILE = 1_500_000_000  # bytes of weights; a protobuf file ends at 2 GiB


class PseudoWordGraph(nn.Module):
    """
    A CLIP text encoder with pseudo-words as plain tensor operations: no hook, no check, nothing that reads a value.

    Args:
        encoder ([`~transformers.CLIPTextModelWithProjection`]): The encoder; its modules are used.
    """

    def __init__(self, encoder):
        super().__init__()
        self.text, self.projection = encoder.text_model, encoder.text_projection
        self.eos_token_id = encoder.config.eos_token_id

    def forward(
        self, input_ids: torch.Tensor, pseudo_words: torch.Tensor, placeholder_mask: torch.Tensor
    ) -> torch.Tensor:
        """
        Args:
            input_ids (`torch.Tensor` of shape `(R, L)`): Token ids, padded on the right; each row with its EOS.
            pseudo_words (`torch.Tensor` of shape `(R, K, H)`): Written over the placeholders in reading order.
            placeholder_mask (`torch.Tensor` of shape `(R, L)`): True where a pseudo-word is written; all false for
                plain texts, for which `pseudo_words` may hold anything.

        Returns:
            `torch.Tensor` of shape `(R, D)`: text embeddings, not normalised.
        """
        embeddings = self.text.embeddings
        states = embeddings.token_embedding(input_ids)
        order = (placeholder_mask.long().cumsum(dim=1) - 1).clamp(min=0).unsqueeze(-1)
        words = pseudo_words.gather(1, order.expand(-1, -1, states.shape[-1]))
        states = torch.where(placeholder_mask.unsqueeze(-1), words, states)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        states = states + embeddings.position_embedding(positions)
        later = positions.unsqueeze(0) > positions.unsqueeze(1)
        mask = torch.zeros_like(later, dtype=states.dtype).masked_fill(later, torch.finfo(states.dtype).min)
        # The mask is additive and explicit: of the ways to ask for causal attention it is the one that is exact in
        # every version and under every attention implementation.
        for layer in self.text.encoder.layers:
            states = layer(states, mask[None, None])
        states = self.text.final_layer_norm(states)
        if self.eos_token_id == 2:  # the legacy value: the highest id of a row is its EOS
            ends = input_ids.argmax(dim=-1)
        else:
            ends = (input_ids == self.eos_token_id).long().argmax(dim=-1)
        pooled = states.gather(1, ends[:, None, None].expand(-1, -1, states.shape[-1])).squeeze(1)
        return self.projection(pooled)


@LAYOUTS.register("onnx")
class ONNXLayout(Layout):
    """
    A folder with `text_encoder.onnx`, the tokenizer, and `onnx_inputs.json`, which says what goes in.

    Inputs are `input_ids` (R, L), `pseudo_words` (R, K, H) and `placeholder_mask` (R, L), output is `text_embeds`
    (R, D), not normalised; R, L and K are free. Weights are float32. Above 1.5 GB they lie in a file beside the graph.
    """

    summary = "The text encoder as an ONNX graph with the pseudo-words as an input, for onnxruntime."
    takes = ("tokenizer", "projection")

    def write(self, encoder, folder: Path, parts: Parts) -> Path:
        """See [`Layout`]."""
        _check_installed()
        # A copy of its own: the precision and the attention implementation are set for the graph alone.
        graph = PseudoWordGraph(_plain_copy(encoder)).eval()
        weights = sum(parameter.numel() * 4 for parameter in graph.parameters())
        with whole_folder(folder) as partial:
            _export_graph(graph, encoder.config, partial / FILE, external=weights > _LARGEST_FILE)
            facts = {
                "inputs": {"input_ids": ["R", "L"], "pseudo_words": ["R", "K", "H"], "placeholder_mask": ["R", "L"]},
                "output": {"text_embeds": ["R", "D"]},
                "hidden_size": encoder.config.hidden_size,
                "projection_dim": encoder.config.projection_dim,
                "max_length": encoder.config.max_position_embeddings,
            }
            if parts.projection is not None:
                facts["prompt_template"] = parts.projection.config.prompt_template
            (partial / "onnx_inputs.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            if parts.tokenizer is not None:
                save_tokenizer(parts.tokenizer, partial)
        return folder / FILE


def _plain_copy(encoder):
    with torch.device("meta"):
        config = type(encoder.config)(**{**encoder.config.to_dict(), "attn_implementation": "eager"})
        copied = type(encoder)(config)
    state = {name: tensor.detach().float().cpu() for name, tensor in encoder.state_dict().items()}
    copied.load_state_dict(state, strict=True, assign=True)
    return copied


def _check_installed() -> None:
    for name in ("onnx", "onnxscript"):  # torch imports both, the second late
        try:
            import_module(name)
        except ImportError as error:
            raise ImportError(f"The layout `onnx` needs {name} ({error}). Install it: {INSTALL}") from error


def _export_graph(graph: PseudoWordGraph, config, file: Path, *, external: bool) -> None:
    rows, length, number = 2, 7, 2
    example = (
        torch.full((rows, length), config.vocab_size - 1),
        torch.zeros(rows, number, config.hidden_size),
        torch.zeros(rows, length, dtype=torch.bool),
    )
    row, column, word = (torch.export.Dim(name) for name in ("rows", "length", "words"))
    with warnings.catch_warnings():
        # Of torch about itself, and that several inputs share a dimension, as they are meant to.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        torch.onnx.export(
            graph,
            example,
            str(file),
            dynamo=True,
            external_data=external,
            opset_version=OPSET,
            verbose=False,
            input_names=["input_ids", "pseudo_words", "placeholder_mask"],
            output_names=["text_embeds"],
            dynamic_shapes=({0: row, 1: column}, {0: row, 1: word}, {0: row, 1: column}),
        )
