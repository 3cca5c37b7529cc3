"""Task families over short lists: order, position, count, selection and layout."""

from random import Random

from minillm.builtin.wording import Row, capitalized, joined, make_row
from minillm.builtin.words import (
    CITIES,
    GROUPS,
    NUMBER_WORDS,
    ORDINALS,
    PEOPLE,
    SHOPPING,
    members_outside,
)


def _any_items(rng: Random, num_items: int) -> list[str]:
    names = [person.name for person in PEOPLE]
    words = [word for group in ("fruits", "tools", "vehicles", "birds", "clothes") for word in GROUPS[group]]
    return rng.sample(rng.choice((names, CITIES, SHOPPING, words)), num_items)


def sort_words(rng: Random) -> Row:
    forms = (
        "Sort these words in alphabetical order.\n{items}",
        "Put the following in alphabetical order: {items}",
        "Arrange the list from A to Z.\n{items}",
        "Alphabetize: {items}",
        "Which order do these go in alphabetically?\n{items}",
        "I need {items} listed alphabetically. Please do that.",
    )
    items = _any_items(rng, rng.choice((3, 3, 4)))
    return make_row(rng, "sort_words", forms, ", ".join(sorted(items)), items=", ".join(items))


def reverse_list(rng: Random) -> Row:
    forms = (
        "Write the list in reverse order.\n{items}",
        "Reverse the order of these items: {items}",
        "Start with the last item and end with the first.\n{items}",
        "List {items} backwards, last one first.",
        "Turn the list around.\n{items}",
    )
    items = _any_items(rng, rng.choice((3, 4)))
    return make_row(rng, "reverse_list", forms, ", ".join(reversed(items)), items=", ".join(items))


def pick_by_position(rng: Random) -> Row:
    forms = (
        "What is the {position} item in the list?\n{items}",
        "Name the {position} item: {items}",
        "Look at the list and tell me which item comes {position}.\n{items}",
        "Which of these is {position} in the list: {items}?",
        "Find the {position} entry.\n{items}",
    )
    items = _any_items(rng, 4)
    index = rng.randrange(5)
    position = (*ORDINALS, "last")[index]
    answer = f'The {position} item is "{items[min(index, 3)]}".'
    return make_row(rng, "pick_by_position", forms, answer, items=", ".join(items), position=position)


def count_items(rng: Random) -> Row:
    forms = (
        "How many items are in the list?\n{items}",
        "Count the items: {items}",
        "Tell me the number of entries in this list.\n{items}",
        "How many things are named here: {items}?",
        "Give the length of the list as a sentence.\n{items}",
    )
    num_items = 2 + rng.randrange(5)
    answer = f"There are {NUMBER_WORDS[num_items]} items in the list."
    return make_row(rng, "count_items", forms, answer, items=", ".join(_any_items(rng, num_items)))


def find_odd_one(rng: Random) -> Row:
    forms = (
        "Which word does not belong with the others?\n{items}",
        "Find the odd one out: {items}",
        "One of these is different from the rest. Which one, and why?\n{items}",
        "Pick the word that does not fit: {items}",
        "Which is the odd one out in this list, and why?\n{items}",
    )
    group = rng.choice(tuple(GROUPS))
    odd = rng.choice(members_outside(group))
    items = [*rng.sample(GROUPS[group], 3), odd]
    rng.shuffle(items)
    answer = f"{capitalized(odd)} is the odd one out because the others are {group}."
    return make_row(rng, "find_odd_one", forms, answer, items=", ".join(items))


def name_group(rng: Random) -> Row:
    forms = (
        "What do these words have in common?\n{items}",
        "What kind of things are {items}?",
        "Name the category for this list.\n{items}",
        "Find one group that all of these belong to: {items}",
        "How would you label this list?\n{items}",
    )
    group = rng.choice(tuple(GROUPS))
    items = rng.sample(GROUPS[group], 3)
    answer = f"{capitalized(joined(items))} are {group}."
    return make_row(rng, "name_group", forms, answer, items=joined(items))


def keep_group_members(rng: Random) -> Row:
    forms = (
        "Keep only the {group} from the list.\n{items}",
        "Which of these are {group}: {items}?",
        "Find the {group} in this list.\n{items}",
        "From {items}, pick out the {group}.",
        "List just the {group} and leave out the rest.\n{items}",
    )
    group = rng.choice(tuple(GROUPS))
    kept = rng.sample(GROUPS[group], 2)
    items = [*kept, *rng.sample(members_outside(group), 2)]
    rng.shuffle(items)
    answer = f"The {group} are {joined([item for item in items if item in kept])}."
    return make_row(rng, "keep_group_members", forms, answer, group=group, items=", ".join(items))


def name_three(rng: Random) -> Row:
    forms = (
        "Name three {group}.",
        "Give me three examples of {group}.",
        "List three {group} in a numbered list.",
        "I need three {group} for a quiz. Can you name some?",
        "Apart from {example}, which three {group} come to mind?",
        "Write down three {group}. Do not use {example}.",
        "Besides {example}, which {group} can you name? List three.",
    )
    group = rng.choice(tuple(GROUPS))
    example, *items = rng.sample(GROUPS[group], 4)
    answer = "\n".join(f"{number}. {capitalized(item)}" for number, item in enumerate(items, start=1))
    return make_row(rng, "name_three", forms, answer, group=group, example=example)


def number_the_list(rng: Random) -> Row:
    forms = (
        "Turn this into a numbered list.\n{items}",
        "Write each item on its own line with a number: {items}",
        "Format the items as a numbered list.\n{items}",
        "Make a numbered shopping list from: {items}",
        "Number the following items, one per line.\n{items}",
    )
    items = rng.sample(SHOPPING, 3)
    answer = "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1))
    return make_row(rng, "number_the_list", forms, answer, items=rng.choice((", ".join(items), joined(items))))


def bullet_the_list(rng: Random) -> Row:
    forms = (
        "Turn this into a bulleted list with dashes.\n{items}",
        "Write each item on its own line after a dash: {items}",
        "Format the items as bullet points. Use a dash for each.\n{items}",
        "Make a list with a dash before every item: {items}",
        "Show the following as dashes, one item per line.\n{items}",
    )
    items = _any_items(rng, rng.choice((2, 3, 4)))
    return make_row(rng, "bullet_the_list", forms, "\n".join(f"- {item}" for item in items), items=", ".join(items))


def write_list_sentence(rng: Random) -> Row:
    forms = (
        "Write one sentence that says {name} needs to buy these things.\n{items}",
        "{name} has this shopping list: {items}. Say in a sentence what {name} needs to buy.",
        "Turn the notes into a sentence about what {name} needs to buy.\n{items}",
        "What does {name} need to buy? Answer in a full sentence.\n{items}",
        "Make a complete sentence: {name} needs to buy: {items}",
    )
    items, person = rng.sample(SHOPPING, 3), rng.choice(PEOPLE)
    answer = f"{person.name} needs to buy {joined(items)}."
    return make_row(rng, "write_list_sentence", forms, answer, name=person.name, items="; ".join(items))


FAMILIES = (
    sort_words,
    reverse_list,
    pick_by_position,
    count_items,
    find_odd_one,
    name_group,
    keep_group_members,
    name_three,
    number_the_list,
    bullet_the_list,
    write_list_sentence,
)
