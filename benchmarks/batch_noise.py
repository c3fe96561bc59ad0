"""What changes the last digits of the model's outputs: the size of a pass, a place in it, the threads?

    python benchmarks/batch_noise.py

Runs layers of the full size (384 pixels, Swin-B's and BERT's widths, but few of them, with random weights) on
the same inputs in passes of different sizes, in another order, and with another number of threads, and prints
the greatest differences. `tpas.evaluation.ranking` is built on what it shows.
"""

import argparse

import torch

from tpas.configuration_tpas import TPASConfig
from tpas.modeling_tpas import TPASModel


def outputs(
    model: TPASModel, pixel_values: torch.Tensor, input_ids: torch.Tensor, size: int
) -> dict[str, torch.Tensor]:
    """Embeddings, captions' tokens and match logits, computed `size` items at a time."""
    mask = torch.ones_like(input_ids)
    images = [model.get_image_features(part) for part in pixel_values.split(size)]
    texts = [model.get_text_features(part) for part in input_ids.split(size)]
    tokens = torch.cat([image.last_hidden_state for image in images])
    words = torch.cat([text.last_hidden_state for text in texts])
    pairs = zip(tokens.split(size), words.split(size), mask.split(size), strict=True)
    return {
        "image embeddings": torch.cat([image.pooler_output for image in images]),
        "text tokens": words,
        "match logits": torch.cat([model.match(*pair)[:, 1] for pair in pairs]),
    }


def differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> str:
    return "".join(f"{(one[name] - other[name]).abs().max().item():18.1e}" for name in one)


@torch.inference_mode()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, default=8, help="images and captions (default: 8)")
    parser.add_argument("--threads", type=int, default=2, help="against one thread (default: 2)")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = TPASConfig()
    config.vision_config.depths = [1, 1, 2, 1]
    config.text_config.num_hidden_layers = config.num_cross_modal_layers = 2
    model = TPASModel(config).eval()
    items = arguments.items
    pixel_values = torch.randn(items, 3, 384, 384)
    input_ids = torch.randint(5, config.text_config.vocab_size, (items, 40))

    whole = outputs(model, pixel_values, input_ids, items)
    print(f"{'greatest difference':<28}" + "".join(f"{name:>18}" for name in whole))
    for size in sorted({1, 2, 3, items // 2} - {items}):
        part = outputs(model, pixel_values, input_ids, size)
        print(f"{f'passes of {size}, not {items}':<28}{differences(part, whole)}")
    order = torch.randperm(items)
    moved = outputs(model, pixel_values[order], input_ids[order], items)
    print(f"{'another place in the pass':<28}{differences(moved, {n: v[order] for n, v in whole.items()})}")
    torch.set_num_threads(arguments.threads)
    threaded = outputs(model, pixel_values, input_ids, items)
    print(f"{f'{arguments.threads} threads, not 1':<28}{differences(threaded, whole)}")


if __name__ == "__main__":
    main()
