"""The offline world: scenes, captions, pictures and a small CLIP that knows them. It runs the method with no Hub."""

from .clip import ASSETS
from .scenes import HELD_OUT, Object, Scene, sample_scene


__all__ = ["ASSETS", "HELD_OUT", "Object", "Scene", "sample_scene"]
