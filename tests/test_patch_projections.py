"""Projections that read patches, against their formulas written out: one sample at a time, in plain tensor algebra."""

import json
import math

import pytest
import torch
from torch import nn

from rtd_hf.projections import (
    ContextI2WConfig,
    ContextI2WProjection,
    FTI4CIRConfig,
    FTI4CIRProjection,
    ImageToWordProjection,
    LinCIRProjection,
    ProjectionConfig,
)
from rtd_hf.texts import check_template


D, H, W = 24, 32, 40
L14 = {"projection_dim": 768, "vision_hidden_size": 1024}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randomised(projection):
    """Without zeros and ones, behind which a missing bias or scale could hide."""
    with torch.no_grad():
        for parameter in projection.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return projection


def context_i2w(**options):
    projection = randomised(ImageToWordProjection.build("context_i2w", D, H, vision_hidden_size=W, **options))
    projection.local_gate.data.fill_(0.7)
    return projection


def fti4cir(**options):
    return randomised(ImageToWordProjection.build("fti4cir", D, H, vision_hidden_size=W, **options))


def layer_norm(x, weights, name):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attend(queries, keys, values):
    """One head: `(q, d)`, `(k, d)` and `(k, d)`."""
    scores = (queries @ keys.T) / math.sqrt(queries.shape[-1])
    weights = (scores - scores.max(-1, keepdim=True).values).exp()
    return weights / weights.sum(-1, keepdim=True) @ values


def assert_close_in_single_precision(words, exact):
    assert words.dtype == torch.float32 and (words - exact).norm() < 1e-6 * exact.norm()


# Context-I2W


def context_i2w_oracle(weights, patches, context, *, heads=8, size=64, depth=6):
    def extractor(media):
        prefix = "VT_Extractor"
        latents = weights[f"{prefix}.latents"]
        for layer in range(depth):
            name = f"{prefix}.layers.{layer}"
            normed = layer_norm(latents, weights, f"{name}.0.norm_latents")
            sources = torch.cat([layer_norm(media, weights, f"{name}.0.norm_media"), normed])
            queries = normed @ weights[f"{name}.0.to_q.weight"].T
            both = sources @ weights[f"{name}.0.to_kv.weight"].T
            keys, values = both[:, : heads * size], both[:, heads * size :]
            parts = [slice(head * size, (head + 1) * size) for head in range(heads)]
            attended = torch.cat([attend(queries[:, at], keys[:, at], values[:, at]) for at in parts], dim=1)
            latents = latents + attended @ weights[f"{name}.0.to_out.weight"].T
            hidden = gelu(layer_norm(latents, weights, f"{name}.1.0") @ weights[f"{name}.1.1.weight"].T)
            latents = latents + hidden @ weights[f"{name}.1.3.weight"].T
        return layer_norm(latents, weights, f"{prefix}.norm")

    def to_word(state, suffix):
        x = layer_norm(state, weights, f"ln_post{suffix}") @ weights[f"proj{suffix}"]
        for layer in (0, 1):
            name = f"layers{suffix}.{layer}.0"
            x = (weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]).clamp(min=0)
        return weights[f"fc_out{suffix}.weight"] @ x + weights[f"fc_out{suffix}.bias"]

    words = []
    for tokens, text in zip(patches, context, strict=True):
        channels = weights["to_c.weight"] @ text
        tokens = torch.stack([(weights["W_R.weight"] @ token) * channels for token in tokens])
        gate = torch.tanh(weights["local_gate"])
        words.append(to_word(tokens[0], "") + gate * to_word(extractor(tokens[1:]).mean(0), "_local"))
    return torch.stack(words).unsqueeze(1)


@pytest.mark.parametrize(
    "options", [{}, {"num_latents": 3, "latent_depth": 2, "latent_heads": 3, "latent_head_dim": 5}]
)
def test_context_i2w_is_its_formula(options):
    projection = context_i2w(**options)
    patches, context = torch.randn(3, 7, W), torch.randn(3, D)
    names = {"latent_depth": "depth", "latent_heads": "heads", "latent_head_dim": "size"}
    sizes = {names[option]: value for option, value in options.items() if option in names}
    exact = {name: tensor.double() for name, tensor in projection.state_dict().items()}
    expected = context_i2w_oracle(exact, patches.double(), context.double(), **sizes)
    words = projection(torch.randn(3, D), patches, context)
    assert words.shape == (3, 1, H) and words.std() > 0.05
    assert_close_in_single_precision(words, expected)
    words = projection.double()(torch.randn(3, D), patches, context)
    torch.testing.assert_close(words, expected, rtol=0, atol=1e-12)


def test_context_i2w_is_its_formula_at_the_width_of_l14():
    projection = ImageToWordProjection.build("context_i2w", **L14).double()
    randomised(projection)
    projection.local_gate.data.fill_(-0.3)
    patches, context = torch.randn(2, 257, 1024).double(), torch.randn(2, 768).double()
    expected = context_i2w_oracle(projection.state_dict(), patches, context)
    words = projection(torch.zeros(2, 768), patches, context)
    torch.testing.assert_close(words, expected, rtol=1e-9, atol=1e-9)


def test_context_i2w_has_the_published_keys_but_for_the_weight_norm():
    with torch.device("meta"):
        projection = ImageToWordProjection.build("context_i2w", **L14)
    expected = {
        **dict.fromkeys(("proj", "proj_local"), (1024, 768)),
        "local_gate": (1,),
        "to_c.weight": (1024, 768),
        "W_R.weight": (1024, 1024),
        "VT_Extractor.latents": (4, 1024),
    }
    norms = ["ln_post", "ln_post_local", "VT_Extractor.norm"]
    for layer in range(6):
        name = f"VT_Extractor.layers.{layer}"
        norms += [f"{name}.0.norm_media", f"{name}.0.norm_latents", f"{name}.1.0"]
        expected |= {
            f"{name}.0.to_q.weight": (512, 1024),
            f"{name}.0.to_kv.weight": (1024, 1024),
            f"{name}.0.to_out.weight": (1024, 512),
            f"{name}.1.1.weight": (4096, 1024),
            f"{name}.1.3.weight": (1024, 4096),
        }
    expected |= {f"{name}.{kind}": (1024,) for name in norms for kind in ("weight", "bias")}
    for suffix in ("", "_local"):
        linears = {f"layers{suffix}.0.0": (512, 768), f"layers{suffix}.1.0": (512, 512), f"fc_out{suffix}": (768, 512)}
        for name, shape in linears.items():
            expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    assert {name: tuple(tensor.shape) for name, tensor in projection.state_dict().items()} == expected
    # The published one keeps the direction of `W_R`'s rows and, besides, 1024 lengths `W_R.weight_g`; folded, the
    # lengths are in the matrix.
    assert projection.num_parameters() == 68_471_297 - 1024


def test_context_i2w_starts_as_published():
    projection = ImageToWordProjection.build("context_i2w", 64, 96, vision_hidden_size=144)
    assert projection.local_gate.tolist() == [0]
    assert projection.proj.shape == (144, 96)
    for weight in (projection.proj, projection.proj_local):
        assert abs(weight.std() - 1 / 12) < 0.003 and abs(weight.mean()) < 0.003
    assert 0.9 < projection.VT_Extractor.latents.std() < 1.1
    assert not torch.equal(projection.proj, projection.proj_local)
    assert projection.ln_post.weight.eq(1).all() and projection.ln_post.bias.eq(0).all()


def test_context_i2w_drops_between_linear_and_relu_of_the_word_layers_only():
    projection = context_i2w()
    dropped = {name: module.p for name, module in projection.named_modules() if isinstance(module, nn.Dropout)}
    assert dropped == dict.fromkeys(("layers.0.1", "layers.1.1", "layers_local.0.1", "layers_local.1.1"), 0.1)
    for block in (*projection.layers, *projection.layers_local):
        assert [type(layer) for layer in block] == [nn.Linear, nn.Dropout, nn.ReLU]
    # Without them nothing is random in training.
    inputs = torch.randn(2, D), torch.randn(2, 7, W), torch.randn(2, D)
    projection.train()
    assert not torch.equal(projection(*inputs), projection(*inputs))
    for module in projection.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    assert torch.equal(projection(*inputs), projection(*inputs))


def test_a_shut_gate_gives_gradient_to_itself_and_to_nothing_behind_it():
    projection = context_i2w()
    patches, context = torch.randn(3, 7, W, requires_grad=True), torch.randn(3, D, requires_grad=True)
    embeds = torch.randn(3, D, requires_grad=True)
    projection.local_gate.data.fill_(0)
    shut = projection(embeds, patches, context)
    with torch.no_grad():
        projection.local_gate.fill_(1)
        local = (projection(embeds, patches, context) - shut) / math.tanh(1)
        projection.local_gate.fill_(0)
    projection(embeds, patches, context).sum().backward()
    torch.testing.assert_close(projection.local_gate.grad, local.sum().reshape(1), rtol=1e-4, atol=1e-4)
    assert projection.local_gate.grad.abs() > 0.1
    for name, parameter in projection.named_parameters():
        behind = "_local" in name or name.startswith("VT_Extractor")
        assert parameter.grad.abs().max().gt(0) != behind, name
    # The global word is that of the class token, and no word reads the image embedding.
    assert patches.grad[:, 0].abs().max() > 0 and context.grad.abs().max() > 0
    assert not patches.grad[:, 1:].any() and embeds.grad is None
    patches.grad = None
    projection.local_gate.data.fill_(0.5)
    projection.zero_grad()
    projection(embeds, patches, context).sum().backward()
    assert patches.grad[:, 1:].abs().max() > 0
    assert all(parameter.grad.abs().max() > 0 for parameter in projection.parameters())


def test_context_i2w_says_what_it_lacks():
    projection = context_i2w(base_model="some/clip")
    embeds, patches, context = torch.randn(3, D), torch.randn(3, 7, W), torch.randn(3, D)
    with pytest.raises(ValueError, match="reads `patch_embeds`, but got None. Give the vision encoder's last hidden"):
        projection(embeds, context_embeds=context)
    with pytest.raises(ValueError, match="reads `context_embeds`, but got None.*placeholder included.*original one"):
        projection(embeds, patches)
    for bad in (patches[:2], patches[..., 1:], patches[0], patches[:, :0]):
        with pytest.raises(ValueError, match=r"`patch_embeds` must have shape \(3, 1 \+ patches, 40\), but have \("):
            projection(embeds, bad, context)
    for bad in (context[:1], context[:, 1:], context[0]):
        with pytest.raises(ValueError, match=r"`context_embeds` must have shape \(3, 24\), .* have \("):
            projection(embeds, patches, bad)
    with pytest.raises(ValueError, match="`context_i2w` projection makes no words of texts.*`fit_surrogate`"):
        projection.project_text(embeds)


# FTI4CIR


def fti4cir_oracle(weights, embeds, patches, *, layers=3, threshold=0.05, most=12):
    def mlp(x, name):
        for layer in (0, 3):
            x = gelu(weights[f"{name}.layers.{layer}.weight"] @ x + weights[f"{name}.layers.{layer}.bias"])
        return weights[f"{name}.layers.6.weight"] @ x + weights[f"{name}.layers.6.bias"]

    templates = weights["templates"][0]
    width = templates.shape[1]
    words = []
    for image, tokens in zip(embeds, patches, strict=True):
        x = torch.cat([templates, tokens])
        for layer in range(layers):
            name = f"transformer.layers.{layer}"
            normed = layer_norm(x, weights, f"{name}.norm1")
            both = weights[f"{name}.attn.to_keys_values.weight"]
            keys, values = normed @ both[:width].T, normed @ both[width:].T
            attended = attend(normed @ weights[f"{name}.attn.to_queries.weight"].T, keys, values)
            x = x + attended @ weights[f"{name}.attn.project.weight"].T + weights[f"{name}.attn.project.bias"]
            hidden = layer_norm(x, weights, f"{name}.norm2") @ weights[f"{name}.mlp.fc1.weight"].T
            hidden = (hidden + weights[f"{name}.mlp.fc1.bias"]).clamp(min=0)
            x = x + hidden @ weights[f"{name}.mlp.fc2.weight"].T + weights[f"{name}.mlp.fc2.bias"]
        linear = x[: len(templates)] @ weights["local_atte_fc.0.weight"].T + weights["local_atte_fc.0.bias"]
        features = 1 / (1 + (-linear).exp())
        products = [float(feature @ image) for feature in features]
        exponentials = [math.exp(product - max(products)) for product in products]
        shares = [value / sum(exponentials) for value in exponentials]
        number = min(max(sum(share > threshold for share in shares), 1), most)
        chosen = sorted(sorted(range(len(shares)), key=lambda k: -shares[k])[:number])
        row = [mlp(image, "phi_s"), *(mlp(features[k] / features[k].norm(), "phi_a") for k in chosen)]
        words.append(row)
    return words


def assert_words(words, expected, *, atol):
    for row, wanted in zip(words, expected, strict=True):
        torch.testing.assert_close(row[: len(wanted)], torch.stack(wanted), rtol=0, atol=atol)
        assert not row[len(wanted) :].any()


def test_fti4cir_is_its_formula():
    projection = fti4cir()
    embeds, patches = torch.randn(6, D) * torch.tensor([[0.1, 1, 1, 2, 3, 4]]).T, torch.randn(6, 7, W)
    words = projection(embeds, patches)
    assert words.shape == (6, 13, H) and words.std() > 0.05
    exact = {name: tensor.double() for name, tensor in projection.state_dict().items()}
    expected = fti4cir_oracle(exact, embeds.double(), patches.double())
    numbers = [len(row) for row in expected]
    assert projection.count_words(words).tolist() == numbers
    for row, wanted in zip(words, expected, strict=True):
        assert_close_in_single_precision(row[: len(wanted)], torch.stack(wanted))
        assert not row[len(wanted) :].any()
    # The numbers differ, so that the choice is seen, and the smallest embedding leaves no template above a twentieth.
    assert len(set(numbers)) > 2 and numbers[0] == 2
    assert_words(projection.double()(embeds, patches), expected, atol=1e-12)


def test_fti4cir_is_its_formula_at_the_width_of_l14():
    projection = ImageToWordProjection.build("fti4cir", **L14).double()
    embeds, patches = torch.randn(2, 768).double(), torch.randn(2, 257, 1024).double()
    expected = fti4cir_oracle(projection.state_dict(), embeds, patches)
    assert_words(projection(embeds, patches), expected, atol=1e-9)


def test_fti4cir_has_the_published_keys():
    with torch.device("meta"):
        projection = ImageToWordProjection.build("fti4cir", **L14)
    expected = {"templates": (1, 24, 1024)}
    linears = {"local_atte_fc.0": (768, 1024)}
    for name in ("phi_s", "phi_a"):
        linears |= {f"{name}.layers.0": (3072, 768), f"{name}.layers.3": (3072, 3072), f"{name}.layers.6": (768, 3072)}
    for layer in range(3):
        name = f"transformer.layers.{layer}"
        linears |= {f"{name}.attn.project": (1024, 1024)}
        linears |= {f"{name}.mlp.fc1": (2048, 1024), f"{name}.mlp.fc2": (1024, 2048)}
        expected |= {f"{name}.attn.to_queries.weight": (1024, 1024)}
        expected |= {f"{name}.attn.to_keys_values.weight": (2048, 1024)}
        expected |= {f"{name}.norm{i}.{kind}": (1024,) for i in (1, 2) for kind in ("weight", "bias")}
    for name, shape in linears.items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    assert {name: tuple(tensor.shape) for name, tensor in projection.state_dict().items()} == expected
    assert len(expected) == 51
    assert projection.num_parameters() == 54_327_552


def test_the_templates_differ_from_the_start_and_the_layers_have_the_width_that_was_asked():
    projection = ImageToWordProjection.build("fti4cir", D, H, vision_hidden_size=W, selector_mlp_ratio=1.5)
    assert 0.9 < projection.templates.std() < 1.1
    assert [layer.mlp.fc1.out_features for layer in projection.transformer.layers] == [60, 60, 60]


class Given(nn.Module):
    """Gives what it holds, whatever comes in."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, states):
        return self.features.expand(states.shape[0], -1, -1)


def chosen_templates(shares, **options):
    """Which templates get a word, in order, if these are their shares of the attention."""
    number = len(shares)
    projection = ImageToWordProjection.build(
        "fti4cir", number + 1, vision_hidden_size=8, num_templates=number, **options
    )
    # The product with the image embedding (1, 0, 0 ...) is the logarithm of the share; the rest names the template.
    logarithms = torch.tensor(shares, dtype=torch.float64).log().float()
    projection.local_atte_fc = Given(torch.cat([logarithms[:, None], 100 * torch.eye(number)], dim=1))
    projection.phi_a = nn.Identity()
    image = torch.eye(number + 1)[:1]
    words = projection(image, torch.randn(1, 3, 8))[0]
    n = int(projection.count_words(words[None])) - 1
    torch.testing.assert_close(words[1 : n + 1].norm(dim=-1), torch.ones(n))
    assert not words[n + 1 :].any()
    return (words[1 : n + 1, 1:]).argmax(dim=-1).tolist()


def test_attributes_come_in_the_order_of_their_templates():
    shares = [0.001] * 24
    shares[3], shares[20], shares[11], shares[0] = 0.1, 0.6, 0.2, 0.046
    assert chosen_templates(shares) == [3, 11, 20]
    shares[0] = 0.06
    assert chosen_templates(shares) == [0, 3, 11, 20]


def test_without_a_share_above_the_threshold_the_largest_gets_a_word():
    shares = [0.04] * 24
    shares[17] = 0.048
    assert chosen_templates(shares) == [17]
    assert chosen_templates([1 / 24] * 24) == [0]


def test_of_more_than_twelve_the_twelve_largest_get_a_word():
    shares = [1e-9] * 24
    for place, template in enumerate(range(23, 8, -1)):  # 15 templates above, the later the larger but for one
        shares[template] = 0.0667 - 0.0005 * place
    shares[9] = 0.07
    assert chosen_templates(shares) == [9, *range(13, 24)]
    assert chosen_templates(shares, num_pseudo_words=4) == [9, 22, 23]


def test_a_share_at_the_threshold_is_not_above_it():
    quarters = [0.25] * 4  # exact in binary
    assert chosen_templates(quarters, num_pseudo_words=5, attribute_threshold=0.25) == [0]
    assert chosen_templates(quarters, num_pseudo_words=5, attribute_threshold=0.2499) == [0, 1, 2, 3]


def test_of_equal_shares_the_earlier_templates_is_taken():
    shares = [1e-9] * 24
    shares[5:20] = [1 / 15] * 15
    shares[23] = 0.08
    assert all(chosen_templates(shares) == [*range(5, 16), 23] for _ in range(3))


def test_every_number_of_attributes_from_one_to_twelve_occurs():
    for number in range(1, 13):
        shares = [0.99 / number if k < number else 0.01 / (24 - number) for k in range(24)]
        assert chosen_templates(shares) == list(range(number))


def test_the_choice_is_made_in_single_precision_whatever_the_weights_are():
    projection = ImageToWordProjection.build(
        "fti4cir", D, vision_hidden_size=W, num_templates=4, num_pseudo_words=2
    ).half()
    # The products are 768 - 1/32 (3 - k): half precision, with steps of 0.5, would see four equal ones.
    features = torch.ones(4, D)
    features[:, 0] -= torch.arange(3, -1, -1) / 1024
    features[:, 1] = torch.tensor([1, 1, 1, 0.5])  # by which the last is known
    features[:, 2] = torch.tensor([1, 1, 1, 1.5])
    projection.local_atte_fc = Given(features.half())
    projection.phi_s, projection.phi_a = nn.Identity(), nn.Identity()
    words = projection(torch.full((1, D), 32.0), torch.randn(1, 3, W))
    expected = features[3] / features[3].norm()
    torch.testing.assert_close(words[0, 1].float(), expected, rtol=0, atol=1e-3)
    assert words.dtype == torch.float16


def test_the_choice_is_made_in_single_precision_under_autocast():
    projection = fti4cir()
    seen = []
    projection.phi_a.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    inputs = torch.randn(4, D), torch.randn(4, 7, W)
    plain = projection(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = projection(*inputs)
    assert torch.equal(seen[0][0], seen[1][0]) and seen[1][0].dtype == torch.float32
    assert seen[1][1].dtype == cast.dtype == torch.bfloat16
    assert torch.equal(projection.count_words(cast), projection.count_words(plain))


def test_fti4cir_drops_within_the_word_networks_only():
    projection = fti4cir()
    dropped = {name: module.p for name, module in projection.named_modules() if isinstance(module, nn.Dropout)}
    places = ("phi_s.layers.2", "phi_s.layers.5", "phi_a.layers.2", "phi_a.layers.5")
    assert dropped == dict.fromkeys(places, 0.5)
    for network in (projection.phi_s, projection.phi_a):
        assert [type(layer) for layer in network.layers] == 2 * [nn.Linear, nn.GELU, nn.Dropout] + [nn.Linear]
    inputs = torch.randn(4, D), torch.randn(4, 7, W)
    numbers = projection.count_words(projection(*inputs))
    projection.train()
    first, second = projection(*inputs), projection(*inputs)
    assert not torch.equal(first, second)
    assert torch.equal(projection.count_words(first), numbers) and torch.equal(projection.count_words(second), numbers)


def test_gradients_of_fti4cir_go_where_a_word_comes_from():
    projection = fti4cir()
    embeds, patches = torch.randn(3, D, requires_grad=True), torch.randn(3, 7, W, requires_grad=True)

    def gradients(part):
        """Names of what a sum over words depends on."""
        projection.zero_grad()
        embeds.grad = patches.grad = None
        part(projection(embeds, patches)).sum().backward()
        tensors = {**dict(projection.named_parameters()), "embeds": embeds, "patches": patches}
        return {name for name, tensor in tensors.items() if tensor.grad is not None and tensor.grad.any()}

    everything = {name for name, _ in projection.named_parameters()} | {"embeds", "patches"}
    of_subject = {name for name in everything if name.startswith("phi_s")} | {"embeds"}
    assert gradients(lambda words: words[:, 0]) == of_subject
    # The image embedding says which features get a word; the words themselves do not depend on it.
    assert gradients(lambda words: words[:, 1:]) == everything - of_subject
    assert gradients(lambda words: words) == everything
    number = projection.count_words(projection(embeds, patches))[0]
    assert 1 < number < 13
    assert gradients(lambda words: words[0, number:]) == set()


def test_the_subjects_word_is_all_that_a_text_gives():
    projection = fti4cir()
    embeds = torch.randn(3, D)
    words = projection.project_text(embeds)
    assert words.shape == (3, projection.text_words, H) == (3, 1, H)
    assert torch.equal(words, projection(embeds, torch.randn(3, 7, W))[:, :1])
    assert projection.count_words(words).tolist() == [1, 1, 1]
    assert projection.template_for(1) == projection.config.prompt_template == "a photo of $ but {caption}"


def test_the_template_grows_with_the_number_of_words():
    projection = fti4cir()
    assert projection.template_for(2) == "a photo of $ with $ but {caption}"
    assert projection.template_for(4) == "a photo of $ with $ $ $ but {caption}"
    for number in range(1, 14):
        template = projection.template_for(number)
        assert check_template(template) == template and template.split().count("$") == number
    for number in (0, 14):
        with pytest.raises(ValueError, match=f"`num_words` must be between 1 and 13, but is {number}"):
            projection.template_for(number)
    with pytest.raises(ValueError, match="`lincir` projection is always 1, but got 2"):
        ImageToWordProjection.build("lincir", D, H).template_for(2)


def test_a_word_of_zeros_between_others_is_counted():
    words = torch.zeros(4, 13, H)
    words[0, [0, 1, 3]] = 1
    words[1, 12] = 1
    words[2, 1] = float("nan")
    assert fti4cir().count_words(words).tolist() == [4, 13, 2, 2]
    assert ImageToWordProjection.build("lincir", D, H).count_words(words[:, :1]).tolist() == [1, 1, 1, 1]


def test_fti4cir_says_what_it_lacks():
    projection = fti4cir()
    with pytest.raises(ValueError, match="`fti4cir` projection reads `patch_embeds`, but got None"):
        projection(torch.randn(3, D))
    with pytest.raises(
        ValueError, match=r"`patch_embeds` must have shape \(3, 1 \+ patches, 40\), but have \(3, 7, 24"
    ):
        projection(torch.randn(3, D), torch.randn(3, 7, D))
    with pytest.raises(ValueError, match="are 25 wide"):
        projection.project_text(torch.randn(3, D + 1))


# Both


def test_the_facts_of_the_publications():
    facts = {
        cls: (cls.prompt_template, cls.image_preprocess, cls.needs_patches, cls.needs_context, cls.text_trainings[0])
        for cls in (ContextI2WProjection, FTI4CIRProjection, LinCIRProjection)
    }
    assert facts[ContextI2WProjection] == ("a photo of $ , {caption}", "clip", True, True, "literal")
    assert facts[FTI4CIRProjection] == ("a photo of $ but {caption}", "targetpad", True, False, "subject")
    assert facts[LinCIRProjection] == ("a photo of $ that {caption}", "clip", False, False, "embedding")
    assert ContextI2WConfig().context_placeholder_id == 49405
    assert FTI4CIRConfig().attribute_template == "a photo of $ with {attributes} but {caption}"
    assert FTI4CIRConfig().prompt_template == FTI4CIRProjection.prompt_template
    assert FTI4CIRConfig().num_pseudo_words == FTI4CIRProjection.num_pseudo_words == 13


OPTIONS = {
    "context_i2w": {
        **{"num_latents": 2, "latent_depth": 1, "latent_heads": 3, "latent_head_dim": 5, "latent_ff_mult": 2},
        "context_placeholder_id": 7,
    },
    "fti4cir": {
        **{"num_templates": 9, "num_pseudo_words": 5, "attribute_threshold": 0.2, "selector_layers": 2},
        **{"selector_heads": 4, "selector_mlp_ratio": 1.5, "attribute_template": "$ and {attributes} so {caption}"},
        "prompt_template": "$ so {caption}",
    },
}


@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_saved_projection_of_patches_comes_back_whole(name, tmp_path):
    projection = randomised(ImageToWordProjection.build(name, D, H, vision_hidden_size=W, **OPTIONS[name]))
    projection.save_pretrained(tmp_path)
    loaded = ImageToWordProjection.from_pretrained(tmp_path)
    assert type(loaded) is type(projection) and type(loaded.config) is type(projection.config)
    for option, value in {**OPTIONS[name], "vision_hidden_size": W}.items():
        assert getattr(loaded.config, option) == value, option
    inputs = torch.randn(3, D), torch.randn(3, 7, W), torch.randn(3, D)
    assert torch.equal(loaded(*inputs), projection(*inputs))
    by_defaults = ImageToWordProjection.build(name, D, H, vision_hidden_size=W)
    assert len(by_defaults.state_dict()) > len(loaded.state_dict())


@pytest.mark.parametrize("name", list(OPTIONS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_inputs_of_another_precision_are_taken(name, dtype):
    projection = ImageToWordProjection.build(name, D, H, vision_hidden_size=W)
    inputs = torch.randn(3, D), torch.randn(3, 7, W), torch.randn(3, D)
    expected = projection(*inputs)
    words = projection.to(dtype)(*inputs)
    assert words.dtype == dtype and words.device == inputs[0].device
    torch.testing.assert_close(words[:, 0].float(), expected[:, 0], rtol=0, atol=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", list(OPTIONS))
def test_words_are_the_same_on_a_gpu(name):
    projection = randomised(ImageToWordProjection.build(name, D, H, vision_hidden_size=W))
    inputs = torch.randn(3, D), torch.randn(3, 7, W), torch.randn(3, D)
    expected = projection(*inputs)
    words = projection.cuda()(*(tensor.cuda() for tensor in inputs))
    assert words.device.type == projection.count_words(words).device.type == "cuda"
    torch.testing.assert_close(words.cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_the_width_of_the_patches_must_be_given(name):
    with pytest.raises(
        ValueError, match=f"`{name}` projection needs `vision_hidden_size`.*`vision_config.hidden_size`"
    ):
        ImageToWordProjection.build(name, D, H)
    with pytest.raises(ValueError, match="`vision_hidden_size` must be at least 1, but is 0"):
        ImageToWordProjection.build(name, D, H, vision_hidden_size=0)


def test_a_configuration_of_another_projection_is_refused():
    with pytest.raises(TypeError, match="must be a `ContextI2WConfig`, but is a `ProjectionConfig`.*build"):
        ContextI2WProjection(ProjectionConfig(vision_hidden_size=W))


def test_projections_without_patches_are_saved_and_loaded_as_before(tmp_path):
    ImageToWordProjection.build("lincir", D, H).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert not {"num_latents", "num_templates", "attribute_template"} & config.keys()
    del config["vision_hidden_size"]  # as it was saved before there was one
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(ImageToWordProjection.from_pretrained(tmp_path)) is LinCIRProjection


@pytest.mark.parametrize(
    ("config_class", "options", "message"),
    [
        (ContextI2WConfig, {"latent_depth": 0}, "`latent_depth` must be at least 1, but is 0"),
        (FTI4CIRConfig, {"num_templates": 0}, "`num_templates` must be at least 1"),
        (FTI4CIRConfig, {"num_pseudo_words": 1}, "`num_pseudo_words` must be between 2 .* and 25 .*, but is 1"),
        (FTI4CIRConfig, {"num_templates": 4}, "between 2 .* and 5 .*, but is 13"),
        (
            FTI4CIRConfig,
            {"vision_hidden_size": 10, "selector_heads": 4},
            "must divide `vision_hidden_size` 10, but is 4",
        ),
        (FTI4CIRConfig, {"attribute_template": "a $ but {caption}"}, "must hold `{attributes}` exactly once"),
        (FTI4CIRConfig, {"input_dim": 0}, "`input_dim` must be at least 1"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(config_class, options, message):
    with pytest.raises(ValueError, match=message):
        config_class(**options)
