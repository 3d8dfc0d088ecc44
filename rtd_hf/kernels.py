"""What the step spends its time in, done the fastest way this machine has; each with its plain form beside it.

Figures: ViT-L/14's text tower, 48 triplets, float32, two cores of an AMD EPYC with AVX-512, torch 2.13, unless said.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from transformers.utils import logging

from .packing import PackedRows, pack_rows


logger = logging.get_logger(__name__)

# Multiplications of one product. oneDNN prepares itself for each number of rows it has not met, about a millisecond
# for a layer's three products; on one thread it is ahead from 2^25 to 2^26 multiplications on.
_ONEDNN_FROM = 2**26

# What oneDNN and torch's layer above it prepared is kept for 1,024 shapes each. Batches of captions hardly ever have
# the same number of tokens twice: within one step every layer asks for the same few, across steps they only pile up
# (45 % of the memory over 120 steps of a small encoder, and slower). Read from the environment at the first product.
_SHAPES_KEPT = {"LRU_CACHE_CAPACITY": "16", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
for _name, _number in _SHAPES_KEPT.items():
    os.environ.setdefault(_name, _number)

# Attention over packed rows


@torch.compiler.disable  # its shapes change with every batch; what is around it may be compiled
def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, *, num_heads: int, only_ends: bool = False
) -> Tensor:
    """
    Causal attention of every row of a prefix tree over its path.

    On a GPU in half precision it is `torch`'s flash attention for rows of any length, elsewhere
    [`padded_attention`], the plain form.

    Args:
        query (`torch.Tensor` of shape `(N, H)`): Queries of the nodes; with `only_ends` of the last nodes, `(R, H)`.
        key, value (`torch.Tensor` of shape `(N, H)`): Keys and values of the nodes.
        rows ([`PackedRows`]): The tree.
        num_heads (`int`): Heads, of width `H / num_heads`.
        only_ends (`bool`, *optional*, defaults to `False`): Only the last node of every row asks.

    Returns:
        `torch.Tensor` of the shape of `query`.
    """
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        if _varlen_works(query.device, query.dtype, query.shape[-1] // num_heads):
            return varlen_attention(query, key, value, rows, num_heads=num_heads, only_ends=only_ends)
    return padded_attention(query, key, value, rows, num_heads=num_heads, only_ends=only_ends)


def padded_attention(
    query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, *, num_heads: int, only_ends: bool = False
) -> Tensor:
    """
    The plain form of [`packed_attention`]: rows of similar length, padded to rectangles, as matrix products.

    Rows hold 10 to 30 tokens, too few for a blockwise attention to pay: forward and backward of 96 rows of 14 queries
    and 18 keys take 6.3 ms as three products, 9.8 ms in `scaled_dot_product_attention`.

    Args:
        query, key, value, rows, num_heads, only_ends: As for [`packed_attention`].

    Returns:
        `torch.Tensor` of the shape of `query`.
    """
    groups, places = rows.end_groups if only_ends else rows.groups
    outputs = []
    for group in groups:
        shape = (group.num_rows, -1, num_heads, query.shape[-1] // num_heads)
        q = gather_nodes(query, group.queries).view(shape).transpose(1, 2)
        k = gather_nodes(key, group.keys).view(shape).transpose(1, 2)
        v = gather_nodes(value, group.keys).view(shape).transpose(1, 2)
        scores = (q * shape[-1] ** -0.5) @ k.transpose(-1, -2) + group.mask[:, None]
        weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
        outputs.append((weights @ v).transpose(1, 2).reshape(-1, query.shape[-1]))
    return torch.cat(outputs).index_select(0, places)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, *, num_heads: int, only_ends: bool = False
) -> Tensor:
    """
    [`packed_attention`] by `torch.nn.attention.varlen` (flash attention): nothing is padded.

    A row has fewer queries than keys where it shares a prefix; flash attention then takes the queries for the last
    ones of the row, which is what they are.

    Args:
        query, key, value, rows, num_heads, only_ends: As for [`packed_attention`]; in bfloat16 or float16, on a GPU.

    Returns:
        `torch.Tensor` of the shape of `query`.
    """
    from torch.nn.attention.varlen import varlen_attn

    heads = (-1, num_heads, query.shape[-1] // num_heads)
    longest_own, longest_path = rows.longest
    offsets = rows.query_offsets
    if only_ends:
        longest_own, offsets = 1, torch.arange(len(offsets), dtype=torch.int32, device=query.device)
    attended = varlen_attn(
        query.view(heads),
        gather_nodes(key, rows.paths).view(heads),
        gather_nodes(value, rows.paths).view(heads),
        offsets,
        rows.key_offsets,
        longest_own,
        longest_path,
        window_size=(-1, 0),
    )
    return attended.reshape(query.shape)


@cache
def _varlen_works(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether this build and card have it, and whether it means by a row with a shared prefix what we mean."""
    # In a thread of its own: the first call may come in inference mode, under autocast, or while a checkpoint counts
    # the tensors that are saved for the backward pass.
    with ThreadPoolExecutor(1) as threads:
        fault = threads.submit(_fault_of_varlen, device, dtype, head_width).result()
    if fault:
        logger.warning_once(f"Attention runs in its padded form: {fault}")
    return not fault


def _fault_of_varlen(device: torch.device, dtype: torch.dtype, head_width: int) -> str:
    rows = pack_rows(np.array([[1, 2, 3, 4, 9], [1, 2, 3, 9, 0], [1, 5, 9, 0, 0]]), np.array([5, 4, 3])).to(device)
    values = torch.arange(3 * rows.num_nodes * head_width, device=device).sin().view(3, rows.num_nodes, head_width)
    results = []
    try:
        for attention in (varlen_attention, padded_attention):
            inputs = [part.to(dtype).requires_grad_() for part in values]
            output = attention(*inputs, rows, num_heads=1)
            results.append([output, *torch.autograd.grad((output * output.detach().cos()).sum(), inputs)])
    except (ImportError, RuntimeError, TypeError, NotImplementedError) as error:
        return f"`torch.nn.attention.varlen` does not run here: {error}"
    worst = max((one - two).abs().max().item() for one, two in zip(*results, strict=True))
    return "" if worst < 0.05 else f"`torch.nn.attention.varlen` is {worst:.2g} off."


class _Gather(torch.autograd.Function):
    """Rows of a matrix, some of them often; their gradients, of many addends, are summed in float32 or better."""

    @staticmethod
    def forward(ctx, matrix: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows = len(matrix)
        return matrix.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        exact = torch.promote_types(grad.dtype, torch.float32)
        total = torch.zeros(ctx.num_rows, grad.shape[1], dtype=exact, device=grad.device)
        return total.index_add_(0, index, grad.to(exact)).to(grad.dtype), None


def gather_nodes(matrix: Tensor, index: Tensor) -> Tensor:
    """
    `matrix[index]`, whose gradient is summed in float32 or better: half precision loses it on many paths.

    Args:
        matrix (`torch.Tensor` of shape `(N, H)`): One line a node.
        index (`torch.Tensor` of shape `(T,)`): Nodes.

    Returns:
        `torch.Tensor` of shape `(T, H)`.
    """
    return _Gather.apply(matrix, index)


# Linear layers on a CPU


class _OneDNNLinear(torch.autograd.Function):
    """`x W' + b` and its two gradients as three calls of oneDNN's matrix product."""

    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _onednn_product(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        grad = grad.contiguous()
        flat = grad.view(-1, grad.shape[-1])
        wanted = ctx.needs_input_grad
        return (
            _onednn_product(grad, weight.t()) if wanted[0] else None,
            _onednn_product(flat.t(), inputs.reshape(-1, inputs.shape[-1]).t()) if wanted[1] else None,
            flat.sum(dim=0) if wanted[2] else None,
        )


def _onednn_product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


class _OneDNNLinears(TorchFunctionMode):
    """Sends `torch.nn.functional.linear` to oneDNN, inside adapters too, where it is plain float32 and large."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear and not kwargs and all(_is_plain(operand) for operand in args) and _is_large(*args):
            return _OneDNNLinear.apply(*args, *[None] * (3 - len(args)))
        return function(*args, **(kwargs or {}))


def _is_plain(operand: Tensor | None) -> bool:
    return operand is None or (
        type(operand) in (Tensor, torch.nn.Parameter)
        and operand.dtype == torch.float32
        and operand.device.type == "cpu"
        and operand.layout == torch.strided
    )


def _is_large(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return weight.ndim == 2 and inputs.numel() * weight.shape[0] >= _ONEDNN_FROM


@cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def fast_linears(like: Tensor) -> AbstractContextManager:
    """
    Within it, float32 linear layers on a CPU are multiplied by oneDNN instead of the BLAS that `torch` was built with.

    The arithmetic is the same, float32 throughout. `torch`'s x86 wheels carry MKL, which leaves the AVX-512 of AMD's
    processors unused: 210 GFLOP/s against 440 of oneDNN's, and 2.6 s a step against 1.5. (Not measured on Intel's.) It
    does nothing for small products, on a GPU, under autocast, while a graph is compiled, or within
    `torch.backends.mkldnn.flags(enabled=False)`, which gives the plain form.

    Args:
        like (`torch.Tensor`): What is about to be multiplied.

    Returns:
        A context manager.
    """
    plain = _is_plain(like) and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
    return _OneDNNLinears() if plain and torch.backends.mkldnn.enabled and _has_onednn() else nullcontext()
