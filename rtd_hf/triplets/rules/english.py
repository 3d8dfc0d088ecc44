"""As much English as edits of captions need: articles, plurals, capitals, and the words of the closed classes."""

import re
from functools import lru_cache


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Parts of speech that can be listed; everything else is looked up in the vocabulary of the corpus.
INDEFINITE = _words("a an")
ARTICLES = INDEFINITE | {"the"}
DEFINITE = _words("the this that these those")
POSSESSIVE = _words("his her its their my your our")
DETERMINERS = INDEFINITE | DEFINITE | POSSESSIVE | _words("some many several another each every no any all both few")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PREPOSITIONS = _words(
    "in on at of with without by near beside behind under over above below between among around through across "
    "along against inside outside onto into from to for off up down past toward towards beneath underneath atop "
    "upon during after before about like as amongst amid alongside next"
)
CONJUNCTIONS = _words("and or but while as that which who where when because so if than whose")
PRONOUNS = _words(
    "he she it they him them i you we us me himself herself itself themselves someone something there other others "
    "everyone anyone nothing everything what this that these those his hers theirs one ones each"
)
GENDERED = _words("he she him her his hers himself herself")
AUXILIARIES = _words("is are was were be been being has have had do does did can could will would may might should")
ADVERBS = _words("very not too together also just really so here still almost nearly away back out forward well")
PARTICIPLES = _words("drawn worn grown driven ridden made built woven frozen broken cut lit strewn")
# What more than one thing follows, and what one does.
COUNTING_MANY = frozenset(NUMBERS[1:]) | _words("these those several many few both")
COUNTING_ONE = INDEFINITE | _words("one this that another each every")
PLURAL_OF_VERB = {"is": "are", "was": "were", "has": "have"}

COLOURS = tuple("red orange yellow green blue purple pink brown black white gray".split())
COLOUR_WORDS = frozenset(COLOURS) | _words("grey tan beige silver gold golden maroon teal turquoise colorful striped")
SIZES = ("small", "large", "tiny", "huge", "tall", "short", "long")
# Sizes that can stand for one another: a tall man does not become a tiny street.
SIZE_GROUPS = (("small", "large", "tiny", "huge", "big", "little", "giant"), ("tall", "short"), ("long", "short"))
SIZE_WORDS = frozenset(size for group in SIZE_GROUPS for size in group)
MATERIALS = ("wooden", "metal", "plastic", "glass", "stone", "leather", "paper", "ceramic")
MATERIAL_WORDS = frozenset(MATERIALS) | _words("brick concrete steel marble wicker metallic")
ATTRIBUTES = COLOUR_WORDS | SIZE_WORDS | MATERIAL_WORDS

# Nouns that place, count or frame other things, and words that taggers take for nouns: never a keyword.
RELATIONAL = _words(
    "front side sides top middle back background foreground center centre end edge corner left right bottom rear "
    "inside outside distance group groups lot lots couple bunch piece pieces pair pairs kind kinds type types variety "
    "set number row rows line lines part parts area areas place view photo photograph picture pictures image pic "
    "snapshot shot close-up closeup close portrait scene way ways day days time times amount assortment collection "
    "slice slices bit half mid style next something someone anything everything it its there what one ones other "
    "others two three various different multiple many several few air next each all another both many much more "
    "while and or of with a an the to is are as ready that which assorted array stack pile bunches crowd herd flock "
    "pack team self display midair order full name use look addition attempt action motion height preparation "
    "process midst range series section selection sort surface top-down shape form items item object objects thing "
    "things stuff color colors colour colours size face faces arms arm hand hands head heads mouth mouths eye eyes "
    "leg legs foot feet hair body bodies paw paws nose noses lap tail tails shoulder shoulders ear ears neck finger"
)
PEOPLE = _words(
    "man woman boy girl child kid person lady guy player skateboarder surfer skier rider baby toddler gentleman "
    "snowboarder batter pitcher catcher worker officer chef teenager male female adult"
)
# Plural without a singular, or the same in both: they are counted or bent by nothing.
PLURAL_ONLY = _words("people pants jeans shorts scissors glasses sunglasses clothes goggles pajamas binoculars police")
_SAME_IN_BOTH = _words("sheep fish deer aircraft series species moose bison shrimp salmon trout cattle broccoli")
_IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "person": "people", "foot": "feet", "tooth": "teeth",
    "goose": "geese", "mouse": "mice", "ox": "oxen", "knife": "knives", "leaf": "leaves", "loaf": "loaves",
    "shelf": "shelves", "wife": "wives", "wolf": "wolves", "half": "halves", "calf": "calves", "scarf": "scarves",
    "life": "lives", "thief": "thieves", "potato": "potatoes", "tomato": "tomatoes", "hero": "heroes",
    "ski": "skis", "taxi": "taxis", "bikini": "bikinis", "kiwi": "kiwis", "tsunami": "tsunamis",
    "mango": "mangoes", "buffalo": "buffaloes", "cactus": "cacti", "zucchini": "zucchini", "policeman": "policemen",
    "fireman": "firemen", "fisherman": "fishermen", "snowman": "snowmen", "businessman": "businessmen",
    "gentleman": "gentlemen", "mailman": "mailmen", "workman": "workmen", "horseman": "horsemen",
    "businesswoman": "businesswomen", "bookshelf": "bookshelves", "grandchild": "grandchildren",
}  # fmt: skip
_SINGULAR_OF = {plural: singular for singular, plural in _IRREGULAR.items() if singular != plural}
_ENDS_IN_S = _words(
    "bus gas lens tennis canvas atlas cactus octopus chaos christmas mattress bias iris pus walrus news"
)
_IES_OF_IE = _words("cookies movies brownies pies ties zombies selfies smoothies birdies hoodies doggies")
_OE_OR_SE = re.compile(
    r"(?:shoe|toe|canoe|house|horse|nose|rose|hose|vase|case|purse|nurse|mouse|goose|cheese|course|blouse|base|phase|"
    r"cruise|noise|fuse|tree|bee|knee|pie|tie|cache|axe)s$"
)

# Spelled with a vowel but spoken with a consonant, and the other way round.
_SAYS_CONSONANT = re.compile(
    r"(?:uni(?!n|m)|us(?:e|u)|eu|ewe|one(?!i)|once|ubiq|uten|util|ufo|ukulele|u-)", re.IGNORECASE
)
_SAYS_VOWEL = re.compile(r"(?:hour|honest|honou?r|heir|x-ray|8|11|18)", re.IGNORECASE)


def article(word: str) -> str:
    """`a` or `an`, as the sound of the word behind it wants."""
    if _SAYS_VOWEL.match(word):
        return "an"
    return "an" if word[:1].lower() in "aeiou" and not _SAYS_CONSONANT.match(word) else "a"


def with_article(phrase: str) -> str:
    """The phrase with its indefinite article before it."""
    return f"{article(phrase)} {phrase}"


@lru_cache(maxsize=100_000)
def plural(noun: str) -> str:
    """The plural of a noun, or of the last word of several."""
    rest, space, word = noun.rpartition(" ")
    if word in _IRREGULAR:
        bent = _IRREGULAR[word]
    elif word in PLURAL_ONLY or word in _SAME_IN_BOTH:
        bent = word
    elif re.search(r"(?:s|x|z|ch|sh)$", word):
        bent = f"{word}es"
    elif re.search(r"[^aeiou]y$", word):
        bent = f"{word[:-1]}ies"
    else:
        bent = f"{word}s"
    return f"{rest}{space}{bent}"


@lru_cache(maxsize=100_000)
def singular(noun: str) -> str:
    """The singular of a noun, or of the last word of several; what is singular stays."""
    rest, space, word = noun.rpartition(" ")
    return f"{rest}{space}{_singular_word(word)}"


def _singular_word(word: str) -> str:
    if word in _SINGULAR_OF:
        return _SINGULAR_OF[word]
    if re.fullmatch(r"[^aeiouy]+s", word) and len(word) == 3:  # tvs
        return word[:-1]
    if word in PLURAL_ONLY or word in _SAME_IN_BOTH or word in _ENDS_IN_S or not word.endswith("s") or len(word) < 4:
        return word
    if re.search(r"(?:ss|us|is)$", word):
        return word
    if word.endswith("ies"):
        return word[:-1] if word in _IES_OF_IE else f"{word[:-3]}y"
    if _OE_OR_SE.search(word):
        return word[:-1]
    return word[:-2] if re.search(r"(?:s|x|z|ch|sh)es$", word) else word[:-1]


def is_plural(noun: str) -> bool:
    """Whether the last word is a plural form; what is the same in both counts as singular."""
    word = noun.rpartition(" ")[2]
    return word in PLURAL_ONLY or _singular_word(word) != word


def is_alike(noun: str) -> bool:
    """Whether one and many are the same word: `sheep`."""
    return noun.rpartition(" ")[2] in _SAME_IN_BOTH


def can_be_counted(noun: str) -> bool:
    """Whether the noun has a singular and a plural that differ."""
    word = noun.rpartition(" ")[2]
    return word not in PLURAL_ONLY and word not in _SAME_IN_BOTH and plural(word) != word


def base_of_verb(verb: str) -> str | None:
    """`sit` for `sits`; `None` where it is no such form."""
    if not verb.endswith("s") or verb.endswith(("ss", "us", "is")) or len(verb) < 4:
        return None
    if verb.endswith("ies"):
        return f"{verb[:-3]}y"
    return verb[:-2] if re.search(r"(?:ss|x|z|ch|sh|o)es$", verb) else verb[:-1]


def is_participle(word: str) -> bool:
    """Whether a verb's form can describe: `covered`, `drawn`."""
    return word.endswith("ed") or word in PARTICIPLES


def capitalised_like(text: str, model: str) -> str:
    """The text with a capital at its start where the model has one."""
    return text[:1].upper() + text[1:] if model[:1].isupper() else text
