"""The worlds that synthetic images are drawn from: what exists in them, and the words for it.

`worlds.toml` holds them. `PRETRAINING_WORLD` is for a start checkpoint, `DEMO_WORLD` for what is searched.
They share no scene; of colours (in other shades), garments, hair, things carried and actions a part.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

from . import read_tables
from .scene_drawing import Colour


@dataclass(frozen=True)
class Named:
    """Something drawn in one way, and the words for it: synonyms, never another look."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Paint:
    """A colour as one world draws it."""

    name: str
    words: tuple[str, ...]
    rgb: Colour


@dataclass(frozen=True)
class Scene:
    """A place, phrases for it and for what is always seen behind; cars and weather only exist outdoors.

    In a `made_up` one only the ground is always the same.
    """

    name: str
    places: tuple[str, ...]
    backgrounds: tuple[str, ...]
    outdoors: bool = True
    made_up: bool = False


@dataclass(frozen=True)
class Action:
    """Something done: the pose's key, participle phrases for it, and texts about how it looks."""

    name: str
    pose: str
    behaviour: str
    phrases: tuple[str, ...]
    details: tuple[str, ...]
    outdoors_only: bool = False


@dataclass(frozen=True)
class World:
    """The looks, scenes and actions that a set of images is drawn from."""

    name: str
    colours: tuple[Paint, ...]
    uppers: tuple[Named, ...]
    lowers: tuple[Named, ...]
    patterns: tuple[Named, ...]
    hair_colours: tuple[Paint, ...]
    men_hair: tuple[Named, ...]
    women_hair: tuple[Named, ...]
    headwear: tuple[Named, ...]
    carried: tuple[Named, ...]
    scenes: tuple[Scene, ...]
    actions: tuple[Action, ...]


Thing = TypeVar("Thing", Scene, Action, World)


def _make(kind: type[Thing], section: str, entries: dict[str, dict[str, Any]]) -> dict[str, Thing]:
    """The things of one section by name; ValueError for one that lacks a field or has an unknown one."""
    made = {}
    values: dict[str, Any]
    for name, fields in entries.items():
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        values["name"] = name
        try:
            made[name] = kind(**values)
        except TypeError as error:
            raise ValueError(f"{section}.{name}: {error}") from error
    return made


def worlds_of(tables: dict[str, Any]) -> dict[str, World]:
    """The worlds in tables like those of `worlds.toml`, by name; ValueError says which entry is wrong."""
    things: dict[str, dict[str, Any]] = {
        kind: {name: Named(name, tuple(words)) for name, words in table.items()}
        for kind, table in tables["words"].items()
    }
    things["men_hair"] = things["women_hair"] = things["hair"]
    things["scenes"] = _make(Scene, "scenes", tables["scenes"])
    things["actions"] = _make(Action, "actions", tables["actions"])

    def paint(name: str, rgb: list[int]) -> Paint:
        red, green, blue = rgb
        return Paint(name, things["colours"].get(name, Named(name, (name,))).words, (red, green, blue))

    def field(world: str, kind: str, entries: list[str] | dict[str, list[int]]) -> list[Any]:
        if isinstance(entries, dict):
            return [paint(name, rgb) for name, rgb in entries.items()]
        if unknown := [name for name in entries if name not in things.get(kind, ())]:
            raise ValueError(f"worlds.{world}: no {kind} are described by the names {', '.join(unknown)}")
        return [things[kind][name] for name in entries]

    filled = {
        world: {kind: field(world, kind, entries) for kind, entries in fields.items()}
        for world, fields in tables["worlds"].items()
    }
    return _make(World, "worlds", filled)


WORLDS = worlds_of(read_tables("worlds.toml"))
PRETRAINING_WORLD, DEMO_WORLD = WORLDS["pretraining"], WORLDS["demo"]
