"""Task families with free-form answers: descriptions, short messages, subject lines and tips."""

from random import Random

from minillm.builtin.wording import Row, capitalized, listed, make_row, table, with_article
from minillm.builtin.words import CITIES, COLORS, GROUPS, HOBBIES, MATERIALS, PEOPLE, WEEKDAYS

_MEETINGS = listed(
    """lunch, dinner, a picnic, a walk in the park, a game of chess, coffee, a film night, a bike ride,
    breakfast, a concert"""
)
_GIFTS = listed(
    """the book, the flowers, the ride to the airport, the lovely dinner, the birthday card, the good
    advice, the help with the move, the concert tickets, the warm scarf, the chocolate, the photos, the
    invitation"""
)
_MISHAPS = listed(
    """missing the meeting, being late, breaking the vase, forgetting your birthday, losing your umbrella,
    the loud music, the wrong invoice, not calling back, spilling the coffee, the late reply, canceling
    the dinner, the mix-up"""
)
_MAIL_TOPICS = table(
    """
    the meeting is moved to {day} | Meeting moved to {day}
    the office is closed on {day} | Office closed on {day}
    the invoice has to be paid by {day} | Please pay the invoice by {day}
    the report is ready for review | Report ready for review
    there will be free cake in the kitchen on {day} | Free cake in the kitchen on {day}
    you need a day off on {day} | Request for a day off on {day}
    the printer is broken again | Printer out of order
    a new colleague starts on {day} | Welcome our new colleague on {day}
    the train tickets for {city} are booked | Train tickets to {city} booked
    the trip to {city} is canceled | Trip to {city} canceled
    the workshop in {city} still has free places | Free places at the workshop in {city}
    you are looking for a flat in {city} | Looking for a flat in {city}
    the password has to be changed by {day} | Change your password by {day}
    you would like to visit the {city} office on {day} | Visit to the {city} office on {day}
    """
)
# What the tip is for ("... for X") | one tip | another tip.
_TIPS = table(
    """
    sleeping better | Go to bed at the same time every night. | Keep your phone out of the bedroom.
    saving money | Write down everything you spend for a month. | Cook at home instead of eating out.
    learning a language | Practice a few new words every day. | Talk to native speakers as often as you can.
    staying healthy | Take a walk every day and drink enough water. | Eat more vegetables and less sugar.
    cooking pasta | Salt the water and stir it now and then. | Taste the pasta a minute before it is done.
    growing tomatoes | Give the plants sun and water the roots. | Tie the stems to a stick as they grow.
    writing a clear email | Put the main point first. | Use short sentences and a clear subject.
    a job interview | Learn about the company first. | Prepare short examples of your best work.
    packing a suitcase | Roll your clothes to save space. | Put heavy things at the bottom.
    studying for a test | Study in short sessions and take breaks. | Explain it all to a friend.
    keeping a room tidy | Put everything back right after use. | Spend ten minutes a day on cleaning up.
    giving a speech | Practice aloud and speak slowly. | Look at the audience and keep it short.
    saving water | Take short showers and fix dripping taps. | Turn off the tap while you brush your teeth.
    saving electricity | Turn off the lights when you leave a room. | Unplug devices that you do not use.
    making new friends | Join a club and ask people about themselves. | Smile and be the first to say hello.
    taking good photos | Keep the light behind you and hold still. | Move closer to what you want to show.
    training a puppy | Reward good behavior right away. | Use short commands and be patient.
    a long car trip | Stop every two hours to stretch your legs. | Bring water, snacks and good music.
    staying calm | Breathe in slowly and count to ten. | Go for a short walk before you answer.
    reading more books | Read a few pages every night before bed. | Always carry a book with you.
    starting to run | Start slowly and mix running with walking. | Buy good shoes and run with a friend.
    waking up early | Put the alarm clock far away from the bed. | Open the curtains to let in the light.
    working from home | Set up a quiet desk and take real breaks. | Get dressed and start at a fixed time.
    protecting your skin | Wear a hat and use sunscreen in summer. | Stay in the shade around noon.
    using less plastic | Bring your own bag when you go shopping. | Drink tap water from a reusable bottle.
    choosing a password | Use a long phrase that nobody can guess. | Never use the same password twice.
    caring for a houseplant | Water it only when the soil is dry. | Place it near a bright window.
    a first day at work | Arrive early and ask questions. | Learn the names of your colleagues.
    """
)
_SCENES = listed(
    """stood in the corner of the room, was a gift from a friend, could be seen from the window, was sold
    at the market, was on the table, had belonged to the family for years, was in the shop window, was
    the first thing we noticed"""
)


def describe_person(rng: Random) -> Row:
    forms = (
        "Write one sentence that introduces this person.\n{card}",
        "Introduce the person in a single sentence. {card}",
        "Turn the notes into a sentence.\n{card}",
        "Write a one-sentence profile from these facts: {card}",
        "Here are some notes: {card}. Write them as one sentence.",
    )
    person, job, city = rng.choice(PEOPLE), rng.choice(GROUPS["jobs"]), rng.choice(CITIES)
    hobby = rng.choice(HOBBIES)
    answer = f"{person.name} is {with_article(job)} from {city} who enjoys {hobby}."
    card = f"name: {person.name}, job: {job}, home: {city}, hobby: {hobby}"
    return make_row(rng, "describe_person", forms, answer, card=card)


def describe_thing(rng: Random) -> Row:
    forms = (
        "Write a sentence about {thing} that is {color} and {material}.",
        "Use these words in one sentence: {bare}, {color}, {material}.",
        "Describe the object in one sentence.\nobject: {bare}; look: {color}, {material}",
        "Make up a short sentence with a {color} {material} {bare}.",
        "Write one sentence for a story in which {thing} appears. It is {color} and {material}.",
    )
    bare = rng.choice(GROUPS["pieces of furniture"] + GROUPS["kitchen items"])
    color, material = rng.choice(COLORS), rng.choice(MATERIALS)
    answer = f"The {color} {material} {bare} {rng.choice(_SCENES)}."
    slots = {"thing": with_article(bare), "bare": bare, "color": color, "material": material}
    return make_row(rng, "describe_thing", forms, answer, **slots)


def write_invitation(rng: Random) -> Row:
    forms = (
        "Write a short message that invites {name} to {meeting} on {day}.",
        "Invite {name} to {meeting}. The day is {day}.",
        "Write the text message.\nto: {name}; purpose: invitation to {meeting}; day: {day}",
        "How could I ask {name} to join me for {meeting} on {day}?",
        "Draft a friendly invitation in one or two sentences.\n{name}, {meeting}, {day}",
    )
    name, meeting, day = rng.choice(PEOPLE).name, rng.choice(_MEETINGS), rng.choice(WEEKDAYS)
    answers = (
        f"Hi {name}, would you like to join me for {meeting} on {day}?",
        f"Hi {name}, are you free for {meeting} on {day}? I would be happy to see you.",
    )
    return make_row(rng, "write_invitation", forms, rng.choice(answers), name=name, meeting=meeting, day=day)


def write_thanks(rng: Random) -> Row:
    forms = (
        "Write a short thank-you note to {name} for {gift}.",
        "Thank {name} for {gift} in one or two sentences.",
        "Write a thank-you message.\nto: {name}; reason: {gift}",
        "What can I write to {name} to say thanks for {gift}?",
        "Help me thank someone. Keep it short.\n{name}, for {gift}",
    )
    name, gift = rng.choice(PEOPLE).name, rng.choice(_GIFTS)
    answers = (
        f"Dear {name}, thank you so much for {gift}. It made me very happy.",
        f"Dear {name}, many thanks for {gift}. That was very kind of you.",
    )
    return make_row(rng, "write_thanks", forms, rng.choice(answers), name=name, gift=gift)


def write_apology(rng: Random) -> Row:
    forms = (
        "Write a short apology to {name} for {mishap}.",
        "Apologize to {name} for {mishap}.",
        "Write a message that says sorry.\nto: {name}; reason: {mishap}",
        "How do I tell {name} that I am sorry about {mishap}?",
        "I want to apologize. Write two short sentences.\n{name}, {mishap}",
    )
    name, mishap = rng.choice(PEOPLE).name, rng.choice(_MISHAPS)
    answers = (
        f"Dear {name}, I am sorry about {mishap}. It will not happen again.",
        f"Dear {name}, please accept my apology for {mishap}. I hope you can forgive me.",
    )
    return make_row(rng, "write_apology", forms, rng.choice(answers), name=name, mishap=mishap)


def write_subject_line(rng: Random) -> Row:
    forms = (
        "Write a subject line for an email that says {news}.",
        "Suggest a short email subject.\nThe email says that {news}.",
        "My email tells people that {news}. What should the subject line be?",
        "Give a subject line.\nContent: {news}",
        "Find a good subject for an email saying that {news}.",
    )
    news, subject = rng.choice(_MAIL_TOPICS)
    slots = {"day": rng.choice(WEEKDAYS), "city": rng.choice(CITIES)}
    return make_row(rng, "write_subject_line", forms, f"Subject: {subject.format(**slots)}", news=news.format(**slots))


def give_tip(rng: Random) -> Row:
    forms = (
        "Give me one tip for {goal}.",
        "What is a good piece of advice for {goal}?",
        "Share a short tip on this topic.\n{goal}",
        "I need help with {goal}. What should I do?",
        "My friend {name} asked for advice about {goal}. What can I say?",
        "{name} wants a simple tip for {goal}. Write one sentence.",
    )
    goal, *tips = rng.choice(_TIPS)
    return make_row(rng, "give_tip", forms, rng.choice(tips), goal=goal, name=rng.choice(PEOPLE).name)


def fill_template(rng: Random) -> Row:
    forms = (
        "Fill in the template with the values.\nTemplate: {template} Values: {values}",
        "Replace the words in brackets. {template} Use {values}.",
        "Complete the form letter: {template} ({values})",
        "Put these values into the sentence: {values}.\n{template}",
        "Insert the details in the right places.\n{template} Details: {values}",
    )
    name, day, city = rng.choice(PEOPLE).name, rng.choice(WEEKDAYS), rng.choice(CITIES)
    templates = (
        "Dear [name], your train to [city] leaves on [day].",
        "[name] will arrive in [city] on [day].",
        "On [day], [name] has a meeting in [city].",
        "Hello [name], we look forward to seeing you in [city] on [day].",
        "Our shop in [city] will be closed on [day], [name].",
    )
    template = rng.choice(templates)
    answer = template.replace("[name]", name).replace("[day]", day).replace("[city]", city)
    values = f"name = {name}, city = {city}, day = {day}"
    return make_row(rng, "fill_template", forms, answer, template=template, values=values)


def greet_person(rng: Random) -> Row:
    forms = (
        "Write a short {occasion} greeting for {name}.",
        "What can I write to {name} for this occasion?\n{occasion}",
        "Send {name} a short {occasion} wish.",
        "Write a card.\nto: {name}; occasion: {occasion}",
        "Help me with a {occasion} card for {name}. Keep it brief.",
    )
    name, city = rng.choice(PEOPLE).name, rng.choice(CITIES)
    occasion, wish = rng.choice(
        (
            ("birthday", "Happy birthday, {name}! I wish you a wonderful year."),
            ("get-well", "Get well soon, {name}! We are all thinking of you."),
            ("wedding", "Congratulations on your wedding, {name}! I wish you a happy life together."),
            ("new job", "Congratulations on the new job, {name}! You will do great."),
            ("farewell", "Goodbye, {name}! We will miss you and wish you good luck."),
            ("graduation", "Well done, {name}! Congratulations on your graduation."),
            (f"welcome to {city}", f"Welcome to {city}, {{name}}! We hope you feel at home here."),
        )
    )
    return make_row(rng, "greet_person", forms, capitalized(wish.format(name=name)), name=name, occasion=occasion)


FAMILIES = (
    describe_person,
    describe_thing,
    write_invitation,
    write_thanks,
    write_apology,
    write_subject_line,
    give_tip,
    fill_template,
    greet_person,
)
