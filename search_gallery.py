"""Finds the pictures of a gallery that answer a text.

tpas search gallery "a man in a red coat is lying on the road" --model demo_start
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from tpas.command_line import CommandLine, CommandResult, IfBare
from tpas.sca import Confidence

if TYPE_CHECKING:
    from tpas.search import SearchHit

app = CommandLine("tpas search", __doc__)


@app.command()
def search(
    gallery: Annotated[Path, Argument(help="the directory that `tpas gallery build` made")],
    texts: Annotated[list[str], Argument(metavar="text")],
    model: Annotated[str, Option(help="the model that built it: its folder, or its name on the Hub")],
    top_k: Annotated[int, Option(help="pictures shown for each text", min=1)] = 10,
    shortlist: Annotated[int, Option(help="pictures re-ranked for each text", min=1)] = 128,
    no_rerank: Annotated[bool, Option(help="rank by the embeddings alone")] = False,
    sca: Annotated[
        Confidence | None,
        Option(help="settle collisions between the texts, by this confidence (bare: score)"),
        IfBare("score"),
    ] = None,
    index: Annotated[str, Option(help="exact, faiss, or a Milvus address")] = "exact",
    images_root: Annotated[
        Path | None, Option(help="the folder where the pictures lie now, if it was moved since the build")
    ] = None,
) -> CommandResult:
    import torch

    from tpas.lora import load_model
    from tpas.processing_tpas import TPASProcessor
    from tpas.search import Gallery

    network = load_model(model, dtype=torch.float32).eval()
    processor = TPASProcessor.from_pretrained(model)
    opened = Gallery.open(gallery, network, processor, index=index, images_root=images_root)
    answers = opened.search(texts, top_k=top_k, shortlist=shortlist, rerank=not no_rerank, sca=sca)
    pairs = list(zip(texts, answers, strict=True))
    return CommandResult(
        [{"text": text, "hits": [hit_fields(hit) for hit in hits]} for text, hits in pairs],
        "\n\n".join(f"{text}\n{table(hits)}" for text, hits in pairs),
    )


def hit_fields(hit: "SearchHit") -> dict[str, object]:
    names = ("id", "rank", "score", "cosine", "match_logit", "match_probability", "embedding_rank")
    return {name: getattr(hit, name) for name in names} | {"path": hit.path and str(hit.path)}


def table(hits: Sequence["SearchHit"]) -> str:
    lines = [f"{'rank':>4} {'match':>8} {'cosine':>7} {'by cosine':>9}  picture"]
    for hit in hits:
        match = "" if hit.match_logit is None else f"{hit.match_logit:.3f}"
        lines.append(
            f"{hit.rank:>4} {match:>8} {hit.cosine:>7.3f} {hit.embedding_rank:>9}  {hit.path or hit.id}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
