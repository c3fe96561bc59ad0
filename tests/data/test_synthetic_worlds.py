"""A wrong entry in worlds.toml is named."""

import pytest

from tpas.data.drawn import read_tables
from tpas.data.drawn.synthetic_worlds import worlds_of


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("worlds.demo.uppers", ["dress", "toga"], "worlds.demo: no uppers .* toga"),
        ("worlds.demo.scenes", ["moon"], "worlds.demo: no scenes .* moon"),
        ("worlds.demo.weather", ["rain"], "worlds.demo: no weather .* rain"),
        ("actions.walking.speed", 3, "actions.walking: .*speed"),
        ("scenes.lawn", {"places": ["on a lawn"]}, "scenes.lawn: .*backgrounds"),
    ],
)
def test_a_wrong_entry_is_named(path, value, message):
    tables = read_tables("worlds.toml")
    *sections, entry = path.split(".")
    table = tables
    for section in sections:
        table = table[section]
    table[entry] = value
    with pytest.raises(ValueError, match=message):
        worlds_of(tables)
