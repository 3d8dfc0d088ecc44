"""The few things a loss has to know about the other processes. On one process every function is the identity."""

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Returns the number of this process in the default group, `0` when nothing is distributed."""
    return dist.get_rank() if _is_initialized() else 0


def world_size() -> int:
    """Returns the number of processes in the default group, `1` when nothing is distributed."""
    return dist.get_world_size() if _is_initialized() else 1


def check_same_shape(tensor: Tensor) -> None:
    """
    Makes sure that every process holds a tensor of the same shape. To be called by all processes.

    A gather of uneven parts hangs or returns garbage, depending on the backend, hence this check of a few bytes.

    Args:
        tensor (`torch.Tensor`): The local part, with at least one dimension.

    Raises:
        `ValueError`: On every process, when the shapes differ.
    """
    if tensor.dim() == 0:
        raise ValueError("`tensor` must have at least one dimension to be gathered, got a scalar. Unsqueeze it first.")
    if world_size() == 1:
        return
    # The number of dimensions cannot be gathered together with the sizes unless the message has a fixed length.
    message = torch.full((9,), -1, dtype=torch.int64)
    message[0] = tensor.dim()
    message[1 : 1 + min(tensor.dim(), 8)] = torch.tensor(tensor.shape[:8])
    message = message.to(tensor.device)
    messages = [torch.empty_like(message) for _ in range(world_size())]
    dist.all_gather(messages, message)
    shapes = [tuple(sizes[1 : 1 + sizes[0]]) for sizes in torch.stack(messages).tolist()]
    if len(set(shapes)) > 1:
        listed = ", ".join(f"rank {number}: {shape}" for number, shape in enumerate(shapes))
        raise ValueError(
            f"Every process must hold a batch of the same shape to share its negatives, got {listed}. "
            "Drop the incomplete last batch (`dataloader_drop_last=True`) or switch the gathering off."
        )


def gather(tensor: Tensor) -> Tensor:
    """
    Concatenates the parts of all processes in the order of their ranks, without gradient.

    Args:
        tensor (`torch.Tensor` of shape `(N, ...)`): The local part, of the same shape everywhere.

    Returns:
        `torch.Tensor` of shape `(world_size * N, ...)`: All parts; `tensor` itself on one process.
    """
    if world_size() == 1:
        return tensor
    tensor = tensor.detach().contiguous()
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


class _GatherWithGrad(torch.autograd.Function):
    """Every process uses every part, so the gradient of a part is the sum over processes."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        ctx.num_rows = tensor.shape[0]
        return gather(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> Tensor:
        total = grad_output.clone(memory_format=torch.contiguous_format)
        # An all-reduce and a slice is a reduce-scatter that every backend has; the tensors are small.
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total[rank() * ctx.num_rows : (rank() + 1) * ctx.num_rows]


def gather_with_grad(tensor: Tensor, *, check: bool = True) -> Tensor:
    """
    Concatenates the parts of all processes in the order of their ranks, and carries gradient back to each of them.

    The backward pass sums the gradients that all processes send to a part. If each process takes the mean loss of
    its own rows against all columns, the average over processes (what `DistributedDataParallel` computes) is the
    gradient of the whole batch on one process, *without* a factor of the world size.

    Forward and backward are collective: all processes have to run both, in the same order.

    Args:
        tensor (`torch.Tensor` of shape `(N, ...)`): The local part, of the same shape everywhere.
        check (`bool`, *optional*, defaults to `True`):
            Whether to compare the shapes of all processes first. Switch it off where that was just done.

    Returns:
        `torch.Tensor` of shape `(world_size * N, ...)`: All parts; `tensor` itself on one process.

    Raises:
        `ValueError`: On every process, when the shapes differ.
    """
    if check:
        check_same_shape(tensor)
    if world_size() == 1:
        return tensor
    return _GatherWithGrad.apply(tensor)


def gather_objects(value: Any) -> list[Any]:
    """
    Collects a value of every process, of any kind and size, in the order of their ranks. To be called by all.

    Args:
        value (`Any`): This process's, on the CPU.

    Returns:
        `list`: `[value]` on one process.
    """
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def any_process(value: bool, *, device: torch.device | str = "cpu") -> bool:
    """
    Whether something holds on any process. To be called by all processes.

    Args:
        value (`bool`): Whether it holds on this one.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where the backend can add numbers up.
    """
    if world_size() == 1:
        return value
    found = torch.tensor(int(value), device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found.item())


def outcomes_of_all(outcome: str, meeting: str, *, wait: bool = True) -> list[str]:
    """
    What each process says about something that all of them did, where one may have failed in the middle of it.

    This takes the way of the processes' common store: a process that failed must enter no collective operation, which
    would be matched with whatever operation the others are in.

    Args:
        outcome (`str`): What this process says; empty where all went well.
        meeting (`str`): Its name, the same on all processes and each time another.
        wait (`bool`, *optional*, defaults to `True`): Wait until all have said something, or one that it failed. Off,
            for a process that failed itself and is going to leave.

    Returns:
        `list[str]`: In the order of the ranks, empty for whoever said nothing yet.
    """
    if world_size() == 1:
        return [outcome]
    # There is no public way to it; it is what `init_process_group` uses, and lives as long as the group.
    store = dist.distributed_c10d._get_default_store()
    keys = [f"{meeting} {number}" for number in range(world_size())]
    store.set(keys[rank()], f".{outcome}")
    while True:
        said = [store.get(key).decode()[1:] if store.check([key]) else None for key in keys]
        if not wait or any(said) or None not in said:
            return [one or "" for one in said]
        time.sleep(0.05)  # and not within the store, so that signals are heard
