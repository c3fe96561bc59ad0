"""Re-rankers that take from each image what it is to all queries: dual softmax, Sinkhorn, CSLS.

An image near to everything, a hub, comes first for many queries. Each function here gives new scores in which
that counts less. All are transductive: a query's new scores depend on the other queries. The sum over queries
is rounded in the order of the rows, so another order may change last digits.

In top-K lists an image is seen only by the queries that list it. What is assumed of the others is said at
each function. A matrix in which not all was scored ([`tpas.sca.filling_of`]) is lists.
"""

from typing import Any

import numpy as np

from ..sca import (
    blocks,
    check_count,
    check_temperature,
    checked_input,
    warn_where_images_are_few,
)
from .ranked_lists import RerankResult, new_score_type, rescored

# That of QB-Norm's experiments (beta = 20), for cosines.
DEFAULT_TEMPERATURE = 0.05


def dual_softmax(
    indices: Any, scores: Any, *, temperature: float = DEFAULT_TEMPERATURE, top_k: int | None = None
) -> RerankResult:
    """New score: the logarithm of softmax over the query's images times softmax over the image's queries.

    Cheng et al., "Improving Video-Text Retrieval by Multi-Stream Corpus Alignment and Dual Softmax Loss"
    (2021). There the softmax over queries multiplies the score itself, which turns the order round where
    scores are negative, as match logits are; the product of both softmaxes does not.

    Lists: a query gives an image that it does not list the probability 0.

    Args:
        indices, scores: as in [`tpas.sca.sca_rerank`].
        temperature: > 0, in units of the score: about 0.05 for cosines, 1 for match logits.
        top_k: how many images to return for each query, after all given have taken part. `None`: all.

    Raises:
        ValueError, TypeError: where the input breaks the above, naming the row or the value.
    """
    check_temperature(temperature)
    images, values = checked_input(indices, scores, top_k)
    columns = _column_numbers(images)
    of_columns = log_sum_of_columns(values, columns, temperature)
    of_rows = np.empty(len(values))
    for part in blocks(*values.shape):
        scaled = values[part] / np.float64(temperature)
        greatest = scaled.max(axis=1)
        of_rows[part] = greatest + np.log(np.exp(scaled - greatest[:, None]).sum(axis=1))
    # Twice the score, less the logarithms of both softmaxes' denominators.
    new = _corrected(values, 2 / temperature, of_rows, of_columns, columns)
    return rescored("dual-softmax", images, values, new, top_k, indices, scores)


def sinkhorn(
    indices: Any,
    scores: Any,
    *,
    temperature: float = 0.01,
    iterations: int = 50,
    capacity: int = 1,
    top_k: int | None = None,
) -> RerankResult:
    """New score: the logarithm of the share of the query that the image gets in an entropic transport plan.

    The plan is exp(scores / temperature), its rows and columns scaled in turn: each query shares out exactly
    1, and no image gets more than `capacity`. With as many images as queries and capacity 1 all columns then
    sum to 1 as well: the doubly stochastic matrix of Sinkhorn, "A relationship between arbitrary positive
    matrices and doubly stochastic matrices" (1964), and Cuturi, "Sinkhorn distances" (2013). That an image
    may also get less, as most of a gallery with distractors must, is the scaling for unequal marginals of
    Chizat et al., "Scaling algorithms for unbalanced optimal transport problems" (2018). The last step scales
    rows, so these sum to 1 after any number of iterations.

    Lists: a query gives an image that it does not list no share.

    Args:
        indices, scores: as in [`tpas.sca.sca_rerank`].
        temperature: > 0, in units of the score. The smaller, the nearer to the best assignment and the more
            iterations are needed; at a great one queries share themselves out so thinly over a large gallery
            that no image is ever full, and nothing changes. The default is for cosines. An image some 700
            temperatures below a query's best is out of its reach.
        iterations: >= 1, scalings of the columns.
        capacity: >= 1, the number of queries an image may answer.
        top_k: how many images to return for each query, after all given have taken part. `None`: all.

    Raises:
        ValueError, TypeError: where the input breaks the above, naming the row or the value.

    Warns:
        UserWarning: as `sca_rerank` does, where images are few.
    """
    check_temperature(temperature)
    check_count("iterations", iterations, 1)
    check_count("capacity", capacity, 1)
    images, values = checked_input(indices, scores, top_k)
    columns = _column_numbers(images)
    gallery = np.arange(values.shape[1])[None] if images is None else images
    warn_where_images_are_few(len(values), gallery, capacity)
    greatest = values.max(axis=1).astype(np.float64)
    kernel: Any = np.empty(values.shape)
    for part in blocks(*values.shape):  # less the greatest, so that each row has a 1 and none overflows
        kernel[part] = np.exp((values[part] - greatest[part, None]) / temperature)
    if columns is not None:
        from scipy.sparse import csr_array  # takes a quarter of a second to import

        starts = np.arange(len(columns) + 1) * columns.shape[1]
        kernel = csr_array((kernel.ravel(), columns.ravel(), starts))
    transposed = kernel.T if columns is None else kernel.T.tocsr()

    log_column = np.zeros(kernel.shape[1])
    log_row = -_log_product(kernel, log_column)
    for _ in range(iterations):
        log_column = np.minimum(0, np.log(capacity) - _log_product(transposed, log_row))
        log_row = -_log_product(kernel, log_column)
    new = _corrected(values, 1 / temperature, greatest / temperature - log_row, -log_column, columns)
    return rescored("sinkhorn", images, values, new, top_k, indices, scores, capacity=capacity)


def csls(indices: Any, scores: Any, *, neighbours: int = 10, top_k: int | None = None) -> RerankResult:
    """New score: twice the score, less the mean of the query's best scores and the mean of the image's best.

    Cross-domain similarity local scaling: Conneau et al., "Word translation without parallel data" (2018).

    Lists: a query's best are in its list. Where fewer than `neighbours` queries list an image, each that is
    lacking counts with the mean of all queries' last scores.

    Args:
        indices, scores: as in [`tpas.sca.sca_rerank`].
        neighbours: >= 1, the number of best scores in a mean; of a query at most its candidates, of an image
            at most the queries.
        top_k: how many images to return for each query, after all given have taken part. `None`: all.

    Raises:
        ValueError, TypeError: where the input breaks the above, naming the row or the value.
    """
    check_count("neighbours", neighbours, 1)
    images, values = checked_input(indices, scores, top_k)
    columns = _column_numbers(images)
    of_columns = _mean_of_best(values, columns, min(neighbours, len(values)))
    of_rows = np.empty(len(values))
    best = min(neighbours, values.shape[1])
    for part in blocks(*values.shape):
        of_rows[part] = np.partition(values[part].astype(np.float64), -best, axis=1)[:, -best:].mean(axis=1)
    new = _corrected(values, 2, of_rows, of_columns, columns)
    return rescored("csls", images, values, new, top_k, indices, scores)


def log_sum_of_columns(values: np.ndarray, columns: np.ndarray | None, temperature: float) -> np.ndarray:
    """The logarithm of each column's sum of exp(value / temperature), in double precision.

    Args:
        values: (Q, G) dense, or (Q, K).
        columns: `None`, or (Q, K), the column of each value; every column has a value.
    """
    if columns is None:
        sums = np.empty(values.shape[1])
        for part in blocks(values.shape[1], len(values)):
            block = values[:, part] / np.float64(temperature)
            greatest = block.max(axis=0)
            sums[part] = greatest + np.log(np.exp(block - greatest).sum(axis=0))
        return sums
    by_column = np.argsort(columns, axis=None, kind="stable")
    grouped, number = values.ravel()[by_column] / np.float64(temperature), columns.ravel()[by_column]
    starts = np.flatnonzero(np.append(True, number[1:] != number[:-1]))
    greatest = np.maximum.reduceat(grouped, starts)
    return greatest + np.log(np.add.reduceat(np.exp(grouped - greatest[number]), starts))


def _column_numbers(images: np.ndarray | None) -> np.ndarray | None:
    """The images of lists (Q, K) numbered from 0; `None` for a dense matrix."""
    return None if images is None else np.unique(images, return_inverse=True)[1].reshape(images.shape)


def _corrected(
    values: np.ndarray,
    factor: float,
    of_rows: np.ndarray,
    of_columns: np.ndarray,
    columns: np.ndarray | None,
) -> np.ndarray:
    """factor * values, less a number of the row and one of the column; in parts, so that a copy has room."""
    new = np.empty(values.shape, dtype=new_score_type(values))
    greatest = np.finfo(new.dtype).max  # beyond which a score such as -3e38 would be made infinite
    for part in blocks(*values.shape):
        of_images = of_columns[None] if columns is None else of_columns[columns[part]]
        corrected = factor * values[part].astype(np.float64) - of_rows[part, None] - of_images
        new[part] = np.clip(corrected, -greatest, greatest)
    return new


def _log_product(matrix: Any, log_vector: np.ndarray) -> np.ndarray:
    """log(matrix @ exp(log_vector)), without overflow; what underflows to 0 counts as the smallest number."""
    greatest = log_vector.max()
    return greatest + np.log(np.maximum(matrix @ np.exp(log_vector - greatest), np.finfo(np.float64).tiny))


def _mean_of_best(values: np.ndarray, columns: np.ndarray | None, neighbours: int) -> np.ndarray:
    """The mean of the `neighbours` greatest values of each column; see `csls` for what lists lack."""
    if columns is None:
        means = np.empty(values.shape[1])
        for part in blocks(values.shape[1], len(values)):
            block = values[:, part].astype(np.float64)
            means[part] = np.partition(block, -neighbours, axis=0)[-neighbours:].mean(axis=0)
        return means
    exact = values.ravel().astype(np.float64)
    order = np.lexsort((-exact, columns.ravel()))  # column by column, in each the greatest first
    number = columns.ravel()[order]
    starts = np.flatnonzero(np.append(True, number[1:] != number[:-1]))
    counted = np.arange(len(number)) - starts[number] < neighbours
    sums = np.bincount(number[counted], weights=exact[order][counted])
    lacking = neighbours - np.bincount(number[counted])
    return (sums + lacking * values[:, -1].mean(dtype=np.float64)) / neighbours
