"""The sheet of what SCA moved: who kept the image, and who moved on."""

import numpy as np
import pytest
from figure_pixels import COLOURS, IMAGES, framed, pixels, texts

from tpas.figures.collisions import Collision, find_collisions, plot_collisions, resolved_collisions
from tpas.figures.sheet import RIGHT
from tpas.sca import sca_rerank
from tpas.search.hits import SearchHit


def test_the_sheet_of_a_collision_shows_who_kept_the_image(tmp_path):
    kept = SearchHit.of_image("0", 1, 3.0, IMAGES[0])
    claimed = SearchHit.of_image("0", 1, 2.0, IMAGES[0])
    taken = SearchHit.of_image("1", 2, 1.0, IMAGES[1])
    alone = Collision(2, SearchHit.of_image("2", 1, 0.5, IMAGES[2]), SearchHit("3", 2, 0.25))
    collisions = [Collision(1, claimed, taken, 0, kept), alone]  # of the last nobody knows who kept the image
    figure = plot_collisions(collisions, ["A man falls.", "A girl runs.", "A boy."], [{"0"}, {"1"}, {"2"}])
    assert texts(figure) == [
        *("keeps the image", "1 · 3.00", "✓ right", "A man falls."),
        *("wanted it too and moves on: corrected", "1 · 2.00", "2 · 1.00", "✓ right", "A girl runs."),
        *("wanted it too and moves on: spoilt", "1 · 0.50", "✓ right", "no image", "2 · 0.25", "A boy."),
    ]
    image = pixels(figure, tmp_path)
    assert framed(image, RIGHT) == [0, 1, 2]
    unknown = plot_collisions(collisions, ["A man falls.", "A girl runs.", "A boy."])
    assert "✓ right" not in texts(unknown)
    assert texts(unknown).count("wanted it too and moves on") == 2
    with pytest.raises(ValueError, match="nothing was moved"):
        plot_collisions([], [])


def listed(columns, scores):
    return [SearchHit(str(column), rank, scores[column]) for rank, column in enumerate(columns, start=1)]


def test_collisions_are_those_of_a_brute_force():
    generator = np.random.default_rng(3)
    moved = 0
    for _ in range(50):
        scores = generator.normal(size=(6, 5)).round(1)
        before = np.argsort(-scores, axis=1, kind="stable").tolist()
        after = sca_rerank(None, scores, top_k=5).indices.tolist()
        lists = [
            [listed(row, own) for row, own in zip(rows, scores, strict=True)] for rows in (before, after)
        ]
        collisions = {collision.query: collision for collision in find_collisions(*lists)}
        for query in range(6):
            assert (query in collisions) == (before[query][0] != after[query][0])
            if query in collisions:
                one, moved = collisions[query], moved + 1
                claimed, taken = before[query][0], after[query][0]
                assert one.claimed == SearchHit(str(claimed), 1, scores[query, claimed])
                rank = before[query].index(taken) + 1
                assert one.taken == SearchHit(str(taken), rank, scores[query, taken])
                holders = [other for other in range(6) if after[other][0] == claimed]
                best = max((scores[other, claimed] for other in holders), default=None)
                assert (one.holder is None) == (one.kept is None) == (not holders)
                assert one.holder is None or scores[one.holder, claimed] == one.kept.score == best
    assert moved > 20


def test_a_first_answer_from_beyond_the_list_is_as_it_ranks_now():
    (collision,) = find_collisions([[SearchHit("a", 1, 0.9)]], [[SearchHit("b", 1, 0.1)]])
    assert collision.taken == SearchHit("b", 1, 0.1)


def test_collisions_of_ones_own_scores():
    scores = np.array([[0.9, 0.1, 0.2, 0.0], [0.8, 0.7, 0.3, 0.1]])
    for top_k in (2, 4):
        reranked = sca_rerank(None, scores, top_k=top_k)
        (collision,) = resolved_collisions(scores, reranked, IMAGES)
        assert (collision.query, collision.holder) == (1, 0)
        assert collision.claimed == SearchHit("0", 1, 0.8)
        assert collision.taken == SearchHit("1", 2, 0.7)
        assert collision.kept == SearchHit("0", 1, 0.9)
        assert [hit.image().getpixel((0, 0)) for hit in (collision.kept, collision.taken)] == COLOURS[:2]
