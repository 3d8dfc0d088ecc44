"""`RTDTrainer`: the training step of RTD in HF's `Trainer`, whose loop, sampler and checkpoints stay as they are."""

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.utils import logging

from .data_collator import DataCollatorForRTD, resolve_triplet_columns
from .distributed import rank
from .hub import export_text_encoder
from .losses import TargetAnchoredContrastiveLoss
from .projections import ImageToWordProjection
from .training_args import RTDTrainingArguments


logger = logging.get_logger(__name__)


class RTDTrainer(Trainer):
    """Fine-tunes a text encoder with RTD: target-anchored text contrastive learning on text triplets.

    Byun et al., *Reducing Task Discrepancy of Text Encoders for Zero-Shot Composed Image Retrieval*, ICCV 2025, arXiv
    2406.09188. Only the text encoder moves: the projection and the anchor, a frozen copy of the encoder as it was
    passed in, never do. With `peft_config` the anchor is the same network with its adapters switched off.

    Args:
        model ([`CLIPTextModelForRTD`]): The text encoder to train.
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
        **kwargs: Passed to [`~transformers.Trainer`].

    Raises:
        ValueError: If the data set lacks a column, or the projection does not fit the encoder.
        TypeError: If `args` are plain `TrainingArguments`.
        FloatingPointError: In training, as soon as the loss is not finite.
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
        **kwargs,
    ):
        if not isinstance(args, RTDTrainingArguments):
            raise TypeError(f"`args` must be `RTDTrainingArguments`, got {type(args).__name__}.")
        _check_fit(projection, model)
        for dataset in (train_dataset, eval_dataset):
            if getattr(dataset, "column_names", None):
                resolve_triplet_columns(dataset.column_names)
        self.anchor_model = None
        if peft_config is None:
            self.anchor_model = copy.deepcopy(model).eval().requires_grad_(False)
        else:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
        self.evaluators = tuple(evaluators)
        self._metrics: dict[str, dict[str, list[torch.Tensor]]] = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._draw_key: tuple[str, int] = ("", -1)
        self._draws = 0
        super().__init__(
            model,
            args,
            data_collator=data_collator
            or DataCollatorForRTD(
                processing_class,
                projection.config.prompt_template,
                max_length=args.max_length,
                refined_batch=args.refined_batch,
                refined_concatenation=args.refined_concatenation,
            ),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        # The loss is ours, a mean over the batch: no labels, and HF divides it by the accumulation steps.
        self.can_return_loss, self.label_names = True, []
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = False
        self.projection = projection.to(args.device).eval().requires_grad_(False)
        if self.anchor_model is not None:
            self.anchor_model.to(args.device)
        options = {"temperature": args.temperature, "loss_type": args.loss_type, "mask_duplicates": args.mask_duplicates}
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
        words = self.project_references(anchors) if self.args.refined_concatenation else None
        queries = self.encode_queries(model, inputs, words)
        if not self.args.anchored:
            anchors = self.encode_anchors(model, inputs, moving=True)
        anchors = anchors[: len(queries)]
        loss_function = self.loss if model.training else self.local_loss  # evaluation batches may be uneven
        loss = loss_function(queries, anchors, inputs["text_ids"][: len(queries)])
        self._watch(model, loss, queries, anchors)
        return (loss, {"queries": queries, "anchors": anchors}) if return_outputs else loss

    def encode_anchors(self, model: nn.Module, inputs: Mapping[str, torch.Tensor], *, moving: bool = False):
        """Embeddings of target and reference captions under the frozen encoder.

        Args:
            model (`nn.Module`): The encoder in training.
            inputs (`dict[str, torch.Tensor]`): A batch with `anchor_*` entries of `2B` rows.
            moving (`bool`, *optional*, defaults to `False`): Use the encoder in training, with gradient (ablation).

        Returns:
            `torch.Tensor` of shape `(2B, D)`, not normalised: the targets, then the references.
        """
        batch = {name.removeprefix("anchor_"): value for name, value in inputs.items() if name.startswith("anchor_")}
        if moving:
            return model(**batch).text_embeds
        encoder, adapters_off = self.anchor_model, nullcontext()
        if encoder is None:
            encoder = self.accelerator.unwrap_model(model)
            adapters_off = encoder.disable_adapter()
        was_training = encoder.training
        with torch.no_grad(), adapters_off:
            embeds = encoder.eval()(**batch).text_embeds
        encoder.train(was_training)
        return embeds

    def project_references(self, anchors: torch.Tensor) -> torch.Tensor:
        """Pseudo-words of the references, from their text embeddings with noise that stands in for the modality gap.

        Args:
            anchors (`torch.Tensor` of shape `(2B, D)`): From [`~RTDTrainer.encode_anchors`].

        Returns:
            `torch.Tensor` of shape `(B, K, H)`.
        """
        references = anchors.chunk(2)[1].float()
        with torch.no_grad():
            return self.projection.project_text(references + self._noise_like(references))

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
        names = ("input_ids", "attention_mask", "position_ids", "pooling_positions")
        batch = {name: inputs[name] for name in names}
        if words is not None:
            # Where a template needs two rows a triplet, both hold the same pseudo-word.
            words = words.repeat(len(inputs["input_ids"]) // len(words), 1, 1)
            batch |= {"pseudo_words": words, "placeholder_mask": inputs["placeholder_mask"]}
        return model(**batch).text_embeds

    def _noise_like(self, embeds: torch.Tensor) -> torch.Tensor:
        """Noise keyed by (seed, step, micro-batch, rank), so that a resumed run draws what the uninterrupted one did."""
        if self.args.noise_type == "none" or self.args.noise_scale == 0:
            return torch.zeros_like(embeds)
        mode = "train" if self.model.training else "eval"
        if self._draw_key != (mode, self.state.global_step):
            self._draw_key, self._draws = (mode, self.state.global_step), 0
        key = (self.args.seed, mode == "eval", self.state.global_step, self._draws, rank())
        self._draws += 1
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
        noise = torch.randn(embeds.shape, generator=generator) * self.args.noise_scale
        if self.args.noise_type == "scaled_gaussian":
            noise *= torch.rand(len(embeds), 1, generator=generator)
        return noise.to(embeds.device, embeds.dtype)

    def _watch(self, model: nn.Module, loss: torch.Tensor, queries: torch.Tensor, anchors: torch.Tensor) -> None:
        """Keeps what `log` reports, as detached tensors, and stops a run whose loss is no longer a number."""
        if model.training and not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} after {self.state.global_step} steps. The weights are still those before "
                f"this batch. Lower `learning_rate` (now {self._get_learning_rate():g}), raise `temperature` (now "
                f"{self.args.temperature:g}), set `max_grad_norm`, or use bf16 instead of fp16; then resume from the "
                f"last checkpoint in {self.args.output_dir}."
            )
        batch = len(anchors) // 2 if self.args.refined_batch else len(anchors)
        similarity = F.cosine_similarity(queries[:batch].detach().float(), anchors[:batch].detach().float())
        self._metrics["train" if model.training else "eval"]["target_similarity"].append(similarity.mean())

    # What Trainer does around the step

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All parameters: the published recipe decays biases and norms too."""
        return [name for name, _ in model.named_parameters()]

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix: str = "eval", **kwargs):
        """HF's loop for the evaluation loss, then every evaluator, before HF logs and selects the best model."""
        self._draw_key = ("", -1)  # the same noise at every evaluation of a step
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        for name, values in self._drain("eval").items():
            output.metrics[f"{metric_key_prefix}_{name}"] = values
        for evaluator in self.evaluators:
            for name, value in evaluator(self.accelerator.unwrap_model(self.model)).items():
                output.metrics[f"{metric_key_prefix}_{name}"] = float(value)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """HF's log with the training metrics since the last one, gathered over processes only here."""
        if "loss" in logs:
            logs = {**logs, **self._drain("train")}
        super().log(logs, start_time)

    def _drain(self, mode: str) -> dict[str, float]:
        means = {name: torch.stack(values).mean() for name, values in self._metrics[mode].items()}
        self._metrics[mode].clear()
        return {name: self.accelerator.gather(value).mean().item() for name, value in means.items()}

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        """HF's save. Of adapters the merged encoder is written too, so each checkpoint loads in plain transformers."""
        super()._save(output_dir, state_dict)
        if self.anchor_model is None and self.args.should_save:
            folder = f"{output_dir or self.args.output_dir}/merged"
            export_text_encoder(self.accelerator.unwrap_model(self.model), folder, tokenizer=self.processing_class)


def _check_fit(projection: ImageToWordProjection, model: nn.Module) -> None:
    """The projection reads the encoder's joint space and writes into its token embeddings."""
    widths = (projection.config.input_dim, projection.config.output_dim)
    wanted = (model.config.projection_dim, model.config.hidden_size)
    if widths != wanted:
        raise ValueError(
            f"`projection` maps {widths[0]} to {widths[1]} dimensions, but `model` has a joint space of {wanted[0]} and "
            f"token embeddings of {wanted[1]}. Use the projection that was fitted to this CLIP."
        )
