"""How a projection works with texts in the place of images, as text-only training shows them."""

from typing import ClassVar

import torch

from .checks import check_context, check_embeds
from .surrogate import WordSurrogate


class TextsForImages:
    """
    The part of [`ImageToWordProjection`] that RTD's training calls: pseudo-words of texts.

    Class attributes:
        text_trainings (`tuple[str]`):
            The ways in which text-only training can put texts in the place of images, the default one first.
            `"embedding"`: the text's embedding is taken for an image's (published). `"surrogate"`: a network stands
            for the projection ([`WordSurrogate`]), once `fit_surrogate` has seen pictures. `"subject"`: only the
            subject's word is made (FTI4CIR). `"literal"`: there is no word, the prompts hold the reference's own.
        surrogate_is_bounded (`bool`): Whether what a surrogate says lies between 0 and 1.
    """

    text_trainings: ClassVar[tuple[str, ...]] = ("embedding",)
    surrogate_is_bounded: ClassVar[bool] = False

    def prepare_for_texts(self):
        """
        Checks `config.text_training`, and makes room for the weights of a surrogate.

        Raises:
            ValueError: the projection knows no such way.
        """
        if self.config.text_training not in (None, *self.text_trainings):
            raise ValueError(
                f"`text_training` of a `{self.projection_type}` projection must be one of "
                f"{', '.join(map(repr, self.text_trainings))}, but is {self.config.text_training!r}."
            )
        if self.text_training == "surrogate":
            self.surrogate = self._new_surrogate()

    @property
    def text_training(self) -> str:
        """How text-only training works with it, one of `text_trainings`."""
        return self.config.text_training or self.text_trainings[0]

    @property
    def text_words(self) -> int:
        """Pseudo-words that `project_text` makes of a text; 0 where training writes the reference's own words."""
        return 0 if self.text_training == "literal" else self.config.num_pseudo_words

    @property
    def text_template(self) -> str:
        """The template of training prompts, with as many placeholders as `project_text` makes words."""
        return self.template_for(self.text_words or self.config.num_pseudo_words)

    def project_text(self, text_embeds: torch.Tensor, context_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """
        Turns text embeddings into pseudo-words, as text-only training does: they are taken for image embeddings.

        Args:
            text_embeds (`torch.Tensor` of shape `(B, D)`): Projected text embeddings, not normalised.
            context_embeds (`torch.Tensor` of shape `(B, D)`, *optional*): As for `forward`.

        Returns:
            `torch.Tensor` of shape `(B, text_words, H)`: pseudo-words.

        Raises:
            ValueError: an input has another shape, or is missing where it is needed, or `text_training` is
                `"literal"`, which makes no words.
        """
        if self.text_training == "literal":
            raise ValueError(
                f"This `{self.config.projection_type}` projection makes no words of texts (`text_training` is "
                f"'literal'): it reads vision tokens, which a text has not. Train without words of texts, or choose "
                f"another of {', '.join(map(repr, self.text_trainings))}; a surrogate is made by `fit_surrogate`."
            )
        if self.text_training != "surrogate":
            return self(text_embeds, None, context_embeds)
        check_embeds(self, text_embeds)
        if self.needs_context:
            check_context(self, context_embeds, len(text_embeds))
        inputs = [None if embeds is None else embeds.to(self.dtype) for embeds in (text_embeds, context_embeds)]
        return self.words_of_surrogate(self.surrogate(*inputs), inputs[0])

    def surrogate_targets(
        self, image_embeds: torch.Tensor, patch_embeds: torch.Tensor, context_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        What a surrogate is to say of images: their words, unless the projection says otherwise.

        Args:
            image_embeds, patch_embeds, context_embeds (`torch.Tensor`): As `forward` takes them.

        Returns:
            `torch.Tensor` of shape `(B, surrogate_dim)`.
        """
        return self(image_embeds, patch_embeds, context_embeds).flatten(1)

    def words_of_surrogate(self, outputs: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """The words `(B, text_words, H)` that follow from what the surrogate says `(B, surrogate_dim)` of texts."""
        return outputs.unflatten(-1, (-1, self.config.output_dim))

    @property
    def surrogate_dim(self) -> int:
        """Width of what a surrogate says."""
        return self.config.num_pseudo_words * self.config.output_dim

    def fit_surrogate(
        self, image_embeds: torch.Tensor, targets: torch.Tensor, context_embeds: torch.Tensor | None = None, **options
    ) -> float:
        """
        Teaches a [`WordSurrogate`] what the projection makes of pictures; `text_training` is then `"surrogate"`.

        Args:
            image_embeds (`torch.Tensor` of shape `(N, D)`): Image embeddings.
            targets (`torch.Tensor` of shape `(N, surrogate_dim)`): Their [`~ImageToWordProjection.surrogate_targets`].
            context_embeds (`torch.Tensor` of shape `(N, D)`, *optional*): The contexts they were made in, if any.
            options: Of [`~WordSurrogate.fit`].

        Returns:
            `float`: the share of the targets' variance that it explains, on pictures it was not shown.

        Raises:
            ValueError: the projection needs no surrogate, or as [`~WordSurrogate.fit`].
        """
        if "surrogate" not in self.text_trainings:
            raise ValueError(
                f"A `{self.config.projection_type}` projection needs no surrogate: it makes words of embeddings alone."
            )
        self.surrogate = self._new_surrogate().to(self.device)
        explained = self.surrogate.fit(image_embeds, targets, context_embeds, **options)
        self.surrogate.to(self.dtype)
        self.config.text_training = "surrogate"
        return explained

    def _new_surrogate(self) -> WordSurrogate:
        width = self.config.input_dim
        hidden_dim = self.config.surrogate_hidden_dim or 2 * width
        kind = {"takes_context": self.needs_context, "bounded": self.surrogate_is_bounded}
        return WordSurrogate(width, hidden_dim, self.surrogate_dim, **kind)
