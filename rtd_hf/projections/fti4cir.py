"""FTI4CIR's projection (Lin et al., SIGIR 2024, "Fine-grained Textual Inversion Network for Zero-Shot CIR")."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from ..texts import PLACEHOLDER, check_template
from .base import PROJECTIONS, ImageToWordProjection
from .checks import check_embeds, check_inputs
from .configuration import ProjectionConfig, check_positive
from .networks import word_layers


ATTRIBUTES_SLOT = "{attributes}"


class FTI4CIRConfig(ProjectionConfig):
    """
    Configuration of [`FTI4CIRProjection`].

    Args:
        num_pseudo_words (`int`): The most words an image can have: the subject's and its attributes'.
        num_templates (`int`): Learned tokens, each of which looks for one attribute.
        text_attributes (`int`): Attributes that get a word in training on texts, with a surrogate.
        attribute_threshold (`float`): Share of the attention above which an attribute gets a word.
        selector_layers (`int`): Transformer layers over templates and vision tokens.
        selector_heads (`int`): Attention heads per layer.
        selector_mlp_ratio (`float`): Hidden width of their networks, in multiples of `vision_hidden_size`.
        prompt_template (`str`): Template of the subject's word alone, with which text-only training works.
        attribute_template (`str`):
            Template of the publication; `{attributes}` stands for one placeholder per attribute, see
            [`~FTI4CIRProjection.template_for`].
        kwargs: The other arguments of [`ProjectionConfig`]; the projection needs `vision_hidden_size`.

    Raises:
        ValueError: as [`ProjectionConfig`]; a number is not positive; there are more words than templates, no room for
            an attribute, or no place for them in `attribute_template`; the heads do not divide `vision_hidden_size`.
    """

    def __init__(
        self,
        num_pseudo_words: int = 13,
        num_templates: int = 24,
        attribute_threshold: float = 0.05,
        text_attributes: int = 6,
        selector_layers: int = 3,
        selector_heads: int = 1,
        selector_mlp_ratio: float = 2.0,
        prompt_template: str = "a photo of $ but {caption}",
        attribute_template: str = f"a photo of $ with {ATTRIBUTES_SLOT} but {{caption}}",
        **kwargs: Any,
    ):
        check_positive(num_templates=num_templates, selector_layers=selector_layers, selector_heads=selector_heads)
        if not 2 <= num_pseudo_words <= 1 + num_templates:
            raise ValueError(
                f"`num_pseudo_words` must be between 2 (a subject and an attribute) and {1 + num_templates} (1 + "
                f"`num_templates`), but is {num_pseudo_words}."
            )
        if attribute_template.count(ATTRIBUTES_SLOT) != 1:
            raise ValueError(
                f"`attribute_template` must hold `{ATTRIBUTES_SLOT}` exactly once, but is {attribute_template!r}."
            )
        width = kwargs.get("vision_hidden_size")
        if width is not None and width % selector_heads:
            raise ValueError(f"`selector_heads` must divide `vision_hidden_size` {width}, but is {selector_heads}.")
        self.num_templates = num_templates
        self.attribute_threshold, self.text_attributes = attribute_threshold, text_attributes
        self.selector_layers = selector_layers
        self.selector_heads = selector_heads
        self.selector_mlp_ratio = selector_mlp_ratio
        self.attribute_template = attribute_template
        super().__init__(num_pseudo_words=num_pseudo_words, prompt_template=prompt_template, **kwargs)


class SelectorAttention(nn.Module):
    """Self-attention; only the output layer has a bias."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_queries = nn.Linear(width, width, bias=False)
        self.to_keys_values = nn.Linear(width, 2 * width, bias=False)  # the keys' rows first
        self.project = nn.Linear(width, width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`(B, tokens, W)` to the same."""
        queries, keys, values = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.to_queries(states), *self.to_keys_values(states).chunk(2, dim=-1))
        )
        attended = F.scaled_dot_product_attention(queries, keys, values)
        return self.project(attended.transpose(1, 2).flatten(2))


class SelectorMLP(nn.Module):
    """The feed-forward network of a [`SelectorLayer`], with ReLU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`(B, tokens, W)` to the same."""
        return self.fc2(F.relu(self.fc1(states)))


class SelectorLayer(nn.Module):
    """A transformer layer that normalises its inputs, without dropout."""

    def __init__(self, config: FTI4CIRConfig, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SelectorAttention(width, config.selector_heads)
        self.mlp = SelectorMLP(width, int(config.selector_mlp_ratio * width))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`(B, tokens, W)` to the same."""
        states = states + self.attn(self.norm1(states))
        return states + self.mlp(self.norm2(states))


class Selector(nn.Module):
    """The layers one after the other, without a final norm."""

    def __init__(self, config: FTI4CIRConfig, width: int):
        super().__init__()
        self.layers = nn.ModuleList(SelectorLayer(config, width) for _ in range(config.selector_layers))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`(B, tokens, W)` to the same."""
        for layer in self.layers:
            states = layer(states)
        return states


class WordMLP(nn.Module):
    """The network of [`SEARLEProjection`]: D-wide embeddings to H-wide words."""

    def __init__(self, config: FTI4CIRConfig):
        super().__init__()
        self.layers = word_layers(config.input_dim, config.hidden_dim, config.output_dim, config.dropout)

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        """`(..., D)` to `(..., H)`."""
        return self.layers(embeds)


@PROJECTIONS.register("fti4cir")
class FTI4CIRProjection(ImageToWordProjection):
    """
    One word for the subject and one for each attribute that the image shows, 1 to 12 of them.

    The subject's word is made of the image embedding. 24 learned templates read the vision tokens and become local
    features; a softmax of their products with the image embedding, not normalised, says which of them matter. Those
    with more than a twentieth of the attention get a word, at least one and at most twelve, in the order of their
    templates. Of equal shares the earlier template's is taken. This choice is made in float32 at least, under autocast
    too, because a softmax of such large products is sensitive to rounding.

    `forward` returns `(B, 13, H)`: the subject's word, the attributes', zeros. `count_words` says how many there are,
    `template_for` gives the prompt for so many. A text has no patches but has a subject: `project_text` returns the
    subject's word alone, `(B, 1, H)`, which `config.prompt_template` takes; that prompt is ours, the published one is
    `config.attribute_template`.

    The keys of its state dict are those of the published `IMG2TEXT`. In the publication D and H are equal; here the
    local features, which are multiplied with image embeddings, are D wide. Its authors pad images to a ratio of 1.25.
    """

    config_class = FTI4CIRConfig
    projection_type = "fti4cir"
    default_dropout = 0.5
    num_pseudo_words = 13
    prompt_template = "a photo of $ but {caption}"
    image_preprocess = "targetpad"
    needs_patches = True
    text_trainings = ("subject", "surrogate", "literal")
    surrogate_is_bounded = True

    def __init__(self, config: FTI4CIRConfig):
        super().__init__(config)
        width = self._vision_width()
        self.templates = nn.Parameter(torch.empty(1, config.num_templates, width))
        self.transformer = Selector(config, width)
        self.local_atte_fc = nn.Sequential(nn.Linear(width, config.input_dim), nn.Sigmoid())
        self.phi_s, self.phi_a = WordMLP(config), WordMLP(config)
        self.post_init()

    def project(
        self,
        image_embeds: torch.Tensor,
        patch_embeds: torch.Tensor,
        context_embeds: torch.Tensor | None,
    ) -> torch.Tensor:
        return self._words_and_features(image_embeds, patch_embeds)[0]

    def forward(
        self,
        image_embeds: torch.Tensor,
        patch_embeds: torch.Tensor | None = None,
        context_embeds: torch.Tensor | None = None,
        return_features: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """
        Turns images into pseudo-words.

        Args:
            image_embeds, patch_embeds, context_embeds: As [`~ImageToWordProjection.forward`] takes them.
            return_features (`bool`, *optional*, defaults to `False`): Also return the selected local features.

        Returns:
            `torch.Tensor` of shape `(B, K, H)`, or with `return_features` the tuple of it and the features of shape
            `(B, K - 1, D)`, normalised: those with a word in the order of the words, then the others, the largest
            share of the attention first.

        Raises:
            ValueError: as [`~ImageToWordProjection.forward`].
        """
        if not return_features:
            return super().forward(image_embeds, patch_embeds, context_embeds)
        check_inputs(self, image_embeds, patch_embeds, context_embeds)
        return self._words_and_features(image_embeds.to(self.dtype), patch_embeds.to(self.dtype))

    def _words_and_features(
        self, image_embeds: torch.Tensor, patch_embeds: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(device_type=image_embeds.device.type, enabled=False):
            features, used = self._select(self._local_features(patch_embeds), image_embeds)
        subject = self.phi_s(image_embeds).unsqueeze(1)
        attributes = self.phi_a(features).masked_fill(~used.unsqueeze(-1), 0)
        return torch.cat([subject, attributes], dim=1), features

    def _local_features(self, patch_embeds: torch.Tensor) -> torch.Tensor:
        """What the templates find in the vision tokens, `(B, T, D)`, between 0 and 1."""
        templates = self.config.num_templates
        tokens = torch.cat([self.templates.expand(len(patch_embeds), -1, -1), patch_embeds], dim=1)
        return self.local_atte_fc(self.transformer(tokens)[:, :templates])

    def _select(
        self, features: torch.Tensor, image_embeds: torch.Tensor, number: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The chosen local features `(B, K - 1, D)`, normalised, and which of the places are used `(B, K - 1)`.

        `number` of them are used where it is given, instead of those with a large enough share.
        """
        templates, most = self.config.num_templates, self.config.num_pseudo_words - 1
        precise = torch.promote_types(features.dtype, torch.float32)
        # Not a matrix product, which a GPU may round to TF32.
        products = (features.to(precise) * image_embeds.to(precise).unsqueeze(1)).sum(dim=-1)
        shares = products.softmax(dim=-1)
        if number is None:
            number = (shares > self.config.attribute_threshold).sum(dim=-1, keepdim=True).clamp(min=1)
        used = (torch.arange(most, device=shares.device) < number).expand(len(shares), -1)
        largest = shares.sort(dim=-1, descending=True, stable=True).indices[:, :most]
        # Those with a word come in the order of the templates.
        chosen = torch.where(used, largest.masked_fill(~used, templates).sort(dim=-1).values, largest)
        features = features.gather(1, chosen.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
        return F.normalize(features, dim=-1), used

    # Texts in the place of images

    @property
    def surrogate_dim(self) -> int:
        """A surrogate says the local features, out of which the words are chosen and made as those of an image."""
        return self.config.num_templates * self.config.input_dim

    @torch.no_grad()
    def surrogate_targets(
        self, image_embeds: torch.Tensor, patch_embeds: torch.Tensor, context_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        The local features of images, `(B, surrogate_dim)`.

        Args:
            image_embeds, patch_embeds, context_embeds (`torch.Tensor`): As `forward` takes them.

        Returns:
            `torch.Tensor` of shape `(B, surrogate_dim)`.
        """
        check_inputs(self, image_embeds, patch_embeds, context_embeds)
        return self._local_features(patch_embeds.to(self.dtype)).flatten(1)

    def fit_surrogate(
        self, image_embeds: torch.Tensor, targets: torch.Tensor, context_embeds: torch.Tensor | None = None, **options
    ) -> float:
        """
        As [`~ImageToWordProjection.fit_surrogate`]; texts then get as many words as most of these images.

        The number is the median: it matters that the prompts of the training are those of the search (offline world,
        recall at 10 with 4 instead of 7 words: 81 instead of 90).
        """
        explained = super().fit_surrogate(image_embeds, targets, context_embeds, **options)
        features = targets.to(self.dtype).unflatten(-1, (self.config.num_templates, -1)).to(self.device)
        _, used = self._select(features, image_embeds.to(self.device))
        self.config.text_attributes = int(used.sum(dim=-1).median())
        return explained

    def words_of_surrogate(self, outputs: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """The words `(B, text_words, H)` that follow from what the surrogate says `(B, surrogate_dim)` of texts."""
        number = self.config.text_attributes
        features, _ = self._select(outputs.unflatten(-1, (self.config.num_templates, -1)), text_embeds, number)
        return torch.cat([self.phi_s(text_embeds).unsqueeze(1), self.phi_a(features[:, :number])], dim=1)

    @property
    def text_words(self) -> int:
        """Pseudo-words that `project_text` makes of a text: the subject's, the attributes' too, or none."""
        return {"literal": 0, "subject": 1, "surrogate": 1 + self.config.text_attributes}[self.text_training]

    def project_text(self, text_embeds: torch.Tensor, context_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """
        The words of a text embedding, which is taken for an image embedding: the subject's, or with a surrogate those
        of the attributes too.

        Args:
            text_embeds (`torch.Tensor` of shape `(B, D)`): Projected text embeddings, not normalised.
            context_embeds (*optional*): Not used.

        Returns:
            `torch.Tensor` of shape `(B, text_words, H)`: pseudo-words.

        Raises:
            ValueError: `text_embeds` is not `(B, D)`, or `text_training` is `"literal"`.
        """
        if self.text_training != "subject":
            return super().project_text(text_embeds)
        check_embeds(self, text_embeds)
        return self.phi_s(text_embeds.to(self.dtype)).unsqueeze(1)

    def count_words(self, words: torch.Tensor) -> torch.Tensor:
        """
        How many pseudo-words each image has: the places up to the last one that is not zero.

        Args:
            words (`torch.Tensor` of shape `(B, K, H)`): What `forward` or `project_text` returned.

        Returns:
            `torch.Tensor` of shape `(B,)`, int64: from 2 to K, or 1 for the words of texts.
        """
        places = torch.arange(1, words.shape[1] + 1, device=words.device)
        # Zeros in between would still be words: a subject and an attribute are never missing.
        return ((words != 0).any(dim=-1) * places).amax(dim=-1).clamp(min=min(2, words.shape[1]))

    def template_for(self, num_words: int, benchmark: str = "") -> str:
        """
        The prompt template for a subject and `num_words - 1` attributes.

        Args:
            num_words (`int`): A number that `count_words` gave.
            benchmark (`str`, *optional*): Name of the benchmark the query belongs to.

        Returns:
            `str`: `"a photo of $ with $ $ but {caption}"` for 3 words, `config.prompt_template` for 1.

        Raises:
            ValueError: `num_words` is not between 1 and `config.num_pseudo_words`.
        """
        if not 1 <= num_words <= self.config.num_pseudo_words:
            raise ValueError(
                f"`num_words` must be between 1 and {self.config.num_pseudo_words}, but is {num_words}. Give a number "
                f"that `count_words` returned."
            )
        if num_words == 1:
            return super().template_for(self.config.num_pseudo_words, benchmark)
        attributes = " ".join([PLACEHOLDER] * (num_words - 1))
        return self.config.attribute_template.replace(ATTRIBUTES_SLOT, attributes)

    def use_template(self, template: str):
        """
        Takes one template, in which attributes follow the subject: `a photo of $ that {caption}` for one word becomes
        `a photo of $ with $ $ that {caption}` for three.

        Args:
            template (`str`): See [`check_template`]; with one placeholder, the subject's.

        Raises:
            ValueError: the template is malformed, or has another number of placeholders than one.
        """
        template = check_template(template)
        if template.count(PLACEHOLDER) != 1:
            raise ValueError(f"`template` must hold one `{PLACEHOLDER}`, the subject's, but is {template!r}.")
        self.config.prompt_template, self.config.benchmark_templates = template, {}
        self.config.attribute_template = template.replace(PLACEHOLDER, f"{PLACEHOLDER} with {ATTRIBUTES_SLOT}")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, FTI4CIRProjection):
            init.normal_(module.templates)
