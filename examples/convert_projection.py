"""Converts a projection that its authors published into `config.json` and `model.safetensors`.

    python examples/convert_projection.py --checkpoint SEARLE_ViT-L14.pt --output_dir outputs/searle \\
        --base_model openai/clip-vit-large-patch14 --projection_type searle

The checkpoint is a file, or one on the Hub (`navervision/zeroshot-cir-models:lincir_large.pt`). Nothing in it is run.
Without a checkpoint at hand, `--demo LAYOUT` writes one of random weights in that published layout and converts it.
"""

# ci: --demo lincir --output_dir {tmp}
# ci: --demo searle --output_dir {tmp}
# ci: --demo pic2word --output_dir {tmp}

import argparse
import tempfile
from pathlib import Path

from utils.arguments import one_screen_errors, without_warnings


DEMOS = ("lincir", "searle", "pic2word")
DEMO_WIDTH, DEMO_BASE_MODEL = 512, "openai/clip-vit-base-patch32"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="The authors' file; on the Hub `repo_id:filename` or `hf://...`.")
    source.add_argument("--demo", choices=DEMOS, help="Convert a file of random weights in this published layout.")
    parser.add_argument("--output_dir", required=True, help="New, empty or earlier output folder.")
    parser.add_argument("--base_model", help="Hub id of the CLIP that the projection was trained on.")
    parser.add_argument("--projection_type", help="`searle` or `lincir`, whose files look the same; else it is read.")
    return parser.parse_args()


def write_demo(layout: str, folder: str) -> Path:
    """Random weights for ViT-B/32 as `torch.save` writes them in the published layout."""
    import torch

    from rtd_hf import ImageToWordProjection

    state = ImageToWordProjection.build(layout, DEMO_WIDTH).state_dict()
    contents = {
        "lincir": state,
        "searle": {"epoch": 100, "Phi": state},
        "pic2word": {
            "epoch": 30,
            "name": "demo",
            "state_dict": {},
            "state_dict_img2text": {f"module.{key}": tensor for key, tensor in state.items()},
            "optimizer": {},
        },
    }
    path = Path(folder, f"demo_{layout}.pt")
    torch.save(contents[layout], path)
    return path


def convert(checkpoint: str | Path, output_dir: str, base_model: str | None, projection_type: str | None) -> None:
    import torch

    from rtd_hf import ImageToWordProjection, prepare_output_dir
    from rtd_hf.contexts import quiet_transformers
    from rtd_hf.projections.originals import load_original

    # 1 the folder first: nobody waits for a conversion that cannot be written
    folder = prepare_output_dir(output_dir)

    # 2 recognise, check, convert
    projection, report = load_original(
        checkpoint, base_model=base_model, projection_type=projection_type, output_loading_info=True
    )
    print(report)

    # 3 save, and prove that the folder holds the same weights and gives the same pseudo-words
    with quiet_transformers():
        projection.save_pretrained(folder)
        reloaded = ImageToWordProjection.from_pretrained(folder)
    config = projection.config
    inputs = {"image_embeds": torch.randn(4, config.input_dim)}
    if projection.needs_patches:
        inputs["patch_embeds"] = torch.randn(4, 50, config.vision_hidden_size)
    if projection.needs_context:
        inputs["context_embeds"] = torch.randn(4, config.input_dim)
    with torch.no_grad():
        same_words = torch.equal(projection(**inputs), reloaded(**inputs))
    expected, found = projection.state_dict(), reloaded.state_dict()
    same_weights = expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
    if not (same_words and same_weights):
        raise ValueError(f"`{folder}` does not give back what was converted. Do not use it; convert again.")
    print(f"{len(found)} tensors and the pseudo-words of 4 random images are equal after reloading.")
    print(f'\n  ImageToWordProjection.from_pretrained("{folder}")')


def main() -> None:
    args = parse_arguments()
    with one_screen_errors(), without_warnings():  # the report says what is to be said
        if args.checkpoint:
            convert(args.checkpoint, args.output_dir, args.base_model, args.projection_type)
            return
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = write_demo(args.demo, folder)
            convert(checkpoint, args.output_dir, args.base_model or DEMO_BASE_MODEL, args.projection_type)


if __name__ == "__main__":
    main()
