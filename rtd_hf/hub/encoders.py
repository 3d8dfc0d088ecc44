"""What kind of text encoder it is that is exported, verified or published."""


def has_adapters(model) -> bool:
    """Whether this is a `PeftModel`, asked without importing peft."""
    return hasattr(model, "get_base_model") and hasattr(model, "merge_and_unload")


def backbone_of(model) -> type:
    """The class for training that belongs to a model of it, or to one of its stock class."""
    from ..models import BACKBONES

    by_stock_class = {backbone.stock_class: backbone for backbone in BACKBONES.values()}
    stock_class = getattr(model, "stock_class", type(model))
    if stock_class not in by_stock_class:
        known = sorted(known_class.__name__ for known_class in by_stock_class)
        raise TypeError(
            f"`model` must be a text encoder with its projection ({', '.join(known)}, its class for training, or a "
            f"`PeftModel` around one), but is a `{type(model).__name__}`. Load it with such a class; take a model out "
            "of its parallel wrapper with `accelerator.unwrap_model(model)`."
        )
    return by_stock_class[stock_class]
