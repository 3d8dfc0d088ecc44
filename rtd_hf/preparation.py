"""What is settled before a training begins: that model, projection, data and options fit, and the batch's layout."""

import os
from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .anchors import AnchorStore
from .data_collator import DataCollatorForRTD
from .models import PseudoWordMixin
from .projections import ImageToWordProjection
from .training_args import RTDTrainingArguments
from .triplets import check_triplets


logger = logging.get_logger(__name__)


def encoder_in(model: nn.Module) -> nn.Module:
    """The text encoder itself, out of its adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def writes_words(projection: ImageToWordProjection, args: RTDTrainingArguments) -> bool:
    """Whether training prompts hold pseudo-words; else they hold the words of the reference captions."""
    return args.refined_concatenation and projection.text_words > 0


def collator_for(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    projection: ImageToWordProjection,
    args: RTDTrainingArguments,
    anchors: AnchorStore | None,
) -> DataCollatorForRTD:
    """The collator that lays a batch out as this model takes it."""
    encoder = encoder_in(model)
    encoder.check_tokenizer(tokenizer)
    packing = args.packing and encoder.takes_packed_rows
    if args.mini_batch_size and not packing:
        raise ValueError("`mini_batch_size` needs packed rows, which this model does not take.")
    with_words = writes_words(projection, args)
    return DataCollatorForRTD(
        tokenizer,
        projection.text_template,
        **encoder.prompt_options(args.max_length),
        refined_batch=args.refined_batch,
        refined_concatenation=with_words,
        packing=packing,
        # A shared prefix is dropped out once; each row is to draw its own mask, as it does alone.
        share_prefixes=not any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules()),
        mini_batch_size=args.mini_batch_size,
        anchors=anchors,
        context_token=projection.config.context_placeholder_id if with_words and projection.needs_context else None,
        anchor_tokens=anchors is None or not args.anchored,
    )


def check_fit(projection: ImageToWordProjection, model: nn.Module, args: RTDTrainingArguments) -> None:
    """The projection reads the encoder's joint space and writes into its token embeddings."""
    encoder = encoder_in(model)
    if not isinstance(encoder, PseudoWordMixin):
        # The stock class would take the pseudo-words as unknown keywords and ignore them.
        raise TypeError(
            f"`model` must be a text encoder that takes pseudo-words, such as `CLIPTextModelForRTD`, got "
            f"{type(encoder).__name__}. Load the same checkpoint with `AutoTextModelForRTD.from_pretrained`."
        )
    widths = (projection.config.input_dim, projection.config.output_dim)
    wanted = (encoder.projection_dim, encoder.config.hidden_size)
    if widths != wanted:
        raise ValueError(
            f"`projection` maps {widths[0]} to {widths[1]} dimensions, but `model` has a joint space of {wanted[0]} "
            f"and token embeddings of {wanted[1]}. Use the projection that was fitted to this CLIP."
        )
    base, name = projection.config.base_model, encoder.name_or_path
    # A folder says nothing about what lies in it, so only names on the Hub are compared.
    if base and name and base != name and not os.path.exists(name) and not os.path.exists(base):
        if not args.force_projection:
            raise ValueError(
                f"`projection` was fitted to `{base}`, but `model` was loaded from `{name}`. Use the projection of "
                f"this model; or set `force_projection` if you know that both have the same embeddings."
            )
        logger.warning(f"`force_projection`: a projection fitted to `{base}` is used with `{name}`.")
    if args.refined_concatenation and not writes_words(projection, args):
        advice = ""
        if "surrogate" in projection.text_trainings:
            advice = " Teach it a surrogate on pictures (`fit_surrogate`): that works far better."
        logger.warning(
            f"This `{projection.config.projection_type}` projection makes no words of texts: the prompts hold the "
            f"words of the reference captions, as with `refined_concatenation=False`.{advice}"
        )


def check_datasets(train_dataset, eval_dataset, args: RTDTrainingArguments) -> None:
    """What would otherwise show after minutes, or not at all: HF trains on a set without a full batch for 0 steps."""
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs, and `DataParallel` would mix up the rows of a batch. Start one "
            f"process per GPU with `accelerate launch`, or show it one GPU with `CUDA_VISIBLE_DEVICES=0`."
        )
    evaluated = eval_dataset.values() if isinstance(eval_dataset, Mapping) else [eval_dataset]
    for dataset in (train_dataset, *evaluated):
        if getattr(dataset, "column_names", None):
            check_triplets(dataset)
    if args.world_size > 1 and not args.dataloader_drop_last:
        logger.warning(
            "With `dataloader_drop_last=False` on several processes the last batch of an epoch is filled up with rows "
            "of its beginning, which are then trained twice and may be each other's negatives. Leave it on."
        )
    if hasattr(train_dataset, "__len__") and args.dataloader_drop_last:
        needed = args.train_batch_size * args.world_size
        if len(train_dataset) < needed:
            raise ValueError(
                f"`train_dataset` holds {len(train_dataset)} rows, fewer than the {needed} of one step "
                f"(`per_device_train_batch_size` {args.per_device_train_batch_size} on {args.world_size} "
                f"process(es)), and an incomplete batch is dropped. Lower the batch size or give more rows."
            )
