"""How much memory tensors take while something runs, real ones and `FakeTensor`s, which have a size and no content."""

import weakref
from collections.abc import Iterable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """
    Counts the bytes of the tensors that are alive, and the most there were at once, while it is entered.

    A storage counts from the operation that makes it until nothing holds it, whoever does: autograd, a variable, a
    checkpoint. Views count nothing. What there was before is not counted, nor what a library takes inside a call.

    Args:
        known (`Iterable[torch.Tensor]`): Tensors that are there already, whose views are nothing new: the parameters.

    Example:

    ```python
    >>> with LiveMemory(model.parameters()) as memory:
    ...     loss = model(**batch).loss
    >>> memory.live, memory.peak
    ```
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()):
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in known:
            self._remember(tensor, counts=False)

    def restart(self) -> int:
        """From here on `peak` is that of what follows. Returns what is alive now."""
        self.peak = self.live
        return self.live

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, torch.Tensor):
                self._remember(result)
        return results

    def _remember(self, tensor: torch.Tensor, *, counts: bool = True) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if counts else 0
        if key in self._sizes:
            return
        self._sizes[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)
