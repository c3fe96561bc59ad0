"""What a gallery can be opened and searched with; torch-free, so that a command refuses the rest at once."""

import re
from typing import Literal

from ..sca import Confidence

BASE_MODEL_HELP = "of an adapter: folder or Hub name of its base now, if it is not where it was trained"
MatchingDtype = Literal["float32", "bfloat16"]
LEAST_CHANCE = 0.2  # of a calibration; below it an answer begins with "no one like this" (docs/trust.md)
DEFAULT_MATCHER_SHORTLIST = 10  # a vision-language model takes long for a pair
OnClash = Literal["error", "skip", "replace"]  # about an image whose id the gallery has for another image


def check_index(index: str) -> str:
    """`index` itself: "exact", "faiss", or the address of a Milvus database.

    Raises:
        ValueError: it is none of these.
    """
    if index not in ("exact", "faiss") and not _is_address(index):
        raise ValueError(
            f"the index must be 'exact', 'faiss', or a Milvus address (http://host:19530, or a file *.db for "
            f"milvus-lite), got {without_password(index)!r}"
        )
    return index


def without_password(address: str) -> str:
    """An address as it may be shown: `***` in place of the password.

    >>> without_password("http://user:password@host:19530")
    'http://user:***@host:19530'
    """
    return re.sub(r"^([^/]*//)?([^:@/]*):.*@", r"\1\2:***@", address)


def check_cascade(rerank: bool, sca: Confidence | None, matching_dtype: MatchingDtype) -> None:
    """Raises ValueError for settings with which a cascade would save nothing or change the answer."""
    for is_so, reason in (
        (not rerank, "there is nothing to save without re-ranking: leave out cascade"),
        (
            matching_dtype != "float32",
            "the gallery was opened to match in bfloat16, and a cascade ends in float32: leave one out",
        ),
        (sca == "softmax", "SCA by softmax reads every score of a shortlist: leave out cascade"),
    ):
        if is_so:
            raise ValueError(reason)


def _is_address(index: str) -> bool:
    return "://" in index or index.endswith(".db")
