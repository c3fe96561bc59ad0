"""Drawn people encoded by demo_start/ or a model made from it, which the benchmarks of matching share."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from tpas.data.drawn.synthetic_pab import draw_pab
from tpas.data.pab import RetrievalBenchmark, load_pab, retrieval_split
from tpas.data.pab_images import ImageFiles
from tpas.engine.encoding import EncodedTexts, collated, encode_images, encode_texts
from tpas.engine.fastest import encoder_for
from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor
from tpas.search.ranking import rank_by_embeddings

DEMO_START = Path(__file__).parents[1] / "demo_start"


@dataclass(frozen=True)
class EncodedPeople:
    """The model, image tokens (G, 1+N, Dv), texts, and the gallery ranked by embeddings (Q, G)."""

    model: TPASModel
    benchmark: RetrievalBenchmark
    images: torch.Tensor
    texts: EncodedTexts
    ranking: torch.Tensor


def encode_people(pairs: int) -> EncodedPeople:
    """Draws so many test pairs and encodes them by the start; the images are not kept."""
    with tempfile.TemporaryDirectory(prefix="tpas-drawn-") as folder:
        root = draw_pab(Path(folder) / "pab", train_pairs=2, test_pairs=pairs)
        return encode_test_pairs(DEMO_START, root, Path(folder) / "cache")


def encode_test_pairs(directory: Path, data_root: Path, cache: Path) -> EncodedPeople:
    """The test pairs below `data_root`, encoded by the model in `directory`."""
    model, processor = TPASModel.from_pretrained(directory), TPASProcessor.from_pretrained(directory)
    benchmark = retrieval_split(load_pab(data_root, "test", cache_dir=cache))
    inputs = collated([processor(images=[image]) for image in ImageFiles(data_root, benchmark.gallery_ids)])
    embeds, states = encode_images(encoder_for(model), inputs)
    texts = encode_texts(model, processor, benchmark.captions)
    ranking, _ = rank_by_embeddings(texts.embeds, embeds, benchmark.gallery_ids)
    return EncodedPeople(model, benchmark, states, texts, ranking)
