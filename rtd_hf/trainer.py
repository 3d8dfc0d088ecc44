"""`RTDTrainer`: the training step of RTD in HF's `Trainer`, whose loop, sampler and checkpoints stay as they are."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer

from .anchors import AnchorStore
from .contexts import adapters_off, evaluating
from .distributed import rank
from .faults import KeepsState
from .hub import PushesDropIns, export_text_encoder
from .losses import TargetAnchoredContrastiveLoss
from .noise import draw_noise
from .preparation import check_datasets, check_fit, collator_for, writes_words
from .projections import ImageToWordProjection
from .sharding import is_sharded, unsharded, whole_weights
from .training_args import RTDTrainingArguments
from .watching import WatchesNumbers


class RTDTrainer(PushesDropIns, KeepsState, WatchesNumbers, Trainer):
    """Fine-tunes a text encoder with RTD: target-anchored text contrastive learning on text triplets.

    Byun et al., *Reducing Task Discrepancy of Text Encoders for Zero-Shot Composed Image Retrieval*, ICCV 2025, arXiv
    2406.09188. Only the text encoder moves: the projection and the anchor, a frozen copy of the encoder as it was
    passed in, never do. With adapters (`peft_config`, or a `PeftModel` passed in) the anchor is the same network with
    its adapters switched off.

    Args:
        model ([`CLIPTextModelForRTD`]): The text encoder to train, or a `PeftModel` around it.
        args ([`RTDTrainingArguments`]): Options; HF's and RTD's.
        projection ([`ImageToWordProjection`]): The frozen projection the encoder is trained for.
        processing_class (`CLIPTokenizer`): The text encoder's tokenizer; saved with every checkpoint.
        train_dataset: Text triplets with the columns of [`DataCollatorForRTD`].
        eval_dataset (*optional*): Held-back triplets for the evaluation loss.
        evaluators (`Sequence[Callable]`, *optional*): Callables `(model) -> {metric: float}`, such as
            [`CIREvaluator`]. Their metrics join HF's, prefixed `eval_`, so `metric_for_best_model`, early stopping and
            all reporters know them.
        peft_config (`peft.PeftConfig`, *optional*): Trains adapters instead of all weights.
        data_collator (`Callable`, *optional*): [`DataCollatorForRTD`] with the projection's template by default.
        anchors ([`AnchorStore`], *optional*): The captions' embeddings under `model` as it is passed in, computed
            ahead by [`precompute_anchors`]. The frozen encoder is then neither run nor kept.
        **kwargs: Passed to [`~transformers.Trainer`].

    Raises:
        ValueError: If a data set lacks a column, the training set is smaller than one step's batch, the projection
            does not fit the encoder, `anchors` are another encoder's, or one process is to drive several GPUs.
        TypeError: If `args` are plain `TrainingArguments`, or `model` takes no pseudo-words.
        FloatingPointError: In training, as soon as the loss is not finite; and before weights that are not are saved.
    """

    def __init__(
        self,
        model: nn.Module,
        args: RTDTrainingArguments,
        *,
        projection: ImageToWordProjection,
        processing_class: PreTrainedTokenizerBase,
        train_dataset=None,
        eval_dataset=None,
        evaluators: Sequence[Callable[[nn.Module], Mapping[str, float]]] = (),
        peft_config=None,
        data_collator: Callable | None = None,
        anchors: AnchorStore | None = None,
        **kwargs,
    ):
        if not isinstance(args, RTDTrainingArguments):
            raise TypeError(f"`args` must be `RTDTrainingArguments`, got {type(args).__name__}.")
        check_fit(projection, model, args)
        check_datasets(train_dataset, eval_dataset, args)
        if anchors is not None:
            anchors.check(model, processing_class, max_length=args.max_length)
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
        self.anchor_model = None
        self.has_words = writes_words(projection, args)
        reads_frozen = anchors is None or (self.has_words and projection.needs_context)
        self.has_adapters = hasattr(model, "disable_adapter")
        if reads_frozen and not self.has_adapters:
            self.anchor_model = copy.deepcopy(model).eval().requires_grad_(False)
        self.evaluators = tuple(evaluators)
        self._start_watching(args)
        self._draw_key: tuple[str, int] = ("", -1)
        self._draws = 0
        super().__init__(
            model,
            args,
            data_collator=data_collator or collator_for(model, processing_class, projection, args, anchors),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.add_callback(self.stop_rules)
        # The loss is ours, a mean over the batch: no labels, and HF divides it by the accumulation steps.
        self.can_return_loss, self.label_names = True, []
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = False
        self.projection = projection.to(args.device).eval().requires_grad_(False)
        if self.anchor_model is not None:
            self.anchor_model.to(args.device)
        options = {name: getattr(args, name) for name in ("temperature", "loss_type", "mask_duplicates")}
        self.loss = TargetAnchoredContrastiveLoss(**options, gather_across_devices=args.gather_across_devices)
        self.local_loss = TargetAnchoredContrastiveLoss(**options, gather_across_devices=False)

    # The step

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """One step of RTD: anchors, pseudo-words, queries, loss.

        Args:
            model (`nn.Module`): The encoder in training, as accelerate wrapped it.
            inputs (`dict[str, torch.Tensor]`): A batch of [`DataCollatorForRTD`].
            return_outputs (`bool`, *optional*, defaults to `False`): Also return the embeddings.
            num_items_in_batch (*optional*): Not used; the loss is a mean over the batch.

        Returns:
            `torch.Tensor` (scalar), or with `return_outputs` a tuple of it and a `dict` with `queries` and `anchors`.
        """
        anchors = self.encode_anchors(model, inputs)
        words = self.project_references(model, inputs, anchors) if self.has_words else None
        queries = self.encode_queries(model, inputs, words)
        if not self.args.anchored:
            anchors = self.encode_anchors(model, inputs, moving=True)
        anchors = anchors[: len(queries)]
        loss_function = self.loss if model.training else self.local_loss  # evaluation batches may be uneven
        loss = loss_function(queries, anchors, inputs["text_ids"][: len(queries)])
        self._watch(model, inputs, loss=loss, queries=queries, anchors=anchors)
        return (loss, {"queries": queries, "anchors": anchors}) if return_outputs else loss

    def encode_anchors(self, model: nn.Module, inputs: Mapping[str, torch.Tensor], *, moving: bool = False):
        """Embeddings of target and reference captions under the frozen encoder.

        Args:
            model (`nn.Module`): The encoder in training.
            inputs (`dict[str, torch.Tensor]`): A batch with `anchor_*` entries of `2B` rows, or with `anchors`.
            moving (`bool`, *optional*, defaults to `False`): Use the encoder in training, with gradient (ablation).

        Returns:
            `torch.Tensor` of shape `(2B, D)`, not normalised: the targets, then the references.
        """
        if "anchors" in inputs and not moving:
            return inputs["anchors"]
        if moving:
            return model(**_part(inputs, "anchor_")).text_embeds
        return self._frozen(model, _part(inputs, "anchor_"))

    def _frozen(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Embeddings under the encoder as it was before the training."""
        encoder = self.accelerator.unwrap_model(model) if self.anchor_model is None else self.anchor_model
        # accelerate puts the model in training under autocast; the frozen one runs at the same precision.
        with torch.no_grad(), self.accelerator.autocast(), evaluating(encoder), adapters_off(encoder):
            return encoder(**batch).text_embeds

    def project_references(self, model: nn.Module, inputs: Mapping[str, torch.Tensor], anchors: torch.Tensor):
        """Pseudo-words of the references, from their text embeddings with noise that stands in for the modality gap.

        Args:
            model (`nn.Module`): The encoder in training.
            inputs (`dict[str, torch.Tensor]`): A batch, with `context_*` entries where the projection reads contexts.
            anchors (`torch.Tensor` of shape `(2B, D)`): From [`~RTDTrainer.encode_anchors`].

        Returns:
            `torch.Tensor` of shape `(B, K, H)`.
        """
        references = anchors.chunk(2)[1].float()
        contexts = _part(inputs, "context_")
        with torch.no_grad():
            context_embeds = self._frozen(model, contexts).float() if contexts else None
            return self.projection.project_text(references + self._noise_like(references), context_embeds)

    def encode_queries(self, model: nn.Module, inputs: Mapping[str, torch.Tensor], words: torch.Tensor | None):
        """Embeddings of the prompts under the encoder in training; called through its wrapper, so gradients sync.

        Args:
            model (`nn.Module`): The encoder in training, as accelerate wrapped it.
            inputs (`dict[str, torch.Tensor]`): A batch of [`DataCollatorForRTD`].
            words (`torch.Tensor` of shape `(B, K, H)`, *optional*): Pseudo-words; `None` for literal text.

        Returns:
            `torch.Tensor` of shape `(2B, D)`: the composed prompts, then the bare ones (without the refined batch
            `(B, D)`: the composed ones).
        """
        if "packed_rows" in inputs:
            return model(packed_rows=inputs["packed_rows"], pseudo_words=words).text_embeds
        names = ("input_ids", "attention_mask", "position_ids", "pooling_positions")
        batch = {name: inputs[name] for name in names}
        if words is not None:
            # Where a template needs two rows a triplet, both hold the same pseudo-word.
            words = words.repeat(len(inputs["input_ids"]) // len(words), 1, 1)
            batch |= {"pseudo_words": words, "placeholder_mask": inputs["placeholder_mask"]}
        return model(**batch).text_embeds

    def _noise_like(self, embeds: torch.Tensor) -> torch.Tensor:
        """Noise keyed by (seed, step, micro-batch, rank): a resumed run draws what the uninterrupted one did."""
        if self.args.noise_type == "none" or self.args.noise_scale == 0:
            return torch.zeros_like(embeds)
        mode = "train" if self.model.training else "eval"
        # Every evaluation draws the same noise, so that their losses compare.
        step = self.state.global_step if mode == "train" else 0
        if self._draw_key != (mode, step):
            self._draw_key, self._draws = (mode, step), 0
        key = (self.args.seed, mode == "eval", step, self._draws, rank())
        self._draws += 1
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
        generator = torch.Generator().manual_seed(seed)
        noise = draw_noise(embeds.shape, kind=self.args.noise_type, scale=self.args.noise_scale, generator=generator)
        return noise.to(embeds.device, embeds.dtype)

    def trained_encoder(self) -> nn.Module:
        """The encoder as it is now, out of its parallel wrapper and in one piece. To be called by all processes."""
        return unsharded(self.accelerator.unwrap_model(self.model))

    # What Trainer does around the step

    def get_eval_dataloader(self, eval_dataset=None):
        """HF's, with every row: `dataloader_drop_last` is meant for training, and would shrink or empty this set."""
        with self._last_batch_kept():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        """HF's, with every row, as for the evaluation."""
        with self._last_batch_kept():
            return super().get_test_dataloader(test_dataset)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """HF's, with outputs `(B, P, D)`: HF counts and cuts predictions by their first dimension, the triplets."""
        loss, outputs, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if outputs is not None:
            triplets = len(inputs["text_ids"]) // 2
            outputs = tuple(part.unflatten(0, (-1, triplets)).transpose(0, 1).contiguous() for part in outputs)
        return loss, outputs, labels

    @contextmanager
    def _last_batch_kept(self):
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All parameters: the published recipe decays biases and norms too."""
        return [name for name, _ in model.named_parameters()]

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix: str = "eval", **kwargs):
        """HF's loop for the evaluation loss, then every evaluator, before HF logs and selects the best model."""
        self._draw_key = ("", -1)  # the noise of an evaluation starts anew
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss = output.metrics.get(f"{metric_key_prefix}_loss", 0.0)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The evaluation loss is {loss} after {self.state.global_step} steps. {self._advice()}"
            )
        for name, value in self._drain("eval").items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        if self.evaluators:
            self._measure(output.metrics, metric_key_prefix, self.trained_encoder())
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """HF's; of weights in shards too, what is written loads in plain transformers."""
        super().save_model(output_dir, _internal_call)
        if self.is_fsdp_enabled and "FULL" not in str(self.accelerator.state.fsdp_plugin.state_dict_type):
            self._save(output_dir)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        """HF's save. Of adapters the merged encoder is written too, so each checkpoint loads in plain transformers."""
        if is_sharded(self.model):  # then all processes come here
            state_dict = whole_weights(self.model.state_dict())
        encoder = self.trained_encoder() if self.has_adapters else None
        self._check_weights(state_dict or dict(self.model.named_parameters()))
        super()._save(output_dir, state_dict)
        if encoder is not None and self.args.should_save:
            folder = f"{output_dir or self.args.output_dir}/merged"
            export_text_encoder(encoder, folder, tokenizer=self.processing_class)


def _part(inputs: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in inputs.items() if name.startswith(prefix)}
