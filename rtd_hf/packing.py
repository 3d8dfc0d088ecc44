"""Rows of tokens without padding: every prefix that several rows share is stored, and computed, once.

The text tower is causal: a token's hidden state depends on the tokens before it and on nothing else. Rows that begin
alike therefore have the same states there, in every layer, and their gradients add up. Sorted, the rows of a batch
form a tree of prefixes; its nodes are what is computed. After the padding, that is most of what there is to save in
RTD: all prompts begin with `BOS a photo of`, the bare prompt of a triplet is a prefix of its composed one, and a
target caption repeats its reference caption up to the first change.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


# Rows are padded to the longest of their own group where an attention needs padding: lengths up to 8, up to 12, ...
GROUP_LENGTHS = (8, 12, 16, 20, 24, 32, 40, 48, 64, 80)


class PaddedGroup(NamedTuple):
    """Rows of similar length, laid out for an attention that needs rectangles.

    Args:
        queries (`torch.Tensor` of shape `(R_g * Lq,)`): The query each place reads: a row's own ones, last ones last.
        keys (`torch.Tensor` of shape `(R_g * Lk,)`): The node each key place reads; a row's whole path.
        mask (`torch.Tensor` of shape `(R_g, Lq, Lk)`): Added to the scores: 0 where a query sees a key, else -inf.
        num_rows, query_length, key_length (`int`): `R_g`, `Lq` and `Lk`.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor
    num_rows: int
    query_length: int
    key_length: int


@dataclass(frozen=True, eq=False)
class PackedRows:
    """
    The tree of prefixes of `P * B` token rows: N nodes, R distinct rows.

    Nodes are numbered row by row, so what a row adds to the rows before it, its *own* nodes, lies together; its *path*
    is all of its nodes, shared ones first. Every row owns its last node, the EOS at which it is pooled.

    Args:
        input_ids (`torch.Tensor` of shape `(N,)`): Token ids.
        position_ids (`torch.Tensor` of shape `(N,)`): Their places in their rows.
        word_nodes (`torch.Tensor` of shape `(W,)`): Nodes at which pseudo-words are written.
        word_indices (`torch.Tensor` of shape `(W,)`): Which of the flattened pseudo-words goes there.
        paths (`torch.Tensor` of shape `(T,)`): The paths of all rows, one after the other, as node numbers.
        query_offsets (`torch.Tensor` of shape `(R + 1,)`, int32): Where the own nodes of each row begin.
        key_offsets (`torch.Tensor` of shape `(R + 1,)`, int32): Where the path of each row begins in `paths`.
        prompt_rows (`torch.Tensor` of shape `(P, B)`): The distinct row of each row that was given.
        lengths (`torch.Tensor` of shape `(2, R)`): Numbers of own nodes and of path nodes; always on the CPU.
        num_words (`int`): How many pseudo-words there must be.
    """

    input_ids: Tensor
    position_ids: Tensor
    word_nodes: Tensor
    word_indices: Tensor
    paths: Tensor
    query_offsets: Tensor
    key_offsets: Tensor
    prompt_rows: Tensor
    lengths: Tensor
    num_words: int

    def _map(self, function) -> "PackedRows":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: function(value) for name, value in values.items() if name not in ("lengths", "num_words")}
        return PackedRows(**{**values, **moved})

    def to(self, device, non_blocking: bool = False) -> "PackedRows":
        """The same rows on another device. What the host has to know stays on the CPU, so nothing waits for it."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PackedRows":
        """The same rows in page-locked memory, for `DataLoader(pin_memory=True)`."""
        return self._map(Tensor.pin_memory)

    @property
    def num_nodes(self) -> int:
        """Tokens computed."""
        return len(self.input_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows that were given, what a computation without sharing would have to do."""
        return int(self.lengths[1][self.prompt_rows.cpu()].sum())  # waits for the device; for reports

    @property
    def ends(self) -> Tensor:
        """The last node of every distinct row, `(R,)` int64."""
        return self.query_offsets[1:].long() - 1

    @cached_property
    def longest(self) -> tuple[int, int]:
        """The most own nodes and the longest path of a row."""
        own, path = self.lengths.amax(dim=1).tolist()
        return own, path

    @cached_property
    def groups(self) -> tuple[list[PaddedGroup], Tensor]:
        """Rows by length, and the place `(N,)` of every node in the groups' queries, laid end to end."""
        with torch.inference_mode(False):  # they are kept, perhaps for a training
            return _padded_groups(self, only_ends=False)

    @cached_property
    def end_groups(self) -> tuple[list[PaddedGroup], Tensor]:
        """The same with every row's last node as its only query; the places are `(R,)`."""
        with torch.inference_mode(False):
            return _padded_groups(self, only_ends=True)


def pack_rows(
    tokens: np.ndarray,
    lengths: np.ndarray,
    *,
    words: np.ndarray | None = None,
    num_prompts: int = 1,
    share_prefixes: bool = True,
) -> PackedRows:
    """
    Packs rows of tokens.

    Args:
        tokens (`np.ndarray` of shape `(P * B, L)`): Token ids, each row ending with an EOS that it holds nowhere else.
        lengths (`np.ndarray` of shape `(P * B,)`): Numbers of tokens; what is beyond is ignored.
        words (`np.ndarray` of shape `(P * B, L)`, *optional*):
            The number of the pseudo-word that is written over a token, -1 for none. Tokens are the same if their
            pseudo-words are, whatever their ids.
        num_prompts (`int`, *optional*, defaults to 1): P; the rows are P blocks of B.
        share_prefixes (`bool`, *optional*, defaults to `True`):
            Store shared prefixes and equal rows once. Without it, only the padding is left out: for dropout, where
            each row draws its own mask.

    Returns:
        [`PackedRows`], on the CPU.
    """
    columns = np.arange(tokens.shape[1])
    keys = np.where(columns < lengths[:, None], tokens, -1)
    if words is not None:
        words = words.astype(np.int64, copy=False)
        keys = np.where(words >= 0, words + (1 << 32), keys)
    if share_prefixes:
        order = np.lexsort(keys.T[::-1])
        keys, lengths = keys[order], lengths[order]
        differs = keys[1:] != keys[:-1]
        shared = np.zeros(len(keys), dtype=np.int64)
        shared[1:] = np.where(differs.any(axis=1), differs.argmax(axis=1), lengths[1:])
        distinct = shared < lengths
        prompt_rows = np.empty(len(keys), dtype=np.int64)
        prompt_rows[order] = np.cumsum(distinct) - 1
        keys, lengths, shared, order = keys[distinct], lengths[distinct], shared[distinct], order[distinct]
    else:
        order = prompt_rows = np.arange(len(keys))
        shared = np.zeros(len(keys), dtype=np.int64)
    in_row = columns < lengths[:, None]
    own = in_row & (columns >= shared[:, None])
    nodes = own.cumsum().reshape(own.shape) - 1
    # A shared node is the one that the latest row to add something in this column added: numbers grow with the rows.
    nodes = np.maximum.accumulate(np.where(own, nodes, -1), axis=0)
    node_words = np.full(len(keys), -1) if words is None else words[order][own]
    word_nodes = np.flatnonzero(node_words >= 0)
    arrays = {
        "input_ids": tokens[order][own].astype(np.int64, copy=False),
        "position_ids": np.broadcast_to(columns, own.shape)[own],
        "word_nodes": word_nodes,
        "word_indices": node_words[word_nodes].astype(np.int64, copy=False),
        "paths": nodes[in_row],
        "query_offsets": _offsets(lengths - shared),
        "key_offsets": _offsets(lengths),
        "prompt_rows": prompt_rows.reshape(num_prompts, -1),
        "lengths": np.stack([lengths - shared, lengths]),
    }
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    return PackedRows(**tensors, num_words=0 if words is None else int(words.max()) + 1)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _padded_groups(rows: PackedRows, *, only_ends: bool) -> tuple[list[PaddedGroup], Tensor]:
    device, (own, path) = rows.paths.device, rows.lengths
    if only_ends:
        own = torch.ones_like(own)
    last_query = own.cumsum(0) - 1
    key_start = path.cumsum(0) - path
    group_of = torch.bucketize(path, torch.tensor(GROUP_LENGTHS))
    groups, start, places = [], 0, torch.empty(int(own.sum()), dtype=torch.int64)
    first_place = own.cumsum(0) - own
    for number in group_of.unique().tolist():
        members = (group_of == number).nonzero().squeeze(1)
        num_own, num_path = own[members, None], path[members, None]
        query_length, key_length = int(num_own.max()), int(num_path.max())
        # Rows are aligned at their ends, so that a place says which keys it sees; the first places are the filling.
        back = torch.arange(query_length - 1, -1, -1)
        queries = last_query[members, None] - torch.minimum(back, num_own - 1)
        column = torch.arange(key_length)
        keys = key_start[members, None] + torch.minimum(column, num_path - 1)
        hidden = column > (num_path - 1 - torch.minimum(back, num_own - 1))[:, :, None]
        mask = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        real = back < num_own
        at = first_place[members, None] + (num_own - 1 - back)
        places[at[real]] = start + torch.arange(real.numel()).view(real.shape)[real]
        start += real.numel()
        groups.append(
            PaddedGroup(
                queries.reshape(-1).to(device),
                rows.paths[keys.reshape(-1).to(device)],
                mask.to(device),
                len(members),
                query_length,
                key_length,
            )
        )
    return groups, places.to(device)
