"""Text encoders to be scored, in whatever form they come: folder, Hub id, adapter over a base, published `.pt`."""

from pathlib import Path


# What the published files hold besides the weights: a buffer of transformers before 4.31.
OLD_BUFFERS = ("text_model.embeddings.position_ids",)
KEY = "CLIPTextModelWithProjection"


def load_text_encoder(source: str, base: str, *, adapter: str = "", device="cpu"):
    """A text encoder that takes pseudo-words.

    Args:
        source (`str`): Folder or Hub id; a `.pt` or `.pth` file `{"CLIPTextModelWithProjection": state_dict}`, as
            the published script writes; or nothing for the one of `base`.
        base (`str`): Folder or Hub id of the CLIP that a `.pt` file belongs to.
        adapter (`str`, *optional*): Folder or Hub id of a PEFT adapter of that encoder, which is merged into it.
        device (*optional*): Where it is put.

    Returns:
        The encoder, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is damaged, or holds other weights than the base has; the message names them.
    """
    from rtd_hf import AutoTextModelForRTD, check_safetensors
    from rtd_hf.contexts import quiet_transformers

    is_file = Path(source).suffix in (".pt", ".pth", ".bin", ".ckpt")
    name = base if is_file or not source else source
    if Path(name).is_dir():
        check_safetensors(name)
    with quiet_transformers():
        encoder = AutoTextModelForRTD.from_pretrained(name)
    if is_file:
        _load_published(encoder, Path(source), base)
    if adapter:
        encoder = _with_adapter(encoder, adapter, name)
    return encoder.eval().requires_grad_(False).to(device)


def _load_published(encoder, path: Path, base: str) -> None:
    import torch

    from rtd_hf.projections.original_files import read_checkpoint
    from rtd_hf.weights import check_finite

    if not path.is_file():
        raise FileNotFoundError(f"`--text_encoder` {path} does not exist. Give a file, a folder or a Hub id.")
    content = read_checkpoint(path)  # never runs what the file holds
    weights = content.get(KEY, content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        held = ", ".join(map(repr, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"`--text_encoder` {path} must hold `{{{KEY!r}: state_dict}}` or a state dict, got {held}.")
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    weights = {name: value for name, value in weights.items() if name not in OLD_BUFFERS}
    own = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = sorted(name for name in {*own, *found} if own.get(name) != found.get(name))
    if wrong:
        raise ValueError(
            f"`--text_encoder` {path} does not fit the text encoder of `--clip_model` {base}: {len(wrong)} weights "
            f"differ, such as `{wrong[0]}` ({found.get(wrong[0])} in the file, {own.get(wrong[0])} wanted). Give the "
            f"CLIP it was trained from."
        )
    check_finite(weights, str(path))
    encoder.load_state_dict(weights)


def _with_adapter(encoder, adapter: str, name: str):
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(adapter)
    recorded = config.base_model_name_or_path
    # A folder says nothing about what lies in it, so only names on the Hub are compared.
    if recorded and recorded != name and not Path(recorded).exists() and not Path(name).exists():
        raise ValueError(
            f"`--adapter` {adapter} was trained on `{recorded}`, but the encoder is `{name}`. Give that one as "
            f"`--clip_model` or `--text_encoder`."
        )
    return PeftModel.from_pretrained(encoder, adapter).merge_and_unload()
