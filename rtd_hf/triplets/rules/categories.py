"""Coarse categories of nouns: what is alive, worn, eaten, driven or a place is exchanged for its like only.

A similarity alone would let a man wear a woman, for both stand beside the same words. Nouns in no list are exchanged
for one another. The lists are ours, of everyday words; the head of a compound noun decides ("fire truck": vehicle).
"""

from .english import PEOPLE


_LISTS = {
    "animate": """
        dog cat llama alpaca horse cow bull sheep goat pig elephant giraffe zebra bear lion tiger bird duck
        goose swan pigeon seagull chicken rooster hen owl parrot eagle monkey rabbit squirrel mouse rat deer
        donkey pony calf lamb kitten puppy wolf fox kangaroo panda camel penguin peacock turkey animal cub
        foal kitty doggy dolphin whale shark turtle frog snake lizard butterfly bee ostrich crane heron
        pelican crow bulldog terrier poodle retriever labrador people couple family friend crowd mother father
        mom dad daughter son sister brother parent bride groom student teacher cowboy soldier policeman
        fireman fisherman businessman cop cook waiter waitress barber clown doctor nurse farmer vendor shopper
        passenger pedestrian commuter tourist spectator fan audience team umpire referee athlete cyclist biker
        bicyclist motorcyclist skateboarder snowboarder boarder surfer skier rider jockey driver skater runner
        swimmer wakeboarder paraglider parasailer golfer boxer singer musician band artist photographer model
        dancer bystander onlooker goalie outfielder infielder hitter guest customer employee crew pilot sailor
        hiker camper walker camel bison guard guitarist visitor patron resident owner herder shepherd servant
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
        butter jam jelly gravy juice coffee tea milk soda beer wine water drink beverage cocktail smoothie
        toast bun roll wrap taco burrito sushi casserole stew curry omelet omelette pickle olive herb nut
        almond cereal oatmeal yogurt pudding frosting icing cauliflower cabbage celery asparagus zucchini
        squash pumpkin avocado mango kiwi topping pepperoni cranberry
        """,
    "vehicle": """
        car truck bus van taxi cab train locomotive tram trolley streetcar motorcycle motorbike scooter bike
        bicycle moped tricycle boat ship sailboat canoe kayak raft ferry yacht plane airplane aeroplane jet
        jetliner airliner helicopter aircraft tractor trailer wagon cart carriage buggy suv sedan pickup
        ambulance engine vehicle skateboard surfboard snowboard ski sled jeep limousine subway minivan
        bulldozer rv semi biplane speedboat rowboat tugboat barge gondola rickshaw sleigh carrier bandwagon
        motor-home motorhome chopper tank
        """,
    "place": """
        park forest kitchen desert garden lot room studio beach street bridge stage rooftop farm island
        station airport market field road sidewalk city town yard backyard office restaurant bathroom bedroom
        zoo river lake ocean sea hill hillside mountain mountainside highway alley court stadium arena pasture
        meadow woods jungle store shop museum library school church driveway garage barn village harbor pier
        hotel hallway countryside cafe bakery gym hospital warehouse slope ramp terrain enclosure track runway
        tarmac curb intersection path trail pool pond stream creek shore shoreline bay coast dock marina canal
        waterway waterfall swamp valley cliff plain prairie savanna savannah grassland wilderness habitat
        exhibit corral paddock stable ranch orchard plaza square courtyard patio porch deck balcony terrace
        lobby corridor closet cubicle basement attic classroom diner pub bar stop crosswalk freeway lane
        pathway walkway trailhead terminal platform rink slopes skatepark neighborhood downtown suburb campus
        house home building apartment tower castle skyline
        """,
    "surface": """
        ground floor grass dirt sand snow mud gravel ice hay carpet rug concrete pavement asphalt soil lawn
        """,
    "furniture": """
        chair couch sofa bench table desk bed stool armchair recliner loveseat ottoman dresser cabinet shelf
        bookshelf bookcase counter countertop cupboard nightstand wardrobe crib futon mattress hammock
        footstool crate
        """,
    "building part": """
        window door wall ceiling roof fence gate railing staircase stair fireplace chimney archway pole post
        """,
    "appliance": """
        oven stove microwave refrigerator fridge freezer dishwasher toaster blender sink toilet bathtub tub
        shower faucet urinal bidet washer dryer stovetop range heater
        """,
    "device": """
        computer laptop phone cellphone smartphone telephone television tv monitor screen keyboard camera
        remote controller tablet ipad ipod iphone printer speaker radio console wii projector headphone
        """,
    "vessel": """
        plate bowl cup mug glass bottle jar vase pan pot tray basket box bucket container platter saucer bag
        suitcase can carton jug pail
        """,
    "plant": """
        tree bush shrub flower rose tulip plant fern cactus bouquet palm pine weed log branch sunflower daisy
        """,
}  # fmt: skip
CATEGORY = {word: name for name, words in _LISTS.items() for word in words.split()}
CATEGORY |= dict.fromkeys(PEOPLE, "animate")

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
    security control power energy speed
    """.split()
)


def head(noun: str) -> str:
    """The last word of a compound noun."""
    return noun.rpartition(" ")[2]


def category(noun: str) -> str | None:
    """The category of a noun in the singular; `None` where it is in no list."""
    last = head(noun)
    found = CATEGORY.get(last)
    if found is None and last.endswith(("man", "woman", "boarder")):
        return "animate"
    return found
