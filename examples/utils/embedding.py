"""Texts through the text encoder of a CLIP, as numpy arrays."""

from collections.abc import Callable, Sequence

import numpy as np


def text_embedder(name: str, *, device: str = "cpu", batch_size: int = 256) -> Callable[[Sequence[str]], np.ndarray]:
    """What embeds texts: `(n,)` to `(n, D)` float32, not normalised.

    Args:
        name (`str`): Folder or Hub id of a CLIP, or `shapes` for the small one that ships with us.
        device (`str`, *optional*, defaults to `"cpu"`): Where it runs.
        batch_size (`int`, *optional*, defaults to 256): Texts at once.
    """
    from rtd_hf import FrozenCLIP
    from rtd_hf.objectives.frozen_texts import FrozenTexts
    from rtd_hf.shapes import ASSETS
    from rtd_hf.texts import clean_caption

    clip = FrozenCLIP.from_pretrained(str(ASSETS / "clip") if name == "shapes" else name, images=False).to(device)
    texts = FrozenTexts(clip)

    def encode(lines: Sequence[str]) -> np.ndarray:
        lines, parts = [clean_caption(line) for line in lines], []
        for start in range(0, len(lines), batch_size):
            batch = texts.lay_out_plain(lines[start : start + batch_size])
            embeds = texts.encode_plain({key: value.to(device) for key, value in batch.items()})
            parts.append(embeds.cpu().numpy())
        return np.concatenate(parts)

    return encode
