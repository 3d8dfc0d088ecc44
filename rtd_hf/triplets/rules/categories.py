"""Coarse categories of nouns: what is alive, worn, eaten, driven or a place is exchanged for its like only.

A similarity alone would let a man wear a woman, for both stand beside the same words. Nouns in no list are exchanged
for one another. The lists are ours, of everyday words; the head of a compound noun decides ("fire truck": vehicle).
"""

from .english import PEOPLE


_LISTS = {
    "animal": """
        dog cat llama alpaca horse cow bull sheep goat pig elephant giraffe zebra bear lion tiger bird duck
        goose swan pigeon seagull chicken rooster hen owl parrot eagle monkey rabbit squirrel rat deer
        donkey pony calf lamb kitten puppy wolf fox kangaroo panda camel penguin peacock turkey animal cub
        foal kitty doggy dolphin whale shark turtle frog snake lizard butterfly bee ostrich crane heron
        pelican crow bulldog terrier poodle retriever labrador cattle fish bison
        """,
    "human": """
        people couple family friend crowd mother father
        mom dad daughter son sister brother parent bride groom student teacher cowboy soldier policeman
        fireman fisherman businessman cop cook waiter waitress barber clown doctor nurse farmer vendor shopper
        passenger pedestrian commuter tourist spectator fan audience team umpire referee athlete cyclist biker
        bicyclist motorcyclist skateboarder snowboarder boarder surfer skier rider jockey driver skater runner
        swimmer wakeboarder paraglider parasailer golfer boxer singer musician band artist photographer model
        dancer bystander onlooker goalie outfielder infielder hitter guest customer employee crew pilot sailor
        hiker camper walker guard guitarist visitor patron resident owner herder shepherd servant
        dude senior adult teen youth youngster infant kiddo ladies girlfriend boyfriend husband wife
        """,
    "worn": """
        hat cap helmet shirt t-shirt jacket coat suit tie necktie bowtie dress skirt pants jeans shorts
        sweater hoodie vest uniform costume gown robe scarf glove mitten shoe boot sneaker sandal sock glasses
        sunglasses goggles watch bracelet necklace earring ring apron jersey backpack bandana wig mask wetsuit
        bikini swimsuit outfit clothes blazer blouse sweatshirt tuxedo belt headband visor beanie purse tunic
        kimono tights veil
        """,
    "eaten": """
        pizza sandwich cake bread donut doughnut cookie pie pastry muffin bagel croissant burger hamburger
        hotdog salad soup pasta spaghetti noodle rice meat beef pork steak bacon ham sausage egg cheese
        vegetable fruit apple banana orange lemon lime pear grape strawberry berry cherry peach pineapple
        melon watermelon broccoli carrot tomato potato onion lettuce pepper mushroom cucumber corn bean pea
        spinach fries fry chip dessert cupcake cheesecake brownie pancake waffle cream chocolate candy popcorn
        pretzel food meal breakfast lunch dinner snack dish sauce ketchup mustard mayonnaise syrup honey
        butter jam jelly gravy juice coffee tea milk soda beer wine drink beverage cocktail smoothie
        toast bun roll wrap taco burrito sushi casserole stew curry omelet omelette pickle olive herb nut
        almond cereal oatmeal yogurt pudding frosting icing cauliflower cabbage celery asparagus zucchini
        squash pumpkin avocado mango kiwi topping pepperoni cranberry cracker macaroni parsley crust
        """,
    "vehicle": """
        car truck bus van taxi cab train locomotive tram trolley streetcar motorcycle motorbike scooter bike
        bicycle moped tricycle boat ship sailboat canoe kayak raft ferry yacht plane airplane aeroplane jet
        jetliner airliner helicopter aircraft tractor trailer wagon cart carriage buggy suv sedan pickup
        ambulance engine vehicle firetruck cycle jeep limousine subway minivan
        bulldozer rv semi biplane speedboat rowboat tugboat barge gondola rickshaw sleigh carrier bandwagon
        motor-home motorhome chopper tank
        """,
    "board": """
        skateboard surfboard snowboard ski sled board skate wakeboard kiteboard bodyboard longboard
        """,
    "outdoors": """
        park forest desert garden lot beach farm island field city town yard backyard zoo hill hillside mountain
        mountainside court stadium arena pasture meadow woods jungle village harbor countryside slope enclosure
        shore shoreline coast marina swamp valley cliff plain prairie savanna savannah grassland wilderness
        habitat exhibit corral paddock ranch orchard plaza square courtyard skatepark neighborhood downtown
        suburb campus playground cave rink market airport
        """,
    "building": """
        building house home apartment tower castle church school museum library store shop hotel restaurant cafe
        bakery diner pub barn stable garage warehouse hospital factory skyscraper station terminal gym skyline
        """,
    "room": """
        room kitchen bathroom bedroom restroom studio office lobby corridor hallway closet cubicle basement attic
        classroom dugout
        """,
    "way": """
        street road sidewalk highway alley driveway bridge ramp track runway tarmac curb intersection path trail
        crosswalk freeway lane pathway walkway trailhead platform roadway avenue tunnel pier dock stage rooftop
        patio porch deck balcony terrace
        """,
    "waters": """
        water river lake ocean sea pool pond stream creek bay canal waterway waterfall
        """,
    "surface": """
        floor grass dirt sand snow mud gravel ice hay carpet rug concrete pavement asphalt soil lawn
        """,
    "furniture": """
        chair couch sofa bench table desk bed stool armchair recliner loveseat ottoman dresser cabinet shelf
        bookshelf bookcase counter countertop cupboard nightstand wardrobe crib futon mattress hammock
        footstool crate seat wheelchair
        """,
    "building part": """
        window door wall ceiling roof fence gate railing staircase stair stairway fireplace chimney archway pole post
        doorway entrance ledge windowsill sill steeple rail
        """,
    "appliance": """
        oven stove microwave refrigerator fridge freezer dishwasher toaster blender sink toilet bathtub tub
        shower faucet urinal bidet washer dryer stovetop range heater
        """,
    "device": """
        computer laptop phone cellphone smartphone telephone television tv monitor screen keyboard camera
        remote controller tablet ipad ipod iphone printer speaker radio console wii projector headphone mouse
        calculator microphone
        """,
    "vessel": """
        plate bowl cup mug glass bottle jar vase pan pot tray basket box bucket container platter saucer bag
        suitcase can carton jug pail bin briefcase skillet cooler planter
        """,
    "plant": """
        tree bush shrub flower rose tulip plant fern cactus bouquet palm pine weed log branch sunflower daisy
        """,
    "textile": """
        blanket towel curtain pillow cushion comforter bedspread cloth napkin quilt sheet tablecloth
        """,
    "hand tool": """
        fork knife spoon scissors chopstick pencil toothbrush hairbrush stick spatula tong
        """,
    "sport gear": """
        frisbee ball racket racquet bat kite disc disk balloon football
        """,
    "shelter": """
        umbrella parasol tent canopy awning
        """,
    "street furniture": """
        sign signal stoplight hydrant meter billboard statue sculpture mailbox dumpster lamp
        """,
    "wall piece": """
        mirror painting poster drawing clock calendar
        """,
    "paper": """
        book newspaper magazine notebook note card
        """,
    "toy": """
        teddy doll puppet
        """,
}  # fmt: skip
_LISTS["human"] += " ".join(PEOPLE)
_MEMBERS = {name: frozenset(words.split()) for name, words in _LISTS.items()}
CATEGORY = {word: name for name, words in _MEMBERS.items() for word in words}
# Animals and people do the same things in captions.
CATEGORY = {word: "animate" if name in ("animal", "human") else name for word, name in CATEGORY.items()}
# Compound nouns that are something else than their last word.
CATEGORY |= {"teddy bear": "toy", "hot dog": "eaten", "chili dog": "eaten", "computer mouse": "device",
             "ceiling fan": "device", "wine glasses": "vessel", "cutting board": "vessel"}  # fmt: skip

PLACES = frozenset({"outdoors", "building", "room", "way", "waters"})

# Words for one and the same thing: an exchange would ask for nothing.
_SAME = """
    woman lady female/man guy gentleman dude male/child kid youngster kiddo/baby infant toddler/couch sofa loveseat/
    refrigerator fridge freezer/tv television/phone cellphone telephone smartphone iphone/monitor screen/
    bike bicycle cycle/motorcycle motorbike cycle/airplane plane aeroplane jet jetliner airliner aircraft/
    donut doughnut/racket racquet/street road roadway avenue lane/sidewalk walkway pathway path trail/ocean sea/
    tub bathtub/stove oven range stovetop/rock stone/counter countertop/bookcase bookshelf shelf/cup mug/
    burger hamburger/frosting icing/taxi cab/train locomotive engine/trolley tram streetcar/pants jeans/
    glasses sunglasses/shirt t-shirt/coat jacket/suitcase case luggage/dirt soil mud ground/grass lawn/
    field pasture meadow grassland plain/shore beach shoreline coast/dock pier/lake pond/store shop/bouquet flower/
    bush shrub/cow bull cattle calf/chicken hen rooster/dog puppy doggy/cat kitten kitty/horse pony/sheep lamb/
    runway tarmac airport/track railroad rail/curb sidewalk/restroom bathroom stall/home house/mom mother/
    dad father/sign board billboard/stoplight signal light/frisbee frisbe disc disk/
    umbrella parasol/bicyclist cyclist biker/boarder snowboarder/boarder skateboarder/hill hillside slope/
    dish plate/dish meal/ground floor/cap hat/case box/laptop computer/outfit costume uniform clothes/
    towel cloth/drawing painting/seat chair/seat bench/stairway staircase/bank shore/player athlete/
    vegetable produce/plant vegetation foliage/street highway freeway/dresser cabinet/habitat enclosure corral/
    square plaza/patio courtyard terrace/bread toast/bun roll/mountain mountainside/pole post
"""
_DRINKS = frozenset("juice coffee tea milk soda beer wine water cocktail lemonade smoothie".split())
# A word, and what it says in general: a swan that becomes a bird has not become anything.
_WIDER = {
    "animal": _MEMBERS["animal"],
    "bird": frozenset(
        "duck goose swan pigeon seagull chicken rooster hen owl parrot eagle peacock turkey ostrich crane heron "
        "pelican crow penguin".split()
    ),
    **dict.fromkeys(("person", "people", "adult", "family", "friend", "couple", "crowd", "model"), _MEMBERS["human"]),
    **dict.fromkeys(
        ("man", "woman", "guy", "lady", "gentleman", "male", "female"),
        _MEMBERS["human"] - frozenset("man woman guy lady boy girl child kid baby toddler infant teen".split()),
    ),
    **dict.fromkeys(("child", "kid"), frozenset("boy girl baby toddler infant".split())),
    **dict.fromkeys(("player", "athlete"), _MEMBERS["human"]),
    "vehicle": _MEMBERS["vehicle"],
    "boat": frozenset("ship sailboat canoe kayak raft ferry yacht speedboat rowboat tugboat barge gondola".split()),
    "car": frozenset("taxi cab jeep suv sedan limousine minivan".split()),
    "truck": frozenset("pickup firetruck semi van".split()),
    **dict.fromkeys(("food", "meal", "dish", "snack", "breakfast", "lunch", "dinner"), _MEMBERS["eaten"]),
    "fruit": frozenset(
        "apple banana orange lemon lime pear grape strawberry berry cherry peach pineapple melon watermelon "
        "avocado mango kiwi cranberry".split()
    ),
    "vegetable": frozenset(
        "broccoli carrot tomato potato onion lettuce pepper mushroom cucumber corn bean pea spinach cauliflower "
        "cabbage celery asparagus zucchini squash pumpkin".split()
    ),
    **dict.fromkeys(("dessert", "pastry"), frozenset("cake cupcake donut doughnut pie cookie brownie muffin".split())),
    "meat": frozenset("beef pork steak bacon ham sausage chicken".split()),
    **dict.fromkeys(("drink", "beverage"), _DRINKS),
    "plant": _MEMBERS["plant"],
    "flower": frozenset("rose tulip sunflower daisy".split()),
    "room": frozenset("kitchen bathroom bedroom restroom classroom office basement attic".split()),
    **dict.fromkeys(
        ("building", "house", "tower", "apartment"),
        frozenset(
            "building house church tower store shop barn apartment hotel castle skyscraper museum library school "
            "station hospital restaurant".split()
        ),
    ),
    "container": _MEMBERS["vessel"],
    "bag": frozenset("backpack purse suitcase briefcase".split()),
    "computer": frozenset("laptop desktop tablet".split()),
    **dict.fromkeys(("clothes", "outfit", "costume", "uniform"), _MEMBERS["worn"]),
    "board": _MEMBERS["board"],
    "water": frozenset("ocean sea lake river pond pool stream creek bay".split()),
    **dict.fromkeys(("city", "town"), frozenset("city town village neighborhood downtown suburb".split())),
}
_SAME_AS: dict[str, frozenset[str]] = {}
for _group in _SAME.split("/"):
    for _word in _group.split():
        _SAME_AS[_word] = _SAME_AS.get(_word, frozenset()) | frozenset(_group.split())

_SLICED = frozenset("cake pie pizza bread toast cheese meat ham bacon fruit apple orange lemon chocolate".split())
# What there are herds, slices and glasses of.
_OF = {
    "herd": frozenset(
        "cow bull cattle sheep goat horse elephant giraffe zebra deer bison camel llama alpaca donkey pony pig".split()
    ),
    "flock": _WIDER["bird"] | frozenset("bird sheep goat".split()),
    **dict.fromkeys(("crowd", "team"), _MEMBERS["human"]),
    **dict.fromkeys(("glass", "cup", "mug", "bottle", "glasses", "cups", "mugs", "bottles"), _DRINKS),
    **dict.fromkeys(
        ("bowl", "plate", "platter", "tray", "bowls", "plates", "platters", "trays"), _MEMBERS["eaten"] - _DRINKS
    ),
    **dict.fromkeys(("slice", "slices", "piece", "pieces"), _SLICED),
}
# Where one is "in", and where one is "on": a kitchen is no place to be on, a plate none to be in.
_IN = frozenset(
    "forest kitchen garden lot room studio park desert airport market city town yard backyard office restaurant "
    "bathroom bedroom zoo jungle woods store shop museum library school church garage barn village harbor hotel "
    "hallway cafe bakery gym hospital warehouse stadium arena enclosure "
    "swamp valley habitat exhibit corral stable orchard lobby corridor closet cubicle basement attic "
    "classroom diner pub neighborhood downtown suburb house home building apartment tower castle tunnel cave factory "
    "skyscraper restroom dugout courtyard countryside pasture meadow station terminal "
    "bowl cup mug glass bottle jar vase pan pot basket box bucket container bag suitcase can carton jug bin "
    "cabinet dresser cupboard wardrobe crate crib car truck van taxi cab jeep suv sedan limousine minivan".split()
)
_ON = frozenset(
    "beach street bridge stage rooftop farm island road sidewalk highway court slope ramp track runway tarmac curb "
    "path trail shore shoreline coast dock pier patio porch deck balcony terrace crosswalk freeway lane pathway "
    "walkway platform hill hillside mountain mountainside cliff plain avenue roadway campus "
    "plate platter saucer tray table desk counter shelf bench stool countertop "
    "motorcycle motorbike scooter bike bicycle cycle moped tricycle".split()
)
_ALONG = frozenset(
    "street road sidewalk highway alley driveway bridge ramp track runway path trail crosswalk freeway lane pathway "
    "walkway roadway avenue tunnel pier hill hillside slope mountain river stream creek canal beach shore coast field "
    "hallway corridor stair staircase".split()
)
_IN_AND_ON = frozenset("field street road driveway farm".split())

# Of no body, or one with its verb ("playing tennis"): such nouns are neither replaced nor put anywhere.
NO_THINGS = frozenset(
    """
    game match event party setting work art trip race tournament competition sport tennis baseball soccer
    football basketball hockey golf skiing surfing snowboarding skateboarding play inning practice lesson show
    fair parade portion patch strip volley conversation call selfie trick jump ride stunt swing pitch serve
    turn nap sleep walk stroll dance kiss hug fight day night morning afternoon evening sunset sunrise summer
    winter spring autumn weather season holiday birthday wedding ceremony celebration christmas traffic light
    sunlight shade shadow reflection blur wind breeze rain storm word letter name number text writing logo
    language music sound noise luck fun love life death job business design pattern stripe print decoration
    theme version brand hole crack dot spot can lie rest drop fall run sight glance look stare smile grin
    frown expression pose position stance attire gear equipment furniture luggage accessory essential supply
    utensil condiment ingredient tool distance direction angle perspective style mode level inch foot mile
    pound second minute hour year week month age world nature wild open public sun moon star sky cloud fog
    smoke steam fire flame dust air space horseback company graffiti mural news information service care help
    security control power energy speed sale focus st president progress unit trio treat ben den london neon dusk
    decor coach course circle message heart flight liquid land map beard hood trunk beak tooth meeting movie
    nintendo terrain landscape vegetation foliage mound obstacle barrier wire cement handle frame rim harness
    break collage construction vanity alcohol oil sugar pottery silverware clothing arrangement rainbow coin
    paint tape flooring machine lid bank curve arrow button steeple ground concept wave model bar pen stop
    entrance brush
    """.split()
)


def head(noun: str) -> str:
    """The last word of a compound noun."""
    return noun.rpartition(" ")[2]


def category(noun: str) -> str | None:
    """The category of a noun in the singular; `None` where it is in no list."""
    last = head(noun)
    found = CATEGORY.get(noun, CATEGORY.get(last))
    if found is None and last.endswith(("man", "woman", "boarder")):
        return "animate"
    return found


def means_the_same(noun: str, other: str) -> bool:
    """Whether one noun says no more than the other, so that what is called one may be called the other."""
    one, two = head(noun), head(other)
    # "a tennis player" and "a baseball player" differ; "a park" and "a skate park" do not.
    if one == two:
        return one == noun or two == other
    if two in _SAME_AS.get(one, ()):
        return True
    wider, wider_too = _WIDER.get(one, ()), _WIDER.get(two, ())
    return (two in wider and one == noun) or (one in wider_too and two == other)


def can_follow(words: str, noun: str) -> bool:
    """
    Whether a noun goes with the words before it: one is in a kitchen and on a runway; herds are of some animals.

    Args:
        words (`str`): One or two words; the last one may be a preposition.
        noun (`str`): In the singular, without its article.
    """
    first, _, preposition = words.rpartition(" ")
    place = head(noun)
    if preposition == "of" and first in _OF:
        return place in _OF[first]
    if preposition in ("along", "down", "up") and category(noun) in PLACES:
        return place in _ALONG
    if preposition == "at" and category(noun) in ("furniture", "textile", "vessel"):
        return place in ("table", "desk", "counter")
    if place in _IN_AND_ON:
        return True
    if preposition in ("in", "inside", "into", "within"):
        return place not in _ON
    return preposition not in ("on", "onto", "across", "over", "atop") or place not in _IN
