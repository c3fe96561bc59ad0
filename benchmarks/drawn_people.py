"""The small trained model in demo_start/ and drawn people for it, which the benchmarks of matching share."""

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
class DrawnPeople:
    """The model and what it is measured on; images are read when they are asked for."""

    model: TPASModel
    processor: TPASProcessor
    benchmark: RetrievalBenchmark
    images: ImageFiles


@dataclass(frozen=True)
class EncodedPeople:
    """The model, image tokens (G, 1+N, Dv), texts, and the gallery ranked by embeddings (Q, G)."""

    model: TPASModel
    benchmark: RetrievalBenchmark
    images: torch.Tensor
    texts: EncodedTexts
    ranking: torch.Tensor


def draw_people(folder: Path, pairs: int) -> DrawnPeople:
    """Draws so many test pairs into the folder."""
    root = draw_pab(folder / "pab", train_pairs=2, test_pairs=pairs)
    benchmark = retrieval_split(load_pab(root, "test", cache_dir=folder / "cache"))
    return DrawnPeople(
        TPASModel.from_pretrained(DEMO_START),
        TPASProcessor.from_pretrained(DEMO_START),
        benchmark,
        ImageFiles(root, benchmark.gallery_ids),
    )


def encode_people(pairs: int) -> EncodedPeople:
    """Draws so many test pairs and encodes them; the images are not kept."""
    with tempfile.TemporaryDirectory(prefix="tpas-drawn-") as folder:
        drawn = draw_people(Path(folder), pairs)
        inputs = collated([drawn.processor(images=[image]) for image in drawn.images])
        embeds, states = encode_images(encoder_for(drawn.model), inputs)
    texts = encode_texts(drawn.model, drawn.processor, drawn.benchmark.captions)
    ranking, _ = rank_by_embeddings(texts.embeds, embeds, drawn.benchmark.gallery_ids)
    return EncodedPeople(drawn.model, drawn.benchmark, states, texts, ranking)
