"""A repository of sentence-transformers, in which `{"image": ..., "text": ...}` is a composed query."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.initialization import no_init_weights

from ..contexts import quiet_transformers
from ..models import CLIPTextModelForRTD
from ..retrieval import CIREncoder
from .base import LAYOUTS, Layout, Parts, whole_folder


if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

INSTALL = "pip install 'rtd_hf[sentence-transformers]'"


@LAYOUTS.register("sentence_transformers")
class SentenceTransformersLayout(Layout):
    """
    A folder for `SentenceTransformer(folder)` (5.4 or later, with `rtd_hf` installed), complete in itself.

    The text encoder lies in the root and loads with plain `transformers` as ever; the projection, the vision tower of
    `base` and, for a projection with context, the text encoder of `base` lie in folders beside it.

    What loads it is a class of this package and not of theirs, so `SentenceTransformer(folder)` wants
    `trust_remote_code=True` from 6.0 on, though no code comes from the repository; before, it warns.
    [`load_sentence_transformer`] needs neither.
    """

    summary = "sentence-transformers: `encode({'image': ..., 'text': ...})`, plain texts and plain images."
    needs = ("base", "tokenizer", "projection")
    takes = ("revision",)

    def write(self, encoder, folder: Path, parts: Parts) -> Path:
        """See [`Layout`]."""
        sentence_transformers, module_class = _imported()
        where = {} if parts.revision is None else {"revision": parts.revision}
        projection, base = parts.projection, parts.base
        if projection.config.output_dim != encoder.config.hidden_size:
            raise ValueError(
                f"`projection` makes pseudo-words of width {projection.config.output_dim}, but `model` has token "
                f"embeddings of width {encoder.config.hidden_size}. Give the projection that it was trained with."
            )
        with quiet_transformers():
            vision_model = CLIPTextModelForRTD.load_vision_model(base, **where)
            if vision_model.config.projection_dim != encoder.config.projection_dim:
                raise ValueError(
                    f"`base` `{base}` has image embeddings of width {vision_model.config.projection_dim}, but `model` "
                    f"has text embeddings of width {encoder.config.projection_dim}. Give the CLIP it was trained from."
                )
            retriever = CIREncoder(
                _for_pseudo_words(encoder),
                vision_model,
                projection=projection,
                tokenizer=parts.tokenizer,
                image_processor=CLIPTextModelForRTD.load_image_processor(base, **where),
                context_encoder=(
                    CLIPTextModelForRTD.from_pretrained(base, **where) if projection.needs_context else None
                ),
            )
            model = sentence_transformers.SentenceTransformer(
                modules=[module_class(retriever)], device="cpu", similarity_fn_name="cosine"
            )
            with whole_folder(folder) as partial:
                model.save(str(partial), create_model_card=False)
        return folder


def load_sentence_transformer(
    model_name_or_path: str | os.PathLike, *, device: str | None = None, **options: Any
) -> "SentenceTransformer":
    """
    Loads what the layout `sentence_transformers` or [`describe_modules`] wrote, without `trust_remote_code`.

    Args:
        model_name_or_path (`str` or `os.PathLike`): Folder or Hub id.
        device (`str`, *optional*): Where it is put.
        options: `token`, `cache_folder`, `revision` or `local_files_only`.

    Returns:
        `SentenceTransformer`

    Raises:
        ImportError: sentence-transformers is not installed.
        ValueError, OSError: a part is missing, damaged, or not complete.
    """
    sentence_transformers, module_class = _imported()
    module = module_class.load(os.fspath(model_name_or_path), **options)
    return sentence_transformers.SentenceTransformer(modules=[module], device=device, similarity_fn_name="cosine")


def _imported() -> tuple[Any, type]:
    try:
        import sentence_transformers

        from .query_module import ComposedQueryModule
    except ImportError as error:
        raise ImportError(
            f"The layout `sentence_transformers` needs sentence-transformers 5.4 or later ({error}). Install it: "
            f"{INSTALL}"
        ) from error
    return sentence_transformers, ComposedQueryModule


def _for_pseudo_words(encoder) -> CLIPTextModelForRTD:
    """The same weights in the class that takes pseudo-words."""
    with no_init_weights():
        model = CLIPTextModelForRTD(encoder.config)
    model.load_state_dict(encoder.state_dict(), strict=True, assign=True)
    return model.eval()
