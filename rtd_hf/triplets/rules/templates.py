"""The wording of conditioning texts, our own, by what they ask for.

Slots: `{s}` the noun that goes, `{t}` what comes with its article, `{is_s}` and `{has_s}` agreeing with `{s}`,
`{is_t}` with `{t}`; the others are explained where they are used. Each reads on its own and behind
`a photo of $ that`.
"""

# One noun for another
REPLACE = (
    "replace the {s} with {t}",
    "swap the {s} for {t}",
    "exchange the {s} for {t}",
    "use {t} in place of the {s}",
    "put {t} where the {s} {is_s}",
    "shows {t} instead of the {s}",
    "has {t} rather than the {s}",
    "take out the {s} and put in {t}",
    "trade the {s} for {t}",
    "substitute {t} for the {s}",
    "there {is_t} {t} where the {s} {was_s}",
    "the {s} {is_s} replaced by {t}",
)
CHANGE = (
    "change the {s} to {t}",
    "change the {s} into {t}",
    "turn the {s} into {t}",
    "convert the {s} into {t}",
    "transform the {s} into {t}",
    "alter the {s} to be {t}",
    "edit the {s} to be {t}",
    "have the {s} changed to {t}",
)
BECOME = (
    "the {s} {has_s} become {t}",
    "the {s} {is_s} now {t}",
    "make the {s} {t}",
    "the {s} should be {t}",
    "let the {s} be {t}",
    "the {s} turned into {t}",
    "the {s} {was_s} changed to {t}",
)
# The source has to be seen in the picture.
UNNAMED = (
    "shows {t} instead",
    "make it {t}",
    "has {t} this time",
    "with {t} instead",
    "now with {t}",
    "use {t} instead",
)

# Something more: what is written behind the caption, and how it is asked for. `{is_t}` as above.
ADD = {
    "with {t} in the background": (
        "add {t} in the background",
        "put {t} in the background",
        "there {is_t} also {t} in the background",
        "has {t} in the background",
        "{t} can be seen in the background",
    ),
    "with {t} in the foreground": (
        "add {t} in the foreground",
        "put {t} in the foreground",
        "there {is_t} also {t} in the foreground",
        "also shows {t} in the foreground",
    ),
    "with {t} nearby": (
        "add {t} nearby",
        "include {t} nearby",
        "there {is_t} {t} nearby",
        "also has {t} nearby",
        "place {t} nearby",
    ),
    "with {t} off to the side": (
        "add {t} off to the side",
        "put {t} off to the side",
        "there {is_t} {t} off to the side",
        "{t} {is_t} added off to the side",
    ),
}
REMOVE = (
    "remove the {s}",
    "take away the {s}",
    "take the {s} out",
    "without the {s}",
    "the {s} {is_s} gone",
    "the {s} {has_s} been removed",
    "get rid of the {s}",
    "delete the {s}",
    "no longer has the {s}",
    "leave out the {s}",
)

# How many: `{n}` what is there (`two dogs`), `{m}` what is wanted (`one dog`), `{k}` its number.
COUNT = (
    "shows {m} instead of {n}",
    "has {m} instead of {n}",
    "change {n} to {m}",
    "there {are_m} {m}, not {n}",
    "make it {m}",
    "the number of {plural} is {k}",
    "{n} {becomes_n} {m}",
)

# Attributes: `{s}` the noun, `{old}` and `{new}` the attribute, `{kind}` colour, size or material.
ATTRIBUTE = (
    "change the {s} from {old} to {new}",
    "make the {s} {new} instead of {old}",
    "the {s} {is_s} {new}, not {old}",
    "the {s} {is_s} {new} instead of {old}",
    "turn the {old} {s} {new}",
    "change the {kind} of the {s} to {new}",
    "make the {s} {new}",
    "has {new_s} rather than {old_s}",
)
NEW_ATTRIBUTE = (
    "make the {s} {new}",
    "the {s} should be {new}",
    "the {s} {is_s} {new}",
    "change the {kind} of the {s} to {new}",
    "give the {s} a {new} look",
)

# Elsewhere: `{at}` the new place (`in a park`), `{place}` without preposition, `{old}` the old one (`the street`).
MOVE = (
    "move it to {place}",
    "the scene is {at} instead of {was_at}",
    "is {at} rather than {was_at}",
    "takes place {at}",
    "change the location from {old} to {place}",
    "replace {old} with {place}",
    "set it {at}",
    "the setting is {place} instead",
)
NEW_PLACE = (
    "move it to {place}",
    "set it {at}",
    "place the scene {at}",
    "is {at}",
    "show it {at}",
    "takes place {at}",
)
PLACES = (
    ("in", "a park"),
    ("in", "a forest"),
    ("in", "a kitchen"),
    ("in", "a desert"),
    ("in", "a garden"),
    ("in", "a parking lot"),
    ("in", "a living room"),
    ("in", "a studio"),
    ("in", "the snow"),
    ("in", "the rain"),
    ("on", "a beach"),
    ("on", "a street"),
    ("on", "a bridge"),
    ("on", "a stage"),
    ("on", "a rooftop"),
    ("on", "a farm"),
    ("on", "an island"),
    ("at", "a train station"),
    ("at", "an airport"),
    ("at", "a market"),
)
# Heads of phrases that say where a scene is, and not where a thing lies.
PLACE_NOUNS = frozenset(
    "park forest kitchen desert garden lot room studio snow rain beach street bridge stage rooftop farm island "
    "station airport market field road sidewalk city town yard backyard office restaurant bathroom bedroom living "
    "dining parking zoo river lake ocean sea hill mountain highway alley court stadium pasture meadow woods jungle "
    "store shop museum library school church driveway garage barn village harbor pier hotel hallway lawn countryside "
    "cafe bakery gym hospital warehouse".split()
)

# Another medium: how it is asked for, what stands before the caption, and what stands behind it.
STYLES = (
    ("a watercolor painting", "painted in watercolor"),
    ("an oil painting", "painted in oil"),
    ("a pencil sketch", "drawn in pencil"),
    ("a charcoal drawing", "drawn in charcoal"),
    ("a cartoon", "in the style of a cartoon"),
    ("a comic book panel", "in the style of a comic book"),
    ("a black and white photograph", "in black and white"),
    ("a vintage postcard", "in the style of a vintage postcard"),
    ("a mosaic", "in the style of a mosaic"),
    ("a stained glass window", "in the style of stained glass"),
    ("a piece of pixel art", "in the style of pixel art"),
    ("a woodcut", "in the style of a woodcut"),
    ("a paper collage", "in the style of a paper collage"),
    ("an embroidery", "in the style of embroidery"),
    ("a 3d rendering", "rendered in 3d"),
)
STYLE = ("make it {style}", "turn it into {style}", "is {style}", "show it as {style}", "looks like {style}",
         "as {style}", "convert the photo into {style}")  # fmt: skip

# What is not there
NEGATED_OBJECT = (
    "has no {s}",
    "there {is_s} no {s}",
    "does not have {the_s}",
    "no {s} this time",
    "without any {s}",
    "shows no {s}",
)
NEGATED_ACTION = (
    "the {s} {is_s} not {verb}",
    "the {s} {is_s} no longer {verb}",
    "shows that the {s} {is_s} not {verb}",
    "not {verb}",
)
ABSENT = (
    "there are no {plural} around",
    "no {plural} can be seen",
    "shows no {plural} at all",
    "without any {plural} in sight",
)
