import pytest
import torch

from tpas.training.subsets import diverse_subset


def unit_rows(*size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*size, generator=generator), dim=-1)


def by_brute_force(embeds: torch.Tensor, count: int, first: int) -> list[int]:
    """Euclidean distances between all rows, in double: farthest from its nearest, smallest row first."""
    distances = torch.cdist(embeds.double(), embeds.double(), compute_mode="donot_use_mm_for_euclid_dist")
    chosen = [first]
    while len(chosen) < count:
        rest = [row for row in range(len(embeds)) if row not in chosen]
        chosen.append(max(rest, key=lambda row: (min(distances[row, other] for other in chosen), -row)))
    return chosen


@pytest.mark.parametrize("seed", range(8))
def test_each_row_is_the_farthest_from_those_before(seed):
    embeds = unit_rows(30, 5, seed=seed)
    chosen = diverse_subset(embeds, 30, seed).tolist()
    assert chosen == by_brute_force(embeds, 30, chosen[0])
    assert sorted(chosen) == list(range(30))


def test_by_hand():
    angles = torch.tensor([0.0, 10.0, 22.0, 100.0, 180.0]).deg2rad()
    embeds = torch.stack([angles.cos(), angles.sin()], dim=1)
    orders = {tuple(diverse_subset(embeds, 5, seed).tolist()) for seed in range(30)}
    assert orders == {(0, 4, 3, 2, 1), (1, 4, 3, 2, 0), (2, 4, 3, 0, 1), (3, 0, 4, 2, 1), (4, 0, 3, 2, 1)}


def test_the_seed_draws_the_first_row_and_the_head_is_the_smaller_subset():
    embeds = unit_rows(40, 8)
    assert len({diverse_subset(embeds, 1, seed).item() for seed in range(100)}) > 30
    whole = diverse_subset(embeds, 40, 3)
    for count in (1, 7, 39):
        assert torch.equal(diverse_subset(embeds, count, 3), whole[:count])
    assert diverse_subset(embeds, 3, 42).tolist() == by_brute_force(embeds, 3, 38)  # the same for ever


def test_equal_rows_are_taken_once_each_and_in_order():
    embeds = unit_rows(3, 4).repeat(4, 1)  # rows 0, 3, 6, 9 are equal, and so on
    chosen = diverse_subset(embeds, 12, 0).tolist()
    assert sorted(chosen) == list(range(12))
    assert {row % 3 for row in chosen[:3]} == {0, 1, 2}
    first, *others = diverse_subset(torch.eye(1, 3).expand(6, 3), 6, 1).tolist()
    assert others == [row for row in range(6) if row != first]


def test_a_rare_caption_comes_early():
    common, rare = unit_rows(1, 16) + 0.05 * unit_rows(200, 16, seed=1), -unit_rows(1, 16)
    embeds = torch.nn.functional.normalize(torch.cat([common, rare]), dim=1)
    assert 200 in diverse_subset(embeds, 2, 0).tolist()


@pytest.mark.parametrize(
    ("embeds", "count", "message"),
    [
        (unit_rows(4, 3), 0, "between 1 and the 4 rows, got 0"),
        (unit_rows(4, 3), 5, "between 1 and the 4 rows, got 5"),
        (unit_rows(4), 1, r"\(rows, dimensions\), got \(4,\)"),
        (unit_rows(4, 3) * torch.tensor([[1], [1], [2], [1]]), 2, "row 2 of embeds has the norm 2"),
        (unit_rows(4, 3) * torch.tensor([[1], [torch.nan], [1], [1]]), 2, "row 1 of embeds has the norm nan"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(embeds, count, message):
    with pytest.raises(ValueError, match=message):
        diverse_subset(embeds, count, 0)
