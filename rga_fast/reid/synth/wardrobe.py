"""Who an identity is: body, skin, hair, garments, bag, hat.

Identities come in groups of four that share the colours of their upper and lower garments, and two
of the four share the pattern as well, so that colour alone finds the group and never the person.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rga_fast.reid.synth.figure import Body

Colour = tuple[float, float, float]

GARMENTS: dict[str, Colour] = {
    "black": (0.09, 0.09, 0.10),
    "white": (0.84, 0.83, 0.80),
    "grey": (0.44, 0.45, 0.47),
    "navy": (0.13, 0.16, 0.27),
    "red": (0.60, 0.15, 0.14),
    "blue": (0.24, 0.38, 0.58),
    "green": (0.24, 0.36, 0.25),
    "khaki": (0.55, 0.49, 0.37),
    "yellow": (0.80, 0.64, 0.24),
    "pink": (0.78, 0.54, 0.56),
    "purple": (0.36, 0.25, 0.42),
    "brown": (0.35, 0.24, 0.17),
}
UPPERS = ("black", "white", "grey", "navy", "red", "blue", "green", "yellow", "pink", "khaki")
LOWERS = ("black", "navy", "grey", "khaki", "blue", "white", "brown")
DENIM: Colour = (0.24, 0.33, 0.47)
SKINS: tuple[Colour, ...] = (
    (0.91, 0.74, 0.64),
    (0.84, 0.65, 0.53),
    (0.72, 0.52, 0.39),
    (0.54, 0.36, 0.25),
    (0.36, 0.23, 0.16),
)
HAIRS: tuple[Colour, ...] = (
    (0.06, 0.05, 0.05),
    (0.17, 0.11, 0.07),
    (0.33, 0.20, 0.11),
    (0.72, 0.56, 0.32),
    (0.55, 0.25, 0.11),
    (0.62, 0.61, 0.60),
)
PATTERNS = ("plain", "hstripes", "vstripes", "checks", "dots", "yoke", "band", "print")
TOPS = ("tshirt", "shirt", "sweater", "jacket", "coat", "hoodie")
BOTTOMS = ("trousers", "jeans", "shorts", "skirt", "long skirt")
HAIR_STYLES = ("short", "crop", "bob", "long", "ponytail", "bun", "bald", "afro")
BAGS = ("none", "backpack", "shoulder bag", "hand bag", "suitcase")
HATS = ("none", "cap", "beanie", "sun hat")


@dataclass(frozen=True)
class Look:
    """Everything about a person that does not change from one camera to the next."""

    body: Body
    skin: Colour
    hair: str
    hair_colour: Colour
    beard: bool
    glasses: bool
    top: str
    top_colour: Colour
    top_second: Colour
    pattern: str
    pattern_scale: float
    inner: Colour
    bottom: str
    bottom_colour: Colour
    shoes: Colour
    soles: Colour
    bag: str
    bag_colour: Colour
    hat: str
    hat_colour: Colour
    scarf: Colour | None


def group_of(identity: int) -> int:
    """The group of four lookalikes of an identity (from 1): k, k+3, k+6, k+9 share one.

    Every third identity is a test identity, so that a group never spans training and test.
    """
    return (identity - 1) // 12 * 3 + (identity - 1) % 3


def look_of(identity: int, seed: int) -> Look:
    """The look of `identity` (from 1), from (seed, identity) alone."""
    palette = np.random.default_rng(np.random.SeedSequence((seed, 1, group_of(identity))))
    member = (identity - 1) % 12 // 3
    upper, lower = str(palette.choice(UPPERS)), str(palette.choice(LOWERS))
    second = _contrast(palette, upper)
    patterns = palette.permutation(PATTERNS)[[0, 0, 1, 2]]
    bags, hair = palette.permutation(BAGS), palette.permutation(HAIR_STYLES)
    traits = {"pattern": patterns[member], "bag": bags[member], "hair": hair[member]}
    rng = np.random.default_rng(np.random.SeedSequence((seed, 2, identity)))
    return _draw(rng, upper, lower, second, {name: str(value) for name, value in traits.items()})


def stranger(rng: np.random.Generator) -> Look:
    """Somebody who is no identity: a distractor or a passer-by."""
    traits = {
        "pattern": str(rng.choice(PATTERNS)),
        "bag": str(rng.choice(BAGS)),
        "hair": str(rng.choice(HAIR_STYLES)),
    }
    upper = str(rng.choice(UPPERS))
    return _draw(rng, upper, str(rng.choice(LOWERS)), _contrast(rng, upper), traits)


def _draw(
    rng: np.random.Generator, upper: str, lower: str, second: str, traits: dict[str, str]
) -> Look:
    hair, pattern = traits["hair"], traits["pattern"]
    feminine = float(np.clip(rng.normal({"bald": 0.05, "crop": 0.2}.get(hair, 0.55), 0.25), 0, 1))
    if hair in ("bob", "long", "ponytail", "bun"):
        feminine = max(feminine, 0.6)
    top = str(rng.choice(TOPS, p=(0.28, 0.17, 0.15, 0.2, 0.12, 0.08)))
    skirts = 0.36 if feminine > 0.6 else 0.0
    bottoms = (0.3, 0.32, 0.38 - skirts, skirts * 0.7, skirts * 0.3)
    bottom = str(rng.choice(BOTTOMS, p=np.array(bottoms) / sum(bottoms)))
    if top == "coat" and bottom == "shorts":
        bottom = "trousers"
    shoes = str(rng.choice(("black", "white", "brown", "grey", "red", "navy")))
    accessory = ("black", "brown", "red", "navy", "khaki", "yellow", "grey", "purple")
    return Look(
        body=_body(rng, feminine),
        skin=_shade(rng, SKINS[rng.choice(5, p=(0.25, 0.3, 0.2, 0.13, 0.12))], 0.03),
        hair=hair,
        hair_colour=_shade(rng, HAIRS[rng.choice(6, p=(0.3, 0.24, 0.18, 0.12, 0.06, 0.1))], 0.02),
        beard=bool(feminine < 0.35 and rng.random() < 0.45),
        glasses=bool(rng.random() < 0.25),
        top=top,
        top_colour=_shade(rng, GARMENTS[upper], 0.025),
        top_second=_shade(rng, GARMENTS[second], 0.02),
        pattern=pattern,
        pattern_scale=float(rng.choice((0.75, 1.0, 1.4))),
        inner=_shade(rng, GARMENTS[_contrast(rng, upper)], 0.02),
        bottom=bottom,
        bottom_colour=_shade(
            rng, DENIM if bottom == "jeans" and lower == "blue" else GARMENTS[lower], 0.025
        ),
        shoes=_shade(rng, GARMENTS[shoes], 0.02),
        soles=GARMENTS["white"] if rng.random() < 0.5 else GARMENTS["black"],
        bag=traits["bag"],
        bag_colour=_shade(rng, GARMENTS[str(rng.choice(accessory))], 0.02),
        hat=str(rng.choice(HATS, p=(0.72, 0.14, 0.09, 0.05))),
        hat_colour=_shade(rng, GARMENTS[str(rng.choice(accessory))], 0.02),
        scarf=_shade(rng, GARMENTS[str(rng.choice(accessory))], 0.02)
        if top in ("coat", "jacket") and rng.random() < 0.35
        else None,
    )


def _body(rng: np.random.Generator, feminine: float) -> Body:
    return Body(
        height=float(np.clip(rng.normal(1.78 - 0.13 * feminine, 0.065), 1.5, 1.98)),
        girth=float(np.clip(rng.normal(1.02 - 0.08 * feminine, 0.1), 0.82, 1.32)),
        shoulders=float(np.clip(rng.normal(1.06 - 0.14 * feminine, 0.04), 0.84, 1.15)),
        hips=float(np.clip(rng.normal(0.95 + 0.13 * feminine, 0.04), 0.86, 1.2)),
        legs=float(np.clip(rng.normal(1.0, 0.02), 0.95, 1.05)),
    )


def _contrast(rng: np.random.Generator, upper: str) -> str:
    """A garment colour that stands out from `upper`."""
    light = ("white", "grey", "khaki", "yellow", "pink", "red")
    deep = ("black", "navy", "brown", "blue", "green", "red")
    return str(
        rng.choice(
            light if sum(GARMENTS[upper]) < 0.9 else deep, p=(0.36, 0.2, 0.14, 0.1, 0.1, 0.1)
        )
    )


def _shade(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    gain = 1 + rng.normal(0, 0.06)
    r, g, b = (float(np.clip(c * gain + rng.normal(0, spread), 0.03, 0.95)) for c in colour)
    return r, g, b
