"""A step of training on tensors without content, which have sizes: what it takes of memory, and its work."""

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .contexts import adapters_off, evaluating
from .kernels import padded_attention
from .live_memory import LiveMemory
from .losses import target_anchored_contrastive_loss
from .models import BACKBONES
from .packing import PackedRows


if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Mini-batches that are run: from the second on, each takes what the one before took.
_MAX_CHUNKS = 3
# Of these numbers of layers the step with mini-batches is run; what it takes grows by as much with each further layer.
_LAYERS = (2, 3)
_GROWING = ("frozen", "kept", "forward", "backward", "flops")


@dataclass
class Phases:
    """
    What one pass through the step took.

    Args:
        frozen, forward, backward (`float`): The most bytes at once on top of the models, in the frozen encoder's pass,
            in the forward pass with the loss, and in the backward pass, with gradients.
        kept (`float`): Bytes that autograd keeps from the forward pass.
        flops (`float`): Operations of matrix products.
        pairs, chunks (`int`): Rows of the loss that was run, and mini-batches of the batch.
    """

    frozen: float = 0
    kept: float = 0
    forward: float = 0
    backward: float = 0
    flops: float = 0
    pairs: int = 0
    chunks: int = 1


def build_encoder(config: "PreTrainedConfig", *, layers: int | None = None, lora: Any = None) -> nn.Module:
    """
    A text encoder without weights, on the `meta` device.

    Args:
        config ([`~transformers.PreTrainedConfig`]): Of a text encoder of `BACKBONES`.
        layers (`int`, *optional*): So many layers; all by default.
        lora (`peft.LoraConfig`, *optional*): Adapters that it gets.

    Returns:
        `nn.Module`: the encoder, or a `PeftModel` around it.
    """
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers or config.num_hidden_layers
    with torch.device("meta"):
        model: nn.Module = BACKBONES[config.model_type](config)
        if lora is not None:
            from peft import get_peft_model

            model = get_peft_model(model, copy.deepcopy(lora))
    return model


class FakeStep:
    """
    RTD's step of one training on fake tensors: frozen encoder, prompts, loss, backward pass.

    Args:
        config ([`~transformers.PreTrainedConfig`]): Of the text encoder.
        args ([`RTDTrainingArguments`]): The training's options.
        lora (`peft.LoraConfig`, *optional*): Adapters that are trained instead of all weights.
        half (`torch.dtype`, *optional*): Autocast to this precision.
        width (`int`, *optional*): Width of the pseudo-words; `None` where prompts hold none.
    """

    def __init__(self, config, args, *, lora: Any, half: torch.dtype | None, width: int | None):
        self.config, self.args, self.lora, self.half, self.width = config, args, lora, half, width

    def run(self, batch: Mapping[str, list[PackedRows]], *, drop_gradients: bool = False) -> Phases:
        """
        The step over a batch.

        Of several mini-batches the first ones are run, with few layers: each further layer takes the same.

        Args:
            batch (`dict[str, list[PackedRows]]`): The `packed_rows` of [`DataCollatorForRTD`], by their names.
            drop_gradients (`bool`, *optional*, defaults to `False`):
                Free each gradient as soon as it is there, as where processes share them.

        Returns:
            [`Phases`]
        """
        number = len(batch["packed_rows"])
        if number == 1:
            return self._run(batch, self.config.num_hidden_layers, drop_gradients=drop_gradients)
        some = {name: parts[:_MAX_CHUNKS] for name, parts in batch.items()}
        low, high = (self._run(some, layers, drop_gradients=drop_gradients) for layers in _LAYERS)
        more = (self.config.num_hidden_layers - _LAYERS[0]) / (_LAYERS[1] - _LAYERS[0])
        grows = {name: getattr(low, name) + more * (getattr(high, name) - getattr(low, name)) for name in _GROWING}
        phases = Phases(**grows, pairs=low.pairs, chunks=number)
        phases.flops *= number / min(number, _MAX_CHUNKS)
        return phases

    def _run(self, batch: Mapping[str, list[PackedRows]], layers: int, *, drop_gradients: bool) -> Phases:
        phases = Phases()
        model = build_encoder(self.config, layers=layers, lora=self.lora).train()
        if self.args.gradient_checkpointing:
            model.gradient_checkpointing_enable(self.args.gradient_checkpointing_kwargs)
        frozen = model if self.lora else build_encoder(self.config, layers=layers).eval().requires_grad_(False)
        with FakeTensorMode(allow_non_fake_inputs=True):
            for module in (model, frozen):
                _give_sizes(module)
            if self.args.gradient_checkpointing and self.lora:
                model.enable_input_require_grads()
            if drop_gradients:
                for weight in model.parameters():
                    if weight.requires_grad:
                        weight.register_post_accumulate_grad_hook(_drop_gradient)
            needed = sum(rows.num_words for rows in batch["packed_rows"])
            words = torch.empty(needed, 1, self.width) if self.width else None
            known = [*model.parameters(), *frozen.parameters(), *([] if words is None else [words])]
            with LiveMemory(known) as memory, _Work() as work:
                anchors = self._anchors(frozen, batch)
                phases.frozen = memory.peak
                memory.restart()
                with self._autocast():
                    queries = model(packed_rows=batch["packed_rows"], pseudo_words=words).text_embeds
                phases.kept = memory.live
                if anchors is None:
                    anchors = torch.empty(len(queries), self.config.projection_dim)
                loss = target_anchored_contrastive_loss(
                    queries, anchors[: len(queries)], loss_type=self.args.loss_type, gather=False
                )
                phases.forward = memory.peak
                memory.restart()
                loss.backward()
                phases.backward = memory.peak
            phases.flops, phases.pairs = work.flops, len(queries)
        return phases

    def _anchors(self, frozen: nn.Module, batch: Mapping[str, list[PackedRows]]) -> torch.Tensor | None:
        anchors = None
        for name in ("context_packed_rows", "anchor_packed_rows"):
            if name in batch:
                with torch.no_grad(), self._autocast(), evaluating(frozen), adapters_off(frozen):
                    anchors = frozen(packed_rows=batch[name]).text_embeds
        return anchors if "anchor_packed_rows" in batch else None

    def _autocast(self):
        return nullcontext() if self.half is None else torch.autocast("cpu", self.half)


class _Work(TorchDispatchMode):
    """Operations of matrix products. (`FlopCounterMode` counts by module, and keeps tensors alive for it.)"""

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result


def _drop_gradient(weight: nn.Parameter) -> None:
    weight.grad = None


def _give_sizes(model: nn.Module) -> None:
    """Puts fake tensors in the place of those on `meta`; PEFT could not be called among fake ones."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.is_meta:
                same = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
                module._parameters[name] = nn.Parameter(same, requires_grad=weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


def saved_by_flash(rows: PackedRows, config, half: torch.dtype) -> int:
    """What the attention of a GPU does not keep that the padded one, which was counted, does."""
    width, heads = config.hidden_size, config.num_attention_heads
    total = 0
    with FakeTensorMode(allow_non_fake_inputs=True):
        for only_ends, layers in ((False, config.num_hidden_layers - 1), (True, 1)):
            asking = len(rows.ends) if only_ends else rows.num_nodes
            sizes = (asking, rows.num_nodes, rows.num_nodes)
            inputs = [torch.empty(size, width, dtype=half, requires_grad=True) for size in sizes]
            with LiveMemory(inputs) as memory:
                output = padded_attention(*inputs, rows, num_heads=heads, only_ends=only_ends)
                padded = memory.live - output.numel() * output.element_size()
            # Queries, the gathered keys and values, and a normaliser for every query and head.
            flash = 2 * width * (asking + 2 * len(rows.paths)) + 4 * heads * asking
            total += layers * (padded - flash)
            del output
    return total
