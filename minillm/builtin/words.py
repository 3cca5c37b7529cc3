"""Vocabulary banks: people, places, times, verbs and groups of everyday nouns."""

from random import Random
from typing import NamedTuple

from minillm.builtin.wording import listed, table


class Person(NamedTuple):
    """A first name and the pronouns that go with it."""

    name: str
    subject: str
    possessive: str


class Verb(NamedTuple):
    """A verb whose past participle equals its past tense, with objects that suit it."""

    base: str
    third: str
    past: str
    progressive: str
    objects: tuple[str, ...]


_WOMEN = listed(
    """Alice, Amina, Anna, Beatriz, Bella, Carla, Chloe, Clara, Diana, Elena, Ella, Emma, Eva, Fatima,
    Fiona, Grace, Hana, Helen, Ingrid, Irene, Ivy, Jane, Julia, Karen, Kate, Laura, Layla, Lena, Lily,
    Linda, Lucy, Maria, Marta, Maya, Mei, Mia, Molly, Nadia, Nina, Nora, Olga, Olivia, Paula, Priya,
    Rita, Rosa, Ruth, Sara, Sofia, Susan, Tara, Vera, Wendy, Yuki, Zoe"""
)
_MEN = listed(
    """Adam, Ahmed, Alan, Andre, Ben, Boris, Bruno, Carlos, Chen, Dan, David, Diego, Eric, Erik, Felix,
    Frank, George, Gustav, Hassan, Henry, Hugo, Ivan, Jack, Jamal, James, Jonas, Kenji, Kevin, Kofi,
    Leo, Liam, Luis, Marco, Mark, Martin, Max, Mike, Milan, Nick, Noah, Omar, Oscar, Paul, Pedro,
    Peter, Rafael, Ravi, Robert, Samir, Simon, Stefan, Theo, Tom, Victor, Yusuf"""
)
PEOPLE = tuple(Person(name, "she", "her") for name in _WOMEN) + tuple(Person(name, "he", "his") for name in _MEN)

CITIES = listed(
    """Amsterdam, Athens, Bangkok, Barcelona, Berlin, Bogota, Boston, Brussels, Budapest, Cairo, Cape
    Town, Chicago, Copenhagen, Dallas, Delhi, Denver, Dublin, Geneva, Glasgow, Hamburg, Hanoi,
    Helsinki, Istanbul, Jakarta, Kyoto, Lagos, Lima, Lisbon, London, Lyon, Madrid, Manila, Melbourne,
    Miami, Milan, Montreal, Mumbai, Munich, Nairobi, Naples, Oslo, Paris, Porto, Prague, Quito, Rome,
    Santiago, Seattle, Seoul, Seville, Stockholm, Sydney, Tokyo, Toronto, Tunis, Vancouver, Vienna,
    Warsaw, Zurich"""
)
WEEKDAYS = listed("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
MONTHS = listed("January, February, March, April, May, June, July, August, September, October, November, December")
PAST_TIMES = listed(
    """yesterday, last night, last week, last month, last Monday, last Friday, on Sunday, on Tuesday, this
    morning"""
)
PRESENT_TIMES = listed("every day, every week, every Monday, every Friday, on Sundays, in the evening, after work")
FUTURE_TIMES = listed("tomorrow, next week, on Saturday, on Thursday, tonight, next Monday, this weekend")
NUMBER_WORDS = listed("zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve")
ORDINALS = listed("first, second, third, fourth")

# Plural group name -> singular members. No word stands in two groups, so "which group" has one answer.
GROUPS: dict[str, tuple[str, ...]] = {
    "fruits": listed("apple, pear, banana, cherry, grape, lemon, mango, peach, plum, melon, kiwi, apricot, fig, lime"),
    "vegetables": listed(
        """carrot, onion, potato, cabbage, leek, radish, turnip, spinach, celery, lettuce, cauliflower,
        broccoli"""
    ),
    "animals": listed(
        """cat, dog, horse, cow, sheep, goat, rabbit, lion, tiger, bear, wolf, fox, monkey, elephant,
        camel, deer"""
    ),
    "birds": listed("eagle, owl, robin, swan, sparrow, parrot, penguin, crow, pigeon, falcon, stork, gull"),
    "insects": listed("ant, bee, wasp, beetle, butterfly, moth, mosquito, cricket, dragonfly, ladybug"),
    "trees": listed("oak, pine, birch, maple, willow, elm, cedar, spruce, beech, poplar"),
    "flowers": listed("rose, tulip, daisy, lily, violet, orchid, daffodil, sunflower, poppy, carnation"),
    "tools": listed("hammer, saw, drill, wrench, screwdriver, pliers, axe, shovel, rake, chisel, ladder"),
    "clothes": listed("shirt, coat, scarf, hat, sock, glove, dress, skirt, sweater, jacket, belt, shoe"),
    "pieces of furniture": listed("chair, table, sofa, bed, desk, wardrobe, bookcase, bench, stool, armchair"),
    "vehicles": listed("car, bus, train, bicycle, truck, tram, plane, boat, motorcycle, taxi, van, helicopter"),
    "instruments": listed("piano, violin, guitar, flute, drum, trumpet, cello, harp, clarinet, accordion"),
    "sports": listed("football, tennis, golf, hockey, basketball, rugby, swimming, boxing, volleyball, rowing"),
    "colors": listed("red, blue, green, yellow, purple, brown, black, white, gray, pink"),
    "drinks": listed("water, tea, coffee, milk, juice, lemonade, cocoa, soda, cider"),
    "metals": listed("iron, copper, gold, silver, tin, zinc, lead, aluminum, nickel"),
    "planets": listed("Mercury, Venus, Mars, Jupiter, Saturn, Uranus, Neptune"),
    "jobs": listed("baker, nurse, pilot, farmer, teacher, plumber, lawyer, tailor, dentist, butcher, waiter, judge"),
    "school items": listed("pencil, eraser, ruler, notebook, backpack, pen, textbook, crayon"),
    "kitchen items": listed("spoon, fork, plate, bowl, kettle, pan, cup, toaster, whisk, teapot"),
    "parts of the body": listed("arm, leg, nose, knee, elbow, shoulder, ankle, finger, thumb, heel"),
    "kinds of weather": listed("rain, snow, fog, wind, hail, sunshine, frost, thunder"),
}
SHOPPING = listed(
    """apples, bread, butter, cheese, eggs, flour, honey, jam, milk, mushrooms, noodles, nuts, olives,
    onions, oranges, pepper, potatoes, rice, salt, soap, sugar, tea, tomatoes, yogurt, carrots, grapes,
    beans, candles, pasta, fish"""
)
HOBBIES = listed(
    """chess, painting, hiking, cooking, photography, gardening, swimming, dancing, reading, fishing,
    knitting, cycling, singing, pottery, skiing, yoga, sailing, running, camping, baking"""
)
COLORS = listed("red, blue, green, yellow, white, black, brown, purple, orange, gray, pink, golden")
MATERIALS = listed("wooden, plastic, metal, glass")
SIZES = listed("small, medium, large")

# Singular and plural.
NOUNS = tuple(
    tuple(pair.split())
    for pair in listed(
        """leaf leaves, child children, city cities, box boxes, mouse mice, foot feet, tooth teeth, knife
        knives, baby babies, bus buses, dish dishes, story stories, wolf wolves, goose geese, woman
        women, man men, shelf shelves, party parties, tomato tomatoes, potato potatoes, cherry
        cherries, watch watches, glass glasses, fox foxes, key keys, toy toys, monkey monkeys, country
        countries, loaf loaves, half halves, lady ladies, church churches, bench benches, brush
        brushes, dress dresses, puppy puppies, hero heroes, thief thieves, life lives, wife wives,
        berry berries, family families, apple apples, chair chairs, window windows, river rivers,
        teacher teachers, bridge bridges, pencil pencils, garden gardens, ticket tickets, ocean oceans"""
    )
)

VERBS = tuple(
    Verb(base, third, past, progressive, listed(objects))
    for base, third, past, progressive, objects in table(
        """
        bake | bakes | baked | baking | bread, a cake, an apple pie, cookies
        paint | paints | painted | painting | a fence, a portrait, the kitchen wall, a chair
        repair | repairs | repaired | repairing | a bicycle, an old radio, the roof, a broken lamp
        wash | washes | washed | washing | the dishes, a car, the windows, a blanket
        clean | cleans | cleaned | cleaning | the kitchen, an oven, the garage, a fish tank
        cook | cooks | cooked | cooking | soup, rice, a big dinner, vegetables
        visit | visits | visited | visiting | a museum, an old friend, the zoo, a library
        plant | plants | planted | planting | a tree, tomatoes, roses, an apple tree
        read | reads | read | reading | a novel, the newspaper, a long letter, an old map
        buy | buys | bought | buying | a coat, fresh fruit, an umbrella, tickets
        sell | sells | sold | selling | a painting, used books, an old car, flowers
        build | builds | built | building | a shed, a kite, an oven, a small boat
        make | makes | made | making | a salad, coffee, an omelet, lemonade
        teach | teaches | taught | teaching | a dance class, history, an art class, math
        watch | watches | watched | watching | a film, a tennis match, the news, an opera
        feed | feeds | fed | feeding | a puppy, the ducks, the horses, an injured bird
        clear | clears | cleared | clearing | the table, a path, the snow, an attic
        design | designs | designed | designing | a poster, a garden, an app, clothes
        carry | carries | carried | carrying | a suitcase, the groceries, an old trunk, firewood
        study | studies | studied | studying | a map, biology, an ancient text, the stars
        order | orders | ordered | ordering | a pizza, an espresso, new shoes, a taxi
        collect | collects | collected | collecting | stamps, seashells, an old debt, a parcel
        practice | practices | practiced | practicing | a song, the violin, an Italian dance, her speech
        pack | packs | packed | packing | a suitcase, the boxes, an overnight bag, a lunch
        open | opens | opened | opening | a shop, the gate, an account, a window
        record | records | recorded | recording | a song, an interview, the lecture, a podcast
        fold | folds | folded | folding | a napkin, the laundry, an origami crane, the sheets
        deliver | delivers | delivered | delivering | a parcel, the mail, an urgent letter, flowers
        decorate | decorates | decorated | decorating | a cake, the hall, an office, the windows
        borrow | borrows | borrowed | borrowing | a ladder, an umbrella, two books, a tent
        """
    )
)


def pick_action(rng: Random, person: Person) -> tuple[Verb, str]:
    """A verb and one of its objects, the object's possessive agreeing with the person."""
    verb = rng.choice(VERBS)
    return verb, rng.choice(verb.objects).replace("her ", f"{person.possessive} ")


def members_outside(group: str) -> tuple[str, ...]:
    """Words of groups that cannot be confused with the given group."""
    confusable = _CONFUSABLE.get(group, ())
    return tuple(
        word for other, words in GROUPS.items() if other != group and other not in confusable for word in words
    )


_LIVING_ANIMALS = ("animals", "birds", "insects")
_CONFUSABLE: dict[str, tuple[str, ...]] = {
    **{group: _LIVING_ANIMALS for group in _LIVING_ANIMALS},
    "flowers": ("trees", "colors"),
    "trees": ("flowers", "fruits"),
    "fruits": ("trees", "vegetables", "colors", "drinks"),
    "vegetables": ("fruits", "flowers"),
    "colors": ("fruits", "flowers", "metals"),
    "metals": ("colors", "planets"),
    "planets": ("metals",),
    "tools": ("kitchen items", "school items", "instruments"),
    "instruments": ("tools", "school items"),
    "school items": ("tools", "instruments"),
    "kitchen items": ("tools", "pieces of furniture"),
    "pieces of furniture": ("kitchen items",),
    "drinks": ("fruits",),
}
