"""Text encoders to be scored, in whatever form they come: folder, Hub id, adapter over a base, a checkpoint file."""

from pathlib import Path


FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


def load_text_encoder(source: str, base: str, *, adapter: str = "", device="cpu"):
    """A text encoder that takes pseudo-words.

    Args:
        source (`str`): Folder or Hub id; a file such as the published script's `{"CLIPTextModelWithProjection":
            state_dict}`, or in another layout that can be read; or nothing for the one of `base`.
        base (`str`): Folder or Hub id of the CLIP that a file belongs to.
        adapter (`str`, *optional*): Folder or Hub id of a PEFT adapter of that encoder, which is merged into it.
        device (*optional*): Where it is put.

    Returns:
        The encoder, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is damaged, or holds other weights than the base has; if the adapter does nothing, or
            belongs to another encoder.
    """
    from rtd_hf import AutoTextModelForRTD, check_safetensors, import_layout, load_adapter
    from rtd_hf.contexts import quiet_transformers

    name = source or base
    if Path(name).suffix in FILES and not Path(name).is_dir():
        encoder = import_layout(name, base=base)  # never runs what the file holds
    else:
        if Path(name).is_dir():
            check_safetensors(name)
        with quiet_transformers():
            encoder = AutoTextModelForRTD.from_pretrained(name)
    if adapter:
        encoder = load_adapter(adapter, encoder).merge_and_unload()
    return encoder.eval().requires_grad_(False).to(device)
