# ruff: noqa: E501
"""English text of the sample: web pages by topic, book chapters, and question-answer pairs.

Every paragraph is a function of a random generator. Numbers are computed, not invented, so that the text is true as well
as varied; the facts in the tables are common knowledge, the wording is this project's own.
"""

from collections.abc import Callable
from random import Random

Paragraph = Callable[[Random], str]

CITIES = [
    ("Lisbon", "Portugal", "the Tagus"), ("Vienna", "Austria", "the Danube"), ("Cairo", "Egypt", "the Nile"),
    ("London", "the United Kingdom", "the Thames"), ("Paris", "France", "the Seine"), ("Rome", "Italy", "the Tiber"),
    ("Baghdad", "Iraq", "the Tigris"), ("Prague", "Czechia", "the Vltava"), ("Budapest", "Hungary", "the Danube"),
    ("Washington", "the United States", "the Potomac"), ("Delhi", "India", "the Yamuna"), ("Seoul", "South Korea", "the Han"),
    ("Warsaw", "Poland", "the Vistula"), ("Bangkok", "Thailand", "the Chao Phraya"), ("Khartoum", "Sudan", "the Nile"),
]
MOUNTAINS = [
    ("Everest", 8849, "Asia"), ("Aconcagua", 6961, "South America"), ("Denali", 6190, "North America"),
    ("Kilimanjaro", 5895, "Africa"), ("Elbrus", 5642, "Europe"), ("Fuji", 3776, "Asia"), ("Mont Blanc", 4806, "Europe"),
]
EVENTS = [
    (1215, "the Magna Carta was sealed at Runnymede"), (1453, "Constantinople fell to the Ottoman army"),
    (1492, "Columbus crossed the Atlantic"), (1687, "Newton published his Principia"),
    (1776, "the American colonies declared independence"), (1789, "the French Revolution began"),
    (1804, "a steam locomotive first ran on rails in Wales"), (1869, "the Suez Canal opened to ships"),
    (1903, "the Wright brothers flew a powered aeroplane"), (1928, "Fleming noticed what penicillin does to bacteria"),
    (1969, "two astronauts walked on the Moon"), (1989, "the Berlin Wall was opened"),
]
SORTS = [
    ("insertion sort", "n squared", "nearly sorted lists"), ("merge sort", "n log n", "linked lists and files on disk"),
    ("quicksort", "n log n on average", "arrays in memory"), ("heapsort", "n log n", "places where memory is short"),
    ("counting sort", "n plus k", "small whole-number keys"),
]
STRUCTURES = [
    ("hash table", "looks up a key in constant time on average", "its order is arbitrary"),
    ("balanced tree", "keeps its keys in order", "every look-up costs a logarithm"),
    ("linked list", "inserts in the middle cheaply", "it cannot jump to the k-th element"),
    ("array", "is kind to the processor's caches", "inserting at the front moves everything"),
    ("heap", "hands out the smallest element at once", "it answers no other question quickly"),
    ("queue", "serves requests in the order of arrival", "an urgent request has to wait"),
]
NUTRIENTS = [
    ("vitamin C", "citrus fruit, peppers and potatoes", "scurvy"), ("vitamin D", "oily fish and sunlight on the skin", "rickets"),
    ("vitamin A", "carrots, liver and leafy greens", "night blindness"), ("iron", "lentils, red meat and spinach", "anaemia"),
    ("iodine", "sea fish and iodised salt", "goitre"), ("vitamin B1", "whole grains and beans", "beriberi"),
]
ORGANS = [
    ("heart", "pumps about five litres of blood a minute at rest"), ("liver", "stores sugar, makes bile and breaks down poisons"),
    ("kidneys", "filter the blood and balance salt and water"), ("lungs", "pass oxygen to the blood and take carbon dioxide from it"),
    ("pancreas", "makes insulin and the juices that digest food"), ("skin", "keeps water in, germs out and heat under control"),
    ("thyroid", "sets the pace at which the body burns its fuel"), ("spleen", "sorts out worn red blood cells"),
]
NAMES = ["Ada", "Ben", "Clara", "Dmitri", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kemi", "Lena", "Marta", "Noor"]


def _area(r: Random) -> str:
    w, h = r.randint(3, 60), r.randint(3, 60)
    return (
        f"Take a rectangle {w} metres wide and {h} metres long. Its area is {w} times {h}, which is {w * h} square metres, and its "
        f"perimeter is {2 * (w + h)} metres. A square with the same perimeter has sides of {(w + h) / 2:g} metres and an area of "
        f"{((w + h) / 2) ** 2:g} square metres, never less: among rectangles of one perimeter, the square is the largest."
    )


def _fall(r: Random) -> str:
    t = r.randint(1, 9)
    return (
        f"A stone that falls freely for {t} seconds reaches a speed of about {9.8 * t:.1f} metres per second and covers "
        f"{4.9 * t * t:.1f} metres, if the drag of the air is ignored. The distance grows with the square of the time: twice as long a "
        "fall is four times as deep. Galileo found this rule with balls on a sloping board, where everything happens slowly enough to count."
    )


def _ohm(r: Random) -> str:
    v, o = r.choice([3, 5, 9, 12, 24, 48]), r.choice([2, 4, 6, 8, 10, 100])
    return (
        f"Ohm's law says that the current is the voltage divided by the resistance. A battery of {v} volts drives {v / o:g} amperes "
        f"through {o} ohms, and the resistor turns {v * v / o:g} watts into heat. Two such resistors in series halve the current; in "
        "parallel they double it."
    )


def _sequence(r: Random) -> str:
    a, d, n = r.randint(1, 20), r.randint(2, 9), r.randint(8, 30)
    terms = ", ".join(str(a + i * d) for i in range(5))
    return (
        f"Consider the arithmetic sequence {terms} and so on. Its first term is {a} and each step adds {d}. Term number {n} is "
        f"{a} + {n - 1} x {d} = {a + (n - 1) * d}, and the first {n} terms add up to {n * (2 * a + (n - 1) * d) // 2}. The trick, which is told of "
        "the young Gauss, is to pair the first with the last, the second with the last but one, and so forth: every pair has the same sum."
    )


def _primes(r: Random) -> str:
    n = r.randint(20, 400)
    factors, rest, p = [], n, 2
    while p * p <= rest:
        while rest % p == 0:
            factors.append(p)
            rest //= p
        p += 1
    factors += [rest] if rest > 1 else []
    verdict = f"is itself prime, so {n} = {n}" if len(factors) == 1 else f"splits into {' x '.join(map(str, factors))}"
    return (
        f"Every whole number above one is a product of primes in exactly one way. The number {n} {verdict}. To find this by hand, divide by 2, "
        "3, 5, 7 and so on, and stop once the square of the divisor passes what is left. Nobody knows a fast way for numbers with hundreds of "
        "digits, and a good part of cryptography rests on that."
    )


def _waves(r: Random) -> str:
    f = r.choice([110, 220, 256, 330, 440, 512, 880])
    return (
        f"Sound travels through air at about 340 metres per second. A note of {f} hertz therefore has a wavelength of {340 / f:.2f} metres. "
        f"An octave higher, at {2 * f} hertz, the wave is half as long. Light behaves in the same way, only that it is nearly a million times faster and "
        "that our eyes hear its notes as colours."
    )


def _sorting(r: Random) -> str:
    name, cost, use = r.choice(SORTS)
    items = r.sample(range(1, 99), 6)
    return (
        f"Suppose that we have to sort the list {items}. With {name} the cost grows like {cost}, and it is a fair choice for {use}. The result is "
        f"{sorted(items)} whichever method we take; what differs is the number of comparisons, the memory used and what happens to equal keys. "
        "A sort that leaves equal keys in their old order is called stable."
    )


def _binary(r: Random) -> str:
    n = r.randint(17, 1000)
    return (
        f"Inside a computer the number {n} is written as {n:b} in base two, or {n:x} in base sixteen. Each hexadecimal digit stands for four binary "
        f"ones, which is why programmers like it. {n.bit_length()} bits are needed for {n}, and with that many bits one can count up to {2 ** n.bit_length() - 1}."
    )


def _structure(r: Random) -> str:
    (a, good_a, bad_a), (b, good_b, bad_b) = r.sample(STRUCTURES, 2)
    return (
        f"Which data structure should hold the records? A {a} {good_a}, but {bad_a}. A {b} {good_b}, but {bad_b}. The right question is which "
        "operations the program performs a million times, and which ones only once in a while. Measure before you choose; a small array beats every clever "
        "structure until it does not."
    )


def _network(r: Random) -> str:
    size, rate = r.choice([20, 50, 120, 700, 1500]), r.choice([8, 16, 50, 100, 400])
    return (
        f"How long does it take to send a file of {size} megabytes over a line of {rate} megabits per second? A byte has eight bits, so the file is {8 * size} "
        f"megabits, and the transfer takes at least {8 * size / rate:.1f} seconds. Real transfers take longer, because each packet carries addresses and "
        "checksums, and because lost packets are sent again."
    )


def _engineering(r: Random) -> str:
    part = r.choice(["a bridge", "a pump", "a web server", "a gearbox", "a database", "a battery pack"])
    spare = r.choice([20, 30, 50, 100])
    return (
        f"An engineer who designs {part} leaves a margin. If the heaviest load that anybody expects is 100, the part is built for {100 + spare}. The margin pays "
        "for what was not known: worn material, a careless user, a number copied wrongly. Tests then load the part until it breaks, because one learns more from "
        "a failure on the bench than from ten years of luck."
    )


def _place(r: Random) -> str:
    city, country, river = r.choice(CITIES)
    other = r.choice([c for c in CITIES if c[0] != city])
    return (
        f"{city}, the capital of {country}, lies on {river}. Many old capitals grew where a river could be crossed or where boats had to stop, and "
        f"{other[0]} on {other[2]} is another example. The river brought grain, timber and news, carried the waste away, and now and then flooded the "
        "lower streets. Look at the names of the quarters on a map and you can often still tell where the harbour, the market and the wall used to be."
    )


def _mountain(r: Random) -> str:
    (a, ha, ca), (b, hb, cb) = r.sample(MOUNTAINS, 2)
    low, high = ((a, ha), (b, hb)) if ha < hb else ((b, hb), (a, ha))
    return (
        f"{a} in {ca} is {ha} metres high and {b} in {cb} {hb} metres. {high[0]} is thus {high[1] - low[1]} metres higher than {low[0]}. The air at such heights is thin: "
        "with every 5,500 metres the pressure falls by about half, and water boils well before it is hot enough for a good cup of tea."
    )


def _history(r: Random) -> str:
    (y1, e1), (y2, e2) = sorted(r.sample(EVENTS, 2))
    return (
        f"In {y1} {e1}. {y2 - y1} years later, in {y2}, {e2}. Dates like these are the nails on which the rest of history hangs, but they say little by "
        "themselves. Historians ask who wrote the record, for whom, and what was left out; a tax list is often more honest than a chronicle."
    )


def _trade(r: Random) -> str:
    good, route = r.choice(
        [("silk", "overland across Central Asia"), ("salt", "by camel across the Sahara"), ("amber", "from the Baltic to the Mediterranean"),
         ("pepper", "by ship across the Indian Ocean"), ("tea", "by horse over the mountains of Yunnan"), ("tin", "from Cornwall to the south")]
    )  # fmt: skip
    return (
        f"For centuries {good} travelled {route}. Hardly any merchant saw the whole way: goods changed hands at every large town, and every hand added its price. "
        "Along with the bales went scripts, seeds, stories and diseases, so that the road changed the people who lived on it more than the goods did."
    )


def _nutrient(r: Random) -> str:
    name, food, lack = r.choice(NUTRIENTS)
    return (
        f"The body needs {name}, and finds it in {food}. People who get too little of it for a long time may suffer from {lack}. A mixed diet is usually enough; "
        "whoever takes tablets should know that more is not always better, and that a doctor can measure what is really missing."
    )


def _organ(r: Random) -> str:
    (a, does_a), (b, does_b) = r.sample(ORGANS, 2)
    verb = "they" if a in ("kidneys", "lungs") else "it"
    return (
        f"What does the {a} do? In short, {verb} {does_a}. No organ works alone: the {b}, for instance, {does_b}, and a fault in one is soon felt in the "
        "other. That is why a physician who is asked about one pain looks at the whole patient."
    )


def _pulse(r: Random) -> str:
    age, rest = r.randint(20, 75), r.randint(52, 78)
    return (
        f"A common rule of thumb puts the highest heart rate at 220 minus the age. For somebody aged {age} that is {220 - age} beats a minute. With a resting pulse "
        f"of {rest}, there are {220 - age - rest} beats of reserve between sitting still and running for the bus. The rule is rough: healthy people differ by ten "
        "beats or more in either direction."
    )


def _prevention(r: Random) -> str:
    habit, effect = r.choice(
        [("washing the hands with soap for twenty seconds", "removes most germs before they reach the mouth"),
         ("walking briskly for half an hour a day", "lowers blood pressure within weeks"),
         ("sleeping seven to nine hours", "helps memory and the defence against infection"),
         ("brushing the teeth twice a day", "protects the gums as well as the enamel"),
         ("vaccination", "teaches the immune system what a germ looks like before the germ arrives")]
    )  # fmt: skip
    return (
        f"Prevention is dull and works. Simple advice such as {habit} {effect}. Nobody notices the illness that did not come, and so such habits need reminding. "
        "Clinics that post a short list beside the door see better results than clinics that hand out thick booklets."
    )


def _bmi(r: Random) -> str:
    kg, cm = r.randint(50, 105), r.randint(152, 195)
    bmi = kg / (cm / 100) ** 2
    return (
        f"The body mass index divides the weight in kilograms by the square of the height in metres. A person of {kg} kg and {cm} cm has an index of {bmi:.1f}. Values from 18.5 "
        "to 25 are called normal. The index knows nothing of muscle, age or build, so it is a first hint and not a diagnosis."
    )


TOPICS: dict[str, tuple[list[str], list[Paragraph]]] = {
    "mathematics_and_physics": (
        ["Notes on numbers and motion", "A page of worked examples", "Small problems in mathematics", "Physics at the kitchen table"],
        [_area, _fall, _ohm, _sequence, _primes, _waves],
    ),
    "computer_science_and_engineering": (
        ["How programs keep order", "From the workshop", "Notes for a young engineer", "What the machine really does"],
        [_sorting, _binary, _structure, _network, _engineering],
    ),
    "history_and_geography": (
        ["Rivers, roads and dates", "A short walk through the past", "Places worth knowing", "The map and the calendar"],
        [_place, _mountain, _history, _trade],
    ),
    "medicine_and_health": (
        ["Staying well", "Questions from the waiting room", "The body, explained simply", "Health notes of the week"],
        [_nutrient, _organ, _pulse, _prevention, _bmi],
    ),
}
LEADS = [
    "This page collects a few things that readers asked about.", "Here is today's note, shorter than usual.",
    "{name} wrote in with a question, and the answer may interest others.", "We begin with something simple.",
    "An old notebook of {name}'s gave the idea for this page.", "The following was first told in a talk for beginners.",
]  # fmt: skip
CLOSES = [
    "Corrections are welcome.", "More on this next week.", "If something is unclear, write to us; {name} reads every letter.",
    "Try it yourself with other numbers or other names.", "That is all for now.", "Thanks to {name} for reading a first version.",
]  # fmt: skip


def web_page(topic: str, r: Random) -> str:
    """One page about ``topic``: a title, a lead, two to five paragraphs and a closing line."""
    titles, makers = TOPICS[topic]
    body = [make(r) for make in r.sample(makers, min(len(makers), r.randint(2, 5)))]
    lead, close = r.choice(LEADS).format(name=r.choice(NAMES)), r.choice(CLOSES).format(name=r.choice(NAMES))
    return "\n\n".join([r.choice(titles), lead, *body, close])


PLACES = ["the mill", "the ferry", "the old school", "the lighthouse", "the orchard", "the station", "the quarry", "the library"]
WEATHER = ["rain that came in sideways", "a white frost", "a warm wind from the south", "fog as thick as wool", "a clear cold light"]
OBJECTS = ["a brass key", "a letter without a stamp", "a box of seeds", "a broken clock", "a map drawn in pencil", "a violin case"]
TRADES = ["carpenter", "teacher", "pilot of the ferry", "baker", "clock-maker", "gardener", "doctor", "postman"]
SAYINGS = [
    "Whoever hurries past the bridge will wait at the next one", "A promise is a loan", "You do not mend a roof by looking at the sky",
    "Water remembers where it used to run", "The shortest way is the one you know", "Ask the one who carries it how heavy it is",
]  # fmt: skip


def _scene(r: Random, hero: str, friend: str, thing: str) -> str:
    place, weather, trade = r.choice(PLACES), r.choice(WEATHER), r.choice(TRADES)
    steps = [
        f"The morning brought {weather}, and {hero} walked to {place} with {thing} under one arm.",
        f"The {trade} was there already, as every day, and looked up without surprise.",
        f'"You are late," said the {trade}. "{r.choice(SAYINGS)}."',
        f"{friend} laughed, but {hero} thought about it for the rest of the way.",
        f"At {r.choice(PLACES)} they counted what was left: {r.randint(2, 9)} coins, {r.randint(2, 12)} apples and half a loaf.",
        f'"It is enough," said {friend}. "It was less last {r.choice(["winter", "spring", "summer", "autumn"])}."',
        f"By noon they had asked at {r.randint(3, 14)} doors, and nobody had seen {thing} before.",
        f"An old {r.choice(TRADES)} turned it over twice, and gave it back with great care.",
        f"In the evening a lamp was lit at {place}, and for a while nobody spoke.",
        f"{hero} wrote it all down, because what is not written is told differently by everyone.",
    ]
    start = r.randint(0, 2)
    return " ".join(steps[start : start + r.randint(5, 8)])


def book_chapter(number: int, r: Random) -> str:
    """One chapter of about six thousand characters."""
    hero, friend = r.sample(NAMES, 2)
    thing = r.choice(OBJECTS)
    head = f"Chapter {number}\n\nIn which {hero} and {friend} carry {thing} to {r.choice(PLACES)}"
    return "\n\n".join([head, *(_scene(r, hero, friend, thing) for _ in range(r.randint(8, 14)))])


def question_and_answer(r: Random) -> str:
    """One problem with its worked solution, as plain text; the arithmetic is exact."""
    name = r.choice(NAMES)
    a, b, c = r.randint(3, 40), r.randint(2, 12), r.randint(2, 9)
    kind = r.randrange(6)
    if kind == 0:
        q = f"{name} buys {a} pencils at {b} cents each and pays with {a * b + c} cents. How much change is due?"
        s = f"The pencils cost {a} x {b} = {a * b} cents. The change is {a * b + c} - {a * b} = {c} cents."
    elif kind == 1:
        q = f"A train covers {a * b} kilometres in {b} hours at a steady speed. How far does it go in {c} hours?"
        s = f"Its speed is {a * b} / {b} = {a} km/h, so in {c} hours it covers {a} x {c} = {a * c} kilometres."
    elif kind == 2:
        q = f"Solve the equation {b}x + {c} = {b * a + c} for x."
        s = f"Subtract {c} on both sides: {b}x = {b * a}. Divide by {b}: x = {a}."
    elif kind == 3:
        q = f"A cell divides once every {b} minutes. Starting with {c} cells, how many are there after {4 * b} minutes?"
        s = f"{4 * b} minutes are 4 divisions. Each doubles the number: {c} x 2^4 = {c * 16} cells."
    elif kind == 4:
        q = f"What does the Python expression sum(range({c}, {c + a})) give, and why?"
        total = sum(range(c, c + a))
        s = f"It adds the whole numbers from {c} to {c + a - 1}, that is {a} terms with the mean {(2 * c + a - 1) / 2:g}. The sum is {total}."
    else:
        q = f"Dissolving {c} grams of salt in {10 * a} grams of water: what is the mass fraction of salt, in per cent?"
        s = f"The solution weighs {10 * a + c} grams. The fraction is {c} / {10 * a + c} = {100 * c / (10 * a + c):.2f} per cent."
    return f"Problem: {q}\n\nSolution: {s}\n"
