"""Pictures with captions from the training combinations: what the small CLIP is trained on."""

import random

from torch.utils.data import Dataset

from .captions import describe_fully, describe_scene
from .pictures import draw_scene
from .scenes import Split, sample_scene


class ScenePairs(Dataset):
    """Picture and caption pairs, drawn on demand; the index and the seed alone decide a pair.

    Args:
        number (`int`): How many pairs.
        seed (`int`, *optional*, defaults to 0): Another seed gives other pairs.
        split (`str`, *optional*, defaults to `"train"`): The combinations to draw from.
        full_captions (`float`, *optional*, defaults to 0.3): Share of captions that leave nothing out.
    """

    def __init__(self, number: int, *, seed: int = 0, split: Split = "train", full_captions: float = 0.3):
        self.number, self.seed, self.split, self.full_captions = number, seed, split, full_captions

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict:
        """One pair: `scene`, `caption` (`str`) and `picture`, also `image` (`uint8` array of shape `(48, 48, 3)`)."""
        if not 0 <= index < self.number:
            raise IndexError(f"`index` must be in 0..{self.number - 1}, got {index}.")
        rng = random.Random(f"{self.split} pair {self.seed} {index}")
        scene = sample_scene(rng, self.split)
        describe = describe_fully if rng.random() < self.full_captions else describe_scene
        caption, picture = describe(scene, rng), draw_scene(scene, rng.getrandbits(63))
        return {"scene": scene, "caption": caption, "picture": picture, "image": picture}


class SceneCaptions(Dataset):
    """Captions alone, drawn on demand; the index and the seed alone decide a caption.

    Args:
        number (`int`): How many captions.
        seed (`int`, *optional*, defaults to 0): Another seed gives other captions.
        split (`str`, *optional*, defaults to `"train"`): The combinations to draw from.
    """

    def __init__(self, number: int, *, seed: int = 0, split: Split = "train"):
        self.number, self.seed, self.split = number, seed, split

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict:
        """One row: `caption` (`str`)."""
        if not 0 <= index < self.number:
            raise IndexError(f"`index` must be in 0..{self.number - 1}, got {index}.")
        rng = random.Random(f"caption {self.seed} {index}")
        return {"caption": describe_scene(sample_scene(rng, self.split), rng)}
