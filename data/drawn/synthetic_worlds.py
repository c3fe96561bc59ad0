"""The worlds that synthetic images are drawn from: what exists in them, and the words for it.

`PRETRAINING_WORLD` is for a start checkpoint, `DEMO_WORLD` for what is searched. They share no scene; of
colours (in other shades), garments, hair, things carried and actions they share a part.
"""

from dataclasses import dataclass

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


def _paints(**shades: Colour) -> tuple[Paint, ...]:
    words = {"gray": ("gray", "grey"), "blond": ("blond", "fair"), "ginger": ("red", "ginger")}
    return tuple(Paint(name, words.get(name, (name,)), rgb) for name, rgb in shades.items())


_UPPERS = {
    item.name: item
    for item in (
        Named("t-shirt", ("t-shirt", "tee")),
        Named("shirt", ("shirt with buttons", "button shirt")),
        Named("jacket", ("open jacket", "jacket over a light shirt")),
        Named("sweater", ("sweater", "pullover")),
        Named("coat", ("long coat", "coat")),
        Named("dress", ("dress", "knee length dress")),
        Named("hoodie", ("hoodie", "hooded sweatshirt")),
        Named("tank top", ("tank top", "sleeveless top")),
        Named("vest", ("quilted vest", "padded vest")),
        Named("raincoat", ("raincoat", "hooded raincoat")),
    )
}
_LOWERS = {
    item.name: item
    for item in (
        Named("trousers", ("trousers", "long pants")),
        Named("shorts", ("shorts", "short pants")),
        Named("skirt", ("skirt",)),
        Named("jeans", ("jeans", "jeans with rolled hems")),
        Named("leggings", ("leggings", "tight leggings")),
        Named("joggers", ("joggers", "track pants with a side stripe")),
    )
}
_PATTERNS = {
    item.name: item
    for item in (
        Named("plain", ("", "plain")),
        Named("striped", ("striped",)),
        Named("checked", ("checked", "checkered")),
        Named("dotted", ("dotted", "spotted")),
    )
}
_HAIR = {
    item.name: item
    for item in (
        Named("short", ("short {colour} hair", "{colour} hair cut short")),
        Named("long", ("long {colour} hair", "{colour} hair falling over the shoulders")),
        Named("bun", ("{colour} hair in a bun", "{colour} hair tied into a bun")),
        Named("bald", ("a bald head", "no hair")),
        Named("ponytail", ("{colour} hair in a ponytail", "a {colour} ponytail")),
        Named("afro", ("curly {colour} hair", "big {colour} curls")),
        Named("mohawk", ("a {colour} mohawk", "{colour} spiky hair")),
    )
}
_HEADWEAR = {
    item.name: item
    for item in (
        Named("cap", ("cap", "baseball cap")),
        Named("beanie", ("beanie", "knitted beanie")),
        Named("sun hat", ("sun hat", "hat with a wide brim")),
        Named("helmet", ("helmet", "safety helmet")),
    )
}
_CARRIED = {
    item.name: item
    for item in (
        Named("backpack", ("backpack", "rucksack")),
        Named("handbag", ("handbag", "purse")),
        Named("shoulder bag", ("shoulder bag", "messenger bag")),
        Named("balloon", ("balloon", "party balloon")),
    )
}


def _pick(table: dict[str, Named], *names: str) -> tuple[Named, ...]:
    return tuple(table[name] for name in names)


_DEMO_SCENES = (
    Scene(
        "street",
        ("on a street", "on a city road", "in a street of the town"),
        (
            "houses with many windows and a street lamp",
            "tall houses along the pavement",
            "a row of buildings",
        ),
    ),
    Scene(
        "lawn",
        ("on a lawn", "on the green grass of a park", "in a grassy park"),
        ("a line of round trees", "trees along the edge of the grass", "small flowers and trees"),
    ),
    Scene(
        "beach",
        ("on a beach", "on the sand by the sea", "at the sandy shore"),
        ("the sea and a parasol", "waves and a beach umbrella", "blue water with small waves"),
    ),
    Scene(
        "stage",
        ("on a stage", "on a wooden stage", "on the stage of a theater"),
        ("dark curtains and spotlights", "heavy red curtains", "beams of light from above"),
        outdoors=False,
    ),
    Scene(
        "swimming pool",
        ("beside a swimming pool", "at the edge of a pool", "next to an indoor pool"),
        ("water with lane ropes", "tiled walls and clear water", "a metal ladder and the pool water"),
        outdoors=False,
    ),
    Scene(
        "football pitch",
        ("on a football pitch", "on a soccer field", "on the field of a stadium"),
        ("a goal and a crowd of spectators", "full stands behind the goal", "a goal with a net"),
        outdoors=False,
    ),
    Scene(
        "gym",
        ("in a gym", "on a mat in a fitness studio", "in a fitness room"),
        ("a rack of dumbbells and a large mirror", "weights in front of a mirror", "dumbbells on a rack"),
        outdoors=False,
    ),
    Scene(
        "railway platform",
        ("on a railway platform", "at a train station", "on the platform of a station"),
        ("a waiting train", "a train with large windows", "a train behind the yellow line"),
    ),
)
_PRETRAINING_SCENES = (
    Scene(
        "car park",
        ("in a car park", "in a parking lot", "between the lines of a parking area"),
        ("several parked cars", "a row of cars and a fence", "cars in front of a wooden fence"),
    ),
    Scene(
        "playground",
        ("on a playground", "in a play area", "on a playground for children"),
        ("a slide and swings", "swings and a low fence", "a ladder with a slide"),
    ),
    Scene(
        "forest path",
        ("on a forest path", "on a trail in the woods", "along a path between trees"),
        ("thick tree trunks", "many trees and leaves", "dense forest"),
        outdoors=False,
    ),
    Scene(
        "snow field",
        ("on a snow field", "in the snow", "on snowy ground"),
        ("mountains with snow", "fir trees and white peaks", "high mountains"),
    ),
    Scene(
        "supermarket",
        ("in a supermarket", "in the aisle of a store", "inside a grocery store"),
        ("shelves full of goods", "colorful boxes on shelves", "long shelves"),
        outdoors=False,
    ),
    Scene(
        "bridge",
        ("on a bridge", "on a bridge over the river", "on the deck of a bridge"),
        ("a tower with cables and a railing", "a steel railing above the river", "bridge cables"),
    ),
    Scene(
        "basketball court",
        ("on a basketball court", "in a sports hall", "on the floor of a sports hall"),
        ("a hoop with a white board", "a basketball hoop", "a basket and high windows"),
        outdoors=False,
    ),
    Scene(
        "desert",
        ("in a desert", "on the dry ground of a desert", "among sand dunes"),
        ("dunes and cactus plants", "several cactus plants", "orange dunes"),
    ),
    *(
        Scene(
            name,
            places,
            ("shapes of many colors", "things of several kinds", "a setting of many shapes"),
            made_up=True,
        )
        for name, places in (
            ("planks", ("on wooden planks", "on a floor of planks", "somewhere on planks")),
            ("tiles", ("on a tiled floor", "on tiles", "somewhere on floor tiles")),
            ("stripes", ("on striped ground", "on ground with stripes", "somewhere on a striped floor")),
            ("stones", ("on ground with small stones", "among pebbles", "somewhere on stony ground")),
            ("bare ground", ("on bare ground", "on an empty floor", "somewhere in an empty place")),
        )
    ),
)

_NORMAL = {
    action.name: action
    for action in (
        Action(
            "walking",
            "walking",
            "normal",
            ("walking", "strolling along", "taking a walk"),
            ("{possessive} arms swing gently", "one foot is set in front of the other"),
        ),
        Action(
            "running",
            "running",
            "normal",
            ("running", "jogging quickly", "running at a fast pace"),
            ("{possessive} elbows are bent and one knee is high", "{pronoun} leans forward at speed"),
        ),
        Action(
            "standing",
            "standing",
            "normal",
            (
                "standing still with hands on hips",
                "standing with both hands on the hips",
                "posing with hands on hips",
            ),
            ("both feet are planted on the ground", "{possessive} elbows point outward"),
        ),
        Action(
            "waving",
            "waving",
            "normal",
            ("waving", "waving a hand", "greeting someone with a raised hand"),
            ("one arm is stretched high into the air", "one hand is lifted above {possessive} head"),
        ),
        Action(
            "sitting",
            "sitting",
            "normal",
            ("sitting on a bench", "resting on a wooden bench", "seated on a bench"),
            ("{possessive} hands rest on {possessive} knees", "{possessive} back is against the bench"),
        ),
        Action(
            "jumping",
            "jumping",
            "normal",
            ("jumping", "jumping into the air", "leaping up with joy"),
            ("both arms are thrown up", "{possessive} feet are off the ground"),
        ),
        Action(
            "carrying a box",
            "carrying",
            "normal",
            ("carrying a box", "carrying a cardboard box", "holding a big box"),
            ("both hands hold the box in front of {possessive} chest", "the package is brown"),
        ),
        Action(
            "talking on the phone",
            "phoning",
            "normal",
            ("talking on the phone", "making a phone call", "speaking into a mobile phone"),
            ("one hand holds the phone to {possessive} ear", "{possessive} other arm hangs down"),
        ),
        Action(
            "cycling",
            "cycling",
            "normal",
            ("riding a bicycle", "cycling", "riding a pink bike"),
            ("both hands grip the handlebar", "{possessive} feet push the pedals"),
        ),
        Action(
            "climbing a ladder",
            "climbing",
            "normal",
            ("climbing a ladder", "going up a ladder", "climbing up a tall ladder"),
            ("{possessive} hands hold the rungs", "one foot is on a higher rung"),
        ),
        Action(
            "dancing",
            "dancing",
            "normal",
            ("dancing", "doing a dance", "dancing on one leg"),
            ("one leg is lifted and the arms are spread", "{possessive} body sways to the music"),
        ),
        Action(
            "playing football",
            "football",
            "normal",
            ("playing football", "kicking a football", "dribbling a soccer ball"),
            ("the ball is at {possessive} foot", "one leg swings toward the ball"),
        ),
        Action(
            "playing the guitar",
            "guitar",
            "normal",
            ("playing the guitar", "performing music on a guitar", "strumming a guitar"),
            ("the guitar hangs in front of {possessive} body", "{possessive} fingers touch the strings"),
        ),
        Action(
            "skateboarding",
            "skateboarding",
            "normal",
            ("skateboarding", "riding a skateboard", "rolling along on a skateboard"),
            (
                "{possessive} knees are bent and both arms are spread for balance",
                "{pronoun} balances on the board",
            ),
        ),
        Action(
            "stretching",
            "stretching",
            "normal",
            ("stretching", "bending down to touch the toes", "doing stretching exercises"),
            ("{possessive} hands reach for {possessive} feet", "{possessive} back is bent far down"),
        ),
    )
}
_ANOMALY = {
    action.name: action
    for action in (
        Action(
            "falling forward",
            "falling_forward",
            "anomaly",
            ("falling forward", "falling face first", "toppling forward to the ground"),
            ("both arms reach out to break the fall", "{possessive} feet lose contact behind"),
        ),
        Action(
            "falling backwards",
            "falling_backwards",
            "anomaly",
            ("falling backwards", "falling over backwards", "toppling onto the back"),
            ("{possessive} back is about to hit the ground", "{possessive} arms reach into the empty air"),
        ),
        Action(
            "lying on the ground",
            "lying",
            "anomaly",
            ("lying on the ground", "lying flat on the ground", "lying motionless"),
            ("{possessive} whole body is stretched out flat", "{pronoun} does not get up"),
        ),
        Action(
            "collapsing onto the knees",
            "collapsing",
            "anomaly",
            ("collapsing onto the knees", "sinking down on both knees", "breaking down on the knees"),
            ("{possessive} head drops forward", "both knees touch the ground"),
        ),
        Action(
            "being hit by a ball",
            "ball_hit",
            "anomaly",
            (
                "being hit by a ball",
                "getting struck in the face by a ball",
                "being hit in the head by a ball",
            ),
            ("the ball bounces off {possessive} face", "{possessive} upper body is thrown back"),
        ),
        Action(
            "tripping over a stone",
            "tripping",
            "anomaly",
            ("tripping over a stone", "stumbling over a rock", "catching a foot on a stone"),
            ("one foot is caught behind at the rock", "{pronoun} struggles for balance"),
        ),
        Action(
            "being pushed by someone",
            "pushed",
            "anomaly",
            ("being pushed by someone", "getting pushed from behind", "being shoved by another person"),
            ("a person in dark clothes shoves {object}", "two hands press against {possessive} back"),
        ),
        Action(
            "crawling on the ground",
            "crawling",
            "anomaly",
            ("crawling on the ground", "crawling on hands and knees", "dragging along on hands and knees"),
            ("{possessive} hands are on the ground", "{pronoun} seems unable to stand"),
        ),
        Action(
            "being hit by a car",
            "car_hit",
            "anomaly",
            ("being hit by a car", "getting run over by a car", "being knocked into the air by a car"),
            ("the car throws {object} off the ground", "a car crashes into {object}"),
            outdoors_only=True,
        ),
        Action(
            "crashing with the skateboard",
            "skateboard_crash",
            "anomaly",
            ("crashing with a skateboard", "falling off a skateboard", "flying off a skateboard"),
            ("the board flies up behind {possessive} feet", "the skateboard slips away"),
        ),
        Action(
            "tumbling upside down",
            "tumbling",
            "anomaly",
            ("tumbling upside down", "tumbling head over heels", "rolling over upside down"),
            ("{possessive} head is down and {possessive} feet point up", "{possessive} legs are in the air"),
        ),
        Action(
            "being kicked by someone",
            "kicked",
            "anomaly",
            ("being kicked by someone", "getting kicked from behind", "being attacked with a kick"),
            ("a person in dark clothes kicks {object}", "another person lifts a leg against {object}"),
        ),
        Action(
            "slipping on a puddle",
            "slipping",
            "anomaly",
            ("slipping on a puddle", "slipping on wet ground", "sliding away on a puddle of water"),
            ("one leg shoots high up in front", "{possessive} foot slides through the water"),
        ),
    )
}
_SHARED_NORMAL = ("walking", "running", "standing", "waving", "sitting", "jumping", "carrying a box")
_SHARED_ANOMALY = (
    "falling forward",
    "falling backwards",
    "lying on the ground",
    "collapsing onto the knees",
    "being hit by a ball",
    "tripping over a stone",
)


def _actions(normal: tuple[str, ...], anomaly: tuple[str, ...]) -> tuple[Action, ...]:
    return (
        *(_NORMAL[name] for name in _SHARED_NORMAL + normal),
        *(_ANOMALY[name] for name in _SHARED_ANOMALY + anomaly),
    )


PRETRAINING_WORLD = World(
    name="pretraining",
    colours=_paints(
        red=(206, 38, 44),
        blue=(44, 84, 190),
        green=(44, 140, 66),
        yellow=(242, 208, 50),
        black=(34, 34, 38),
        white=(244, 244, 242),
        gray=(140, 142, 148),
        orange=(240, 130, 36),
        brown=(122, 78, 46),
        purple=(140, 70, 190),
    ),
    uppers=_pick(_UPPERS, "t-shirt", "shirt", "jacket", "sweater", "coat", "dress", "hoodie"),
    lowers=_pick(_LOWERS, "trousers", "shorts", "skirt", "jeans"),
    patterns=_pick(_PATTERNS, "plain", "striped", "checked", "dotted"),
    hair_colours=_paints(
        black=(30, 26, 26), brown=(104, 66, 36), blond=(232, 200, 112), gray=(176, 176, 178)
    ),
    men_hair=_pick(_HAIR, "short", "bald", "afro"),
    women_hair=_pick(_HAIR, "short", "long", "bun", "ponytail"),
    headwear=_pick(_HEADWEAR, "cap", "beanie", "helmet"),
    carried=_pick(_CARRIED, "backpack", "handbag"),
    scenes=_PRETRAINING_SCENES,
    actions=_actions(
        ("talking on the phone", "cycling", "climbing a ladder", "dancing", "playing football", "stretching"),
        ("being pushed by someone", "crawling on the ground", "tumbling upside down"),
    ),
)
DEMO_WORLD = World(
    name="demo",
    colours=_paints(
        red=(180, 22, 52),
        blue=(30, 104, 214),
        green=(72, 164, 84),
        yellow=(250, 222, 90),
        black=(22, 22, 28),
        white=(252, 252, 250),
        gray=(120, 124, 130),
        orange=(250, 146, 60),
        purple=(118, 58, 160),
        pink=(244, 140, 186),
        turquoise=(50, 190, 190),
    ),
    uppers=_pick(_UPPERS, "t-shirt", "jacket", "dress", "hoodie", "vest", "raincoat"),
    lowers=_pick(_LOWERS, "shorts", "skirt", "jeans", "leggings", "joggers"),
    patterns=_pick(_PATTERNS, "plain", "striped", "checked", "dotted"),
    hair_colours=_paints(
        black=(24, 22, 26),
        brown=(92, 56, 34),
        blond=(240, 210, 128),
        ginger=(190, 84, 34),
        gray=(186, 188, 192),
    ),
    men_hair=_pick(_HAIR, "short", "afro", "mohawk"),
    women_hair=_pick(_HAIR, "long", "ponytail", "afro"),
    headwear=_pick(_HEADWEAR, "cap", "sun hat", "helmet"),
    carried=_pick(_CARRIED, "backpack", "shoulder bag", "balloon"),
    scenes=_DEMO_SCENES,
    actions=_actions(
        ("playing football", "playing the guitar", "skateboarding", "stretching"),
        (
            "being hit by a car",
            "crashing with the skateboard",
            "tumbling upside down",
            "being kicked by someone",
            "slipping on a puddle",
        ),
    ),
)
