"""From pictures and texts to embeddings: the one place where queries are composed, for scoring and for search."""

import os
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from .composition import ComposedPrompts, ImageFeatures
from .contexts import evaluating
from .distributed import gather_objects, rank, world_size
from .features import GalleryFeatures, PictureEncoder, encode_gallery, image_fingerprint
from .images import open_image, pad_to_ratio
from .prompts import PromptTokenizer
from .texts import join_captions


class CIREncoder:
    """Encodes galleries and composed queries with a CLIP image tower, a projection and a text encoder.

    Only the text encoder is changed by RTD, so image embeddings made with the original CLIP stay valid.

    Args:
        text_encoder ([`CLIPTextModelForRTD`]): Encodes the composed prompt. May be wrapped by PEFT.
        vision_model (`CLIPVisionModelWithProjection`): The frozen image tower.
        projection ([`ImageToWordProjection`]): From image embeddings to pseudo-words. Its configuration also names the
            prompt templates, the order of several captions and the preprocessing of pictures, which are followed.
        tokenizer (`CLIPTokenizer`): The text encoder's tokenizer.
        image_processor: The image tower's image processor.
        context_encoder ([`CLIPTextModelForRTD`], *optional*): For a projection that reads the query's text too
            (Context-I2W): the text encoder it was fitted with, which is the original one and not one trained since.
        batch_size (`int`, *optional*, defaults to 256): Images or texts encoded at once.
        num_workers (`int`, *optional*, defaults to 0): Processes that read pictures ahead; 0 reads in this one.
        shared (`bool`, *optional*, defaults to `False`): Share galleries and queries among the processes of
            `torch.distributed` (accelerate's). All of them then have to make the same calls, and all get the same
            embeddings, which are those of one process.

    Raises:
        ValueError: If the projection needs a `context_encoder` and there is none.
    """

    def __init__(
        self,
        text_encoder,
        vision_model,
        *,
        projection,
        tokenizer,
        image_processor,
        context_encoder=None,
        batch_size: int = 256,
        num_workers: int = 0,
        shared: bool = False,
    ):
        if projection.needs_context and context_encoder is None:
            raise ValueError(
                f"A `{projection.config.projection_type}` projection reads the query's text by the encoder it was "
                f"fitted with: `context_encoder` is missing. Load the original text encoder a second time; the one "
                f"that is trained is no longer it."
            )
        self.text_encoder, self.vision_model, self.projection = text_encoder, vision_model, projection
        self.image_processor, self.batch_size = image_processor, batch_size
        self.num_workers, self.shared = num_workers, shared
        self.tokenizer, self.context_encoder = tokenizer, context_encoder
        self._prompts: dict[str, PromptTokenizer] = {}
        self.prompts = self._prompts_of(projection.config.prompt_template)

    @property
    def num_truncated(self) -> int:
        """How many texts were longer than the text encoder reads, and lost their end, so far."""
        return sum(prompts.num_truncated for prompts in self._prompts.values())

    def _prompts_of(self, template: str) -> PromptTokenizer:
        if template not in self._prompts:
            self._prompts[template] = PromptTokenizer(self.tokenizer, template, **self.text_encoder.prompt_options())
        return self._prompts[template]

    # Images

    def embed_images(self, images: Sequence | Callable, *, number: int | None = None) -> torch.Tensor:
        """Image embeddings as global projections want them: projected, **not** normalised.

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
        return self._features(images, number, patches=False).image_embeds

    def embed_references(self, images: Sequence | Callable, *, number: int | None = None) -> ImageFeatures:
        """All that the projection reads of reference images.

        Args:
            images (`Sequence` or `Callable`): As for [`~CIREncoder.embed_images`].
            number (`int`, *optional*): How many, where `images` is a callable.

        Returns:
            [`ImageFeatures`], float32, on the CPU; with the vision tokens where the projection reads patches, about
            1 MB an image for ViT-L/14.

        Raises:
            TypeError, ValueError, OSError: as [`~CIREncoder.embed_images`].
        """
        return self._features(images, number, patches=self.projection.needs_patches)

    def _features(self, images: Sequence | Callable, number: int | None, *, patches: bool) -> ImageFeatures:
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
        with evaluating(self.vision_model):
            found = self._encoder(shared=False)(get, number, patches=patches)
        return ImageFeatures(found.image_embeds, found.patch_embeds)

    def embed_gallery(
        self,
        ids: Sequence[str],
        load: Callable,
        *,
        name: str = "gallery",
        folder: str | os.PathLike | None = None,
        strict: bool = True,
    ) -> GalleryFeatures:
        """Embeddings of a gallery's pictures as of [`~CIREncoder.embed_images`], kept on disk.

        Args:
            ids (`Sequence[str]`): The pictures, each once.
            load (`Callable[[str], image]`): Opens one by its id.
            name (`str`, *optional*): What the gallery is called in file names.
            folder (`str` or `os.PathLike`, *optional*): Where features are kept and found again; nowhere by default.
                They are of these weights, this preprocessing and these pictures, or they are made anew.
            strict (`bool`, *optional*, defaults to `True`): Raise if pictures cannot be read; else leave them out.

        Returns:
            [`GalleryFeatures`]

        Raises:
            UnreadableImagesError: If pictures cannot be read, and `strict`. It names all of them.
            ValueError: If the image tower gives NaN.
        """
        fingerprint = None
        if folder is not None:
            before = self.projection.config.image_preprocess
            fingerprint = image_fingerprint(self.vision_model, self.image_processor, before)
        options = {"name": name, "folder": folder, "fingerprint": fingerprint, "strict": strict}
        with evaluating(self.vision_model):
            return encode_gallery(self._encoder(shared=self.shared), ids, load, **options)

    def _encoder(self, *, shared: bool) -> PictureEncoder:
        device = next(self.vision_model.parameters()).device
        return PictureEncoder(
            self._opened,
            lambda image: self.image_processor([image], return_tensors="pt")["pixel_values"][0],
            lambda pixels: self.text_encoder.encode_image(self.vision_model, pixels.to(device)),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            shared=shared,
        )

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
            images (`Sequence` or `Callable`): As for [`~CIREncoder.embed_images`].
            number (`int`, *optional*): How many, where `images` is a callable.

        Returns:
            `torch.Tensor` of shape `(N, D)`, float32.
        """
        return F.normalize(self.embed_images(images, number=number), dim=-1)

    # Queries

    def encode_queries(
        self,
        references: torch.Tensor | ImageFeatures,
        texts: Sequence[str | Sequence[str]],
        *,
        text_encoder=None,
        benchmark: str = "",
    ) -> torch.Tensor:
        """Composed queries: the prompt with the reference's pseudo-words in it, through the text encoder.

        Args:
            references (`torch.Tensor` of shape `(Q, D)` or [`ImageFeatures`]): References, from
                [`~CIREncoder.embed_references`]; for a global projection, from
                [`~CIREncoder.embed_images`] too.
            texts (`Sequence[str | Sequence[str]]`): A conditioning text per reference, or several captions, which are
                joined as the projection's authors do ([`join_captions`]).
            text_encoder (*optional*): Used instead of the retriever's own, to score a model in training.
            benchmark (`str`, *optional*): Name of the benchmark, where the projection has another template for it.

        Returns:
            `torch.Tensor` of shape `(Q, D)`, L2-normalised, float32.

        Raises:
            ValueError: If there are not as many texts as references, a reference has none, or the projection reads
                patches and there are none.
        """
        return self.encode_prompts(self.compose(references, texts, benchmark=benchmark), text_encoder=text_encoder)

    def compose(
        self,
        references: torch.Tensor | ImageFeatures,
        texts: Sequence[str | Sequence[str]],
        *,
        benchmark: str = "",
    ) -> ComposedPrompts:
        """The first half of [`~CIREncoder.encode_queries`]: everything that stays as the encoder learns.

        Args:
            references, texts, benchmark: As for [`~CIREncoder.encode_queries`].

        Returns:
            [`ComposedPrompts`] with its words on the CPU.

        Raises:
            ValueError: as [`~CIREncoder.encode_queries`].
        """
        features = references if isinstance(references, ImageFeatures) else ImageFeatures(references)
        if len(texts) != len(features.image_embeds):
            raise ValueError(
                f"`texts` must hold one entry per reference, got {len(texts)} for {len(features.image_embeds)}."
            )
        flat, queries = self._variants(texts)
        contexts = self.embed_contexts(flat, benchmark=benchmark) if self.projection.needs_context else None
        words = self.project(features[queries], contexts)
        counts = self.projection.count_words(words).tolist()
        templates = [self.projection.template_for(count, benchmark) for count in counts]
        return ComposedPrompts(flat, queries, words, counts, templates)

    def project(self, features: ImageFeatures, contexts: torch.Tensor | None = None) -> torch.Tensor:
        """The pseudo-words of pictures.

        Args:
            features ([`ImageFeatures`]): Of N pictures.
            contexts (`torch.Tensor` of shape `(N, D)`, *optional*): From [`~CIREncoder.embed_contexts`], where the
                projection reads texts.

        Returns:
            `torch.Tensor` of shape `(N, K, H)`, on the CPU; unused words are zero.
        """
        return self._projected(self.projection, (*features, contexts))

    def project_texts(self, embeds: torch.Tensor, contexts: torch.Tensor | None = None) -> torch.Tensor:
        """The pseudo-words of texts in place of pictures, as RTD trains with them.

        Args:
            embeds (`torch.Tensor` of shape `(N, D)`): From [`~CIREncoder.embed_texts`], with noise or without.
            contexts (`torch.Tensor` of shape `(N, D)`, *optional*): As for [`~CIREncoder.project`].

        Returns:
            `torch.Tensor` of shape `(N, K, H)`, on the CPU.
        """
        return self._projected(self.projection.project_text, (embeds, contexts))

    @torch.inference_mode()
    def _projected(self, make: Callable, inputs: Sequence[torch.Tensor | None]) -> torch.Tensor:
        device, words = next(self.projection.parameters()).device, []
        with evaluating(self.projection):
            for at in torch.arange(len(inputs[0])).split(self.batch_size):
                words.append(make(*(None if part is None else part[at].to(device) for part in inputs)).cpu())
        return torch.cat(words)

    def encode_prompts(self, prompts: ComposedPrompts, *, text_encoder=None) -> torch.Tensor:
        """The second half: the prompts through the text encoder, the mean over the orders of a query's captions.

        Args:
            prompts ([`ComposedPrompts`]): From [`~CIREncoder.compose`].
            text_encoder (*optional*): Used instead of the retriever's own.

        Returns:
            `torch.Tensor` of shape `(Q, D)`, L2-normalised, float32.
        """

        def compose(at: torch.Tensor, packed: bool) -> dict:
            first = int(at[0])  # all have its template, and hence as many words
            batch = self._prompts_of(prompts.templates[first]).compose([prompts.texts[i] for i in at], packed=packed)
            return {**batch, "pseudo_words": prompts.words[at, : prompts.counts[first]]}

        embeds = self._encode(prompts.texts, compose, text_encoder, groups=prompts.templates)
        return _averaged(embeds, prompts.queries)

    def encode_texts(self, texts: Sequence[str | Sequence[str]], *, text_encoder=None) -> torch.Tensor:
        """Plain texts, no picture: `(N, D)`, L2-normalised, float32; of several captions as for queries."""
        flat, rows = self._variants(texts)
        embeds = self.embed_texts(flat, text_encoder=text_encoder)
        return _averaged(embeds, rows)

    def embed_texts(self, texts: Sequence[str], *, text_encoder=None) -> torch.Tensor:
        """Plain texts as projections want them: `(N, D)`, **not** normalised, float32."""
        return self._encode(
            texts, lambda at, packed: self.prompts.encode([texts[i] for i in at], packed=packed), text_encoder
        )

    def _variants(self, texts: Sequence[str | Sequence[str]]) -> tuple[list[str], torch.Tensor]:
        """All texts to be encoded, and the entry each of them comes from."""
        order = self.projection.config.caption_order
        without = [row for row, entry in enumerate(texts) if not isinstance(entry, str) and not entry]
        if without or not texts:
            where = f"{len(without)} entries without one (the first is {without[0]})" if without else "nothing at all"
            raise ValueError(f"`texts` must hold at least one text per entry, got {where}.")
        variants = [(entry,) if isinstance(entry, str) else join_captions(entry, order) for entry in texts]
        rows = torch.tensor([row for row, entry in enumerate(variants) for _ in entry])
        return [text for entry in variants for text in entry], rows

    def embed_contexts(self, texts: Sequence[str], *, benchmark: str = "") -> torch.Tensor:
        """What a projection that reads the query's text is given of it: the prompts that still hold its placeholder.

        Args:
            texts (`Sequence[str]`): Conditioning texts.
            benchmark (`str`, *optional*): As for [`~CIREncoder.encode_queries`].

        Returns:
            `torch.Tensor` of shape `(N, D)`, not normalised.
        """
        config = self.projection.config
        prompts = self._prompts_of(self.projection.template_for(config.num_pseudo_words, benchmark))
        token = config.context_placeholder_id
        return self._encode(
            texts,
            lambda at, packed: prompts.compose_with_token([texts[i] for i in at], token, packed=packed),
            self.context_encoder,
            shared=False,  # references are shared as a whole, with their texts
        )

    @torch.inference_mode()
    def _encode(
        self,
        texts: Sequence[str],
        make_batch: Callable,
        text_encoder=None,
        *,
        groups: Sequence[str] | None = None,
        shared: bool | None = None,
    ) -> torch.Tensor:
        """Encodes texts in order of length, so that batches need little padding; returns them in their own order.

        `make_batch` gets the numbers of the texts of a batch, which are all of one group, and whether to pack them.
        """
        encoder = self.text_encoder if text_encoder is None else text_encoder
        device = next(encoder.parameters()).device
        packed = getattr(encoder, "takes_packed_rows", False)
        members: dict[str, list[int]] = {}
        for i in sorted(range(len(texts)), key=lambda i: len(texts[i])):
            members.setdefault("" if groups is None else groups[i], []).append(i)
        batches = [at for numbers in members.values() for at in torch.tensor(numbers).split(self.batch_size)]
        shared = self.shared if shared is None else shared
        parts, part = (world_size(), rank()) if shared else (1, 0)
        embeds = []
        with evaluating(encoder):
            for at in batches[part::parts]:
                batch = {name: value.to(device) for name, value in make_batch(at, packed).items()}
                embeds.append(encoder(**batch).text_embeds.float().cpu())
        lists = gather_objects(embeds) if shared else [embeds]
        embeds = [lists[number % parts][number // parts] for number in range(len(batches))]
        return torch.cat(embeds)[torch.cat(batches).argsort()]


def _averaged(embeds: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The normalised mean of the normalised embeddings of each row, `(Q, D)`."""
    sums = torch.zeros(int(rows.max()) + 1, embeds.shape[1])
    return F.normalize(sums.index_add_(0, rows, F.normalize(embeds, dim=-1)), dim=-1)
