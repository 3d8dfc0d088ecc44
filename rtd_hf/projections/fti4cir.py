"""FTI4CIR's projection (Lin et al., SIGIR 2024, "Fine-grained Textual Inversion Network for Zero-Shot CIR")."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from ..texts import PLACEHOLDER, check_template
from .base import PROJECTIONS, ImageToWordProjection
from .configuration import ProjectionConfig, check_positive
from .searle import word_layers


ATTRIBUTES_SLOT = "{attributes}"


class FTI4CIRConfig(ProjectionConfig):
    """
    Configuration of [`FTI4CIRProjection`].

    Args:
        num_pseudo_words (`int`): The most words an image can have: the subject's and its attributes'.
        num_templates (`int`): Learned tokens, each of which looks for one attribute.
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
        self.attribute_threshold = attribute_threshold
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
        self.layers = word_layers(config, config.output_dim)

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
    text_words = 1

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
        with torch.autocast(device_type=image_embeds.device.type, enabled=False):
            features, used = self._select(image_embeds, patch_embeds)
        subject = self.phi_s(image_embeds).unsqueeze(1)
        attributes = self.phi_a(features).masked_fill(~used.unsqueeze(-1), 0)
        return torch.cat([subject, attributes], dim=1)

    def _select(self, image_embeds: torch.Tensor, patch_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The chosen local features `(B, K - 1, D)`, normalised, and which of the places are used `(B, K - 1)`."""
        templates, most = self.config.num_templates, self.config.num_pseudo_words - 1
        tokens = torch.cat([self.templates.expand(len(patch_embeds), -1, -1), patch_embeds], dim=1)
        features = self.local_atte_fc(self.transformer(tokens)[:, :templates])
        precise = torch.promote_types(features.dtype, torch.float32)
        # Not a matrix product, which a GPU may round to TF32.
        products = (features.to(precise) * image_embeds.to(precise).unsqueeze(1)).sum(dim=-1)
        shares = products.softmax(dim=-1)
        number = (shares > self.config.attribute_threshold).sum(dim=-1, keepdim=True).clamp(min=1)
        used = torch.arange(most, device=number.device) < number
        largest = shares.sort(dim=-1, descending=True, stable=True).indices[:, :most]
        # Into the order of the templates, the unused places behind; what they then hold does not matter.
        chosen = largest.masked_fill(~used, templates).sort(dim=-1).values.clamp(max=templates - 1)
        features = features.gather(1, chosen.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
        return F.normalize(features, dim=-1), used

    def project_text(self, text_embeds: torch.Tensor) -> torch.Tensor:
        """
        The subject's word of a text embedding, which is taken for an image embedding.

        Args:
            text_embeds (`torch.Tensor` of shape `(B, D)`): Projected text embeddings, not normalised.

        Returns:
            `torch.Tensor` of shape `(B, 1, H)`: pseudo-words.

        Raises:
            ValueError: `text_embeds` is not `(B, D)`.
        """
        self._check_embeds(text_embeds)
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
