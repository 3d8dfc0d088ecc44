"""Other forms in which a text encoder is published. The import line of a module is its registration."""

from .base import LAYOUTS, ImportReport, Layout, Parts, export_layout
from .clip_model import CLIPModelLayout
from .onnx import ONNXLayout
from .open_clip import OpenCLIPCustomTextLayout, OpenCLIPLayout
from .openai import OpenAILayout
from .rtd import PublishedRTDLayout
from .sentence_transformers import SentenceTransformersLayout, load_sentence_transformer
from .state_dicts import StateDictLayout, import_layout


__all__ = [
    "CLIPModelLayout",
    "LAYOUTS",
    "ImportReport",
    "Layout",
    "ONNXLayout",
    "OpenAILayout",
    "OpenCLIPCustomTextLayout",
    "OpenCLIPLayout",
    "Parts",
    "PublishedRTDLayout",
    "SentenceTransformersLayout",
    "StateDictLayout",
    "export_layout",
    "import_layout",
    "load_sentence_transformer",
]
