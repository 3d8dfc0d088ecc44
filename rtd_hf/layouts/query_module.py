"""The module by which sentence-transformers composes queries. It is imported where sentence-transformers is used."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modality import infer_modality
from sentence_transformers.base.modules import InputModule

from ..hub.export import save_tokenizer
from ..hub.repository import load_cir_encoder
from ..models import AutoTextModelForRTD, save_stock
from ..projections import ImageToWordProjection
from ..retrieval import CIREncoder
from ..tokens import load_tokenizer
from ..weights import load_complete


PROJECTION, VISION, CONTEXT = "projection", "vision_model", "context_encoder"
QUERY = ("image", "text")  # sorted, as sentence-transformers names what has both
KINDS = ("text", "image", QUERY)
_FETCHED = ("http://", "https://", "data:")


class ComposedQueryModule(InputModule):
    """
    Texts, images and composed queries to embeddings of one space, for `SentenceTransformer.encode`.

    A string is a text, or an image where it is an image's path or URL; a picture is an image; `{"image": ..., "text":
    ...}` is a query: the image as the text changes it. Lists may mix them. All embeddings are those of
    [`CIREncoder`], L2-normalised. For use only: no gradient reaches the weights; [`RTDTrainer`] trains.

    Args:
        retriever ([`CIREncoder`]): What encodes.
    """

    config_file_name = "sentence_rtd_config.json"
    save_in_root = True

    def __init__(self, retriever: CIREncoder):
        super().__init__()
        self.retriever = retriever
        self.tokenizer = retriever.tokenizer
        self.text_encoder, self.vision_model = retriever.text_encoder, retriever.vision_model
        self.projection, self.context_encoder = retriever.projection, retriever.context_encoder

    @property
    def modalities(self) -> list:
        """What can be encoded: texts, images, and queries of both."""
        # By "message" sentence-transformers calls a list that mixes them, and refuses it where there is none; a real
        # chat message is refused in `preprocess`.
        return [*KINDS, "message"]

    @property
    def max_seq_length(self) -> int:
        """Longest text in tokens; longer ones are cut and keep their end of text."""
        return self.text_encoder.config.max_position_embeddings

    def get_embedding_dimension(self) -> int:
        """Width D of the embeddings."""
        return self.text_encoder.projection_dim

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """
        Sorts a batch by what its entries are; pictures are opened when they are encoded.

        Args:
            inputs (`Sequence`): Texts, images and queries.
            prompt (`str`, *optional*): Put before plain texts.

        Returns:
            `dict`: `kinds`, `images` and `texts`, one entry of each for an input.

        Raises:
            ValueError: an input is nothing of the three, or a query has a `prompt`, which its projection already sets.
        """
        kinds, images, texts = [], [], []
        for number, entry in enumerate(inputs):
            kind = infer_modality(entry, supported_modalities=self.modalities)
            kind = kind[0] if isinstance(kind, tuple) and len(kind) == 1 else kind  # so names it 5.4
            parts = entry if isinstance(entry, Mapping) else {kind: entry}
            if kind not in KINDS or isinstance(entry, tuple | list):
                raise ValueError(
                    f"Input {number} of the batch is {kind!r}, but this model encodes a text, an image, or "
                    f"`{{'image': ..., 'text': ...}}`. Got a `{type(entry).__name__}`."
                )
            if kind == QUERY and prompt:
                raise ValueError(
                    f"`prompt` {prompt!r} cannot be put before a composed query, whose prompt is its projection's "
                    f"{self.projection.config.prompt_template!r}. Leave it out, and encode plain texts separately."
                )
            kinds.append(kind)
            images.append(_fetched(parts.get("image")))
            texts.append(f"{prompt}{parts['text']}" if prompt and kind == "text" else parts.get("text"))
        return {"kinds": kinds, "images": images, "texts": texts}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """
        Encodes a batch.

        Args:
            features (`dict`): From [`~ComposedQueryModule.preprocess`].

        Returns:
            `dict`: The same with `sentence_embedding` of shape `(B, D)`, L2-normalised, float32.
        """
        kinds, images, texts = features["kinds"], features["images"], features["texts"]
        encoders = {
            "text": lambda at: self.retriever.encode_texts([texts[i] for i in at]),
            "image": lambda at: self.retriever.encode_images([images[i] for i in at]),
            QUERY: lambda at: self.retriever.encode_queries(
                self.retriever.embed_references([images[i] for i in at]), [texts[i] for i in at]
            ),
        }
        rows, embeds = [], []
        for kind, encode in encoders.items():
            at = [number for number, found in enumerate(kinds) if found == kind]
            if at:
                rows += at
                embeds.append(encode(at))
        device = next(self.text_encoder.parameters()).device
        found = torch.cat(embeds)[torch.tensor(rows).argsort()].to(device)
        return {**features, "sentence_embedding": found}

    # Files

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """
        Saves the text encoder and its tokenizer where they lie for `transformers` too, the rest in folders beside.

        Args:
            output_path (`str`): The folder.
            args, safe_serialization, kwargs: As sentence-transformers gives them; it is always safetensors.
        """
        folder = Path(output_path)
        self.text_encoder.save_pretrained(folder)
        save_tokenizer(self.tokenizer, folder)
        self.projection.save_pretrained(folder / PROJECTION)
        self.vision_model.save_pretrained(folder / VISION)
        self.retriever.image_processor.save_pretrained(folder / VISION)
        if self.context_encoder is not None:
            save_stock(self.context_encoder.to_stock(), folder / CONTEXT, prefix=self.context_encoder.saved_prefix)
        config = {"is_complete": True, "has_context_encoder": self.context_encoder is not None}
        (folder / self.config_file_name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> "ComposedQueryModule":
        """
        Loads what [`~ComposedQueryModule.save`] wrote, or a published repository with [`describe_modules`] in it.

        Args:
            model_name_or_path (`str`): Folder or Hub id.
            subfolder (`str`, *optional*): Where in it.
            token, cache_folder, revision, local_files_only, kwargs: As sentence-transformers gives them.

        Returns:
            [`ComposedQueryModule`]

        Raises:
            ValueError, OSError: a part is missing, damaged, or not complete.
        """

        where = {"token": token, "cache_dir": cache_folder, "revision": revision, "local_files_only": local_files_only}
        config = cls.load_config(
            model_name_or_path,
            subfolder=subfolder,
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        if not config["is_complete"]:  # the vision tower is that of the model which the repository names
            return cls(load_cir_encoder(model_name_or_path, revision=revision, token=token))
        root = {**where, "subfolder": subfolder}

        def inside(name: str) -> dict[str, Any]:
            return {**where, "subfolder": f"{subfolder}/{name}" if subfolder else name}

        text_encoder = AutoTextModelForRTD.from_pretrained(model_name_or_path, **root).eval()
        has_context = config["has_context_encoder"]
        vision_class = text_encoder.vision_class
        vision_model, _ = load_complete(
            vision_class.from_pretrained,
            model_name_or_path,
            kind=vision_class.__name__,
            advice="Write the folder again with `export_layout`.",
            **inside(VISION),
        )
        retriever = CIREncoder(
            text_encoder,
            vision_model.eval(),
            projection=ImageToWordProjection.from_pretrained(model_name_or_path, **inside(PROJECTION)),
            tokenizer=load_tokenizer(model_name_or_path, **root),
            image_processor=text_encoder.load_image_processor(model_name_or_path, **inside(VISION)),
            context_encoder=(
                AutoTextModelForRTD.from_pretrained(model_name_or_path, **inside(CONTEXT)).eval()
                if has_context
                else None
            ),
        )
        return cls(retriever)


def _fetched(image: Any) -> Any:
    """An image as it came, or the picture where a string says how to get it from elsewhere."""
    if isinstance(image, str) and image.startswith(_FETCHED):
        from transformers.image_utils import load_image

        return load_image(image)
    return image
