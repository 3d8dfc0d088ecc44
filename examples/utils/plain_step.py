"""The published training step written out plainly, and triplets of random words to run it on: for comparison."""

import random


CONTEXT = 77
# How many of a thousand COCO val2017 captions have so many CLIP tokens, BOS and EOS included (mean 13.5) ...
CAPTION_LENGTHS = {9: 4, 10: 41, 11: 147, 12: 196, 13: 194, 14: 152, 15: 100, 16: 64, 17: 37, 18: 22, 19: 14, 20: 9}
CAPTION_LENGTHS |= {21: 6, 22: 4, 23: 2, 24: 2, 25: 1, 26: 1, 27: 1, 28: 1, 29: 1}
# ... and how many of a hundred conditioning texts, without BOS and EOS (mean 9.0; CIRCO's 10.6, FashionIQ's 5.7).
CONDITIONING_LENGTHS = {4: 3, 5: 7, 6: 10, 7: 13, 8: 14, 9: 14, 10: 12, 11: 9, 12: 7, 13: 5, 14: 3, 15: 2, 17: 1}


def nt_xent(queries, anchors, temperature: float):
    """NT-Xent over 2N joint vectors as a formula: mean of -log(exp(s_kp) / sum of exp(s_kl), l not k)."""
    import torch

    joint = torch.nn.functional.normalize(torch.cat([anchors, queries]).float(), dim=-1)
    scores = (joint @ joint.T / temperature).exp()
    number = len(queries)
    partner = torch.cat([scores.diagonal(number), scores.diagonal(-number)])
    return -(partner / (scores.sum(1) - scores.diagonal())).log().mean()


class PlainStep:
    """The published arithmetic: 77 tokens everywhere, two sequences a triplet, three frozen passes."""

    def __init__(self, model, frozen, projection, tokenizer, temperature: float):
        self.model, self.frozen, self.projection = model, frozen, projection
        self.tokenizer, self.temperature = tokenizer, temperature
        self.placeholder = tokenizer("$", add_special_tokens=False)["input_ids"][0]

    def tokens(self, texts: list[str]):
        options = {"padding": "max_length", "truncation": True, "max_length": CONTEXT, "return_tensors": "pt"}
        return self.tokenizer(texts, **options)["input_ids"].to(self.model.device)

    def loss(self, rows: list[dict]):
        import torch

        composed = self.tokens([f"a photo of $ that {row['conditioning_caption']}" for row in rows])
        bare = self.tokens(["a photo of $"] * len(rows))
        targets = self.tokens([row["target_caption"] for row in rows])
        references = self.tokens([row["reference_caption"] for row in rows])
        with torch.no_grad():
            anchors = self.frozen(input_ids=torch.cat([targets, references])).text_embeds
            words = self.projection.project_text(self.frozen(input_ids=references).text_embeds.float())
        prompts, words = torch.cat([composed, bare]), torch.cat([words, words])
        at = prompts == self.placeholder

        def put_words_in(module, args, embeds):
            return torch.where(at[..., None], words.to(embeds.dtype), embeds)

        hook = self.model.get_input_embeddings().register_forward_hook(put_words_in)
        try:
            queries = self.model(input_ids=prompts).text_embeds
        finally:
            hook.remove()
        return nt_xent(queries, anchors, self.temperature)


def draw_triplets(number: int, tokenizer, seed: int) -> list[dict]:
    """Random words of one token each, as many as real texts have; a target is its reference with one word replaced."""
    from rtd_hf.shapes.clip import world_texts

    words = sorted({word for text in world_texts(500, seed=0) for word in text.split()} - {"$"})
    words = [word for word in words if len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1]
    rng = random.Random(seed)

    def lengths(weights: dict[int, int]) -> list[int]:
        return rng.choices(list(weights), weights.values(), k=number)

    triplets = []
    for caption, conditioning in zip(lengths(CAPTION_LENGTHS), lengths(CONDITIONING_LENGTHS), strict=True):
        reference = rng.choices(words, k=caption - 2)
        target = list(reference)
        target[rng.randrange(len(target))] = rng.choice(words)
        texts = (reference, rng.choices(words, k=conditioning), target)
        names = ("reference_caption", "conditioning_caption", "target_caption")
        triplets.append({name: " ".join(text) for name, text in zip(names, texts, strict=True)})
    return triplets
