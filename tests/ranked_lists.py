"""Random ranked lists, as hypothesis draws them."""

import numpy as np
from hypothesis import strategies as st


def as_dicts(indices, scores):
    """For each query a dict from image to score."""
    return [dict(zip(*pair, strict=True)) for pair in zip(indices.tolist(), scores.tolist(), strict=True)]


@st.composite
def ranked_lists(draw, most_queries=10, most_candidates=5, most_images=9):
    """Small integers as scores, so that ties within and between queries are common."""
    candidates = draw(st.integers(1, most_candidates))
    images = draw(st.integers(candidates, max(candidates, most_images)))
    queries = draw(st.integers(1, most_queries))
    rows = st.permutations(range(images)).map(lambda row: row[:candidates])
    values = st.lists(st.integers(0, 6), min_size=candidates, max_size=candidates)
    indices = np.array([draw(rows) for _ in range(queries)])
    scores = np.array([sorted(draw(values), reverse=True) for _ in range(queries)], dtype=np.float64)
    return indices, scores
