"""Task families answered from general knowledge: countries, animals, jobs, objects and word meanings."""

from random import Random

from minillm.builtin.facts import ANIMALS, COUNTRIES, JOBS, OBJECTS, OPPOSITES, SYNONYMS, YOUNG
from minillm.builtin.wording import Row, capitalized, make_row, with_article
from minillm.builtin.words import GROUPS

_KINDS = {
    **dict.fromkeys(("animals", "birds", "insects"), "animal"),
    **dict.fromkeys(("trees", "flowers"), "plant"),
    **dict.fromkeys(("tools", "pieces of furniture", "vehicles", "instruments", "kitchen items"), "object"),
}


def name_capital(rng: Random) -> Row:
    forms = (
        "What is the capital of {country}?",
        "Name the capital city of {country}.",
        "Which city is the capital of this country?\n{country}",
        "I am preparing a geography quiz. What is {country}'s capital?",
        "Tell me the capital of the country.\nCountry: {country}",
        "In which capital city does the government of {country} sit?",
    )
    country, capital, _ = rng.choice(COUNTRIES)
    return make_row(rng, "name_capital", forms, f"The capital of {country} is {capital}.", country=country)


def locate_country(rng: Random) -> Row:
    forms = (
        "On which continent is {country}?",
        "Name the continent of this country.\n{country}",
        "Where in the world is {country}? Give the continent.",
        "Which continent does {country} belong to?",
        "{capital} is the capital of {country}. On which continent is that?",
        "Write a sentence that says on which continent {country} lies.",
    )
    country, capital, continent = rng.choice(COUNTRIES)
    answer = f"{country} is a country in {continent}."
    return make_row(rng, "locate_country", forms, answer, country=country, capital=capital)


def classify_animal(rng: Random) -> Row:
    forms = (
        "What kind of animal is {animal}: mammal, bird, fish, reptile, amphibian or insect?",
        "Classify the animal as mammal, bird, fish, reptile, amphibian or insect.\n{bare}",
        "To which animal group does {animal} belong?",
        "Is {animal} a mammal, a bird, a fish, a reptile, an amphibian or an insect?",
        "Name the animal group.\nAnimal: {bare}",
    )
    animal, group = rng.choice(ANIMALS)[:2]
    answer = f"{capitalized(with_article(animal))} is {with_article(group)}."
    return make_row(rng, "classify_animal", forms, answer, animal=with_article(animal), bare=animal)


def tell_animal_home(rng: Random) -> Row:
    forms = (
        "Where do {animals} live?",
        "In what place would you find {animals} in nature?",
        "Describe the home of this animal in one sentence.\n{animals}",
        "Tell a child where {animals} live.",
        "What is the natural home of {animals}?",
    )
    *_, animals = cells = rng.choice(ANIMALS)
    answer = f"{capitalized(animals)} live {cells[2]}."
    return make_row(rng, "tell_animal_home", forms, answer, animals=animals)


def tell_animal_food(rng: Random) -> Row:
    forms = (
        "What do {animals} eat?",
        "Describe the diet of {animals} in one sentence.",
        "What is the usual food of this animal?\n{animals}",
        "Tell me what {animals} feed on.",
        "If you watched {animals} at meal time, what would they eat?",
    )
    *_, animals = cells = rng.choice(ANIMALS)
    answer = f"{capitalized(animals)} eat {cells[3]}."
    return make_row(rng, "tell_animal_food", forms, answer, animals=animals)


def compare_animals(rng: Random) -> Row:
    forms = (
        "Which is larger, {first} or {second}?",
        "Compare the size of the two animals.\n{first} and {second}",
        "Say in one sentence which animal is bigger: {first} or {second}.",
        "Between {first} and {second}, which one is the larger animal?",
        "Write a sentence with larger than about these animals.\n{first}, {second}",
    )
    first, second = rng.sample(ANIMALS, 2)
    while abs(int(first[4]) - int(second[4])) < 2:
        first, second = rng.sample(ANIMALS, 2)
    large, small = (first, second) if int(first[4]) > int(second[4]) else (second, first)
    answer = f"{capitalized(with_article(large[0]))} is larger than {with_article(small[0])}."
    slots = {"first": with_article(first[0]), "second": with_article(second[0])}
    return make_row(rng, "compare_animals", forms, answer, **slots)


def explain_job(rng: Random) -> Row:
    forms = (
        "What does {job} do?",
        "Explain the job in one sentence.\n{bare}",
        "Describe the work of {job}.",
        "My son asked me what {job} does. What should I tell him?",
        "Define the word: {bare}.",
        "Give a short definition of this profession.\n{bare}",
    )
    job, duty = rng.choice(JOBS)
    answer = f"{capitalized(with_article(job))} {duty}."
    return make_row(rng, "explain_job", forms, answer, job=with_article(job), bare=job)


def name_job(rng: Random) -> Row:
    forms = (
        "What do we call a person who {duty}?",
        "Name the job: someone who {duty}.",
        "Which profession is described?\nThis person {duty}.",
        "Who {duty}? Name the profession.",
        "Guess the job from the clue.\nClue: this person {duty}.",
    )
    job, duty = rng.choice(JOBS)
    return make_row(rng, "name_job", forms, f"A person who {duty} is {with_article(job)}.", duty=duty)


def explain_object(rng: Random) -> Row:
    forms = (
        "What is {item} used for?",
        "Explain in one sentence what {item} is for.",
        "Why would someone need {item}?",
        "State the purpose of the object.\n{bare}",
        "How do people use {item}?",
    )
    item, use = rng.choice(OBJECTS)
    answer = f"{capitalized(with_article(item))} is used for {use}."
    return make_row(rng, "explain_object", forms, answer, item=with_article(item), bare=item)


def choose_object(rng: Random) -> Row:
    forms = (
        "What would you use for {use}?",
        "Which is better for {use}: {first} or {second}?",
        "Choose the right object for {use}.\n{first}, {second}",
        "I need something for {use}. Should I take {first} or {second}?",
        "Pick one of the two objects for {use}.\n{first} or {second}",
    )
    (item, use), (wrong, _) = rng.sample(OBJECTS, 2)
    first, second = rng.sample((with_article(item), with_article(wrong)), 2)
    answer = f"You should use {with_article(item)} for {use}."
    return make_row(rng, "choose_object", forms, answer, use=use, first=first, second=second)


def name_opposite(rng: Random) -> Row:
    forms = (
        'What is the opposite of "{word}"?',
        "Give the opposite of the word.\n{word}",
        "Name a word that means the reverse of {word}.",
        'Which word is the antonym of "{word}"?',
        "I am looking for the opposite of {word}. Can you help?",
    )
    word, opposite = rng.sample(rng.choice(OPPOSITES), 2)
    return make_row(rng, "name_opposite", forms, f'The opposite of "{word}" is "{opposite}".', word=word)


def name_synonym(rng: Random) -> Row:
    forms = (
        'What is another word for "{word}"?',
        "Give a synonym of the word.\n{word}",
        "Name a word that means nearly the same as {word}.",
        'Which word could replace "{word}"?',
        "I used {word} too often in my text. Suggest a word with the same meaning.",
    )
    word, synonym = rng.sample(rng.choice(SYNONYMS), 2)
    return make_row(rng, "name_synonym", forms, f'Another word for "{word}" is "{synonym}".', word=word)


def complete_analogy(rng: Random) -> Row:
    forms = (
        "Complete the analogy: {first} is to {second} as {third} is to ...",
        "Fill in the missing word.\n{first} is to {second} as {third} is to ___.",
        "{first} : {second} = {third} : ? Answer in a full sentence.",
        "Finish the comparison.\n{first} is to {second} as {third} is to what?",
        "If {first} goes with {second}, what goes with {third} in the same way?",
    )
    capitals = tuple(cells[:2] for cells in COUNTRIES)
    (first, second), (third, fourth) = rng.sample(rng.choice((capitals, OPPOSITES, YOUNG, capitals)), 2)
    answer = capitalized(f"{first} is to {second} as {third} is to {fourth}.")
    return make_row(rng, "complete_analogy", forms, answer, first=first, second=second, third=third)


def tell_living_or_object(rng: Random) -> Row:
    forms = (
        "Is {item} an animal, a plant or an object?",
        "Classify as animal, plant or object.\n{bare}",
        "Which of animal, plant and object fits best: {bare}?",
        "Say whether {item} is an animal, a plant or an object.",
        "Animal, plant or object?\n{bare}",
    )
    group = rng.choice(tuple(_KINDS))
    word = rng.choice([word for word in GROUPS[group] if word != "pliers"])
    answer = f"{capitalized(with_article(word))} is {with_article(_KINDS[group])}."
    return make_row(rng, "tell_living_or_object", forms, answer, item=with_article(word), bare=word)


FAMILIES = (
    name_capital,
    locate_country,
    classify_animal,
    tell_animal_home,
    tell_animal_food,
    compare_animals,
    explain_job,
    name_job,
    explain_object,
    choose_object,
    name_opposite,
    name_synonym,
    complete_analogy,
    tell_living_or_object,
)
