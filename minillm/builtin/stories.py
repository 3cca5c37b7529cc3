"""Little two-person stories: what happened, where, when and why."""

from dataclasses import dataclass
from random import Random

from minillm.builtin.wording import capitalized, table
from minillm.builtin.words import PAST_TIMES, PEOPLE, Person

# What someone did: base form | past form | place | reason ({his} and {he} stand for pronouns).
_EVENTS = table(
    """
    buy a red scarf | bought a red scarf | at the market | {his} old one was torn
    buy a new lamp | bought a new lamp | at the department store | the living room was too dark
    buy fresh flowers | bought fresh flowers | at the station | it was {his} mother's birthday
    borrow a travel guide | borrowed a travel guide | at the library | {he} wanted to plan a trip
    borrow an umbrella | borrowed an umbrella | at the hotel | it was raining hard
    lose a wallet | lost a wallet | in the park | {his} pocket had a hole
    lose a glove | lost a glove | on the bus | {he} was in a hurry
    find a gold ring | found a gold ring | on the beach | the tide had washed away the sand
    find an old map | found an old map | in the attic | {he} was cleaning up
    miss the last train | missed the last train | at the station | {his} watch was slow
    miss the meeting | missed the meeting | at the office | the elevator was broken
    plant three trees | planted three trees | in the garden | {he} wanted more shade
    plant tomatoes | planted tomatoes | on the balcony | {he} loves fresh salad
    order a hot soup | ordered a hot soup | at the cafe | {he} had a cold
    order a large pizza | ordered a large pizza | at the restaurant | friends were coming over
    repair a bicycle | repaired a bicycle | in the garage | the chain was broken
    repair a wooden chair | repaired a wooden chair | in the workshop | one leg was loose
    paint a blue boat | painted a blue boat | at the harbor | the old color had faded
    paint the fence | painted the fence | behind the house | the neighbors were coming to visit
    take many photos | took many photos | at the zoo | {his} niece likes animals
    take a long walk | took a long walk | by the river | the weather was lovely
    take a taxi | took a taxi | to the airport | the buses were on strike
    give a short speech | gave a short speech | at the school | {he} had won a prize
    give away old books | gave away old books | at the community center | {his} shelves were full
    learn a new song | learned a new song | at the music school | the concert was close
    learn to swim | learned to swim | at the city pool | {he} was going to the sea
    wait for two hours | waited for two hours | at the clinic | the doctor was late
    wait for a friend | waited for a friend | in front of the theater | {he} had both tickets
    bake a chocolate cake | baked a chocolate cake | in the kitchen | {his} sister was turning ten
    bake fresh bread | baked fresh bread | at the campsite | the shop was closed
    sell an old car | sold an old car | in the next town | {he} needed money for rent
    sell homemade jam | sold homemade jam | at the village fair | {he} wanted to help the school
    see a young deer | saw a young deer | in the forest | it was very quiet
    see a funny film | saw a funny film | at the cinema | {he} needed a good laugh
    leave the party early | left the party early | at the hotel | {he} had a headache
    leave a suitcase | left a suitcase | on the platform | {he} was talking on the phone
    rent a small boat | rented a small boat | at the lake | {he} wanted to go fishing
    rent a bicycle | rented a bicycle | in the old town | the streets were too narrow for cars
    feed a hungry cat | fed a hungry cat | behind the bakery | it looked very thin
    write a long letter | wrote a long letter | in the garden | {his} phone was broken
    """
)
_LINKS = ("At the same time,", "Later,", "Meanwhile,", "After that,")


@dataclass(frozen=True)
class Event:
    """One thing one person did."""

    person: Person
    base: str
    past: str
    place: str
    reason: str


@dataclass(frozen=True)
class Story:
    """A text about two events; the first has a time and a reason, the second neither."""

    text: str
    time: str
    main: Event
    other: Event


def tell_story(rng: Random) -> Story:
    """A story of two people, two different deeds and two different places."""
    people, time = rng.sample(PEOPLE, 2), rng.choice(PAST_TIMES)
    main, other = (_event(person, cells) for person, cells in zip(people, _two_deeds(rng), strict=True))
    opening = f"{capitalized(time)}, {main.person.name} {main.past} {main.place} because {main.reason}."
    closing = f"{rng.choice(_LINKS)} {other.person.name} {other.past} {other.place}."
    return Story(f"{opening} {closing}", time, main, other)


def tell_event(rng: Random) -> Event:
    """One deed of one person."""
    return _event(rng.choice(PEOPLE), rng.choice(_EVENTS))


def _two_deeds(rng: Random) -> list[tuple[str, ...]]:
    while True:
        deeds = rng.sample(_EVENTS, 2)
        if deeds[0][2] != deeds[1][2] and deeds[0][1].split()[0] != deeds[1][1].split()[0]:
            return deeds


def _event(person: Person, cells: tuple[str, ...]) -> Event:
    base, past, place, reason = cells
    return Event(person, base, past, place, reason.format(his=person.possessive, he=person.subject))
