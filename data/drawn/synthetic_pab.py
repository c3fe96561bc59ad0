"""Draws a small Pedestrian Anomaly Behavior set (PAB) in PAB's own layout: images, texts, annotations.

Every person is drawn twice in one scene, doing something normal and something abnormal. About half of the
persons have a lookalike that differs in a single attribute, so that a search must read the whole text.
`synthetic_worlds` says what exists, `figure_drawing` and `scene_drawing` how it is painted.

    tpas draw ROOT --train_pairs 2000 --test_pairs 200 --seed 0
"""

import hashlib
import json
import multiprocessing
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..whole_files import replacing
from . import MANIFEST, read_tables
from .figure_drawing import SKINS, Figure, Garment, draw_image
from .scene_drawing import SKIES, Colour, jittered
from .synthetic_worlds import DEMO_WORLD, Action, Named, Paint, Scene, World

ROWS_PER_FILE = 1000
LOOKALIKE_PROBABILITY = 0.5
SHORTEST_CAPTION, LONGEST_CAPTION = 20, 60  # words


# --- who is drawn -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """One person's appearance, in the names of a world."""

    woman: bool
    build: str
    skin: Colour
    hair: Named
    hair_colour: Paint
    upper: Named
    upper_colour: Paint
    pattern: Named
    lower: Named | None
    lower_colour: Paint
    shoes_colour: Paint
    headwear: Named | None
    headwear_colour: Paint
    carried: Named | None
    carried_colour: Paint


@dataclass(frozen=True)
class Source:
    """A "source video": a person in a scene, once normal and once abnormal.

    `emphasised` is what the captions should name because a lookalike differs in it: "clothes" (which they
    always name), "hair", "shoes", "headwear" or "carried".
    """

    look: Look
    scene: Scene
    sky: str
    normal: Action
    anomaly: Action
    emphasised: str | None


_BUILDS = {"slim": 0.84, "average": 1.0, "stocky": 1.22}  # thickness of trunk and limbs
_KNEE_LENGTH_UPPERS = {"coat", "raincoat"}  # they would hide shorts and skirts


def _uppers(world: World, woman: bool) -> list[Named]:
    return [upper for upper in world.uppers if woman or upper.name != "dress"]


def _lowers(world: World, woman: bool, upper: Named) -> list[Named]:
    """What can be worn, and seen, below an upper garment."""
    hidden = {"shorts", "skirt"} if upper.name in _KNEE_LENGTH_UPPERS else set()
    unworn = set() if woman else {"skirt", "leggings"}
    return [lower for lower in world.lowers if lower.name not in hidden | unworn]


def _draw_look(world: World, rng: random.Random) -> Look:
    woman = rng.random() < 0.5
    upper = rng.choice(_uppers(world, woman))
    upper_colour, lower_colour = rng.sample(world.colours, 2)
    return Look(
        woman=woman,
        build=rng.choice(("slim", "average", "average", "stocky")),
        skin=rng.choice(SKINS),
        hair=rng.choice(world.women_hair if woman else world.men_hair),
        hair_colour=rng.choice(world.hair_colours),
        upper=upper,
        upper_colour=upper_colour,
        pattern=rng.choice(world.patterns if rng.random() < 0.6 else world.patterns[:1]),
        lower=None if upper.name == "dress" else rng.choice(_lowers(world, woman, upper)),
        lower_colour=lower_colour,
        shoes_colour=rng.choice(world.colours),
        headwear=rng.choice(world.headwear) if rng.random() < 0.35 else None,
        headwear_colour=rng.choice(world.colours),
        carried=rng.choice(world.carried) if rng.random() < 0.4 else None,
        carried_colour=rng.choice(world.colours),
    )


def _draw_actions(world: World, scene: Scene, rng: random.Random) -> tuple[Action, Action]:
    possible = [action for action in world.actions if scene.outdoors or not action.outdoors_only]
    normal = rng.choice([action for action in possible if action.behaviour == "normal"])
    return normal, rng.choice([action for action in possible if action.behaviour == "anomaly"])


def _change_one(world: World, look: Look, rng: random.Random) -> tuple[Look, str]:
    """The same look with one attribute drawn anew, and the part of a caption that tells them apart."""
    uppers = [
        upper
        for upper in _uppers(world, look.woman)
        if look.lower in _lowers(world, look.woman, upper) and upper.name != "dress"
    ]
    lowers = _lowers(world, look.woman, look.upper)
    colours = [colour for colour in world.colours if colour not in (look.upper_colour, look.lower_colour)]
    kinds = ["upper_colour", "upper_colour", "pattern", "shoes_colour", "headwear", "carried"]
    if look.lower is not None:  # not a dress
        kinds += ["lower_colour", "lower_colour", "upper"] + (["lower"] if len(lowers) > 1 else [])
    if look.headwear is None:
        kinds += ["hair"]
    kind = rng.choice(kinds)
    if kind in ("headwear", "carried") and getattr(look, kind) is not None:
        kind = f"{kind}_colour"
    elif kind == "hair" and look.hair.name != "bald" and rng.random() >= 0.5:
        kind = "hair_colour"
    choices: dict[str, Sequence[Named | Paint]] = {
        "upper": uppers,
        "upper_colour": colours,
        "lower": lowers,
        "lower_colour": colours,
        "pattern": world.patterns,
        "hair": world.women_hair if look.woman else world.men_hair,
        "hair_colour": world.hair_colours,
        "headwear": world.headwear,
        "carried": world.carried,
    }
    others = [choice for choice in choices.get(kind, world.colours) if choice != getattr(look, kind)]
    part = kind.removesuffix("_colour")
    changed = replace(look, **{kind: rng.choice(others)})
    return changed, part if part in ("hair", "shoes", "headwear", "carried") else "clothes"


def describe_source(world: World, seed: int | str, index: int) -> Source:
    """Sources 2j and 2j+1 are a family: with `LOOKALIKE_PROBABILITY` their looks differ in one attribute."""
    family = random.Random(f"{world.name}|{seed}|family|{index // 2}")
    scene = family.choice(world.scenes)
    sky = family.choice(tuple(SKIES))
    look = _draw_look(world, family)
    normal, anomaly = _draw_actions(world, scene, family)
    lookalikes = family.random() < LOOKALIKE_PROBABILITY
    changed, emphasised = _change_one(world, look, family)
    if index % 2 == 0:
        return Source(look, scene, sky, normal, anomaly, emphasised if lookalikes else None)
    if not lookalikes:
        scene = family.choice(world.scenes)
        sky, look = family.choice(tuple(SKIES)), _draw_look(world, family)
        normal, anomaly = _draw_actions(world, scene, family)
        return Source(look, scene, sky, normal, anomaly, None)
    if family.random() < 0.5:
        normal, anomaly = _draw_actions(world, scene, family)
    return Source(changed, scene, sky, normal, anomaly, emphasised)


def _figure(look: Look, rng: random.Random) -> Figure:

    def garment(thing: Named | None, paint: Paint) -> Garment | None:
        return None if thing is None else Garment(thing.name, jittered(paint.rgb, rng))

    upper = Garment(look.upper.name, jittered(look.upper_colour.rgb, rng), look.pattern.name)
    return Figure(
        woman=look.woman,
        stoutness=_BUILDS[look.build],
        skin=look.skin,
        hair_style=look.hair.name,
        hair_colour=jittered(look.hair_colour.rgb, rng),
        upper=upper,
        lower=garment(look.lower, look.lower_colour),
        shoes=jittered(look.shoes_colour.rgb, rng),
        headwear=garment(look.headwear, look.headwear_colour),
        carried=garment(look.carried, look.carried_colour),
    )


# --- what is said -----------------------------------------------------------------------------------------

_PHRASES = read_tables("phrases.toml")
_FRAMING: dict[str, list[str]] = _PHRASES["framing"]  # put around those of a world
_COMMON: dict[str, list[str]] = _PHRASES["common"]  # about build, age and sky, the same in every world
_PRONOUNS: dict[str, dict[str, str]] = _PHRASES["pronouns"]
_GLUE = ("a an and pair of", "man woman he she his her him")  # words that the code itself puts in


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _coloured(paint: Paint, noun: str, rng: random.Random, adjective: str = "") -> str:
    return " ".join(word for word in (rng.choice(paint.words), adjective, noun) if word)


def _clothes(look: Look, rng: random.Random) -> list[str]:
    """The garments as noun phrases, always with their colours."""
    pattern = rng.choice(look.pattern.words) if look.pattern.name != "plain" or rng.random() < 0.2 else ""
    upper = _coloured(look.upper_colour, rng.choice(look.upper.words), rng, pattern)
    if look.lower is None:
        return [_article(upper)]
    lower = _coloured(look.lower_colour, rng.choice(look.lower.words), rng)
    if look.lower.name == "skirt":
        lower = _article(lower)
    elif rng.random() < 0.25:
        lower = f"a pair of {lower}"
    return [_article(upper), lower]


def _caption(source: Source, action: Action, rng: random.Random, longest: int = LONGEST_CAPTION) -> str:
    """20 to 60 words about one image of a source; garments, action and place always, the rest by chance.

    Of the rest only what fits into `longest` words.
    """
    look = source.look
    pronouns = _PRONOUNS["woman" if look.woman else "man"]

    def said(attribute: str, probability: float) -> bool:
        return rng.random() < (0.95 if source.emphasised == attribute else probability)

    elderly = look.hair_colour.name == "gray" and look.hair.name != "bald"
    person = rng.choice(_COMMON["elderly" if elderly else "young"])
    builds = _COMMON[look.build]
    build = rng.choice(builds) if builds and rng.random() < 0.35 else ""
    person = f"{build} {person}".strip().format(noun="woman" if look.woman else "man", **pronouns)
    worn = _clothes(look, rng)
    hair = rng.choice(look.hair_colour.words)
    hair = rng.choice(look.hair.words).format(colour=hair)
    texts: list[str] = []
    if said("hair", 0.25):
        texts.append(rng.choice(_FRAMING["hair"]).format(thing=hair, **pronouns))

    def mention(thing: str, templates: list[str]) -> None:
        """Among the clothes or in a text of its own."""
        if rng.random() < 0.5:
            worn.append(thing)
        else:
            texts.append(rng.choice(templates).format(thing=thing, **pronouns))

    shoes = _coloured(look.shoes_colour, rng.choice(_FRAMING["shoes_nouns"]), rng)
    if said("shoes", 0.22):
        mention(shoes, _FRAMING["shoes"])
    if look.headwear is not None:
        headwear = _article(_coloured(look.headwear_colour, rng.choice(look.headwear.words), rng))
        if said("headwear", 0.5):
            mention(headwear, _FRAMING["headwear"])
    if look.carried is not None:
        carried = _article(_coloured(look.carried_colour, rng.choice(look.carried.words), rng))
        if said("carried", 0.5):
            mention(carried, _FRAMING["carried"])

    detail, background = f"{rng.choice(action.details)}.", rng.choice(_FRAMING["backgrounds"])
    optional = [
        (0.35, detail),
        (0.2, background.replace("{thing}", rng.choice(source.scene.backgrounds))),
        (0.15, rng.choice(_FRAMING[action.behaviour])),
    ]
    if source.scene.outdoors:
        optional.append((0.12, rng.choice(_COMMON[source.sky])))
    chosen, left_out = [], []
    for probability, template in optional:
        (chosen if rng.random() < probability else left_out).append(template.format(**pronouns))
    for group in (texts, chosen, left_out):
        rng.shuffle(group)
    opening = rng.choice(_FRAMING["openings"]).format(
        person=_article(person),
        clothes=f"{', '.join(worn[:-1])} and {worn[-1]}" if len(worn) > 1 else worn[0],
        action=rng.choice(action.phrases),
        place=rng.choice(source.scene.places),
        **pronouns,
    )
    texts = [opening, *texts, *chosen]
    spare = [*left_out, *_FRAMING["fillers"]]
    while len(" ".join(texts).split()) < SHORTEST_CAPTION:
        texts.append(spare.pop(0))
    while len(texts) > 1 and len(" ".join(texts).split()) > longest:
        texts.pop()
    return re.sub(r"(^|[.] )([a-z])", lambda match: match[1] + match[2].upper(), " ".join(texts))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", re.sub(r"\{[^}]*\}", " ", text).lower())


def _world_phrases(world: World) -> Iterator[str]:
    """What captions say about a world, without the phrases around it."""
    clothes = (*world.colours, *world.uppers, *world.lowers, *world.patterns, *world.headwear, *world.carried)
    for thing in (*clothes, *world.hair_colours, *world.men_hair, *world.women_hair):
        yield from thing.words
    for scene in world.scenes:
        yield from (*scene.places, *scene.backgrounds)
    for action in world.actions:
        yield from (*action.phrases, *action.details)


def _distinct_words(phrases: Iterable[str]) -> set[str]:
    return {word for phrase in phrases for word in _words(phrase)}


def captions_vocabulary(*worlds: World) -> list[str]:
    """Every word that captions of these worlds can contain, sorted: lower case, split at punctuation."""
    everywhere = chain(*_FRAMING.values(), _GLUE, *_COMMON.values())
    return sorted(_distinct_words(chain(everywhere, *map(_world_phrases, worlds))))


def telling_words(*worlds: World) -> list[str]:
    """The words of `captions_vocabulary` for what a world holds: colours, garments, deeds, places."""
    framing = _distinct_words(chain(*_FRAMING.values(), _GLUE))
    return sorted(_distinct_words(chain(*map(_world_phrases, worlds))) - framing)


# --- examples in memory -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """An image with its text; `source_id` is "<source>_<frame>", and a person's two share the source."""

    image: Image.Image
    caption: str
    behaviour: str
    action: str
    scene: str
    source_id: str
    source_caption: str


def draw_source(
    world: World, seed: int | str, index: int, image_size: int = 192, longest_caption: int = LONGEST_CAPTION
) -> tuple[Example, Example]:
    """The normal and the abnormal example of source `index`; depends on nothing but the arguments."""
    source = describe_source(world, seed, index)
    rng = random.Random(f"{world.name}|{seed}|source|{index}")
    scene, noun = source.scene, "woman" if source.look.woman else "man"
    place = {"scene": scene.name, "sky": source.sky, "scene_seed": rng.getrandbits(32)}
    examples = []
    for frame, action in enumerate((source.normal, source.anomaly)):
        figure = _figure(source.look, rng)
        example = Example(
            image=draw_image(figure, action.pose, **place, rng=rng, image_size=image_size),
            caption=_caption(source, action, rng, longest_caption),
            behaviour=action.behaviour,
            action=action.name,
            scene=scene.name,
            source_id=f"{index}_{frame}",
            source_caption=f"A {noun} is {action.phrases[0]} {scene.places[0]}.",
        )
        examples.append(example)
    return examples[0], examples[1]


def somebody(
    world: World,
    scene: Scene,
    sky: str,
    rng: random.Random,
    pose: str | None = None,
    look: Look | None = None,
) -> tuple[Look, Figure, Action, str]:
    """Somebody for a film of this place: how they look and are painted, what they do, and a text of it.

    Args:
        pose: of what is done; `None`: something normal.
        look: of somebody seen before; `None`: of somebody new.
    """
    look = look or _draw_look(world, rng)
    action, _ = _draw_actions(world, scene, rng)
    if pose is not None:
        action = next(action for action in world.actions if action.pose == pose)
    source = Source(look, scene, sky, action, action, "clothes")
    return look, _figure(look, rng), action, _caption(source, action, rng)


# --- files ------------------------------------------------------------------------------------------------


def _save_source(
    job: tuple[int, str, str], *, root: str, world: World, seed: str, image_size: int
) -> list[dict[str, str]]:
    """Draws and writes one source's two images; returns what the annotation says about them."""
    index, *files = job
    described = []
    for example, file in zip(draw_source(world, seed, index, image_size), files, strict=True):
        example.image.save(Path(root, file), quality=92)
        texts = ("caption", "source_caption", "behaviour", "action", "scene")
        described.append({"image": file} | {key: getattr(example, key) for key in texts})
    return described


def _rows(
    described: list[list[dict[str, str]]],
    source_numbers: Sequence[int],
    image_ids: Sequence[int],
    split: str,
    rng: random.Random,
) -> list[dict]:
    """Annotation rows with PAB's keys, neighbours being the normal and the abnormal image of one source."""
    rows = []
    for position, (pair, number) in enumerate(zip(described, source_numbers, strict=True)):
        frames = rng.sample(range(10), 2)
        for side, frame in enumerate(frames):
            own, other = pair[side], pair[1 - side]
            rows.append(
                {
                    "image": own["image"],
                    "caption": own["caption"] if split == "train" else [own["caption"]],
                    "image_id": image_ids[2 * position + side],
                    "hard_i": other["image"].removeprefix("train/"),
                    "hard_c": other["caption"],
                    "hard_i_id": image_ids[2 * position + 1 - side],
                    "source_id": f"{number}_{frame}",
                    "source_caption": own["source_caption"],
                    own["behaviour"]: own["action"],
                    "scene": own["scene"],
                }
            )
    return rows


def _write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def draw_pab(
    root: str | os.PathLike[str],
    *,
    world: World = DEMO_WORLD,
    train_pairs: int = 2000,
    test_pairs: int = 200,
    seed: int = 0,
    image_size: int = 192,
    workers: int | None = None,
) -> Path:
    """Draws `train_pairs` and `test_pairs` image-caption pairs under `root` and returns it.

    The bytes depend on the arguments except `workers` (processes; None: one a core). A root that was finished
    with the same arguments is returned at once; FileExistsError for one that holds anything else, ValueError
    for counts that cannot be drawn. Drawn beside and renamed: an interruption leaves nothing behind.
    """
    root = Path(root).resolve()
    for name, pairs in (("train_pairs", train_pairs), ("test_pairs", test_pairs)):
        if pairs < 2 or pairs % 2:
            raise ValueError(
                f"{name} must be an even number from 2 (each person is drawn twice), got {pairs}"
            )
    if image_size < 32:
        raise ValueError(f"image_size must be at least 32 pixels, got {image_size}")
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be at least 1 process, got {workers}")
    arguments = {
        "world": world.name,
        "world_digest": hashlib.sha256(repr(world).encode()).hexdigest()[:16],
        "train_pairs": train_pairs,
        "test_pairs": test_pairs,
        "seed": seed,
        "image_size": image_size,
    }
    manifest = json.dumps(arguments, indent=1) + "\n"
    if root.exists():
        if not root.is_dir():
            raise FileExistsError(f"{root} is a file; name a new folder to draw into")
        finished = root / MANIFEST
        if finished.is_file() and finished.read_bytes() == manifest.encode():
            return root
        if any(root.iterdir()):
            raise FileExistsError(
                f"{root} holds files that were not drawn with the arguments {arguments}; "
                "remove it or name another folder"
            )
    with replacing(root) as drawn:
        drawn.mkdir()
        _draw_into(drawn, world, train_pairs // 2, test_pairs // 2, seed, image_size, workers)
        (drawn / MANIFEST).write_bytes(manifest.encode())
    return root


def _draw_into(
    root: Path, world: World, train_sources: int, test_sources: int, seed: int, image_size: int, workers: int
) -> None:
    # Names, ids and orders are drawn apart from the contents, so that none of them tells about an image.
    names = random.Random(f"names|{seed}")
    sources = train_sources + test_sources
    source_numbers = names.sample(range(10 * sources), sources)
    image_ids = names.sample(range(20 * sources), 2 * sources)
    images = ("train/imgs_0/goal", "train/imgs_0/wentrong", "test/imgs")
    for folder in (*images, "annotation/train", "annotation/test"):
        (root / folder).mkdir(parents=True)
    goal, wentrong = (names.sample(range(train_sources), train_sources) for _ in range(2))
    train_jobs = [
        (index, f"train/imgs_0/goal/{goal[index]}.jpg", f"train/imgs_0/wentrong/{wentrong[index]}.jpg")
        for index in range(train_sources)
    ]
    numbers = names.sample(range(1_000_000), 2 * test_sources)
    test_jobs = [
        (index, f"test/imgs/{numbers[2 * index]:06d}.jpg", f"test/imgs/{numbers[2 * index + 1]:06d}.jpg")
        for index in range(test_sources)
    ]
    names.shuffle(train_jobs)
    names.shuffle(test_jobs)
    save = partial(_save_source, root=str(root), world=world, image_size=image_size)
    train_rows = _save_all(train_jobs, workers, partial(save, seed=f"{seed}/train"))
    test_rows = _save_all(test_jobs, workers, partial(save, seed=f"{seed}/test"))
    rows = _rows(train_rows, source_numbers[:train_sources], image_ids[: 2 * train_sources], "train", names)
    for number, start in enumerate(range(0, len(rows), ROWS_PER_FILE)):
        _write_lines(root / f"annotation/train/attr_{number}.json", rows[start : start + ROWS_PER_FILE])
    _write_lines(
        root / "annotation/test/attr.json",
        _rows(test_rows, source_numbers[train_sources:], image_ids[2 * train_sources :], "test", names),
    )


def _save_all(jobs: list[tuple[int, str, str]], workers: int, save: partial) -> list[list[dict[str, str]]]:
    # None: a bar on terminals alone.
    progress = partial(tqdm, total=len(jobs), desc="drawing", unit="video", leave=False, disable=None)
    if workers <= 1 or len(jobs) < 32:
        return [save(job) for job in progress(jobs)]
    # Spawned, not forked: the caller may hold threads of PyTorch, which a fork would deadlock.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(progress(pool.map(save, jobs, chunksize=16)))
