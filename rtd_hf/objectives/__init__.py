"""What projections are fitted with. The import line of a module is its registration."""

from .base import OBJECTIVES, ObjectiveOptions, ProjectionObjective
from .concepts import PhraseBank, generate_phrases, local_generator, nearest_concepts
from .context_i2w import ContextI2WObjective
from .features import EncodedRows
from .frozen_texts import FrozenTexts
from .fti4cir import FTI4CIRObjective
from .inversion import InversionOptions, textual_inversion
from .lincir import LinCIRObjective
from .pic2word import Pic2WordObjective
from .searle import SEARLEObjective
from .surrogates import teach_surrogate
from .towers import FrozenCLIP, read_logit_scale


__all__ = [
    "OBJECTIVES",
    "ContextI2WObjective",
    "EncodedRows",
    "FTI4CIRObjective",
    "FrozenCLIP",
    "FrozenTexts",
    "InversionOptions",
    "LinCIRObjective",
    "ObjectiveOptions",
    "PhraseBank",
    "Pic2WordObjective",
    "ProjectionObjective",
    "SEARLEObjective",
    "generate_phrases",
    "local_generator",
    "nearest_concepts",
    "read_logit_scale",
    "textual_inversion",
    "teach_surrogate",
]
