"""What a training watches: its loss, gradient and weights, which must stay numbers, and what it logs besides."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .distributed import rank
from .stopping import StopRules


_ROWS_NAMED, _TEXTS_SHOWN = 10, 3


class WatchesNumbers:
    """HF's `Trainer` methods about numbers, for a trainer whose step calls `_watch` with what it computed."""

    def _start_watching(self, args) -> None:
        self.stop_rules = StopRules(args.stop_when or ())
        self._metrics: dict[str, dict[str, list[torch.Tensor]]] = {m: defaultdict(list) for m in ("train", "eval")}
        # Of each micro-batch of this step: what it held, and the largest part of the loss's gradient at each query.
        self._micro_batches: list[Mapping[str, Any]] = []
        self._query_gradients: list[torch.Tensor] = []
        self._watched_step = -1

    @property
    def stopped(self) -> dict[str, Any] | None:
        """Which rule of `stop_when` ended the training, with `rule`, `step`, `value` and `reason`; or `None`."""
        return self.stop_rules.stopped

    def _watch(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        *,
        loss: torch.Tensor,
        queries: torch.Tensor,
        anchors: torch.Tensor,
    ) -> None:
        """Keeps what `log` reports, as detached tensors, and stops a run whose loss is no longer a number."""
        if model.training and not torch.isfinite(loss):
            broken = _broken_rows(queries, anchors)
            words = " and ".join(f"the {name} of rows {_listed(rows)}" for name, rows in broken.items())
            words = f"{words} are not finite" if broken else "all embeddings are finite"
            texts = self._texts_of(inputs, [row for rows in broken.values() for row in rows])
            raise FloatingPointError(
                f"The loss is {loss.item()} after {self.state.global_step} steps. The weights are still those before "
                f"this batch, of which on process {rank()} {words}.{texts} {self._advice()}"
            )
        if model.training and queries.requires_grad:
            if self._watched_step != self.state.global_step:
                self._watched_step = self.state.global_step
                self._micro_batches.clear()
                self._query_gradients.clear()
            self._micro_batches.append(inputs)
            # A hook, for the gradient of what is no leaf is not kept; and it holds nothing of the graph.
            queries.register_hook(partial(_note_largest, self._query_gradients))
        batch = len(anchors) // 2 if self.args.refined_batch else len(anchors)
        composed = queries[:batch].detach().float()
        metrics = self._metrics["train" if model.training else "eval"]
        metrics["target_similarity"].append(F.cosine_similarity(composed, anchors[:batch].detach().float()))
        # Cosine of neighbours in the batch: near 1 where the encoder has collapsed and all queries are alike.
        metrics["query_similarity"].append(F.cosine_similarity(composed, composed.roll(1, 0)))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """HF's log with the training metrics since the last one, gathered over processes only here.

        `negatives` is the number that every query and anchor is compared with besides its partner. Texts that were
        longer than `max_length` and lost their end are counted as `truncated_texts`. Where a rule of `stop_when` ends
        the training, a line with it as `stop_reason`, and with `stop_value`, follows; trackers get it too.
        """
        if "loss" in logs:
            logs = {**logs, **self._drain("train")}
            logs["negatives"] = self.num_negatives
            truncated = getattr(getattr(self.data_collator, "prompts", None), "num_truncated", 0)
            if truncated:
                logs["truncated_texts"] = truncated
        before = self.stopped
        super().log(logs, start_time)
        if self.stopped is not before:
            super().log({"stop_reason": self.stopped["rule"], "stop_value": float(self.stopped["value"])})

    def _determine_best_metric(self, metrics, trial):
        """HF's; with `save_strategy="best"` its answer decides about the checkpoint, which a stop needs anyway."""
        best = super()._determine_best_metric(metrics=metrics, trial=trial)
        return best or self.stopped is not None

    def _drain(self, mode: str) -> dict[str, float]:
        means = {name: torch.cat(values).mean() for name, values in self._metrics[mode].items()}
        self._metrics[mode].clear()
        return {name: self.accelerator.gather(value).mean().item() for name, value in means.items()}

    def _get_grad_norm(self, model, grad_norm=None):
        """HF's, which it takes of every step before the weights move; they must not follow a gradient of NaN."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        scaled = getattr(self.accelerator, "scaler", None) is not None  # fp16 skips such steps itself
        if not scaled and not math.isfinite(norm):
            raise FloatingPointError(
                f"The gradient's norm is {float(norm)} after {self.state.global_step} steps. The weights are still "
                f"those before this step. On process {rank()} {self._where_gradients_broke(model)} {self._advice()}"
            )
        return norm

    def _where_gradients_broke(self, model: nn.Module) -> str:
        """The rows whose gradient is not finite, or that it was finite before it went through the encoder."""
        micro_batches = min(len(self._micro_batches), len(self._query_gradients))
        told, texts, largest = [], "", (0.0, 0, 0)
        for place in range(micro_batches):
            gradient = self._query_gradients[place]
            rows = (~torch.isfinite(gradient)).nonzero().squeeze(1).tolist()
            batch = f" of micro-batch {place}" if micro_batches > 1 else ""
            if rows:
                told.append(f"rows {_listed(rows)}{batch}")
                texts = texts or self._texts_of(self._micro_batches[place], rows)
            elif len(gradient):
                largest = max(largest, (gradient.max().item(), int(gradient.argmax()), place))
        if told:
            where = " and ".join(told)
            return f"the loss's gradient is not finite at the queries of {where}.{texts}{_broken_weights(model)}"
        if not micro_batches:
            return f"no query has a gradient.{_broken_weights(model)}"
        value, row, place = largest
        shown = self._texts_of(self._micro_batches[place], [row])
        return (
            f"the loss's gradient is finite at every query (largest {value:.3g}, at row {row}), and stops being so "
            f"within the encoder.{shown}{_broken_weights(model)}"
        )

    def _texts_of(self, inputs: Mapping[str, Any], rows: Sequence[int]) -> str:
        """The prompts of some rows, for a message; rows of one triplet once."""
        triplets = len(inputs["text_ids"]) // 2
        first = list(dict.fromkeys(row % triplets for row in rows))[:_TEXTS_SHOWN]
        texts = [f"{row}: {self._decoded(_tokens_of(inputs, row))!r}" for row in first]
        return f" The prompts there: {', '.join(texts)}." if texts else ""

    def _decoded(self, tokens: torch.Tensor) -> str:
        return self.processing_class.decode(tokens, skip_special_tokens=True).strip()

    def _check_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """A step may have broken the weights since the last loss, and no checkpoint must hold such weights."""
        broken = [name for name, weight in weights.items() if not torch.isfinite(weight).all()]
        if broken:
            raise FloatingPointError(
                f"{len(broken)} weights are not finite after {self.state.global_step} steps, first `{broken[0]}`; "
                f"nothing was saved. {self._advice()}"
            )

    def _advice(self) -> str:
        return (
            f"Lower `learning_rate` (now {self.args.learning_rate:g}), raise `temperature` (now "
            f"{self.args.temperature:g}), set `max_grad_norm` (now {self.args.max_grad_norm:g}), or use bf16 instead "
            f"of fp16; then resume from the last checkpoint in `{self.args.output_dir}`."
        )

    @property
    def num_negatives(self) -> int:
        """Negatives of a query in a training step, those of other processes included where they are gathered."""
        pairs = self.args.per_device_train_batch_size * (2 if self.args.refined_batch else 1)
        pairs *= self.args.world_size if self.args.gather_across_devices else 1
        return 2 * pairs - 2 if self.args.loss_type == "nt_xent" else pairs - 1


def _note_largest(kept: list[torch.Tensor], gradient: torch.Tensor) -> None:
    kept.append(gradient.detach().abs().amax(1))  # a maximum keeps NaN, and does not overflow as a sum would


def _broken_rows(queries: torch.Tensor, anchors: torch.Tensor) -> dict[str, list[int]]:
    """Which rows of a batch have embeddings that are not finite."""
    broken = {}
    for name, embeds in (("queries", queries), ("anchors", anchors)):
        rows = (~torch.isfinite(embeds.detach()).all(1)).nonzero().squeeze(1).tolist()
        if rows:
            broken[name] = rows
    return broken


def _broken_weights(model: nn.Module) -> str:
    """Which weights have a gradient that is not finite, in words; nothing where all have, as after a clipping."""
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    parts = {name: getattr(gradient, "_local_tensor", gradient) for name, gradient in gradients.items()}
    broken = [name for name, part in parts.items() if not torch.isfinite(part).all()]
    if not broken or len(broken) == len(parts):
        return ""
    return f" {len(broken)} of {len(parts)} weights have such a gradient, nearest to the output `{broken[-1]}`."


def _listed(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:_ROWS_NAMED])) + (", ..." if len(rows) > _ROWS_NAMED else "")


def _tokens_of(inputs: Mapping[str, Any], row: int) -> torch.Tensor:
    """The tokens of a triplet's composed prompt."""
    if "packed_rows" not in inputs:
        return inputs["input_ids"][row][inputs["attention_mask"][row] > 0]
    for packed in inputs["packed_rows"]:
        number = packed.prompt_rows.shape[1]
        if row < number:
            distinct = int(packed.prompt_rows[0, row])
            first, last = packed.key_offsets[distinct : distinct + 2].tolist()
            return packed.input_ids[packed.paths[first:last].long()]
        row -= number
    raise IndexError(f"There is no row {row} behind the last one of the batch.")
