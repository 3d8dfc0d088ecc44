"""From pictures and texts to embeddings: the one place where queries are composed, for scoring and for search."""

import os
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from .contexts import evaluating
from .images import open_image, pad_to_ratio
from .prompts import PromptTokenizer


class ComposedImageRetriever:
    """Encodes galleries and composed queries with a CLIP image tower, a projection and a text encoder.

    Only the text encoder is changed by RTD, so image embeddings made with the original CLIP stay valid.

    Args:
        text_encoder ([`CLIPTextModelForRTD`]): Encodes the composed prompt. May be wrapped by PEFT.
        vision_model (`CLIPVisionModelWithProjection`): The frozen image tower.
        projection ([`ImageToWordProjection`]): From image embeddings to pseudo-words. Its configuration also names the
            prompt template and the preprocessing of pictures, which are followed.
        tokenizer (`CLIPTokenizer`): The text encoder's tokenizer.
        image_processor: The image tower's image processor.
        batch_size (`int`, *optional*, defaults to 256): Images or texts encoded at once.
    """

    def __init__(self, text_encoder, vision_model, *, projection, tokenizer, image_processor, batch_size: int = 256):
        self.text_encoder, self.vision_model, self.projection = text_encoder, vision_model, projection
        self.image_processor, self.batch_size = image_processor, batch_size
        self.prompts = PromptTokenizer(tokenizer, projection.config.prompt_template)

    @torch.inference_mode()
    def embed_images(self, images: Sequence | Callable, *, number: int | None = None) -> torch.Tensor:
        """Image embeddings as the projection wants them: projected, **not** normalised.

        Args:
            images (`Sequence` of PIL images, arrays or paths, or `Callable[[int], image]`): The images, or what opens
                the i-th of `number` images, so that a large gallery is never in memory at once.
            number (`int`, *optional*): How many, where `images` is a callable.

        Returns:
            `torch.Tensor` of shape `(N, D)`, float32, on the CPU.

        Raises:
            TypeError: If `images` is one path, or a callable without `number`.
            ValueError: If there are no images.
            OSError: If a file is missing, damaged or no picture; the message names it.
        """
        if isinstance(images, (str, os.PathLike)):
            raise TypeError(
                f"`images` must be a sequence of images or paths, got the one path {images!r}. Put it in a list."
            )
        if callable(images) and number is None:
            raise TypeError("`number` must say how many images there are where `images` is a callable, got None.")
        get = images if callable(images) else images.__getitem__
        number = number if callable(images) else len(images)
        if number < 1:
            raise ValueError(f"`images` must hold at least one image, got {number}.")
        device = next(self.vision_model.parameters()).device
        embeds = []
        starts = range(0, number, self.batch_size)
        with evaluating(self.vision_model):
            for start in tqdm(starts, desc="Encoding images", unit="batch", disable=len(starts) < 4, leave=False):
                batch = [self._opened(get(i)) for i in range(start, min(start + self.batch_size, number))]
                pixels = self.image_processor(batch, return_tensors="pt")["pixel_values"]
                embeds.append(self.vision_model(pixel_values=pixels.to(device)).image_embeds.float().cpu())
        return torch.cat(embeds)

    def _opened(self, image):
        """An image as it came, or from its file; padded where the projection was fitted to padded ones."""
        if isinstance(image, (str, os.PathLike)):
            image = open_image(image)
        if self.projection.config.image_preprocess != "targetpad":
            return image
        from PIL import Image

        return pad_to_ratio(image if isinstance(image, Image.Image) else Image.fromarray(image))

    def encode_images(self, images: Sequence | Callable, *, number: int | None = None) -> torch.Tensor:
        """Gallery embeddings of images, L2-normalised.

        Args:
            images (`Sequence` or `Callable`): As for [`~ComposedImageRetriever.embed_images`].
            number (`int`, *optional*): How many, where `images` is a callable.

        Returns:
            `torch.Tensor` of shape `(N, D)`, float32.
        """
        return F.normalize(self.embed_images(images, number=number), dim=-1)

    @torch.inference_mode()
    def encode_queries(
        self, image_embeds: torch.Tensor, texts: Sequence[str | Sequence[str]], *, text_encoder=None
    ) -> torch.Tensor:
        """Composed queries: the prompt with the reference's pseudo-word in it, through the text encoder.

        Args:
            image_embeds (`torch.Tensor` of shape `(Q, D)`): References, from
                [`~ComposedImageRetriever.embed_images`], not normalised.
            texts (`Sequence[str | Sequence[str]]`): A conditioning text per reference; of several the normalised
                embeddings are averaged.
            text_encoder (*optional*): Used instead of the retriever's own, to score a model in training.

        Returns:
            `torch.Tensor` of shape `(Q, D)`, L2-normalised, float32.

        Raises:
            ValueError: If there are not as many texts as references, or a reference has none.
        """
        if len(texts) != len(image_embeds):
            raise ValueError(f"`texts` must hold one entry per reference, got {len(texts)} for {len(image_embeds)}.")
        device = next(self.projection.parameters()).device
        with evaluating(self.projection):
            words = self.projection(image_embeds.to(device))

        def compose(batch: list[str], rows: torch.Tensor, packed: bool) -> dict:
            return {**self.prompts.compose(batch, packed=packed), "pseudo_words": words[rows.to(device)]}

        return self._encode(texts, compose, text_encoder)

    def encode_texts(self, texts: Sequence[str | Sequence[str]], *, text_encoder=None) -> torch.Tensor:
        """Plain texts, no picture: `(N, D)`, L2-normalised, float32; several texts in an entry are averaged."""
        return self._encode(texts, lambda batch, _, packed: self.prompts.encode(batch, packed=packed), text_encoder)

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str | Sequence[str]], make_batch: Callable, text_encoder=None) -> torch.Tensor:
        """Encodes texts in order of length, so that batches need little padding; returns them in their own order."""
        variants = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        without = [row for row, entry in enumerate(variants) if not entry]
        if without or not variants:
            where = f"{len(without)} entries without one (the first is {without[0]})" if without else "nothing at all"
            raise ValueError(f"`texts` must hold at least one text per entry, got {where}.")
        rows = torch.tensor([row for row, entry in enumerate(variants) for _ in entry])
        flat = [text for entry in variants for text in entry]
        encoder = self.text_encoder if text_encoder is None else text_encoder
        device = next(encoder.parameters()).device
        packed = getattr(encoder, "takes_packed_rows", False)
        order = torch.tensor(sorted(range(len(flat)), key=lambda i: len(flat[i])))
        embeds = []
        with evaluating(encoder):
            for at in order.split(self.batch_size):
                batch = make_batch([flat[i] for i in at], rows[at], packed)
                batch = {name: value.to(device) for name, value in batch.items()}
                embeds.append(F.normalize(encoder(**batch).text_embeds.float(), dim=-1).cpu())
        embeds = torch.cat(embeds)[order.argsort()]
        return F.normalize(torch.zeros(len(variants), embeds.shape[1]).index_add_(0, rows, embeds), dim=-1)
